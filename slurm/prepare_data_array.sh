#!/usr/bin/env bash
# Prepare a data set on many nodes. From the repository's root, with the Python environment active:
#
#   sbatch --array=0-15 slurm/prepare_data_array.sh --source KIND=FOLDER ... --tokenizer FOLDER --output FOLDER
#
# The arguments are those of tools/prepare_data.py. Source and output folders lie on storage that all nodes share.
# Partition, account, time limit and more cores come from sbatch's command line or its SBATCH_* variables.
# After a failure submit the same line again, with an array of any size: complete shards are not written again.

#SBATCH --job-name=prepare-data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
# One log for each task of the array, in the folder that sbatch was called in.
#SBATCH --output=prepare-data-%A_%a.log
# A task that is preempted or loses its node starts again, goes on from its complete shards and keeps its log.
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

: "${SLURM_ARRAY_TASK_ID:?submit this script as an array: sbatch --array=0-15 slurm/prepare_data_array.sh ...}"

# Task i of n writes the shards i, i + n, i + 2n and so on, so the array's numbers have to be consecutive.
task=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))
tasks=$((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN + 1))
if ((tasks != SLURM_ARRAY_TASK_COUNT)); then
    echo "error: the array's numbers are not consecutive; use one such as --array=0-$((SLURM_ARRAY_TASK_COUNT - 1))" >&2
    exit 1
fi

# The workers are processes already; threads inside each of them would only compete for the same cores.
export OMP_NUM_THREADS=1
# Lines appear in the log when they are written, not when a buffer is full.
export PYTHONUNBUFFERED=1

# exec: signals of Slurm reach the tool itself. By default it has as many workers as the task has cores.
exec python -m tools.prepare_data "$@" --task "$task" --tasks "$tasks"
