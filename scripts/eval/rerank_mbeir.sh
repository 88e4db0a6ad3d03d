#!/usr/bin/env bash
# Rerank what eval_mbeir.sh retrieved, with an adapter, a merged model or the bare base model:
#   MODEL_ID=./checkpoints/my_reranker RANKINGS=./results/my_run/mbeir/test_local bash scripts/eval/rerank_mbeir.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Machines and processes. Without a GPU, NUM_GPUS is the number of CPU processes. Machines share OUTPUT_DIR.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-29500} # used when NNODES > 1

# Models: a reranker, and whose rankings
MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Rank}
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # base model under an adapter; by default the one it remembers
MAX_TOKENS_PER_BATCH=${MAX_TOKENS_PER_BATCH:-} # by default 32768 on GPUs, 4096 on CPUs
POOL=${POOL:-local}
RANKINGS=${RANKINGS:-./results/qwen2-vl-7b_LamRA_Ret/mbeir/test_$POOL}

# Data
DATA_PATH=${DATA_PATH:-./data/M-BEIR}
TASKS=${TASKS:-all}

# How
STYLE=${STYLE:-pointwise} # or listwise
DEPTH=${DEPTH:-}          # candidates of each query; by default 50, listwise 5
WEIGHT=${WEIGHT:-}        # of P(Yes); by default 1, for COCO 0.5 and 0.1
TUNE_WEIGHT=${TUNE_WEIGHT:-} # rankings of the val split, to choose the weight on

# Output: answers, which a restarted run uses again, rankings and metrics
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<model>/test_<pool>

evaluation eval/eval_rerank.py \
  --model_id "$MODEL_ID" \
  ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
  ${MAX_TOKENS_PER_BATCH:+--max_tokens_per_batch "$MAX_TOKENS_PER_BATCH"} \
  --rankings "$RANKINGS" \
  --data_path "$DATA_PATH" \
  --pool "$POOL" \
  --tasks "$TASKS" \
  --style "$STYLE" \
  ${DEPTH:+--depth "$DEPTH"} \
  ${WEIGHT:+--weight "$WEIGHT"} \
  ${TUNE_WEIGHT:+--tune_weight "$TUNE_WEIGHT"} \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
  "$@"
