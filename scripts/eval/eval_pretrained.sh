#!/usr/bin/env bash
# Recall@K on Flickr30K and COCO of an adapter, a merged model or a bare base model:
#   MODEL_ID=./checkpoints/my_run DATASETS=flickr bash scripts/eval/eval_pretrained.sh
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

# Data: LamRA_Eval's files, or a folder of pictures and Karpathy's json.
DATASETS=${DATASETS:-flickr coco}
FLICKR_IMAGES=${FLICKR_IMAGES:-./data/flickr/images}
FLICKR_TEXTS=${FLICKR_TEXTS:-./data/flickr/flickr_text.json}
COCO_IMAGES=${COCO_IMAGES:-./data/coco/coco_images}
COCO_TEXTS=${COCO_TEXTS:-./data/coco/coco_text.json}

for dataset in $DATASETS; do
  images=${dataset^^}_IMAGES texts=${dataset^^}_TEXTS
  evaluation "eval/eval_zeroshot/eval_$dataset.py" \
    --image_data_path "${!images}" \
    --text_data_path "${!texts}" \
    ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
    --model_id "$MODEL_ID" \
    ${LIBRARY:+--library "$LIBRARY"} \
    ${MAX_TOKENS_PER_BATCH:+--max_tokens_per_batch "$MAX_TOKENS_PER_BATCH"} \
    "$@"
done
