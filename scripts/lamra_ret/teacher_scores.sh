#!/usr/bin/env bash
# What LamRA-Rank says of each training query's positives and mined negatives, once, for stage 2 to learn from. Then:
# MINED=... TEACHER=results/<model>/teacher/teacher.arrow HARD_NEGATIVES=4 bash scripts/lamra_ret/finetune.sh
#   MODEL_ID=./checkpoints/my_LamRA_Rank MINED=negatives.arrow bash scripts/lamra_ret/teacher_scores.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Machines and processes. Without a GPU, NUM_GPUS is the number of CPU processes. Machines share OUTPUT_DIR.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-29500} # used when NNODES > 1

# Model: a reranker
MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Rank}
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # base model under an adapter; by default the one it remembers

# Data
DATA_PATH=${DATA_PATH:-./data/M-BEIR}
QUERIES=${QUERIES:-query/union_train/mbeir_union_up_train.jsonl}
POOL=${POOL:-cand_pool/global/mbeir_union_train_cand_pool.jsonl}
MINED=${MINED:-./results/qwen2-vl-7b_LamRA_Ret/negatives/negatives.arrow} # several: A,B

# Output: answers, which a restarted run uses again, and teacher.arrow (with --jsonl True its jsonl too)
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<model>/teacher

evaluation eval/teacher_scores.py \
  --model_id "$MODEL_ID" \
  ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
  --data_path "$DATA_PATH" \
  --queries "$QUERIES" \
  --pool "$POOL" \
  --mined "$MINED" \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
  "$@"
