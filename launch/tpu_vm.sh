#!/usr/bin/env bash
# A run on all hosts of a Cloud TPU slice. docs/tpu_vm.md explains it; `launch/tpu_vm.sh help` lists the commands.
set -euo pipefail

NAME=${TPU_NAME:-em-jax}
ZONE=${TPU_ZONE:-us-central1-a}
ACCELERATOR=${TPU_ACCELERATOR:-v5litepod-8}
RUNTIME=${TPU_RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${TPU_SPOT:-1}
POLL=${TPU_POLL:-30}
CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SELF=$CHECKOUT/launch/tpu_vm.sh
LOCATION=(--zone="$ZONE" ${TPU_PROJECT:+--project="$TPU_PROJECT"})

help() {
  cat <<'TEXT'
launch/tpu_vm.sh create             request the slice and wait for it
launch/tpu_vm.sh setup              copy this checkout's last commit to every host and install it
launch/tpu_vm.sh start FLAGS        start python -m em_jax.launch FLAGS on every host, without waiting for its end
launch/tpu_vm.sh status             print the slice's state, and the run's: none, running, or its exit status
launch/tpu_vm.sh log                print the end of process 0's output
launch/tpu_vm.sh keep FLAGS         create, setup and start, repeated after every preemption until the run is done
launch/tpu_vm.sh stop               stop the run: it writes a checkpoint and ends
launch/tpu_vm.sh fetch [FOLDER]     copy the first host's runs/ into this folder (default: the current one)
launch/tpu_vm.sh delete             delete the slice

environment (defaults): TPU_NAME (em-jax), TPU_ZONE (us-central1-a), TPU_PROJECT (gcloud's), TPU_ACCELERATOR
  (v5litepod-8), TPU_RUNTIME (v2-alpha-tpuv5-lite), TPU_SPOT (1; 0 requests a slice that is not preempted),
  TPU_POLL (30 s), TPU_COMMIT (the commit to install; HEAD)
TEXT
}

say() { echo "tpu_vm: $*" >&2; }

resource() { gcloud compute tpus queued-resources "$@" "${LOCATION[@]}"; }

on_hosts() { # on_hosts HOSTS COMMAND: run a command over ssh
  gcloud compute tpus tpu-vm ssh "$NAME" "${LOCATION[@]}" --worker="$1" --command="$2"
}

state() { # ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ..., or NONE without a slice; status 1 if gcloud fails
  local output
  if output=$(resource describe "$NAME" --format='value(state.state)' 2>&1); then
    echo "${output##*$'\n'}"
  elif [[ ${output^^} == *NOT_FOUND* || ${output^^} == *"NOT FOUND"* ]]; then
    echo NONE
  else
    say "gcloud: ${output##*$'\n'}"
    return 1
  fi
}

wait_for_slice() {
  local now last=
  while now=$(state) || return 1; [[ $now != ACTIVE ]]; do
    case $now in
      NONE | FAILED | SUSPENDED | SUSPENDING) say "expected slice $NAME to become ACTIVE, found it $now"; return 1 ;;
    esac
    [[ $now == "$last" ]] || say "$NAME is $now"
    last=$now
    sleep "$POLL"
  done
}

create() {
  local kind=()
  [[ $SPOT == 0 ]] || kind=(--spot)
  resource create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${kind[@]}"
  wait_for_slice
}

setup() {
  local archive commit
  commit=$(git -C "$CHECKOUT" rev-parse "${TPU_COMMIT:-HEAD}")
  archive=$(mktemp -d)/em_jax.tgz
  git -C "$CHECKOUT" archive --format=tar.gz --prefix=em_jax/ --output="$archive" "$commit"
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:em_jax.tgz" "${LOCATION[@]}" --worker=all
  rm -r "$(dirname "$archive")"
  # The images' Python is too old for em_jax. They have no git: provenance.json takes the commit from a file.
  on_hosts all "set -e
    tar -xzf em_jax.tgz
    echo $commit >em_jax/.commit
    python3 -m pip install -q --user uv
    cd em_jax
    python3 -m uv venv -q --python 3.12 --allow-existing .venv
    python3 -m uv pip install -q --python .venv/bin/python -c constraints.txt -e '.[tpu]'"
}

start() {
  # Every host gets the same command, which continues after this connection ends; jax finds the other hosts.
  on_hosts all "cat >em_jax.sh <<'RUN'
cd em_jax
.venv/bin/python -m em_jax.launch$(printf ' %q' "$@")
echo \$? >~/em_jax.status
RUN
rm -f em_jax.status
setsid nohup bash em_jax.sh >em_jax.log 2>&1 </dev/null &"
}

run_state() { # none, running, or the exit status of process 0
  on_hosts 0 'if pgrep -f "[-]m em_jax.launch" >/dev/null; then echo running; else cat em_jax.status 2>/dev/null || echo none; fi'
}

status() {
  local now
  now=$(state)
  echo "slice: $now"
  [[ $now != ACTIVE ]] || echo "run: $(run_state)"
}

log() { on_hosts 0 'tail -n 40 em_jax.log'; }

stop() { on_hosts all 'pkill -TERM -f "[-]m em_jax.launch" || true'; }

fetch() {
  mkdir -p "${1:-.}"
  gcloud compute tpus tpu-vm scp --recurse "$NAME:em_jax/runs" "${1:-.}" "${LOCATION[@]}" --worker=0
}

delete() { resource delete "$NAME" --force --quiet; }

keep() {
  [[ " $* " == *" --mirror gs://"* || " $* " == *" --mirror=gs://"* ]] ||
    { say "expected --mirror gs://...: a preempted slice loses its disks"; return 2; }
  local started='' failed=0 now slice
  # A later slice gets the commit that the run started with.
  TPU_COMMIT=$(git -C "$CHECKOUT" rev-parse "${TPU_COMMIT:-HEAD}")
  export TPU_COMMIT
  # Each step is a process of its own, so that its first failure ends it (set -e is off inside `if`).
  while true; do
    if ! slice=$(state); then
      [[ $((++failed)) -lt 10 ]] || { say "gcloud failed ten times in a row"; return 1; }
      sleep "$POLL"
      continue
    fi
    case $slice in
      NONE)
        started=
        if "$SELF" create; then
          failed=0
        else
          [[ $((++failed)) -lt 10 ]] || { say "no slice after ten requests"; return 1; }
          sleep "$POLL"
        fi
        ;;
      FAILED | SUSPENDED | SUSPENDING)
        say "$NAME was preempted; requesting another slice"
        "$SELF" delete || sleep "$POLL"
        ;;
      ACTIVE)
        now=$(run_state) || now=unreachable
        if [[ $now == running || $now == unreachable ]]; then
          sleep "$POLL"
        elif [[ $now == 0 ]]; then
          log
          return
        elif [[ -z $started || $now == none ]]; then
          if "$SELF" setup && "$SELF" start "$@"; then
            started=1 failed=0
          elif [[ $((++failed)) == 3 ]]; then
            say "the run could not be started three times in a row"
            return 1
          else
            sleep "$POLL"
          fi
        else
          # Hosts are not preempted at once: a failed run may be the start of a preemption.
          for _ in {1..10}; do
            sleep "$POLL"
            [[ $(state || true) == ACTIVE ]] || continue 2
          done
          log
          say "the run ended with status $now"
          return 1
        fi
        ;;
      *) wait_for_slice || true ;;
    esac
  done
}

command=${1:-help}
[[ $command != --help ]] || command=help
[[ $command == help ]] || command -v gcloud >/dev/null || { say "expected gcloud (Google Cloud CLI) on the PATH"; exit 2; }
if [[ $command == start || $command == keep ]] && [[ " $* " != *" --domain"* ]]; then
  say "expected flags of python -m em_jax.launch, with --domain"
  exit 2
fi
case $command in
  help | create | setup | start | status | log | stop | fetch | delete | keep) shift || true; "$command" "$@" ;;
  *) say "unknown command $command"; help >&2; exit 2 ;;
esac
