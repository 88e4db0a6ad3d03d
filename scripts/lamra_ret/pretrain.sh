#!/usr/bin/env bash
# Stage 1: contrastive pre-training on NLI text pairs. Edit the values or set them in the environment:
#   LR=1e-4 NUM_GPUS=1 bash scripts/lamra_ret/pretrain.sh --seed 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Machines and processes. Without a GPU, NUM_GPUS is the number of CPU processes.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-29500} # used when NNODES > 1

# Model
MODEL_ID=${MODEL_ID:-qwen2-vl-7b}
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-} # a folder elsewhere than checkpoints/hf_models/
TRAIN_VISION_ENCODER=${TRAIN_VISION_ENCODER:-False}
USE_VISION_LORA=${USE_VISION_LORA:-False}
TRAIN_VISION_PROJECTOR=${TRAIN_VISION_PROJECTOR:-False}
USE_LORA=${USE_LORA:-True}
Q_LORA=${Q_LORA:-False}
LORA_R=${LORA_R:-64}
LORA_ALPHA=${LORA_ALPHA:-128}

# Data
TRAIN_DATA_PATH=${TRAIN_DATA_PATH:-./data/nli_for_simcse.csv}
EVAL_DATA_PATH=${EVAL_DATA_PATH:-None}

# Optimisation. The global batch, 8 x 72 = 576, is the number of in-batch negatives.
DS_STAGE=${DS_STAGE:-zero2} # zero2, zero3, or none for plain data parallel
PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-72}
GRAD_ACCUM=${GRAD_ACCUM:-1}
NUM_EPOCHS=${NUM_EPOCHS:-2}
LR=${LR:-2e-4} # 4e-4 can be unstable
MODEL_MAX_LEN=${MODEL_MAX_LEN:-1024}
BF16=${BF16:-True}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-True}
GRAD_CACHE_CHUNK=${GRAD_CACHE_CHUNK:-0} # prompts embedded at a time; 0: all. Any batch in the memory of a chunk

# Output
RUN_ID=${RUN_ID:-${MODEL_ID##*/}_LamRA_Ret_Pretrain}
OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/$RUN_ID}

train train/train_nli.py \
  --model_id "$MODEL_ID" \
  ${MODEL_LOCAL_PATH:+--model_local_path "$MODEL_LOCAL_PATH"} \
  --data_path "$TRAIN_DATA_PATH" \
  --eval_data_path "$EVAL_DATA_PATH" \
  -- "$@"
