# shellcheck shell=bash
# Sourced by the scripts for SLURM in this folder.

readonly STOPPED_EARLY=75 PEER_LOST=71       # resnet_jax/errors.py
readonly MOST_RESTARTS="${MOST_RESTARTS:-20}" # of the job for any reason, after which PEER_LOST ends it

fail() {
  echo "error: $1" >&2
  exit 64
}

# Runs a command, and queues the job again if its exit code says that the run can go on.
run_and_requeue() {
  trap : TERM # when SLURM signals all of the job, this shell outlives the tasks, to see their code
  local status=0
  "$@" || status=$? # the highest code of all tasks
  # The job ID of one task of an array is the array's, which would queue all of its tasks again.
  local id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  id=${id:-$SLURM_JOB_ID}

  case "$status" in
    "$STOPPED_EARLY")
      echo "stopped early, saved: job $id goes back to the queue" >&2 ;;
    "$PEER_LOST")
      if ((${SLURM_RESTART_COUNT:-0} >= MOST_RESTARTS)); then
        echo "a process was lost, after ${SLURM_RESTART_COUNT:-0} restarts; not trying again" >&2
        exit "$status"
      fi
      echo "a process was lost: job $id goes back to the queue" >&2 ;;
    *) exit "$status" ;;
  esac
  # "Incomplete": a job that was cancelled meanwhile stays so. This normally ends the script.
  scontrol requeue Incomplete "$id" ||
    echo "error: job $id can't be queued again; sbatch the same command to go on" >&2
  exit "$status"
}
