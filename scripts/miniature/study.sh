#!/usr/bin/env bash
# The whole study on the miniature world, without GPU and downloads.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/setup.sh
source scripts/env.sh

WORLD=data/miniature_study
"$PYTHON" miniature/build.py --study

export STUDY=${STUDY:-miniature_study} NUM_GPUS=${NUM_GPUS:-1}
export MODEL_ID=miniature MODEL_LOCAL_PATH=checkpoints/hf_models/miniature_study
export TEXT_DATA=$WORLD/text.csv IMAGE_DATA=$WORLD/region_edit.jsonl IMAGE_TEXT_DATA=$WORLD/image_text.json
export FLICKR_IMAGES=$WORLD/flickr/images FLICKR_TEXTS=$WORLD/flickr/captions.json
export FLICKR_TITLE="miniature 1" COCO_TITLE="miniature 2" # the same domain, in Flickr30K's and in Karpathy's layout
export COCO_IMAGES=$WORLD/coco/images COCO_TEXTS=$WORLD/coco/dataset.json
export DS_STAGE=none BF16=False GRADIENT_CHECKPOINTING=False LORA_R=16 LORA_ALPHA=32
export STEPS=${STEPS:-40} PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-64} LR=${LR:-1e-3}

bash scripts/study/data_types.sh
KINDS=${SCALE_KINDS:-text} bash scripts/study/data_scale.sh
