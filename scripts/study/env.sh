# shellcheck shell=bash
# Sourced by the study's scripts: its settings, and what one run is. Edit them here or set them in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Model and machine
export MODEL_ID=${MODEL_ID:-qwen2-vl-7b} MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-}
export NUM_GPUS=${NUM_GPUS:-$(count_gpus)}

# The same for every run: steps and batch (8 x 72 = 576), so that runs differ in their data alone
STEPS=${STEPS:-478} # one epoch of the NLI csv
export PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-72} LR=${LR:-2e-4}
SEEDS=${SEEDS:-0 1 2}
SAVE_STEPS=${SAVE_STEPS:-100} # a broken run goes on from its last checkpoint

# Data of each kind, and its format (datasets/pairs.py)
TEXT_DATA=${TEXT_DATA:-./data/nli_for_simcse.csv}
IMAGE_DATA=${IMAGE_DATA:-./data/region_edit.jsonl}
IMAGE_TEXT_DATA=${IMAGE_TEXT_DATA:-./data/sharegpt4v.json}
MIXTURE_BATCHES=${MIXTURE_BATCHES:-mixed}

# Galleries: as in scripts/eval/eval_pretrained.sh
export DATASETS=${DATASETS:-flickr coco}
FLICKR_TITLE=${FLICKR_TITLE:-Flickr30K}
COCO_TITLE=${COCO_TITLE:-COCO}

STUDY=${STUDY:-study} # checkpoints/$STUDY and results/$STUDY

# Train and measure one run unless that is done: study_run KIND PERCENT SEED. KIND none is the base model.
study_run() {
  local kind=$1 percent=$2 seed=$3
  local name="$kind-$percent-seed$seed"
  local run="checkpoints/$STUDY/$name" results="results/$STUDY/$name" data format=nli flags=()
  case $kind in
    none) run=${MODEL_LOCAL_PATH:-checkpoints/hf_models/$MODEL_ID} ;;
    text) data=$TEXT_DATA ;;
    image) data=$IMAGE_DATA format=region_edit ;;
    image-text) data=$IMAGE_TEXT_DATA format=sharegpt4v ;;
    mixture) data=$TEXT_DATA,$IMAGE_DATA,$IMAGE_TEXT_DATA format=nli,region_edit,sharegpt4v ;;
    *) refuse "unknown kind $kind: choose of text, image, image-text, mixture" ;;
  esac

  if [ "$kind" != none ]; then
    if [ "$percent" != 100 ]; then flags+=(--max_train_samples "$(printf 0.%02d "$percent")"); fi
    if [ "$kind" = mixture ]; then flags+=(--mixture_batches "$MIXTURE_BATCHES"); fi
    flags+=(--data_format "$format" --max_steps "$STEPS" --seed "$seed" --save_strategy steps --save_steps "$SAVE_STEPS")
    local settings="$data ${flags[*]} $MODEL_ID $NUM_GPUS x $PER_DEVICE_BATCH_SIZE, LR $LR"
    if [ -e "$run/study" ] && [ "$(cat "$run/study")" != "$settings" ]; then
      refuse "$run was made with other settings ($(cat "$run/study")): set STUDY to a new name"
    fi
    if [ ! -e "$run/adapter_config.json" ] && [ ! -e "$run/config.json" ]; then
      mkdir -p "$run" && echo "$settings" >"$run/study"
      if compgen -G "$run/checkpoint-*/manifest.json" >/dev/null; then
        flags+=(--resume auto)
      elif [ -e "$run/run.json" ]; then # stopped before its first checkpoint
        flags+=(--force True)
      fi
      TRAIN_DATA_PATH=$data OUTPUT_DIR=$run RUN_ID=$name bash scripts/lamra_ret/pretrain.sh "${flags[@]}"
    fi
  fi
  for dataset in $DATASETS; do
    if [ ! -e "$results/$dataset/metrics.json" ]; then
      local title=${dataset^^}_TITLE
      DATASETS=$dataset MODEL_ID=$run bash scripts/eval/eval_pretrained.sh \
        --output_dir "$results/$dataset" --data_name "${!title}"
    fi
  done
}

report() {
  "$PYTHON" eval/study.py --study "$STUDY" --titles "$FLICKR_TITLE" "$COCO_TITLE"
}
