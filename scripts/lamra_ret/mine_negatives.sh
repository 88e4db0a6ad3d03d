#!/usr/bin/env bash
# Hard negatives for stage 2: what a stage-2 model ranks high for each training query and is wrong, but for candidates that
# may be right after all. Then: MINED=results/<model>/negatives/negatives.arrow HARD_NEGATIVES=4 bash scripts/lamra_ret/finetune.sh
#   MODEL_ID=./checkpoints/my_run BELOW_SHARE=0.95 bash scripts/lamra_ret/mine_negatives.sh
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
SEARCH_MEMORY=${SEARCH_MEMORY:-4} # GiB of each process

# Rules. A rule that is not set leaves nothing out.
RANKS=${RANKS:-0:100}         # of the wrong candidates: leave out the first 0, look at no more than 100
KEEP=${KEEP:-10}              # of each query
BELOW_SHARE=${BELOW_SHARE:-}  # of the score of the query's best positive, such as 0.95
MARGIN=${MARGIN:-}            # below that score, such as 0.05
JUDGE=${JUDGE:-}              # a LamRA-Rank that is asked about each candidate that is kept
JUDGE_ABOVE=${JUDGE_ABOVE:-}  # the P(Yes) above which it is dropped, by default 0.5

# Output: embeddings, searches and answers, which a restarted run uses again, and negatives.arrow (with --jsonl True its jsonl too)
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<model>/negatives

evaluation eval/mine_negatives.py \
  --model_id "$MODEL_ID" \
  ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
  --data_path "$DATA_PATH" \
  --queries "$QUERIES" \
  --pool "$POOL" \
  --search_memory "$SEARCH_MEMORY" \
  --ranks "$RANKS" \
  --keep "$KEEP" \
  ${BELOW_SHARE:+--below_share "$BELOW_SHARE"} \
  ${MARGIN:+--margin "$MARGIN"} \
  ${JUDGE:+--judge "$JUDGE"} \
  ${JUDGE_ABOVE:+--judge_above "$JUDGE_ABOVE"} \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
  "$@"
