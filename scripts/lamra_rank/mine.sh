#!/usr/bin/env bash
# Hard candidates for LamRA-Rank: what the stage-2 model ranks highest for each training query and is wrong.
#   MODEL_ID=./checkpoints/my_run bash scripts/lamra_rank/mine.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Machines and processes. Without a GPU, NUM_GPUS is the number of CPU processes. Machines share OUTPUT_DIR.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-29500} # used when NNODES > 1

# Model: a retriever
MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Ret}
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # base model under an adapter; by default the one it remembers

# Data
DATA_PATH=${DATA_PATH:-./data/M-BEIR}
QUERIES=${QUERIES:-query/union_train/mbeir_union_up_train.jsonl}
POOL=${POOL:-cand_pool/global/mbeir_union_train_cand_pool.jsonl}
TOP=${TOP:-100}
SEARCH_MEMORY=${SEARCH_MEMORY:-4} # GiB of each process

# Output: embeddings and pieces, which a restarted run uses again, and mined.arrow; with --jsonl True also mined.jsonl and
# upstream's mined.json
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<model>/mined

evaluation eval/mine_rerank.py \
  --model_id "$MODEL_ID" \
  ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
  --data_path "$DATA_PATH" \
  --queries "$QUERIES" \
  --pool "$POOL" \
  --top "$TOP" \
  --search_memory "$SEARCH_MEMORY" \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
  "$@"
