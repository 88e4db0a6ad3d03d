#!/usr/bin/env bash
# mteb's tasks on an export of scripts/export.sh, or pairs of your own in mteb's way:
#   MODEL_ID=./checkpoints/my_run_export TASKS=Flickr30kT2IRetrieval,SugarCrepe bash scripts/eval/eval_mteb.sh
#   MODEL_ID=./checkpoints/my_run_export TASKS= bash scripts/eval/eval_mteb.sh --own my_pairs.jsonl
# mteb downloads the data of its tasks itself.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Ret_export}
TASKS=${TASKS-Flickr30kT2IRetrieval,Flickr30kI2TRetrieval,MSCOCOT2IRetrieval,MSCOCOI2TRetrieval,SugarCrepe}
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<model>/mteb

stay_on_this_machine
tethered eval/eval_mteb.py \
  --model_id "$MODEL_ID" \
  ${TASKS:+--tasks "$TASKS"} \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
  "$@"
