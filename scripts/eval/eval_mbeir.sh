#!/usr/bin/env bash
# Recall on M-BEIR's 16 tasks, each in its own pool, of an adapter, a merged model or a bare base model:
#   MODEL_ID=./checkpoints/my_run TASKS=cirr_task7,nights_task4 bash scripts/eval/eval_mbeir.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Machines and processes. Without a GPU, NUM_GPUS is the number of CPU processes. Machines share OUTPUT_DIR.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-29500} # used when NNODES > 1

# Model
MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Ret}
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # base model under an adapter; by default the one it remembers
LIBRARY=${LIBRARY:-} # sentence-transformers: the model is one of that library; by default of LamRA's kind
MAX_TOKENS_PER_BATCH=${MAX_TOKENS_PER_BATCH:-} # by default 32768 on GPUs, 4096 on CPUs

# Data
DATA_PATH=${DATA_PATH:-./data/M-BEIR}
POOL=${POOL:-local} # local, or global: one pool of all tasks' candidates
TASKS=${TASKS:-all}

# Search
SEARCH_MEMORY=${SEARCH_MEMORY:-4} # GiB of each process

# Output: embeddings, which a restarted run and the other pool setting use again, rankings and metrics
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<model>/mbeir

evaluation eval/eval_mbeir.py \
  --model_id "$MODEL_ID" \
  ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
  ${LIBRARY:+--library "$LIBRARY"} \
  ${MAX_TOKENS_PER_BATCH:+--max_tokens_per_batch "$MAX_TOKENS_PER_BATCH"} \
  --data_path "$DATA_PATH" \
  --pool "$POOL" \
  --tasks "$TASKS" \
  --search_memory "$SEARCH_MEMORY" \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
  "$@"
