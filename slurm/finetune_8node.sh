#!/usr/bin/env bash
# Stage 2: the whole model with its samplers, on instructions.
#   sbatch slurm/finetune_8node.sh [CONFIG.yaml] [section.key=value ...]        (default: examples/paper/finetune.yaml)
#   sbatch --nodes=2 --gpus-per-node=4 slurm/finetune_8node.sh optimizer.lr=2e-5
#
# From the repository's root, with the Python environment active, or with an image: see slurm/README.md.
# Partition, account and time limit come from sbatch's command line or its SBATCH_* variables.

#SBATCH --job-name=finetune
#SBATCH --nodes=8
#SBATCH --gpus-per-node=8
# Whole nodes, with all their cores and memory: ranks of a job wait for each other, so a neighbour would slow down all.
#SBATCH --exclusive
#SBATCH --mem=0
# The job's log, in the folder that sbatch was called in; a life that follows another goes on writing it.
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Preemption and lost nodes start the job again; the run goes on from its newest checkpoint.
#SBATCH --requeue
# Three minutes before the time limit this script is told (B:), finishes the step, writes a checkpoint and requeues.
#SBATCH --signal=B:USR1@180

default_config=examples/paper/finetune.yaml
# shellcheck source=slurm/train.sh
source "${MEGATRON_FOCUS_ROOT:-$SLURM_SUBMIT_DIR}/slurm/train.sh"
