#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster, one process per GPU. From the root of the repository:
#
#   sbatch launch/slurm.sh --config=configs/cifar10.py:resnet110 --workdir=/shared/runs/resnet110
#   sbatch --nodes=1 --gpus-per-node=4 --ntasks-per-node=4 launch/slurm.sh --config=…
#   bash launch/slurm.sh --dry-run --config=…      shows what would run
#
# All arguments go to train.py. $PYTHON is the interpreter (default: .venv/bin/python).
#
#SBATCH --job-name=resnet_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
# After a node failure or a preemption SLURM starts the job again.
#SBATCH --requeue
# Five minutes before the time limit the tasks get SIGTERM, save, and exit with 75. They get it from
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
    --stop_at_step* | -stop_at_step*)
      fail "--stop_at_step would stop and start the job for ever." ;;
  esac
done

python="${PYTHON:-.venv/bin/python}"
tasks="${SLURM_TASKS_PER_NODE:-1}" gpus="${SLURM_GPUS_ON_NODE:-}"
tasks="${tasks%%[(,]*}" # "8(x2)" is 8 tasks on each of 2 nodes
if [[ -n "$gpus" && "$gpus" != "$tasks" ]]; then
  fail "$tasks tasks per node for $gpus GPUs; each GPU needs its own: --ntasks-per-node=$gpus."
fi

# Without a GPU, fail instead of training on the CPU.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"

# JAX finds its coordinator and its place from SLURM's variables, and gives each process the GPU of
# its local number; so all of them must see all GPUs of the node.
# A process that has stopped must not take those along that are still saving; but once the first is
# gone, the rest have ten minutes, so that nobody waits for ever.
step=(
  srun --gpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"
  --kill-on-bad-exit=0 --wait=600
  "$python" train.py "$@"
)
if "$dry_run"; then
  printf '%q ' "${step[@]}"
  echo
  exit 0
fi

run_and_requeue "${step[@]}"
