#!/usr/bin/env bash
# LamRA-Rank: train a reranker on what mine.sh found. Edit the values or set them in the environment:
#   NUM_GPUS=4 INIT=./checkpoints/qwen2-vl-7b_LamRA_Ret_merged bash scripts/lamra_rank/train_rerank.sh --seed 1
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
INIT=${INIT:-base} # the base model, or the folder of a merged one: the stage-2 model
TRAIN_VISION_ENCODER=${TRAIN_VISION_ENCODER:-False}
USE_VISION_LORA=${USE_VISION_LORA:-False}
TRAIN_VISION_PROJECTOR=${TRAIN_VISION_PROJECTOR:-False}
USE_LORA=${USE_LORA:-True}
Q_LORA=${Q_LORA:-False}
LORA_R=${LORA_R:-128}
LORA_ALPHA=${LORA_ALPHA:-256}

# Data
DATA_PATH=${DATA_PATH:-./data/M-BEIR}
QUERIES=${QUERIES:-query/union_train/mbeir_union_up_train.jsonl}      # below DATA_PATH, as for mine.sh
POOL=${POOL:-cand_pool/global/mbeir_union_train_cand_pool.jsonl}
MINED=${MINED:-./results/${MODEL_ID##*/}_LamRA_Ret/mined/mined.arrow} # or its jsonl, or upstream's json; several: A,B
RANK_STYLE=${RANK_STYLE:-} # released, clean or qwen3_reranker; by default the model's own
TEXT_MAX_TOKENS=${TEXT_MAX_TOKENS:-256}                           # of each query and candidate; images do not count

# Optimisation. 16 GPUs x 2 x 4 accumulated = 128 queries, each with a Yes, a No and a list.
DS_STAGE=${DS_STAGE:-zero2} # zero2, zero3, or none for plain data parallel
PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-2}
GRAD_ACCUM=${GRAD_ACCUM:-4}
NUM_EPOCHS=${NUM_EPOCHS:-1}
LR=${LR:-2e-5}
MODEL_MAX_LEN=${MODEL_MAX_LEN:-2048}
BF16=${BF16:-True}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-True}

# Output
RUN_ID=${RUN_ID:-${MODEL_ID##*/}_LamRA_Rank}
OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/$RUN_ID}

train train/train_rerank.py \
  --model_id "$MODEL_ID" \
  --init "$INIT" \
  --data_path "$DATA_PATH" \
  --queries "$QUERIES" \
  --pool "$POOL" \
  --mined "$MINED" \
  ${RANK_STYLE:+--rank_style "$RANK_STYLE"} \
  --text_max_tokens "$TEXT_MAX_TOKENS" \
  -- "$@"
