#!/usr/bin/env bash
# Turn a run's newest checkpoint into a Hugging Face release. From the repository's root:
#
#   sbatch slurm/export_hf.sh --checkpoint runs/finetune --output release
#   sbatch --dependency=afterok:JOB --kill-on-invalid-dep=yes slurm/export_hf.sh --checkpoint ... --output ...
#
# The arguments are those of tools/export_hf.py. One process without a GPU: tensors are streamed from file to file.
# The second line waits for the training job JOB and is dropped if that fails; without --kill-on-invalid-dep it would then
# wait for ever.

#SBATCH --job-name=export-hf
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# An export that loses its node starts again; half a release never has its final name.
#SBATCH --requeue

set -euo pipefail
# shellcheck source=slurm/environment.sh
source "${MEGATRON_FOCUS_ROOT:-$SLURM_SUBMIT_DIR}/slurm/environment.sh"

exec srun --ntasks=1 "${container[@]}" python -m tools.export_hf "$@"
