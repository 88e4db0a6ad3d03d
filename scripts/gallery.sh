#!/usr/bin/env bash
# A page to search an index of scripts/index.sh with words and pictures, in this machine's browser:
#   INDEX=results/my_run/index/my_pictures-1a2b3c bash scripts/gallery.sh --rerank ./checkpoints/my_reranker
# Without an index it shows the pictures that scripts/quickstart.sh drew, found by the model that it trained.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

INDEX=${INDEX:-}             # by default the quickstart's
OTHER_INDEX=${OTHER_INDEX:-} # to search beside it
RERANK=${RERANK:-}           # a reranker
PORT=${PORT:-7860}           # of 127.0.0.1

if [ -z "$INDEX" ]; then
  RUN=checkpoints/miniature_LamRA_Ret_Pretrain
  WORLD=data/miniature/test/images
  INDEX=results/miniature_LamRA_Ret_Pretrain/index/miniature
  if [ ! -d "$INDEX/items.lance" ]; then
    if [ ! -d "$RUN" ] || [ ! -d "$WORLD" ]; then
      refuse "there is nothing to show yet: bash scripts/quickstart.sh, or INDEX=... of bash scripts/index.sh FOLDER"
    fi
    tethered app/index.py --model_id "$RUN" --source "$WORLD" --output_dir "$INDEX"
  fi
fi

tethered app/gallery.py \
  --index "$INDEX" \
  ${OTHER_INDEX:+--other_index "$OTHER_INDEX"} \
  ${RERANK:+--rerank "$RERANK"} \
  --port "$PORT" \
  "$@"
