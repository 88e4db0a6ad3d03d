#!/usr/bin/env bash
# The mean of several models' weights, as one model: adapters on one base model, or whole models. Folders, or names below
# checkpoints/:
#   bash scripts/soup.sh run_1 run_2 run_3
#   bash scripts/soup.sh run_1 run_2 run_3 --greedy True --eval captions --image_data_path val/images --text_data_path val.json
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# Processes of one machine, for the evaluations of --greedy True. Without a GPU the number of CPU processes.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=1

WEIGHTS=${WEIGHTS:-}                     # 1,2,1: by default all the same
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # base model under the adapters; by default the one they remember
OUTPUT_DIR=${OUTPUT_DIR:-}               # by default the first model's folder with _soup behind

start=tethered
if [ "$NUM_GPUS" -gt 1 ] && [[ " $* " == *" --greedy"* ]]; then start=evaluation; fi

"$start" export/soup.py \
  ${WEIGHTS:+--weights "$WEIGHTS"} \
  ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
  "$@"
