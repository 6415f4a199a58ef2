# shellcheck shell=bash
# Sourced by pretrain_8node.sh and finetune_8node.sh, with default_config set and their arguments in $@.
# Starts one rank on every GPU of the job, and ends the job, or starts it again, by how the run ended.
set -euo pipefail

# shellcheck source=slurm/environment.sh
source "${MEGATRON_FOCUS_ROOT:-$SLURM_SUBMIT_DIR}/slurm/environment.sh"
# shellcheck source=slurm/lives.sh
source "$root/slurm/lives.sh"

config=$root/${default_config:?}
if [[ ${1:-} == *.yaml || ${1:-} == *.yml ]]; then
    config=$1
    shift
fi

# A rank for each GPU. The job has whole nodes (--exclusive), so what was asked for counts, not what was given.
gpus=${SLURM_GPUS_PER_NODE:-0}
ranks_per_node=${SLURM_NTASKS_PER_NODE:-${gpus##*:}}
((ranks_per_node > 0)) || ranks_per_node=1
world_size=$((SLURM_JOB_NUM_NODES * ranks_per_node))

# A job keeps its number when it is started again; a life is one start of it.
export LIFE=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
logs=${MEGATRON_FOCUS_LOGS:-logs}/$SLURM_JOB_NAME-$SLURM_JOB_ID
mkdir -p "$logs"
outcome=$logs/outcome-$LIFE.json srun_log=$logs/srun-$LIFE.log

# The first node: its name resolves on all others. scontrol is asked here because images do not have it.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a node must not share a port; ports below are the system's, those above are handed out by the kernel.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# A full disk must not end this script: the job would not come back.
say() { echo "=== $(date '+%F %T') $*" || true; }
note() { echo "$LIFE $1" >>"$logs/lives" || true; }

# --- signals: ask the ranks for a checkpoint ---

step="" asked="" woken="" errors="" started=-1
forward() {
    woken=1
    [ -z "$asked" ] || return 0
    asked=$1
    say "SIG$asked: asking the ranks to write a checkpoint and end"
    # Being preempted is no failure, however often. A time limit is one if it leaves no time for a single step.
    [ "$asked" = USR1 ] || note interrupted
    [ -z "$step" ] || keep_asking &
}
# Never SIGTERM to srun: it would end the tasks. SIGUSR1 it passes on. Repeated, because a rank that is still being
# started has no handler yet.
keep_asking() {
    trap - USR1 TERM
    exec {errors}>&-
    while kill -USR1 "$step" 2>/dev/null; do sleep 10; done
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# run_step SRUN_ARGUMENT...: returns the step's exit code. In the background, because bash runs traps during wait alone.
run_step() {
    local code=0 tee
    exec {errors}> >(trap '' USR1 TERM && exec tee -a -- "$srun_log" >&2)
    tee=$!
    # --wait: a rank that does not end ten minutes after another one has ended never will.
    srun --kill-on-bad-exit=1 --wait=600 "${container[@]}" "$@" 2>&"$errors" {errors}>&- &
    step=$!
    # The signal may have come before there was anything to ask.
    [ -z "$asked" ] || keep_asking &
    while :; do
        woken=""
        wait "$step" && code=0 || code=$?
        [ -n "$woken" ] || break
    done
    step=""
    exec {errors}>&-
    wait "$tee" || true
    return "$code"
}

# One task per rank, with its share of the node's cores.
everywhere=(
    --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$world_size" --ntasks-per-node="$ranks_per_node"
    --cpus-per-task="$((SLURM_CPUS_ON_NODE > ranks_per_node ? SLURM_CPUS_ON_NODE / ranks_per_node : 1))"
)

# --- how the job ends ---

# slurm_says COMMAND ...: its output; asked for five minutes, because what has ended the ranks may have cut off slurmctld.
slurm_says() {
    local answer
    for _ in {1..30}; do
        if answer=$("$@"); then
            echo "$answer"
            return
        fi
        sleep 10
    done
    say "no answer for five minutes: $*" >&2
}

# start_again REASON: exits. Only a running job is requeued: one that was cancelled would come back from the dead.
start_again() {
    if [ "$(slurm_says squeue -h -j "$SLURM_JOB_ID" -o %T)" != RUNNING ]; then
        say "$1; Slurm is ending the job"
        exit 1
    fi
    # A node that was cut off may still run this while the job has been started again: that life must not be requeued.
    if [ "$(slurm_says scontrol show job "$SLURM_JOB_ID" | sed -nE 's/.*Restarts=([0-9]+).*/\1/p')" != "${SLURM_RESTART_COUNT:-0}" ]; then
        say "$1; the job has been started again elsewhere"
        exit 1
    fi
    say "$1; the job goes back into the queue"
    # Slurm ends this script while it requeues the job, so nothing can follow; its SIGTERM is no request to anybody now.
    trap - USR1 TERM
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
    say "it cannot be requeued; the next job of its name goes on, if there is one (sbatch --dependency=singleton)"
    exit 1
}

# start_again_if_useful REASON: exits. Of starts in a row that bring no new checkpoint there may be MAX_FAILURES.
start_again_if_useful() {
    local now failures limit=${MAX_FAILURES:-3}
    now=$(newest_checkpoint "$(outside "$save")")
    if ((now > $(furthest "$logs/lives" "$started"))); then
        start_again "$1; the newest checkpoint is of step $now"
    fi
    failures=$(lives_without_progress "$logs/lives" "${SLURM_RESTART_COUNT:-0}")
    if ((failures >= limit)); then
        say "$1; $failures starts in a row without a new checkpoint, so the job ends here"
        exit 1
    fi
    start_again "$1; start $failures of $limit without a new checkpoint"
}

# interrupted REASON: exits; the job was asked to end.
interrupted() {
    if [ "$save" = null ]; then
        say "$1; without checkpoint.save the next start would do the same again, so the job ends here"
        exit 1
    fi
    [ "$asked" != USR1 ] || start_again_if_useful "$1"
    [ -n "$asked" ] || note interrupted
    start_again "$1"
}

# crashed STEP CODE: says which rank failed first, and why; exits.
crashed() {
    local reason verdict rank="" refused=""
    reason=$(first_failure "$srun_log")
    # 2: the program refused its input. 126, 127: there is no such program. No retry mends these.
    [[ ! $2 =~ ^(2|126|127)$ && ! $reason =~ "exit code "(2|126|127)$ ]] || refused=yes
    if [[ $reason =~ ^rank\ ([0-9]+)\ on ]] && [ -f "$logs/$1-${BASH_REMATCH[1]}.log" ]; then
        rank=${BASH_REMATCH[1]}
        say "last lines of $logs/$1-$rank.log:"
        last_words "$logs/$1-$rank.log"
    fi
    reason="$1 failed: ${reason:-srun ended with $2}"
    # All of preflight's ranks end with its verdict; the node that it names is the one that counts.
    if [ "$1" = preflight ] && verdict=$(last_words "$logs/preflight-0.log" | grep '^preflight: ' | tail -n 1); then
        reason="$verdict (${reason##*: })"
        [ -n "$refused" ] ||
            say "to leave a node out, while the job waits: scontrol update jobid=$SLURM_JOB_ID excnodelist=NODE"
    fi
    [ -z "$asked" ] || reason+=", after it had been asked to end"
    [ "$asked" != TERM ] || interrupted "$reason"
    if [ -n "$refused" ]; then
        say "$reason; not tried again"
        exit 2
    fi
    start_again_if_useful "$reason"
}

# --- the job ---

say "$SLURM_JOB_NAME $LIFE: $SLURM_JOB_NUM_NODES nodes ($SLURM_JOB_NODELIST) x $ranks_per_node ranks = $world_size"
say "logs of the ranks: $logs; configuration: $config $*"

# On one rank first: an error of the configuration then appears once and not world_size times.
resolved=$logs/config-$LIFE.yaml
run_step --nodes=1 --ntasks=1 --ntasks-per-node=1 \
    python -m megatron_focus.train "$config" "$@" --dry-run --world-size "$world_size" >"$resolved" ||
    {
        code=$? save=""
        note "$started"
        crashed config "$code"
    }
cat "$resolved"

save=$(setting checkpoint save "$resolved")
if [ "$save" = null ]; then
    say "warning: checkpoint.save is not set, so whatever ends this run loses it"
fi
started=$(newest_checkpoint "$(outside "$save")")
note "$started"
[ -z "$asked" ] || interrupted "asked to end before the training began"

# Two jobs would take the folder from one another, and one would have trained for nothing.
if [ "$save" != null ] && rival=$(rival "$(outside "$save")") && [ -n "$rival" ]; then
    say "job $rival runs, and saves into checkpoint.save=$save: wait for it (sbatch --dependency=afterany:$rival) or name" \
        "another folder; not tried again"
    exit 2
fi

if [ "${PREFLIGHT:-1}" != 0 ]; then
    read -ra limits <<<"${PREFLIGHT_ARGS:-}"
    run_step "${everywhere[@]}" bash "$root/slurm/rank.sh" "$logs/preflight" \
        python -m tools.preflight "${limits[@]}" "$config" "$@" || crashed preflight $?
    [ -z "$asked" ] || interrupted "asked to end before the training began"
fi

run_step "${everywhere[@]}" bash "$root/slurm/rank.sh" "$logs/rank" \
    python -m megatron_focus.train "$config" "$@" --outcome "$outcome" --life "$LIFE" && code=0 || code=$?

# The file, not srun's exit code, says that the run ended in good order: srun has returned 0 for containers that did not
# start, and something else for ranks that had finished and were slow to go.
status=$(sed -nE 's/.*"status": *"([a-z]+)".*/\1/p' "$outcome" 2>/dev/null || true)
if [ "$status" = finished ]; then
    say "finished: $(cat "$outcome")"
elif [ "$status" = interrupted ] && { [ -n "$asked" ] || [ "$code" = 0 ]; }; then
    interrupted "interrupted: $(cat "$outcome")"
else
    # Also when the ranks were only asked to end because another one had failed.
    crashed rank "$code"
fi
