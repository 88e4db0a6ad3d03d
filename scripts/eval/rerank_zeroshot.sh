#!/usr/bin/env bash
# Rerank what eval_zeroshot.sh, and eval_pretrained.sh --save_for_rerank True, retrieved: all sets that have rankings, then
# one table.
#   MODEL_ID=./checkpoints/my_reranker RETRIEVED=./results/my_run TASKS=sugarcrepe,flickr bash scripts/eval/rerank_zeroshot.sh
# Started again it asks nothing twice.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Processes of one machine. Without a GPU, NUM_GPUS is the number of CPU processes.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=1

# Models: a reranker, and whose rankings
MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Rank}
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # base model under an adapter; by default the one it remembers
MAX_TOKENS_PER_BATCH=${MAX_TOKENS_PER_BATCH:-} # by default 32768 on GPUs, 4096 on CPUs
RETRIEVED=${RETRIEVED:-./results/qwen2-vl-7b_LamRA_Ret} # a folder for each set below it
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<reranker>; a folder for each set below it

# Data; where the suite's files are says suite.sh
FLICKR_IMAGES=${FLICKR_IMAGES:-./data/flickr/images}
FLICKR_TEXTS=${FLICKR_TEXTS:-./data/flickr/flickr_text.json}
COCO_IMAGES=${COCO_IMAGES:-./data/coco/coco_images}
COCO_TEXTS=${COCO_TEXTS:-./data/coco/coco_text.json}
source scripts/eval/suite.sh
ALL=flickr,coco,$ALL
DATASETS=${DATASETS:-} # flickr or coco or both, as eval_pretrained.sh has it: the same as TASKS
TASKS=${TASKS:-${DATASETS:-$ALL}}

# How
STYLE=${STYLE:-pointwise} # or listwise
DEPTH=${DEPTH:-}          # candidates of each query; by default 10, listwise 5
WEIGHT=${WEIGHT:-}        # of P(Yes); by default 1, for SugarCrepe 0.1, for COCO 0.5 and 0.1

start_set() { # start_set NAME ENTRYPOINT [FLAG PATH]...
  evaluation eval/eval_zeroshot_rerank.py \
    --set "$1" \
    --model_id "$MODEL_ID" \
    ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
    ${MAX_TOKENS_PER_BATCH:+--max_tokens_per_batch "$MAX_TOKENS_PER_BATCH"} \
    --rankings "$RETRIEVED/$1" \
    "${@:3}" \
    ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR/$1"} \
    --style "$STYLE" \
    ${DEPTH:+--depth "$DEPTH"} \
    ${WEIGHT:+--weight "$WEIGHT"} \
    "${flags[@]}"
}

flags=("$@")
read_tasks
ranked=()
for name in "${names[@]}"; do
  folder=$RETRIEVED/${name/#flickr/flickr30k}
  if compgen -G "$folder/ranking_*.jsonl" >/dev/null || compgen -G "$folder/*_query_names.json" >/dev/null; then
    ranked+=("$name")
  else
    absent+=("$name: $folder has no rankings")
  fi
done
each_set "${ranked[@]}"
report eval/zeroshot_report.py --style "$STYLE"
