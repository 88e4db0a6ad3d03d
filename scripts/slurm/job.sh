# shellcheck shell=bash
# Sourced by the jobs beside it, which are submitted from the root of the repository.

# job SCRIPT [FLAG]...: the script on each machine of the job. A SIGTERM or SIGUSR1 of Slurm to this shell goes on to all
# of them, once; a job that was told to stop before its end, or ended with status 75, is queued again.
job() {
  local run status=0 told=
  if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: no job of Slurm's: submit it with sbatch, or start $1 itself" >&2
    exit 2
  fi
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  export MASTER_ADDR NNODES=$SLURM_JOB_NUM_NODES
  export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # jobs that share a machine differ
  export NUM_GPUS=${NUM_GPUS:-${SLURM_GPUS_ON_NODE:-8}}
  # Without the flags srun may bind the task to one core, and may end the machines that are still writing a checkpoint.
  # shellcheck disable=SC2016 # each machine has its own SLURM_NODEID
  srun --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 \
    bash -c 'NODE_RANK=$SLURM_NODEID exec bash "$@"' job "$@" &
  run=$!
  # To the steps, by Slurm: a SIGTERM to srun itself would end them at once.
  trap '[ -n "$told" ] || scancel --signal=TERM "$SLURM_JOB_ID"; told=1' TERM USR1
  wait "$run" || status=$?
  while kill -0 "$run" 2>/dev/null; do # a signal ended the wait, not the run
    status=0
    wait "$run" || status=$?
  done
  if [ "$status" -eq 75 ] || { [ -n "$told" ] && [ "$status" -ne 0 ]; }; then scontrol requeue "$SLURM_JOB_ID"; fi
  exit "$status"
}
