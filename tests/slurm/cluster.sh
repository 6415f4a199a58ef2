#!/usr/bin/env bash
# A real Slurm of N nodes on one Linux machine, for the tests of the job scripts. Needs root and Debian's packages, and
# neither systemd nor cgroups nor GPUs nor a network.
#
#   cluster.sh install           install what is missing, with apt-get
#   cluster.sh STATE up N        start N nodes, wait until all are idle
#   cluster.sh STATE down        stop everything; only the logs are left
#   cluster.sh STATE crash NODE  power loss: SIGKILL to every process of a node
#   cluster.sh STATE orphan NODE SIGKILL to its slurmd alone: Slurm takes the node for dead, while its tasks go on
#   cluster.sh STATE boot NODE   start a crashed node again
#
# STATE is a folder of the cluster's own. Exit code 3: this machine cannot have such a cluster, with the reason.
#
# How one machine becomes N nodes: each slurmd gets network, UTS, IPC and mount namespaces, so that it has a host name
# (node3), an address, ports and /dev/shm of its own. Where namespaces are not permitted (a container without
# privileges) the nodes share these and differ by the port of their slurmd ("multiple slurmd" support of Debian's build).
#
# shellcheck disable=SC2015,SC2016
set -euo pipefail
export LC_ALL=C PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH"

# What a node claims to have. Slurm schedules by it and never looks.
GPUS=8 GPU_TYPE=a100 CPUS=128 MEM=1000000
# Seconds, short where a real site waits: until a silent node is down (300 there), for which a requeued job is held back
# (120), from SIGTERM to SIGKILL (30).
NODE_TIMEOUT=20 REQUEUE_DELAY=10 KILL_WAIT=30
SUBNET=198.18.88   # 198.18/15 is set aside for laboratories
NS=mfslurm         # prefix of the namespaces and links made here
UPLINK=mfslurm0    # the submit host's port on the switch
CTLD_PORT=16817
NODE_PORT=17000    # shared mode: node i listens on 17000 + i

log() { echo "cluster: $*" >&2; }
die() { log "error: $*"; exit 1; }
cannot() { log "$*"; exit 3; }

# ---------------------------------------------------------------- processes ----

# Pid of the daemon in PIDFILE if it is alive and really ours (its command line
# names our state folder), else nothing: a stale pid file never hits a stranger.
live_pid() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] || return 1
  { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF -- "$STATE/" || return 1
  echo "$pid"
}

stop_pid() {                # SIGTERM, up to 8 s of patience, then SIGKILL
  kill "$1" 2>/dev/null || return 0
  for _ in {1..80}; do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
  kill -KILL "$1" 2>/dev/null || true
}

# Every process on node I: slurmd, slurmstepds and the jobs' own processes.
node_pids() {
  local env
  if [ "$MODE" = netns ]; then
    ip netns pids "$NS-node$1" 2>/dev/null || true
  else                      # daemons hold the node's log open; jobs show in environ
    find /proc/[0-9]*/fd -lname "$STATE/log/node$1.log" 2>/dev/null | cut -d/ -f3 | sort -u
    for env in /proc/[0-9]*/environ; do
      { tr '\0' '\n' <"$env"; } 2>/dev/null | awk -v c="SLURM_CONF=$STATE/etc/slurm.conf" \
        -v n="SLURMD_NODENAME=node$1" '$0 == c || $0 == n {t++} END {exit t < 2}' &&
        cut -d/ -f3 <<<"$env"
    done || true
  fi
}

kill_node() {               # twice, as a process may fork while we walk the list
  local p
  for _ in 1 2; do
    for p in $(node_pids "$1"); do kill -KILL "$p" 2>/dev/null || true; done
  done
}

# slurmd alone; the steps on the node do not notice.
kill_daemon() {
  local pid
  if pid=$(live_pid "$STATE/run/node$1.pid"); then kill -KILL "$pid"; fi
}

# ----------------------------------------------------------------- packages ----

missing_packages() {
  local want=()
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null &&
    command -v sbatch >/dev/null || want+=(slurm-wlm)
  command -v munged >/dev/null || want+=(munge)
  command -v ip >/dev/null || want+=(iproute2)
  command -v cc >/dev/null || want+=(gcc libc6-dev)
  [ -e /usr/include/slurm/spank.h ] || want+=(libslurm-dev)
  echo "${want[*]}"
}

cmd_install() {             # reads the package index only if it has to
  local want output
  read -ra want <<<"$(missing_packages)"
  [ ${#want[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || cannot "no apt-get here to install ${want[*]} with"
  log "installing Debian's packages ${want[*]}"
  output=$(mktemp)
  local apt=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -y
             -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120)
  "${apt[@]}" install --no-install-recommends "${want[@]}" >"$output" 2>&1 ||
    { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${want[@]}"; } >>"$output" 2>&1 ||
    { tail -5 "$output" >&2; rm "$output"; cannot "they cannot be installed"; }
  rm "$output"
}

# ------------------------------------------------------------------ network ----

netns_works() {             # may we make namespaces, links and mounts here?
  ip netns add "$NS-probe" 2>/dev/null || return 1
  local ok=1
  nsenter --net="/run/netns/$NS-probe" unshare --mount --uts --ipc sh -c \
    'hostname probe && ip link add p0 type veth peer name p1 &&
     ip link add b0 type bridge && mount --bind /etc/hosts /etc/hosts &&
     mount -t tmpfs shm /dev/shm' \
    >/dev/null 2>&1 || ok=0
  ip netns del "$NS-probe" 2>/dev/null || true
  [ $ok = 1 ]
}

# A switch (bridge) in a namespace of its own, so that the host's firewall cannot
# interfere, with one cable to each node and one to the submit host.
net_up() {
  local i sw="$NS-sw" ns
  if ! ip netns list | grep -qw "$sw"; then
    ip netns add "$sw"
    ip -n "$sw" link add br0 type bridge
    ip -n "$sw" link set br0 up
  fi
  if ! ip link show "$UPLINK" >/dev/null 2>&1; then
    ip link add "$UPLINK" type veth peer name submit netns "$sw"
    ip -n "$sw" link set submit master br0 up
    ip addr add "$SUBNET.254/24" dev "$UPLINK"
    ip link set "$UPLINK" up
  fi
  for ((i = 1; i <= N; i++)); do
    ns="$NS-node$i"
    if ip netns list | grep -qw "$ns"; then
      ip -n "$sw" link set "node$i" up      # (undoes a cut)
      continue
    fi
    ip netns add "$ns"
    ip -n "$sw" link add "node$i" type veth peer name eth0 netns "$ns"
    ip -n "$sw" link set "node$i" master br0 up
    ip -n "$ns" addr add "$SUBNET.$i/24" dev eth0
    ip -n "$ns" link set eth0 up
    ip -n "$ns" link set lo up
  done
}

net_down() {
  local ns
  for ns in $(ip netns list 2>/dev/null | awk -v p="^$NS-" '$1 ~ p {print $1}'); do
    ip netns del "$ns"
  done
  ip link del "$UPLINK" 2>/dev/null || true
}

# Shared mode only: node names into /etc/hosts. Rewritten in place, not renamed,
# because in containers /etc/hosts is a bind mount.
HOSTS_MARK="# megatron-focus test cluster"
my_addr() { getent ahostsv4 "$(hostname)" | awk 'NR == 1 {a = $1} END {print a ? a : "127.0.0.1"}'; }

hosts_block() {             # hosts_block add|remove
  local rest i addr
  addr=$(my_addr)
  rest=$(grep -v "$HOSTS_MARK\$" /etc/hosts || true)
  {
    echo "$rest"
    if [ "$1" = add ]; then
      getent ahostsv4 "$(hostname)" >/dev/null || echo "$addr $(hostname) $HOSTS_MARK"
      for ((i = 1; i <= N; i++)); do echo "$addr node$i $HOSTS_MARK"; done
    fi
  } >"$STATE/etc/hosts.new"
  cat "$STATE/etc/hosts.new" >/etc/hosts
}

# ------------------------------------------------------------ configuration ----

write_config() {
  local i addr me gres
  me=$(hostname -s)
  # slurmctld's address; in shared mode everybody's. There it has to be what this
  # host's name resolves to: loopback on Debian, but in docker the container's own IP.
  if [ "$MODE" = netns ]; then addr=$SUBNET.254; else addr=$(my_addr); fi

  # Fake GPUs: gres.conf wants character devices, and a link to /dev/null is one.
  # With files (not just a count) Slurm numbers the GPUs and sets
  # CUDA_VISIBLE_DEVICES as it does on a real cluster.
  gres="Gres=gpu:$GPU_TYPE:$GPUS"
  for ((i = 0; i < GPUS; i++)); do ln -sfn /dev/null "$STATE/dev/nvidia$i"; done
  echo "NodeName=node[1-$N] Name=gpu Type=$GPU_TYPE File=$STATE/dev/nvidia[0-$((GPUS - 1))]" >"$STATE/etc/gres.conf"

  {
    cat <<EOF
ClusterName=local
SlurmctldHost=$me($addr)
SlurmctldPort=$CTLD_PORT
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job is held back (default 120)
AuthInfo=socket=$STATE/munge/socket,cred_expire=$REQUEUE_DELAY
# slurmctld listens on the above address only, not on 0.0.0.0. So do, in shared mode,
# slurmd and srun; in netns mode the slurmds are in namespaces anyway, and srun on the
# submit host has to be reachable from the nodes.
CommunicationParameters=NoCtldInAddrAny$([ "$MODE" = netns ] || echo ,NoInAddrAny)
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/spool/%n
SlurmctldPidFile=$STATE/run/slurmctld.pid
SlurmdPidFile=$STATE/run/%n.pid
SlurmctldLogFile=$STATE/log/slurmctld.log
SlurmdLogFile=$STATE/log/%n.log
PlugStackConfig=$STATE/etc/plugstack.conf
MailProg=/bin/true

# no cgroups, no CPU binding, no accounting database
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# finished jobs: one line each (sacct needs a database)
JobCompType=jobcomp/filetxt
JobCompLoc=$STATE/log/jobcomp.log
MpiDefault=none

# cores, memory and GPUs are scheduled for real, from the sizes claimed below
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=5,sched_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1

# impatient, so that failure tests take seconds
SlurmctldTimeout=30
# A node answers a signal when its tasks have ended. Without an answer in this time slurmctld signals again a minute later,
# by the number of the step: a job that is back after REQUEUE_DELAY would be hit, one that is back after 120 s is not.
MessageTimeout=100
SlurmdTimeout=$NODE_TIMEOUT
KillWait=$KILL_WAIT
BatchStartTimeout=30
MinJobAge=3600
ReturnToService=2

NodeName=DEFAULT CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM $gres State=UNKNOWN
EOF
    for ((i = 1; i <= N; i++)); do
      if [ "$MODE" = netns ]; then
        echo "NodeName=node$i NodeAddr=$SUBNET.$i Port=$NODE_PORT"
      else
        echo "NodeName=node$i NodeHostname=$me NodeAddr=$addr Port=$((NODE_PORT + i))"
      fi
    done
    echo "PartitionName=gpu Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE DefMemPerCPU=1000 State=UP"
    echo "PartitionName=preempt Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=$KILL_WAIT" \
         "MaxTime=INFINITE DefMemPerCPU=1000 State=UP"
  } >"$STATE/etc/slurm.conf"

  # What each node (netns mode) sees as /etc/hosts
  {
    echo "127.0.0.1 localhost"
    echo "::1 localhost ip6-localhost"
    echo "$SUBNET.254 $me"
    for ((i = 1; i <= N; i++)); do echo "$SUBNET.$i node$i"; done
  } >"$STATE/etc/hosts"

  write_pyxis_stub
}

# A SPANK plugin with pyxis' option names: flags are accepted, nothing is put in a
# container, and a mount whose source is missing fails the step as enroot would.
write_pyxis_stub() {
  : >"$STATE/etc/plugstack.conf"
  cat >"$STATE/etc/pyxis_stub.c" <<'EOF'
#include <slurm/spank.h>
#include <string.h>
#include <unistd.h>
SPANK_PLUGIN(pyxis_stub, 1)
static char mounts[16384];
static int cb(int val, const char *arg, int remote)
{
	(void)remote;
	if (val == 1 && arg) strncpy(mounts, arg, sizeof(mounts) - 1);
	return 0;
}
#define OPT(name, arg, val) { name, arg, "[pyxis stub] accepted, ignored", arg != NULL, val, cb }
struct spank_option spank_options[] = {
	OPT("container-image", "IMAGE", 0), OPT("container-mounts", "SRC:DST[:FLAGS]", 1),
	OPT("container-workdir", "PATH", 0), OPT("container-name", "NAME", 0),
	OPT("container-save", "PATH", 0), OPT("container-env", "NAMES", 0),
	OPT("container-mount-home", NULL, 0), OPT("no-container-mount-home", NULL, 0),
	OPT("container-remap-root", NULL, 0), OPT("no-container-remap-root", NULL, 0),
	OPT("container-entrypoint", NULL, 0), OPT("no-container-entrypoint", NULL, 0),
	OPT("container-entrypoint-log", NULL, 0),
	OPT("container-writable", NULL, 0), OPT("container-readonly", NULL, 0),
	SPANK_OPTIONS_TABLE_END
};
int slurm_spank_user_init(spank_t sp, int ac, char **av)
{
	char *m, *save = NULL;
	(void)sp; (void)ac; (void)av;
	for (m = strtok_r(mounts, ",", &save); m; m = strtok_r(NULL, ",", &save)) {
		char *colon = strchr(m, ':');
		if (colon) *colon = 0;
		if (*m == '/' && access(m, F_OK)) {
			slurm_error("pyxis stub: mount source %s is missing", m);
			return -1;
		}
	}
	return 0;
}
EOF
  if cc -shared -fPIC -O1 -o "$STATE/etc/pyxis_stub.so" "$STATE/etc/pyxis_stub.c" \
      2>"$STATE/log/pyxis_stub.log"; then
    echo "required $STATE/etc/pyxis_stub.so" >"$STATE/etc/plugstack.conf"
  else
    die "the pyxis stub does not compile: $(cat "$STATE/log/pyxis_stub.log")"
  fi
}

# ------------------------------------------------------------------ daemons ----

start_munged() {
  live_pid "$STATE/munge/pid" >/dev/null && return 0
  if [ ! -s "$STATE/munge/key" ]; then
    (umask 077; head -c 1024 /dev/urandom >"$STATE/munge/key")
  fi
  rm -f "$STATE"/munge/{pid,socket,socket.lock}
  munged --force --key-file="$STATE/munge/key" --socket="$STATE/munge/socket" \
    --pid-file="$STATE/munge/pid" --log-file="$STATE/log/munged.log" \
    --seed-file="$STATE/munge/seed" </dev/null >>"$STATE/log/munged.log" 2>&1 ||
    die "munged does not start: $(tail -2 "$STATE/log/munged.log")"
}

# slurmctld listens on what its own hostname resolves to (NoCtldInAddrAny), hence the
# private /etc/hosts in netns mode.
start_slurmctld() {
  local clean=(env -i PATH="$PATH")
  live_pid "$STATE/run/slurmctld.pid" >/dev/null && return 0
  if [ "$MODE" = netns ]; then
    "${clean[@]}" unshare --mount --propagation slave sh -ec '
      mount --bind "$1/etc/hosts" /etc/hosts
      exec slurmctld -f "$1/etc/slurm.conf"' sh "$STATE"
  else
    "${clean[@]}" slurmctld -f "$STATE/etc/slurm.conf"
  fi </dev/null >>"$STATE/log/slurmctld.log" 2>&1 ||
    die "slurmctld does not start: $(tail -3 "$STATE/log/slurmctld.log")"
}

start_slurmd() {            # start_slurmd I
  local clean=(env -i PATH="$PATH")
  live_pid "$STATE/run/node$1.pid" >/dev/null && return 0
  mkdir -p "$STATE/spool/node$1"
  if [ "$MODE" = netns ]; then
    "${clean[@]}" nsenter --net="/run/netns/$NS-node$1" \
      unshare --mount --uts --ipc --propagation slave sh -ec '
        hostname "$2"
        mount --bind "$1/etc/hosts" /etc/hosts
        mount -t tmpfs -o mode=1777 shm /dev/shm
        exec slurmd -N "$2" -f "$1/etc/slurm.conf"' sh "$STATE" "node$1"
  else
    "${clean[@]}" slurmd -N "node$1" -f "$STATE/etc/slurm.conf"
  fi </dev/null >>"$STATE/log/node$1.log" 2>&1 ||
    die "slurmd of node$1 does not start: $(tail -3 "$STATE/log/node$1.log")"
}

# Slurm leaves a node that was DOWN or drained as it is even once it answers again.
resume_nodes() {            # resume_nodes [NODE]
  local node
  for node in $(timeout 5 sinfo -h -N -p preempt ${1:+-n "$1"} -o '%N %T' 2>/dev/null |
                awk '$2 ~ /^(down|drain|fail)/ {print $1}'); do
    timeout 5 scontrol update "nodename=$node" state=resume && log "$node resumed"
  done || true
}

# How many nodes answer and can run jobs ("idle*" or "down" are not such states).
# The partition "preempt" has every node once.
nodes_ok() {                # nodes_ok [NODE]
  timeout 5 sinfo -h -N -p preempt ${1:+-n "$1"} -o %t 2>/dev/null |
    grep -cE '^(idle|mix|alloc|comp)$' || true
}

wait_ready() {              # wait_ready [NODE]: for all nodes, or for one
  local goal=$N end=$((SECONDS + 60))
  [ $# = 0 ] || goal=1
  while ((SECONDS < end)); do
    [ "$(nodes_ok "$@")" = "$goal" ] && return 0
    resume_nodes "$@"
    sleep 0.2
  done
  timeout 5 sinfo -N -l >&2 || true
  die "after 60 s only $(nodes_ok "$@") of $goal nodes are up; logs are in $STATE/log"
}

# ----------------------------------------------------------------- commands ----

load() {                    # N and MODE of the cluster in this state folder
  [ -e "$STATE/cluster" ] || return 1
  # shellcheck disable=SC1091
  . "$STATE/cluster"
}

want_node() {               # "node3" -> I
  I=${1#node}
  [[ $I =~ ^[0-9]+$ ]] && ((I >= 1 && I <= N)) || die "no such node: $1"
}

# What a machine leaves that went down with a cluster on it: networks without a process.
clear_dead() {
  local ns others=""
  for ns in $(ip netns list 2>/dev/null | awk -v prefix="$NS-" 'index($1, prefix) == 1 { print $1 }'); do
    others=yes
    [ -z "$(ip netns pids "$ns")" ] || die "another cluster of this script is up: one at a time"
  done
  [ -z "$others" ] || net_down
}

cmd_up() {
  local i want
  N=${1:?number of nodes}
  want=$(missing_packages)
  [ -z "$want" ] || cannot "without Debian's packages $want, which 'bash tests/slurm/cluster.sh install' installs"
  ((${#STATE} <= 60)) || die "state folder's path is too long for unix sockets: $STATE"
  ! load || die "already up in $STATE"
  mkdir -p "$STATE"/{etc,log,run,spool,dev,munge,ctld}
  chmod 700 "$STATE/ctld"
  clear_dead
  if netns_works; then MODE=netns; else MODE=shared; fi
  write_config
  printf 'N=%s\nMODE=%s\n' "$N" "$MODE" >"$STATE/cluster"
  if [ "$MODE" = netns ]; then net_up; else hosts_block add; fi
  start_munged
  start_slurmctld
  for ((i = 1; i <= N; i++)); do start_slurmd "$i"; done
  wait_ready
  log "$N nodes up ($MODE mode, $(sinfo --version))"
}

cmd_down() {
  local i pid
  load || return 0
  if pid=$(live_pid "$STATE/run/slurmctld.pid"); then stop_pid "$pid"; fi
  for ((i = 1; i <= N; i++)); do kill_node "$i"; done
  if pid=$(live_pid "$STATE/munge/pid"); then stop_pid "$pid"; fi
  if [ "$MODE" = netns ]; then net_down; else hosts_block remove; fi
  rm -rf "${STATE:?}"/{etc,run,spool,dev,munge,ctld,cluster}
}

main() {
  [ "$(id -u)" = 0 ] || cannot "a cluster on one machine needs root"
  if [ "${1:-}" = install ]; then
    cmd_install
    return
  fi
  STATE=$(realpath -m -- "${1:?folder of the cluster}")
  local cmd=${2:-help}; shift; shift || true
  export SLURM_CONF=$STATE/etc/slurm.conf
  case $cmd in
    up)     cmd_up "$@" ;;
    down)   cmd_down ;;
    crash|orphan|boot)
      load || die "not up"
      want_node "${1:?which node?}"
      case $cmd in
        crash)  kill_node "$I" ;;
        orphan) kill_daemon "$I" ;;
        boot)   kill_node "$I"; start_slurmd "$I"; wait_ready "node$I" ;;
      esac ;;
    *) die "unknown command: $cmd" ;;
  esac
}

main "$@"
