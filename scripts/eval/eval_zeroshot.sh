#!/usr/bin/env bash
# The zero-shot suite, of an adapter, a merged model or a bare base model: all sets whose files are there, then one table.
#   MODEL_ID=./checkpoints/my_run TASKS=sugarcrepe,ccneg bash scripts/eval/eval_zeroshot.sh
# Started again it goes on with the set at which it stopped. docs/zeroshot.md says where the files come from.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Processes of one machine. Without a GPU, NUM_GPUS is the number of CPU processes.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=1

# Model
MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Ret}
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # base model under an adapter; by default the one it remembers
LIBRARY=${LIBRARY:-} # sentence-transformers: the model is one of that library; by default of LamRA's kind
MAX_TOKENS_PER_BATCH=${MAX_TOKENS_PER_BATCH:-} # by default 32768 on GPUs, 4096 on CPUs
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<model>; a folder for each set below it

# Data; where the suite's files are says suite.sh
source scripts/eval/suite.sh
TASKS=${TASKS:-$ALL}
PROTOCOL=${PROTOCOL:-released} # or clean

start_set() { # start_set NAME ENTRYPOINT [FLAG PATH]...
  evaluation "eval/eval_zeroshot/$2" \
    "${@:3}" \
    --protocol "$PROTOCOL" \
    ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
    --model_id "$MODEL_ID" \
    ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR/$1"} \
    ${LIBRARY:+--library "$LIBRARY"} \
    ${MAX_TOKENS_PER_BATCH:+--max_tokens_per_batch "$MAX_TOKENS_PER_BATCH"} \
    "${flags[@]}"
}

flags=("$@")
read_tasks
each_set "${names[@]}"
report eval/zeroshot_report.py
