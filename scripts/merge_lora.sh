#!/usr/bin/env bash
# Merge an adapter into its base model: a folder that loads without PEFT and without this project.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Ret_Pretrain}
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # by default the one the adapter remembers
SAVE_PATH=${SAVE_PATH:-${MODEL_ID}_merged}
DTYPE=${DTYPE:-bf16} # bf16, fp32

tethered export/merge_lora.py \
  --model_id "$MODEL_ID" \
  ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
  --save_path "$SAVE_PATH" \
  --dtype "$DTYPE" \
  "$@"
