#!/usr/bin/env bash
# Export a model for sentence-transformers, mteb, vLLM and transformers: one folder that this project loads, too.
#   MODEL_ID=./checkpoints/my_run bash scripts/export.sh
#   MODEL_ID=./checkpoints/my_run bash scripts/export.sh --push me/my-retriever     # a private repository
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Ret} # an adapter or a merged model, retriever or reranker
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-}                  # by default the one the adapter remembers
SAVE_PATH=${SAVE_PATH:-${MODEL_ID}_export}
DTYPE=${DTYPE:-bf16} # bf16, fp32

tethered export/sentence_transformers.py \
  --model_id "$MODEL_ID" \
  ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
  --save_path "$SAVE_PATH" \
  --dtype "$DTYPE" \
  "$@"
