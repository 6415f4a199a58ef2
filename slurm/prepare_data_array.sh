#!/usr/bin/env bash
# Prepare a data set on many nodes. From the repository's root, with the Python environment active, or with an image:
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
#SBATCH --output=%x-%A_%a.log
# A task that is preempted or loses its node starts again, goes on from its complete shards and keeps its log.
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
# shellcheck source=slurm/environment.sh
source "${MEGATRON_FOCUS_ROOT:-$SLURM_SUBMIT_DIR}/slurm/environment.sh"
# shellcheck source=slurm/array.sh
source "$root/slurm/array.sh"

# By default the tool has as many workers as the task has cores.
exec srun --ntasks=1 "${container[@]}" python -m tools.prepare_data "$@" --task "$task" --tasks "$tasks"
