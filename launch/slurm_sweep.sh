#!/usr/bin/env bash
# Trains the runs of a sweep on a SLURM cluster, one run per task of a job array. From the root of
# the repository, for 9 runs, 3 of them at a time:
#
#   sbatch --array=0-8%3 launch/slurm_sweep.sh --config=configs/digits_sweep.py --workdir=/shared/sweep
#   resnet-jax sweep --config=configs/digits_sweep.py --workdir=/shared/sweep --collect
#   bash launch/slurm_sweep.sh --dry-run --config=…      shows what would run
#
# The second command, on any machine that can write the folder, writes the table of the scores, and
# says how many runs there are and how far each is. All arguments go to `resnet-jax sweep`. A run has
# one process, which uses all GPUs of its task. $PYTHON is the interpreter (default: .venv/bin/python).
#
#SBATCH --job-name=resnet_jax_sweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%A_%a.out
#SBATCH --open-mode=append
# After a node failure or a preemption SLURM starts the task again.
#SBATCH --requeue
# Five minutes before the time limit the run gets SIGTERM, saves, and exits with 75. It gets it from
# SLURM: this shell ("B:TERM") couldn't pass it on through srun, which answers SIGTERM by SIGKILL.
#SBATCH --signal=TERM@300
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-.}"
if [[ ! -f train.py ]]; then
  echo "error: there is no train.py in $PWD; run sbatch in the root of the repository." >&2
  exit 64
fi
source launch/slurm_requeue.sh

dry_run=false
if [[ "${1-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
for argument in "$@"; do
  case "$argument" in
    --task | --task=* | --collect | --processes | --processes=*)
      fail "$argument isn't for the tasks of an array; each has --task from SLURM." ;;
  esac
done
task="${SLURM_ARRAY_TASK_ID:-}"
if [[ -z "$task" ]]; then
  "$dry_run" || fail "this is no job array; submit it with sbatch --array=0-LAST%AT_A_TIME."
  task=0
fi

# Without a GPU, fail instead of training on the CPU.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"

step=(
  srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"
  "${PYTHON:-.venv/bin/python}" -m resnet_jax sweep "$@" --task="$task"
)
if "$dry_run"; then
  printf '%q ' "${step[@]}"
  echo
  exit 0
fi
run_and_requeue "${step[@]}"
