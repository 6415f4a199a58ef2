# shellcheck shell=bash
# Sourced by train.sh: what is known of this job's earlier lives (each start of a job is one), and why one ended.
#
# $logs/lives has a line "LIFE STEP" for each life, with the newest checkpoint at its start (-1: none), and a line
# "LIFE interrupted" if it was preempted. Only what is in files survives a requeue.

# outside PATH: where the node has a path of the container; the first mount that holds it counts.
outside() {
    local mount mounts=() source target
    [ -z "${MEGATRON_FOCUS_IMAGE:-}" ] || IFS=, read -ra mounts <<<"${MEGATRON_FOCUS_MOUNTS:-}"
    for mount in "${mounts[@]}"; do
        IFS=: read -r source target _ <<<"$mount"
        target=${target%/}
        if [[ -n $target && $1/ == "$target"/* ]]; then
            echo "${source%/}${1#"$target"}"
            return
        fi
    done
    echo "$1"
}

# newest_checkpoint FOLDER: the step of the newest complete checkpoint, -1 if there is none.
newest_checkpoint() {
    local newest=-1 path
    for path in "$1"/iter_*; do
        if [[ ${path##*/} =~ ^iter_([0-9]+)$ ]] && ((10#${BASH_REMATCH[1]} > newest)); then
            newest=$((10#${BASH_REMATCH[1]}))
        fi
    done
    echo "$newest"
}

# rival FOLDER: makes this life the owner of a folder of checkpoints, as the trainer does again; prints the job that is the
# owner and runs, if there is one. Of jobs that start at the same moment, the last to write goes on.
rival() {
    local look owner aside=$1/owner.$LIFE
    for look in first second; do
        owner=$(cat -- "$1/owner" 2>/dev/null || true)
        owner=${owner%%.*}
        if [[ $owner =~ ^[0-9]+$ && $owner != "$SLURM_JOB_ID" ]] &&
            [[ $(squeue -h -j "$owner" -o %T 2>/dev/null) =~ ^(RUNNING|SUSPENDED)$ ]]; then
            echo "$owner"
            return
        fi
        # What cannot be written here, the preflight or the trainer will name.
        [ "$look" = first ] || return 0
        { mkdir -p -- "$1" && printf %s "$LIFE" >"$aside" && mv -- "$aside" "$1/owner"; } 2>/dev/null ||
            rm -f -- "$aside"
    done
}

# lives_without_progress FILE RESTARTS: how many lives in a row, up to this one, the RESTARTS-th, started no further than an
# earlier one did. Interrupted ones are not counted: they did not fail. Those that could not be noted (a full disk) are.
lives_without_progress() {
    { cat -- "$1" 2>/dev/null || true; } | awk -v restarts="$2" '
        { split($1, life, "."); noted = life[2] + 1 }
        $2 == "interrupted" { count--; next }
        !seen || $2 > furthest { furthest = $2; count = 0; seen = 1 }
        { count++ }
        END { count = count < 0 ? 0 : count; print count + restarts + 1 - noted }'
}

# furthest FILE STEP: the newest checkpoint that any life started from; this one from STEP, which may not have been noted.
furthest() {
    { cat -- "$1" 2>/dev/null || true; } | awk -v furthest="$2" '
        $2 != "interrupted" && $2 > furthest { furthest = $2 }
        END { print furthest }'
}

# first_failure FILE: "rank RANK: REASON" of the task that failed first, or "node failure on NODE", from srun's messages;
# nothing without such. With --kill-on-bad-exit the other tasks are ended because of it.
first_failure() {
    sed -nE -e 's/^srun: error: ([^ ]+): tasks? ([0-9]+)[0-9,-]*: (.*)$/rank \2 on \1: \3/p' \
        -e 's/^srun: error: Node failure on (.*)$/node failure on \1/p' "$1" | head -n 1
}

# last_words LOG: the last lines of this life in a rank's log.
last_words() {
    awk -v life="life $LIFE," '/^--- rank / { here = index($0, life) } here' "$1" | tail -n 25
}

# setting SECTION KEY FILE: a value of the resolved configuration, as --dry-run prints it.
setting() {
    awk -v section="$1:" -v key="$2:" '
        /^[^ ]/ { here = $0 == section }
        here && $1 == key { sub(/^[^:]*: */, ""); gsub(/^["\047]|["\047]$/, ""); print }' "$3"
}
