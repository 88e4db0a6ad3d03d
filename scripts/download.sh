#!/usr/bin/env bash
# Download what training and evaluation need; skips what is there, resumes what is not complete.
#
#   bash scripts/download.sh [qwen2-vl-7b | qwen2-vl-2b | qwen2.5-vl-3b | qwen2.5-vl-7b]
#     [qwen3-vl-2b | qwen3-vl-4b | qwen3-vl-8b] [nli] [flickr] [coco]
#     [lamra-ret | lamra-rank | lamra-ret-pretrained] [mbeir | mbeir:train,cirr_task7,...]
#     [sugarcrepe] [coco-val2017] [circo] [coco-unlabeled2017] [genecis] [fashioniq] [urban1k]
#
# Without names: qwen2-vl-7b nli flickr coco. The last line's are of the zero-shot suite: docs/zeroshot.md. mbeir is all
# of M-BEIR; with names, the files and pictures of the training and of tasks (val and test). Its pictures come as one
# archive of 169 GB, whatever is named.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# Where from: Hugging Face, or a mirror of it
HF_ENDPOINT=${HF_ENDPOINT:-https://huggingface.co}

# How patiently
MAX_WORKERS=${MAX_WORKERS:-2} # files at the same time
MAX_TRIES=${MAX_TRIES:-1000}
PAUSE=${PAUSE:-5} # seconds between tries

# What an archive may unpack to
MAX_FILES=${MAX_FILES:-10000000}
MAX_UNPACKED_GB=${MAX_UNPACKED_GB:-2000}
MAX_RATIO=${MAX_RATIO:-50} # to its own size

# Where to
MODELS_DIR=${MODELS_DIR:-checkpoints/hf_models}
DATA_DIR=${DATA_DIR:-data}

"$PYTHON" scripts/download.py \
    --endpoint "$HF_ENDPOINT" \
    --max_workers "$MAX_WORKERS" \
    --max_tries "$MAX_TRIES" \
    --pause "$PAUSE" \
    --max_files "$MAX_FILES" \
    --max_unpacked_gb "$MAX_UNPACKED_GB" \
    --max_ratio "$MAX_RATIO" \
    --models_dir "$MODELS_DIR" \
    --data_dir "$DATA_DIR" \
    "$@"
