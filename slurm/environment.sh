# shellcheck shell=bash disable=SC2034
# Sourced by every job script: where the programs run, and the variables they run with.
#
# A site sets what it needs, in the shell that calls sbatch (or with --export=ALL,NAME=value); all of it may be left out:
#   MEGATRON_FOCUS_IMAGE   container image for pyxis and enroot: a .sqsh file, or a name such as nvcr.io#nvidia/pytorch:TAG
#   MEGATRON_FOCUS_MOUNTS  more folders for the container: SOURCE:TARGET[,SOURCE:TARGET ...], for data and checkpoints
#   MEGATRON_FOCUS_VENV    folder of a virtual environment; without it and without an image, the one that is active
#                          when sbatch is called is used
#   MEGATRON_FOCUS_ROOT    the checkout of this repository; default: the folder that sbatch was called in
# Partition, account, qos and reservation have variables of Slurm's own: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS.
#
# Gives to the scripts: root (the checkout), container (flags for srun, none without an image).

root=${MEGATRON_FOCUS_ROOT:-$SLURM_SUBMIT_DIR}

# The job runs in the folder that sbatch was called in, so relative paths mean what they meant on the command line; the
# programs come from the checkout.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# Lines appear in a log when they are written, not when a buffer is full; without this a killed rank's last ones are lost.
export PYTHONUNBUFFERED=1
# A rank that dies of a signal (segmentation fault, bus error of a full /dev/shm) still says where it was.
export PYTHONFAULTHANDLER=1
# Each rank, and each process that reads data, is a process of its own. With torch's default, one thread for each core in
# each of them, they only wait for one another.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# The tokenizer is used in processes that fork; its threads would make it print a warning in each.
export TOKENIZERS_PARALLELISM=false
# Compute nodes often cannot reach the internet. A file that is missing is an error at once, not after a time-out.
export HF_HUB_OFFLINE=1

# One hardware queue: kernels start in the order in which they were issued, which Megatron relies on to overlap
# tensor-parallel communication with computation (A100, H100).
export CUDA_DEVICE_MAX_CONNECTIONS=1
# Packed rows and shrinking sequences differ in length from step to step; memory segments that can grow keep the allocator
# from running out of memory by fragmentation.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# Says which node and which connection when NCCL fails, and nothing else.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# NCCL and gloo find the network themselves. Where they take the wrong one, the site sets NCCL_SOCKET_IFNAME,
# NCCL_IB_HCA or GLOO_SOCKET_IFNAME before sbatch: variables travel with the job.

# What an image sets in its own environment would win over the above without --container-env.
_ours=PYTHONPATH,PYTHONUNBUFFERED,PYTHONFAULTHANDLER,OMP_NUM_THREADS,TOKENIZERS_PARALLELISM,HF_HUB_OFFLINE
_ours+=,CUDA_DEVICE_MAX_CONNECTIONS,PYTORCH_CUDA_ALLOC_CONF,NCCL_DEBUG

# Flags of srun, not of sbatch: the batch script itself needs Slurm's commands, which images do not have.
container=()
if [ -n "${MEGATRON_FOCUS_IMAGE:-}" ] && [ -n "${MEGATRON_FOCUS_VENV:-}" ]; then
    echo "error: MEGATRON_FOCUS_IMAGE=$MEGATRON_FOCUS_IMAGE has a Python of its own, so MEGATRON_FOCUS_VENV does nothing:" \
        "unset one of them" >&2
    exit 2
elif [ -n "${MEGATRON_FOCUS_IMAGE:-}" ]; then
    # The checkout and the folder of the job lie at the same paths inside, so that messages name files that exist outside.
    _mounts=$root:$root
    [ "$PWD" = "$root" ] || _mounts+=,$PWD:$PWD
    if [ -n "${MEGATRON_FOCUS_LOGS:-}" ]; then
        mkdir -p "$MEGATRON_FOCUS_LOGS"
        _mounts+=,$(realpath "$MEGATRON_FOCUS_LOGS"):$(realpath "$MEGATRON_FOCUS_LOGS")
    fi
    container=(
        --container-image="$MEGATRON_FOCUS_IMAGE"
        --container-mounts="$_mounts${MEGATRON_FOCUS_MOUNTS:+,$MEGATRON_FOCUS_MOUNTS}"
        --container-workdir="$PWD"
        # Packages in ~/.local would shadow the image's.
        --no-container-mount-home
        --container-env="$_ours"
    )
elif [ -n "${MEGATRON_FOCUS_VENV:-}" ]; then
    if [ ! -x "$MEGATRON_FOCUS_VENV/bin/python" ]; then
        echo "error: MEGATRON_FOCUS_VENV=$MEGATRON_FOCUS_VENV has no bin/python that $(hostname) can see" >&2
        exit 2
    fi
    export PATH=$MEGATRON_FOCUS_VENV/bin:$PATH VIRTUAL_ENV=$MEGATRON_FOCUS_VENV
fi

# Since 22.05, srun does not take over what sbatch was given.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
