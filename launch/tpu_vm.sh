#!/usr/bin/env bash
# A run on a Cloud TPU slice, on all of its hosts. docs/tpu_vm.md tells how; `launch/tpu_vm.sh help` lists the commands.
set -euo pipefail

NAME=${TPU_NAME:-em-jax}
ZONE=${TPU_ZONE:-us-central1-a}
ACCELERATOR=${TPU_ACCELERATOR:-v5litepod-16}
RUNTIME=${TPU_RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${TPU_SPOT:-1}
POLL=${TPU_POLL:-30}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SELF=$HERE/launch/tpu_vm.sh
PLACE=(--zone="$ZONE" ${TPU_PROJECT:+--project="$TPU_PROJECT"})

help() {
  cat <<'TEXT'
launch/tpu_vm.sh create             ask for the slice, and wait until it is there
launch/tpu_vm.sh setup              copy this checkout to every host and install it there
launch/tpu_vm.sh start FLAGS        start em_jax.launch with these flags on every host, and come back
launch/tpu_vm.sh status             the slice's state, and the run's: none, running, or its exit status
launch/tpu_vm.sh log                the end of what process 0 said
launch/tpu_vm.sh keep FLAGS         all of the above until the run is done: after a preemption it begins anew
launch/tpu_vm.sh stop               ask the run to stop: it writes a checkpoint and ends
launch/tpu_vm.sh fetch [FOLDER]     bring the first host's runs/ into this folder (default: here)
launch/tpu_vm.sh delete             give the slice back

environment: TPU_NAME (em-jax), TPU_ZONE (us-central1-a), TPU_PROJECT (gcloud's own), TPU_ACCELERATOR
  (v5litepod-16), TPU_RUNTIME (v2-alpha-tpuv5-lite), TPU_SPOT (1; 0 for a slice that stays), TPU_POLL (30 s),
  TPU_COMMIT (of this checkout; HEAD)
TEXT
}

say() { echo "tpu_vm: $*" >&2; }

resource() { gcloud compute tpus queued-resources "$@" "${PLACE[@]}"; }

on() { # on HOSTS COMMAND: over ssh
  gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker="$1" --command="$2"
}

state() { # ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; NONE where there is no such slice, else the call has failed
  local said
  if said=$(resource describe "$NAME" --format='value(state.state)' 2>&1); then
    echo "${said##*$'\n'}"
  elif [[ ${said^^} == *NOT_FOUND* || ${said^^} == *"NOT FOUND"* ]]; then
    echo NONE
  else
    say "gcloud: ${said##*$'\n'}"
    return 1
  fi
}

wait_for_slice() {
  local now last=
  while now=$(state) || return 1; [[ $now != ACTIVE ]]; do
    case $now in
      NONE | FAILED | SUSPENDED | SUSPENDING) say "expected the slice $NAME to come, found it $now"; return 1 ;;
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
  commit=$(git -C "$HERE" rev-parse "${TPU_COMMIT:-HEAD}")
  archive=$(mktemp -d)/em_jax.tgz
  git -C "$HERE" archive --format=tar.gz --prefix=em_jax/ --output="$archive" "$commit"
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:em_jax.tgz" "${PLACE[@]}" --worker=all
  rm -r "$(dirname "$archive")"
  # The images' own Python is older than em_jax needs.
  # Without git there, the run's record takes the commit from a file.
  on all "set -e
    tar -xzf em_jax.tgz
    echo $commit >em_jax/.commit
    python3 -m pip install -q --user uv
    cd em_jax
    python3 -m uv venv -q --python 3.12 --allow-existing .venv
    python3 -m uv pip install -q --python .venv/bin/python -c constraints.txt -e '.[tpu]'"
}

start() {
  # Every host gets the same command; jax finds the others. It outlives this connection.
  on all "cat >em_jax.sh <<'RUN'
cd em_jax
.venv/bin/python -m em_jax.launch$(printf ' %q' "$@")
echo \$? >~/em_jax.status
RUN
rm -f em_jax.status
setsid nohup bash em_jax.sh >em_jax.log 2>&1 </dev/null &"
}

run_state() { # none, running, or the exit status of process 0
  on 0 'if pgrep -f "[-]m em_jax.launch" >/dev/null; then echo running; else cat em_jax.status 2>/dev/null || echo none; fi'
}

status() {
  local now
  now=$(state)
  echo "slice: $now"
  [[ $now != ACTIVE ]] || echo "run: $(run_state)"
}

log() { on 0 'tail -n 40 em_jax.log'; }

stop() { on all 'pkill -TERM -f "[-]m em_jax.launch" || true'; }

fetch() {
  mkdir -p "${1:-.}"
  gcloud compute tpus tpu-vm scp --recurse "$NAME:em_jax/runs" "${1:-.}" "${PLACE[@]}" --worker=0
}

delete() { resource delete "$NAME" --force --quiet; }

keep() {
  [[ " $* " == *" --mirror gs://"* || " $* " == *" --mirror=gs://"* ]] ||
    { say "expected --mirror gs://...: a preempted slice loses its disks"; return 2; }
  local started='' failed=0 now slice
  # A later slice gets the code that the run began with.
  TPU_COMMIT=$(git -C "$HERE" rev-parse "${TPU_COMMIT:-HEAD}")
  export TPU_COMMIT
  # Each command is a process of its own, so that the first thing that fails ends it.
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
          [[ $((++failed)) -lt 10 ]] || { say "no slice after ten tries"; return 1; }
          sleep "$POLL"
        fi
        ;;
      FAILED | SUSPENDED | SUSPENDING)
        say "$NAME is gone (preempted); asking for another one"
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
          # Hosts do not go all at once: what looks like a failure may be how a preemption begins.
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
  say "expected the flags of em_jax.launch, --domain among them"
  exit 2
fi
case $command in
  help | create | setup | start | status | log | stop | fetch | delete | keep) shift || true; "$command" "$@" ;;
  *) say "unknown command $command"; help >&2; exit 2 ;;
esac
