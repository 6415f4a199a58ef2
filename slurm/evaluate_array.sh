#!/usr/bin/env bash
# Evaluate a release on many GPUs, one for each task of the array. From the repository's root:
#
#   sbatch --array=0-7 slurm/evaluate_array.sh RELEASE --questions FILE --images FOLDER --metric NAME --output FOLDER
#
# The arguments are those of tools/evaluate.py. Release, questions, images and output lie on storage that all nodes share.
# Partition, account and time limit come from sbatch's command line or its SBATCH_* variables.
# Without GPUs: sbatch --gpus-per-node=0 ...

#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
# One log for each task of the array, in the folder that sbatch was called in.
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue

set -euo pipefail
# shellcheck source=slurm/environment.sh
source "${MEGATRON_FOCUS_ROOT:-$SLURM_SUBMIT_DIR}/slurm/environment.sh"
# shellcheck source=slurm/array.sh
source "$root/slurm/array.sh"

exec srun --ntasks=1 "${container[@]}" python -m tools.evaluate "$@" --task "$task" --tasks "$tasks"
