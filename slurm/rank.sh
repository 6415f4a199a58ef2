#!/usr/bin/env bash
# One task of a step, on its node and inside the container: bash slurm/rank.sh LOG PROGRAM [ARGUMENT ...]
# Writes LOG-RANK.log; rank 0 also to the step's own output, which is the job's log.
set -euo pipefail

log=$1-$SLURM_PROCID.log
shift

# Torch's names of a rank. They are known here only: the batch script runs once, this once per GPU. All GPUs of the node
# stay visible to each task, because NCCL reaches the neighbours' memory directly; LOCAL_RANK chooses.
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID

# Until the program has set its own handlers, a signal that asks for a checkpoint must not kill it. tee inherits this and
# lives as long as its rank: Slurm may signal every process of the step.
trap '' USR1 TERM

# A full disk under the logs ends nothing.
echo "--- rank $RANK of $WORLD_SIZE on $(hostname), life $LIFE, $(date '+%F %T')" >>"$log" || true
if [ "$RANK" = 0 ]; then
    exec > >(exec tee -a -- "$log") 2>&1
else
    exec >>"$log" 2>&1
fi
# exec: the program is the task itself, to which Slurm delivers signals.
exec "$@"
