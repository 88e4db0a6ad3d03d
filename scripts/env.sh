# shellcheck shell=bash
# Sourced by every script: go to the repository's root and prefer its own .venv.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
if [ -d .venv/bin ]; then export PATH="$PWD/.venv/bin:$PATH"; fi
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python3)}

# What a script starts ends with it, also by kill -9 (common/tether.py): other scripts here, launchers, Python.
if [ "${LAMRA_PARENT:-}" = "$PPID" ]; then exec "$PYTHON" common/tether.py bash "$0" "$@"; fi
export LAMRA_PARENT=$$
tethered() { "$PYTHON" common/tether.py "$@"; }

# What the user sets is checked before anything is done with it: bash takes a number that is none for an expression, and
# runs the commands in it.
refuse() {
  echo "error: ${1//[^[:print:]]/?}" >&2
  exit 2
}
expect() { # expect WORDS PATTERN NAME...: the variables that are set match the pattern
  local words=$1 pattern="^($2)\$" name
  for name in "${@:3}"; do
    if [ -n "${!name:-}" ] && ! [[ ${!name} =~ $pattern ]]; then refuse "$name=${!name}: expected $words"; fi
  done
}
expect "a whole number, 1 or more" '[1-9][0-9]{0,8}' \
  NUM_GPUS NNODES LORA_R LORA_ALPHA PER_DEVICE_BATCH_SIZE GRAD_ACCUM MODEL_MAX_LEN TEXT_MAX_TOKENS MAX_TOKENS_PER_BATCH \
  DEPTH TOP KEEP COMMUNITY_SIZE NEIGHBOURS STEPS SAVE_STEPS JOBS MAX_WORKERS MAX_TRIES MAX_FILES TORCH_ELASTIC_SHUTDOWN_TIMEOUT
expect "a whole number, 0 or more" '0|[1-9][0-9]{0,8}' NODE_RANK SEED GRAD_CACHE_CHUNK HARD_NEGATIVES SKIP
expect "a number" '([0-9]{1,12}(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,2})?' \
  LR NUM_EPOCHS WEIGHT SEARCH_MEMORY BELOW_SHARE MARGIN JUDGE_ABOVE PAUSE MAX_UNPACKED_GB MAX_RATIO
expect "numbers with commas between" '[0-9.eE+-]+(,[0-9.eE+-]+)*' WEIGHTS
expect "whole numbers with blanks between" '[0-9]{1,9}( [0-9]{1,9})*' SEEDS PERCENTS
expect "two whole numbers, such as 10:60" '[0-9]{1,5}:[0-9]{1,5}' RANKS
expect "a port, 1 to 65535" \
  '[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]' MASTER_PORT PORT
expect "the name or address of a machine" '[A-Za-z0-9:][A-Za-z0-9:._-]*' MASTER_ADDR
expect "True or False" 'True|False|true|false|1|0' TRAIN_VISION_ENCODER USE_VISION_LORA TRAIN_VISION_PROJECTOR USE_LORA \
  Q_LORA BF16 GRADIENT_CHECKPOINTING
expect "none, or a name in ds_configs/" '[A-Za-z0-9_][A-Za-z0-9_.-]*' DS_STAGE
expect "flickr or coco, or both" '(flickr|coco)( (flickr|coco))*' DATASETS
expect "kinds of data: text, image, image-text, mixture" '(text|image|image-text|mixture)( (text|image|image-text|mixture))*' \
  KINDS SCALE_KINDS
expect "rungs of scripts/study/ladder.sh with blanks between" '[a-z-]+( [a-z-]+)*' RUNGS
expect "a level of torch's: INFO, WARNING, ERROR or FATAL" 'INFO|WARNING|ERROR|FATAL|[0-3]' TORCH_CPP_LOG_LEVEL
expect "pointwise or listwise" 'pointwise|listwise' STYLE
expect "bf16 or fp32" 'bf16|fp32' DTYPE
expect "qwen2_vl, qwen2_5_vl or qwen3_vl" 'qwen2_vl|qwen2_5_vl|qwen3_vl' FAMILY
expect "test or val" 'test|val' SPLIT
expect "released or clean" 'released|clean' PROTOCOL
expect "released, clean or qwen3_reranker" 'released|clean|qwen3_reranker' RANK_STYLE
expect "lamra or beyond" 'lamra|beyond' RECIPE
expect "mixed or homogeneous" 'mixed|homogeneous' MIXTURE_BATCHES
expect "an address that begins with https:// or http://" 'https?://[^[:space:]]+' HF_ENDPOINT
expect "a value that does not begin with a dash, which is a flag's: write ./ before a path" '[^-].*' \
  OUTPUT_DIR SAVE_PATH LIBRARY MODEL_ID MODEL_LOCAL_PATH ORIGINAL_MODEL_ID RANKINGS RETRIEVED TUNE_WEIGHT DATA_PATH TRAIN_DATA_PATH \
  EVAL_DATA_PATH QUERIES POOL EVAL_QUERIES EVAL_POOL MINED TEACHER RERANKER JUDGE BATCHES OUTPUT INIT TASKS RUN_ID STUDY STAGE1 \
  STAGE1_BIDIRECTIONAL DATA_NAME TEXT_DATA IMAGE_DATA IMAGE_TEXT_DATA SOURCE INDEX OTHER_INDEX RERANK \
  FLICKR_IMAGES FLICKR_TEXTS COCO_IMAGES COCO_TEXTS FLICKR_TITLE COCO_TITLE MODELS_DIR DATA_DIR \
  SUGARCREPE_TEXTS SUGARCREPE_IMAGES CCNEG_TEXTS CCNEG_IMAGES SHAREGPT4V_TEXTS SHAREGPT4V_IMAGES \
  URBAN1K_TEXTS URBAN1K_IMAGES CIRCO_TEXTS CIRCO_IMAGES GENECIS_TEXTS GENECIS_IMAGES \
  VISDIAL_TEXTS VISDIAL_IMAGES VIST_TEXTS VIST_IMAGES MULTITURN_FASHION FASHIONIQ_IMAGES FASHIONIQ_CAPTIONS \
  MSRVTT_TEXTS MSRVTT_VIDEOS MSVD_TEXTS MSVD_CLIPS MSVD_VIDEOS
if [ "${NODE_RANK:-0}" -ge "${NNODES:-1}" ]; then refuse "NODE_RANK=$NODE_RANK: expected less than NNODES=${NNODES:-1}"; fi

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

# One machine asks no name server: torch would ask it for the name of 127.0.0.1 at every connection, and would warn that
# it got no answer. RES_OPTIONS= leaves the name server in use, for --report_to with a service of the internet.
stay_on_this_machine() {
  if [ "${NNODES:-1}" = 1 ]; then
    export RES_OPTIONS=${RES_OPTIONS-attempts:0} TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR}
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
  stay_on_this_machine
  "$PYTHON" common/tether.py "$@" &
  child=$!
  # Once: at a second one torchrun would leave its processes to be killed while they write.
  trap 'trap "" TERM; kill -TERM "$child" 2>/dev/null' TERM INT
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
    refuse "MASTER_PORT=$MASTER_PORT is in use here: set another, the same on all machines"
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
  stay_on_this_machine
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
