#!/usr/bin/env bash
# Recall against the bytes of a vector: whole and cut vectors in float32, int8 and bits, of an adapter, a merged model or
# a bare base model, on pictures with captions or on M-BEIR:
#   MODEL_ID=./checkpoints/my_run bash scripts/eval/vectors.sh
#   MODEL_ID=./checkpoints/my_run DATA_PATH=./data/M-BEIR TASKS=nights_task4 bash scripts/eval/vectors.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Processes of one machine. Without a GPU, NUM_GPUS is the number of CPU processes.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=1

# Model
MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Ret_Pretrain}
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # base model under an adapter; by default the one it remembers
LIBRARY=${LIBRARY:-} # sentence-transformers: the model is one of that library; by default of LamRA's kind
MAX_TOKENS_PER_BATCH=${MAX_TOKENS_PER_BATCH:-} # by default 32768 on GPUs, 4096 on CPUs

# Data: pictures and their captions, or M-BEIR's folder and some of its tasks
FLICKR_IMAGES=${FLICKR_IMAGES:-./data/flickr/images}
FLICKR_TEXTS=${FLICKR_TEXTS:-./data/flickr/flickr_text.json}
DATA_PATH=${DATA_PATH:-}
TASKS=${TASKS:-all}

# Output: embeddings, where a restarted run and eval_mbeir.sh find theirs, and vectors.csv, vectors.md, vectors.png
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<model>/flickr30k, or results/<model>/mbeir

data=(--image_data_path "$FLICKR_IMAGES" --text_data_path "$FLICKR_TEXTS")
if [ -n "$DATA_PATH" ]; then data=(--data_path "$DATA_PATH" --tasks "$TASKS"); fi
evaluation eval/vectors.py \
  --model_id "$MODEL_ID" \
  ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
  ${LIBRARY:+--library "$LIBRARY"} \
  ${MAX_TOKENS_PER_BATCH:+--max_tokens_per_batch "$MAX_TOKENS_PER_BATCH"} \
  "${data[@]}" \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
  "$@"
