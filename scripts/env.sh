# shellcheck shell=bash
# Sourced by every script: go to the repository's root and prefer its own .venv.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
if [ -d .venv/bin ]; then export PATH="$PWD/.venv/bin:$PATH"; fi
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python3)}

# What a script starts ends with it, also by kill -9 (common/tether.py): other scripts here, launchers, Python.
if [ "${LAMRA_PARENT:-}" = "$PPID" ]; then exec "$PYTHON" common/tether.py bash "$0" "$@"; fi
export LAMRA_PARENT=$$
tethered() { "$PYTHON" common/tether.py "$@"; }

for name in OUTPUT_DIR SAVE_PATH MODEL_ID MODEL_LOCAL_PATH ORIGINAL_MODEL_ID RANKINGS DATA_PATH TRAIN_DATA_PATH; do
  case ${!name:-} in -*)
    echo "error: $name=${!name} begins with a dash, which is a flag's: write ./${!name}" >&2
    exit 2
    ;;
  esac
done

# After SIGTERM processes finish their step and write a checkpoint: seconds until torchrun kills them. Its own are 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280}

# Number of GPUs to use, or 1 CPU process where there is none.
count_gpus() {
  if [ "${CUDA_VISIBLE_DEVICES-all}" = "" ]; then
    echo 1 # GPUs hidden on purpose
  elif [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l
  else
    local found
    found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
    echo $((found > 0 ? found : 1))
  fi
}

# Start an entrypoint of train/ on all processes: train ENTRYPOINT [FLAGS of its own] -- [the user's flags, which win].
# All else that a training is told stands here, from the variables that its script sets.
train() {
  local entrypoint=$1 own=() deepspeed=() evaluate=() chunk=()
  while shift && [ "$1" != -- ]; do own+=("$1"); done
  shift
  if [ "$DS_STAGE" != none ]; then deepspeed=(--deepspeed "./ds_configs/$DS_STAGE.json"); fi
  local batch=(--per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE")
  if [ "$entrypoint" != train/train_rerank.py ]; then # a reranker's loss has no batch to cache, and is not measured
    batch+=(--per_device_eval_batch_size "$PER_DEVICE_BATCH_SIZE")
    evaluate=(--eval_strategy epoch)
    chunk=(--grad_cache_chunk "$GRAD_CACHE_CHUNK")
  fi
  # shellcheck disable=SC2046 # several arguments
  launch torchrun $(rendezvous) --nproc_per_node "$NUM_GPUS" common/tether.py "$entrypoint" "${own[@]}" \
    --output_dir "$OUTPUT_DIR" \
    --report_to tensorboard \
    --run_name "$RUN_ID" \
    "${deepspeed[@]}" \
    --bf16 "$BF16" \
    --num_train_epochs "$NUM_EPOCHS" \
    "${batch[@]}" \
    --gradient_accumulation_steps "$GRAD_ACCUM" \
    "${evaluate[@]}" \
    --save_strategy epoch \
    --save_total_limit 2 \
    --learning_rate "$LR" \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --tf32 True \
    --model_max_length "$MODEL_MAX_LEN" \
    --gradient_checkpointing "$GRADIENT_CHECKPOINTING" \
    "${chunk[@]}" \
    --dataloader_num_workers 4 \
    --train_vision_encoder "$TRAIN_VISION_ENCODER" \
    --use_vision_lora "$USE_VISION_LORA" \
    --train_vision_projector "$TRAIN_VISION_PROJECTOR" \
    --use_lora "$USE_LORA" \
    --q_lora "$Q_LORA" \
    --lora_r "$LORA_R" \
    --lora_alpha "$LORA_ALPHA" \
    "$@"
}

# Run a command and hand SIGTERM and SIGINT on to it; exit 75 if it ended because of them, with a checkpoint.
launch() {
  local child status=0
  [ -e "$OUTPUT_DIR/.lock" ] || rm -f "$OUTPUT_DIR/preempted" # an earlier run's
  require_free_port
  "$PYTHON" common/tether.py "$@" &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null' TERM INT
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the command
    status=0
    wait "$child" || status=$?
  done
  if [ -e "$OUTPUT_DIR/preempted" ]; then exit 75; fi
  exit "$status"
}

# The first of several machines listens on MASTER_PORT.
require_free_port() {
  if [ "${NNODES:-1}" -gt 1 ] && [ "$NODE_RANK" = 0 ] && (: <"/dev/tcp/localhost/$MASTER_PORT") 2>/dev/null; then
    echo "error: MASTER_PORT=$MASTER_PORT is in use here: set another, the same on all machines" >&2
    exit 2
  fi
}

# torchrun's arguments for one machine (any free port) or several.
rendezvous() {
  if [ "$NNODES" -gt 1 ]; then
    echo "--nnodes $NNODES --node_rank $NODE_RANK --master_addr $MASTER_ADDR --master_port $MASTER_PORT"
  else
    echo "--nnodes 1 --rdzv_backend c10d --rdzv_endpoint localhost:0"
  fi
}

# Start an entrypoint of eval/ on all processes of this machine.
evaluation() {
  require_free_port
  # shellcheck disable=SC2046 # several arguments
  tethered accelerate launch $(accelerate_processes) common/tether.py "$@"
}

# accelerate launch's arguments for NUM_GPUS processes on this machine (any free port), or on each of several.
accelerate_processes() {
  local machines=${NNODES:-1}
  echo "--num_machines $machines --num_processes $((machines * NUM_GPUS)) --mixed_precision no --dynamo_backend no"
  if [ "$machines" -gt 1 ]; then
    echo "--multi_gpu --machine_rank $NODE_RANK --main_process_ip $MASTER_ADDR --main_process_port $MASTER_PORT"
  elif [ "$NUM_GPUS" -gt 1 ]; then
    echo "--multi_gpu --main_process_port 0" # also starts CPU processes
  fi
}
