#!/usr/bin/env bash
# Stage 2: instruction tuning on M-BEIR, on top of the merged stage-1 model (scripts/merge_lora.sh). Edit the values or
# set them in the environment:
#   NUM_GPUS=4 GRAD_CACHE_CHUNK=16 PER_DEVICE_BATCH_SIZE=240 bash scripts/lamra_ret/finetune.sh --seed 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Machines and processes. Without a GPU, NUM_GPUS is the number of CPU processes.
# On each of the two machines: NNODES=2 NODE_RANK=0 (1 on the other) MASTER_ADDR=the first machine.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=${NNODES:-1} # the practice: 2, with 8 GPUs each
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-29500} # used when NNODES > 1

# Model
MODEL_ID=${MODEL_ID:-qwen2-vl-7b}
merged=./checkpoints/${MODEL_ID}_LamRA_Ret_Pretrain_merged
if [[ -d $MODEL_ID ]]; then merged=$MODEL_ID; fi # a folder is trained itself
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-$merged}
TRAIN_VISION_ENCODER=${TRAIN_VISION_ENCODER:-False}
USE_VISION_LORA=${USE_VISION_LORA:-False}
TRAIN_VISION_PROJECTOR=${TRAIN_VISION_PROJECTOR:-False}
USE_LORA=${USE_LORA:-True}
Q_LORA=${Q_LORA:-False}
LORA_R=${LORA_R:-128}
LORA_ALPHA=${LORA_ALPHA:-256}

# Data
DATA_PATH=${DATA_PATH:-./data/M-BEIR}
EVAL_QUERIES=${EVAL_QUERIES:-None}      # below DATA_PATH, to measure after each epoch
EVAL_POOL=${EVAL_POOL:-}                # their candidates
RECIPE=${RECIPE:-lamra}                 # or beyond, what docs/recipes.md recommends: hard negatives, of MINED, that weigh more
recipe=()
if [[ $RECIPE == beyond ]]; then
  [[ -n ${MINED:-} ]] || refuse "RECIPE=beyond draws hard negatives from MINED=file: scripts/lamra_ret/mine_negatives.sh writes it"
  HARD_NEGATIVES=${HARD_NEGATIVES:-4}
  recipe=(--hardness_weight 9)
fi
HARD_NEGATIVES=${HARD_NEGATIVES:-0}     # of each query
BATCHES=${BATCHES:-}                    # what mine_batches.sh wrote; by default rows stand together by chance
MINED=${MINED:-}                        # to draw them from: mine_negatives.sh writes it
TEACHER=${TEACHER:-}                    # a reranker's scores of them, to be learnt: teacher_scores.sh writes it
TEXT_MAX_TOKENS=${TEXT_MAX_TOKENS:-480} # of instruction and text; images do not count

# Optimisation. The global batch, 16 x 60 = 960, is the number of in-batch negatives.
DS_STAGE=${DS_STAGE:-zero2} # zero2, zero3, or none for plain data parallel
PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-60}
GRAD_ACCUM=${GRAD_ACCUM:-1}
NUM_EPOCHS=${NUM_EPOCHS:-1}
LR=${LR:-1e-4}
MODEL_MAX_LEN=${MODEL_MAX_LEN:-1024}
BF16=${BF16:-True}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-True}
GRAD_CACHE_CHUNK=${GRAD_CACHE_CHUNK:-0} # prompts embedded at a time; 0: all. Any batch in the memory of a chunk

# Output
RUN_ID=${RUN_ID:-${MODEL_ID##*/}_LamRA_Ret}
OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/$RUN_ID}

train train/train_mbeir.py \
  --model_id "$MODEL_ID" \
  --model_local_path "$MODEL_LOCAL_PATH" \
  --data_path "$DATA_PATH" \
  --eval_queries "$EVAL_QUERIES" \
  ${EVAL_POOL:+--eval_pool "$EVAL_POOL"} \
  --hard_negatives "$HARD_NEGATIVES" \
  ${BATCHES:+--batches "$BATCHES"} \
  ${MINED:+--mined "$MINED"} \
  ${TEACHER:+--teacher "$TEACHER"} \
  --text_max_tokens "$TEXT_MAX_TOKENS" \
  -- "${recipe[@]}" "$@"
