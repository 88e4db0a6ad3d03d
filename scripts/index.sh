#!/usr/bin/env bash
# An index of your own pictures and videos, to be searched by demo.py, in Python and on the page of scripts/gallery.sh:
#   MODEL_ID=./checkpoints/my_run bash scripts/index.sh my_pictures
#   MODEL_ID=./checkpoints/my_run bash scripts/index.sh my_items.jsonl --ivf_pq True
# A second run embeds what is new or has changed, and forgets what is gone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Ret}
SOURCE=${SOURCE:-}         # a folder of pictures and videos, or items.jsonl; the first word behind the script wins
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<model>/index/<source>
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}

if [ $# -gt 0 ] && [[ $1 != --* ]]; then
  SOURCE=$1
  shift
fi
if [ -z "$SOURCE" ]; then refuse "which pictures? bash scripts/index.sh FOLDER, or FILE.jsonl"; fi

evaluation app/index.py \
  --model_id "$MODEL_ID" \
  --source "$SOURCE" \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
  "$@"
