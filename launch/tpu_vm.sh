#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM slice, and goes on after preemptions.
#
#   tpu="launch/tpu_vm.sh --name=resnet --zone=us-west4-a"
#   $tpu --type=v5litepod-16 --spot create
#   $tpu install
#   $tpu run --config=configs/cifar10.py:resnet110 --workdir=gs://BUCKET/runs/resnet110
#   $tpu delete
#
# create    a slice
# install   the commit that is checked out here, on every worker
# run       train.py with these flags on every worker, again after exit code 75; Ctrl-C saves
#           and stops
# stop      let a run save and stop whose terminal is gone
# ssh       run a command on every worker: $tpu ssh 'cd resnet_jax && .venv/bin/resnet-jax doctor'
# delete    the slice
#
# Options, before the command:
#   --name=NAME --zone=ZONE   of the slice
#   --type=TYPE               accelerator type (v5litepod-16)
#   --runtime=VERSION         of the TPU software (v2-alpha-tpuv5-lite; for v6e v2-alpha-tpuv6e)
#   --spot                    create: cheaper, and taken away at any time
#   --recreate                run: when the slice was taken away, create and install it again
#   --dry-run                 print the commands instead of running them
#
# `run` is to stay connected: start it in tmux, on a machine that doesn't sleep.
set -euo pipefail

readonly STOPPED_EARLY=75 PEER_LOST=71 # resnet_jax/errors.py
readonly CONNECTION_LOST=255           # of ssh
readonly MOST_LOSSES=10                # in a row, with nothing saved in between
readonly PAUSE_S="${PAUSE_S:-30}"      # before the next attempt
readonly SOURCES=resnet_jax            # in the home directory of each worker
name='' zone='' type=v5litepod-16 runtime=v2-alpha-tpuv5-lite
spot=false recreate=false dry_run=false
stopping=false

fail() {
  echo "error: $1" >&2
  exit 64
}

quoted() { # WORD… → words for a shell, each after a space (as printf %q, but for reading)
  local word quote="'\\''"
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      printf ' %s' "$word"
    else
      printf " '%s'" "${word//\'/$quote}"
    fi
  done
}

call() { # COMMAND ARGUMENT…
  if "$dry_run"; then
    echo "$1$(quoted "${@:2}")"
  else
    "$@"
  fi
}

tpu_vm() { # SUBCOMMAND [OPTION…]
  call gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" "${@:2}"
}

on_workers() { # COMMAND
  tpu_vm ssh --worker=all --command="$1"
}

create() {
  local options=(--accelerator-type="$type" --version="$runtime" --scopes=cloud-platform)
  if "$spot"; then options+=(--spot); fi
  tpu_vm create "${options[@]}"
}

# As a git bundle, so that the workers know the commit, which each result file names.
install() {
  local folder
  [[ -f train.py ]] || fail "there is no train.py in $PWD; run this in the root of the repository."
  [[ -z "$(git status --porcelain --untracked-files=no)" ]] ||
    echo "warning: uncommitted changes are not installed" >&2
  folder="$(mktemp -d)"
  call git bundle create --quiet "$folder/resnet_jax.bundle" HEAD || return
  call gcloud compute tpus tpu-vm scp --zone="$zone" --worker=all \
    "$folder/resnet_jax.bundle" "$name:" || return
  rm -r "$folder"
  # The image's own Python may be too old; uv brings one along.
  on_workers "set -e; rm -rf $SOURCES;\
 git -c advice.detachedHead=false clone --quiet resnet_jax.bundle $SOURCES; cd $SOURCES;\
 [ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh;\
 ~/.local/bin/uv venv --quiet --python 3.11 .venv;\
 ~/.local/bin/uv pip install --quiet --python .venv -c constraints.txt -e '.[tpu,gcs]'"
}

stop() {
  on_workers "pkill -TERM -f '^.venv/bin/python train.py' || true"
}

check_training_flags() {
  local argument workdir=''
  for argument in "$@"; do
    case "$argument" in
      --workdir=*) workdir="${argument#--workdir=}" ;;
      --stop_at_step* | -stop_at_step*)
        fail "--stop_at_step would stop and start the run for ever." ;;
    esac
  done
  [[ "$workdir" != s3://* ]] ||
    fail "--workdir is '$workdir', where checkpoints can't be written; write --workdir=gs://BUCKET/PATH."
  [[ "$workdir" == gs://* ]] ||
    fail "--workdir is '$workdir'; workers share no disk, so write --workdir=gs://BUCKET/PATH."
}

# Runs train.py on every worker and waits; returns the code of the first worker that failed.
train_once() { # FLAG…
  local command pid status=0
  # The lock keeps a second run off the chips, such as gcloud starts when it reconnects to a worker.
  command="cd $SOURCES && JAX_PLATFORMS=tpu,cpu PYTHONUNBUFFERED=1\
 flock --nonblock --conflict-exit-code $PEER_LOST --no-fork .run.lock\
 .venv/bin/python train.py$(quoted "$@")"
  if "$dry_run"; then
    on_workers "$command"
    return
  fi
  set -m # a process group of its own: Ctrl-C must not cut the connection that brings the code
  on_workers "$command" </dev/null &
  pid=$!
  set +m
  wait "$pid" || status=$?
  if "$stopping"; then # a trap has cut the wait short
    status=0
    wait "$pid" || status=$?
  fi
  return "$status"
}

ask_to_stop() {
  trap 'exit 130' INT TERM HUP # the second time, give up
  stopping=true
  echo "stopping at the next safe point, where all is saved; Ctrl-C again gives up" >&2
  stop </dev/null || true # the run's own exit code tells whether it has worked
}

state() { # READY, PREEMPTED, …, or nothing without a slice
  gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' || true
}

run() { # FLAG…
  local losses=0 status now
  check_training_flags "$@"
  trap ask_to_stop INT TERM HUP
  while true; do
    status=0
    train_once "$@" || status=$?
    case "$status" in
      0 | 64 | 65 | 70 | 73 | 78) return "$status" ;; # done, or nothing that a restart would mend
      "$STOPPED_EARLY") losses=0 ;;
      *) losses=$((losses + 1)) ;;
    esac
    if "$stopping"; then return "$status"; fi
    now="$(state)"
    case "$status" in
      "$STOPPED_EARLY" | "$PEER_LOST" | "$CONNECTION_LOST") ;;
      *) if [[ "$now" == READY ]]; then return "$status"; fi ;; # a crash, or a mistake of gcloud's
    esac
    if ((losses > MOST_LOSSES)); then
      echo "error: lost $losses times in a row; the same command goes on from what is saved" >&2
      return "$status"
    fi
    echo "exit code $status, slice ${now:-gone}: going on from what is saved in $PAUSE_S s" >&2
    sleep "$PAUSE_S" || true
    if "$stopping"; then return "$status"; fi
    if [[ "$now" != READY ]]; then
      if ! "$recreate"; then
        echo "error: the slice is ${now:-gone}; after delete, create and install the same command" \
          "goes on (by itself with --recreate)" >&2
        return "$status"
      fi
      tpu_vm delete --quiet || true # it may be gone already
      { create && install; } || echo "warning: no new slice yet" >&2
    fi
  done
}

while [[ "${1-}" == --* ]]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --runtime=*) runtime="${1#*=}" ;;
    --spot) spot=true ;;
    --recreate) recreate=true ;;
    --dry-run) dry_run=true ;;
    --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
    *) fail "$1 is no option ($0 --help lists them)." ;;
  esac
  shift
done
[[ -n "$name" && -n "$zone" ]] || fail "--name and --zone of the slice are needed ($0 --help)."
command="${1-}"
shift || true
case "$command" in
  create | install | stop) "$command" ;;
  run) run "$@" ;;
  ssh) on_workers "$*" ;;
  delete) tpu_vm delete --quiet ;;
  *) fail "'$command' is no command; they are create, install, run, stop, ssh, delete." ;;
esac
