# shellcheck shell=bash disable=SC2034
# Sourced by the array scripts: task i of n, counted from 0, whatever the array's first number is.

: "${SLURM_ARRAY_TASK_ID:?submit this script as an array, e.g. sbatch --array=0-15}"

# Task i of n takes the pieces i, i + n, i + 2n and so on, so the array's numbers have to be consecutive.
task=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))
tasks=$((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN + 1))
if ((tasks != SLURM_ARRAY_TASK_COUNT)); then
    echo "error: the array's numbers are not consecutive; use one such as --array=0-$((SLURM_ARRAY_TASK_COUNT - 1))" >&2
    exit 2
fi
