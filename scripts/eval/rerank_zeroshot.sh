#!/usr/bin/env bash
# Rerank what eval_pretrained.sh --save_for_rerank True retrieved on Flickr30K and COCO:
#   MODEL_ID=./checkpoints/my_reranker RETRIEVED=./results/my_run DATASETS=flickr bash scripts/eval/rerank_zeroshot.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Processes of one machine. Without a GPU, NUM_GPUS is the number of CPU processes.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=1

# Models: a reranker, and whose rankings
MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Rank}
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # base model under an adapter; by default the one it remembers
MAX_TOKENS_PER_BATCH=${MAX_TOKENS_PER_BATCH:-} # by default 32768 on GPUs, 4096 on CPUs
RETRIEVED=${RETRIEVED:-./results/qwen2-vl-7b_LamRA_Ret} # holds flickr30k/ and coco/

# Data: LamRA_Eval's files, or a folder of pictures and Karpathy's json.
DATASETS=${DATASETS:-flickr coco}
FLICKR_IMAGES=${FLICKR_IMAGES:-./data/flickr/images}
FLICKR_TEXTS=${FLICKR_TEXTS:-./data/flickr/flickr_text.json}
COCO_IMAGES=${COCO_IMAGES:-./data/coco/coco_images}
COCO_TEXTS=${COCO_TEXTS:-./data/coco/coco_text.json}

# How
STYLE=${STYLE:-pointwise} # or listwise
DEPTH=${DEPTH:-}          # candidates of each query; by default 10, listwise 5
WEIGHT=${WEIGHT:-}        # of P(Yes); by default 1, for COCO 0.5 and 0.1

for dataset in $DATASETS; do
  images=${dataset^^}_IMAGES texts=${dataset^^}_TEXTS
  case $dataset in flickr) name=Flickr30K ;; *) name=${dataset^^} ;; esac
  evaluation eval/eval_rerank.py \
    --model_id "$MODEL_ID" \
    ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
    ${MAX_TOKENS_PER_BATCH:+--max_tokens_per_batch "$MAX_TOKENS_PER_BATCH"} \
    --rankings "$RETRIEVED/${name,,}" \
    --image_data_path "${!images}" \
    --text_data_path "${!texts}" \
    --data_name "$name" \
    --style "$STYLE" \
    ${DEPTH:+--depth "$DEPTH"} \
    ${WEIGHT:+--weight "$WEIGHT"} \
    "$@"
done
