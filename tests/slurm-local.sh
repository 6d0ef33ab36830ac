#!/usr/bin/env bash
# A Slurm of one's own on this machine, with several virtual nodes, and the command line of PBS before it.
#   tests/slurm-local.sh install    the packages of Debian or Ubuntu (as root)
#   tests/slurm-local.sh start      returns when all nodes are idle; nothing to do if they are
#   tests/slurm-local.sh stop       cancels its jobs and ends its daemons
#   eval "$(tests/slurm-local.sh env)"   lets sbatch, qsub and the tests find it
# SLURM_LOCAL_DIR holds everything (a short path: it has a socket), SLURM_LOCAL_PORT and the next ones are taken.
set -euo pipefail
dir=${SLURM_LOCAL_DIR:-/tmp/flow-slurm-$(id -u)}
port=${SLURM_LOCAL_PORT:-16817}
nodes=2 cpus=8 megabytes=16000
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin:/sbin

lives() {
    # A process that nobody reaps is dead all the same.
    [ -s "$1" ] && grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$(cat "$1")/status"
}
all_dead() {
    for file in "$dir"/*.pid; do ! lives "$file" || return 1; done
}
all_idle() {
    [ "$(timeout 5 sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u | wc -l)" = "$nodes" ]
}
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -yq --no-install-recommends slurm-wlm munge slurm-wlm-torque
}

configure() {
    local host node plugin
    host=$(hostname -s)
    cat <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# Or a job that asks for no memory takes that of the whole node.
DefMemPerCPU=256
# A virtual node has as many cores as it says.
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000,batch_sched_delay=0
JobSubmitPlugins=lua
ReturnToService=2
KillWait=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
CONF
    for node in $(seq "$nodes"); do
        echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=$cpus RealMemory=$megabytes"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
    # PBS_JOBID and the like in each job.
    plugin=$(find /usr/lib -path '*slurm-wlm/spank_pbs.so' 2>/dev/null | head -n 1)
    echo "${plugin:+optional $plugin}" > "$dir/plugstack.conf"
}

# Accounts as a site has them: those of its database, which is not here.
rules() {
    cat <<'LUA'
local accounts = { physics = true }
function slurm_job_submit(job, partitions, user)
    if job.account ~= nil and not accounts[job.account] then
        return slurm.ESLURM_INVALID_ACCOUNT
    end
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end
return slurm.SUCCESS
LUA
}

start() {
    if lives "$dir/slurmctld.pid" && all_idle; then
        echo "Slurm is up: SLURM_CONF=$SLURM_CONF"
        return
    fi
    stop
    rm -rf "$dir"
    mkdir -p "$dir/state" "$dir/log"
    configure > "$SLURM_CONF"
    rules > "$dir/job_submit.lua"
    (umask 077 && head -c 1024 /dev/urandom > "$dir/munge.key")
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munge.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed" 2>/dev/null
    slurmctld
    for node in $(seq "$nodes"); do slurmd -N "n$node"; done
    if ! within 30 all_idle; then
        echo "Slurm did not start; its logs end with:" >&2
        tail -n 20 "$dir"/log/*.log >&2
        stop
        return 1
    fi
    echo "Slurm is up: SLURM_CONF=$SLURM_CONF"
}

no_jobs() {
    [ -z "$(timeout 5 squeue --noheader 2>/dev/null)" ]
}
stop() {
    [ -s "$SLURM_CONF" ] || return 0
    if lives "$dir/slurmctld.pid"; then
        timeout 5 scancel --full --user "$(id -un)" 2>/dev/null || true
        within 10 no_jobs || true
    fi
    for file in "$dir"/*.pid; do
        if lives "$file"; then kill "$(cat "$file")"; fi
    done
    within 10 all_dead
}

case ${1:-} in
install) install ;;
start) start ;;
stop) stop ;;
env) echo "export SLURM_CONF=$SLURM_CONF" ;;
*)
    sed -n '2,7p' "$0" >&2
    exit 2
    ;;
esac
