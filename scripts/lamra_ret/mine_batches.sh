#!/usr/bin/env bash
# Batches of training rows that are hard for one another (B3), from what scripts/lamra_rank/mine.sh found. No GPU.
#   MODEL_ID=./checkpoints/my_run TOP=200 bash scripts/lamra_rank/mine.sh
#   MINED=./results/my_run/mined/mined.arrow bash scripts/lamra_ret/mine_batches.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Data: the queries and the pool that were mined
DATA_PATH=${DATA_PATH:-./data/M-BEIR}
QUERIES=${QUERIES:-query/union_train/mbeir_union_up_train.jsonl}
POOL=${POOL:-cand_pool/global/mbeir_union_train_cand_pool.jsonl}
MINED=${MINED:-./results/qwen2-vl-7b_LamRA_Ret/mined/mined.arrow} # or its jsonl, or upstream's json; several: A,B

# Communities
COMMUNITY_SIZE=${COMMUNITY_SIZE:-32} # rows; the rows of a training step are a multiple of it
SKIP=${SKIP:-30}                     # best candidates of a query that are not taken, as they may be right
NEIGHBOURS=${NEIGHBOURS:-100}        # candidates that are taken after them

# Output: give it to finetune.sh as BATCHES
OUTPUT=${OUTPUT:-} # by default batches.jsonl beside MINED

tethered train/mine_batches.py \
  --data_path "$DATA_PATH" \
  --queries "$QUERIES" \
  --pool "$POOL" \
  --mined "$MINED" \
  --size "$COMMUNITY_SIZE" \
  --skip "$SKIP" \
  --neighbours "$NEIGHBOURS" \
  ${OUTPUT:+--output "$OUTPUT"} \
  "$@"
