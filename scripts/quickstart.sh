#!/usr/bin/env bash
# From nothing to a measured model on any machine: install, make a miniature world, and run the real scripts on it:
# evaluate the base model, pre-train it on sentences alone, evaluate again. Ends with a table and a picture.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
source scripts/env.sh

SEED=${SEED:-0}
FAMILY=${FAMILY:-qwen2_vl} # of the base model: or qwen2_5_vl, qwen3_vl
NAME=miniature_$FAMILY NAME=${NAME%_qwen2_vl}
BASE=checkpoints/hf_models/$NAME # written by miniature/build.py
WORLD=data/miniature
RUN=checkpoints/${NAME}_LamRA_Ret_Pretrain
RESULTS=results/quickstart${NAME#miniature}

"$PYTHON" miniature/build.py --seed "$SEED" --family "$FAMILY"

export NUM_GPUS=${NUM_GPUS:-1} DATASETS=flickr FLICKR_IMAGES=$WORLD/test/images FLICKR_TEXTS=$WORLD/test/captions.json
evaluate() {
  MODEL_ID=$1 bash scripts/eval/eval_pretrained.sh --output_dir "$2" --data_name "unseen miniature"
}
evaluate "$BASE" "$RESULTS/before"

MODEL_ID=$NAME TRAIN_DATA_PATH=$WORLD/nli.csv EVAL_DATA_PATH=$WORLD/nli_eval.csv OUTPUT_DIR=$RUN \
  DS_STAGE=none PER_DEVICE_BATCH_SIZE=64 NUM_EPOCHS=1 LR=1e-3 LORA_R=16 LORA_ALPHA=32 BF16=False \
  bash scripts/lamra_ret/pretrain.sh --seed "$SEED" --force True

evaluate "$RUN" "$RESULTS/after"

"$PYTHON" eval/report.py --output_dir "$RESULTS" \
  "base model=$RESULTS/before/metrics.json" "after stage 1=$RESULTS/after/metrics.json"
cat <<EOF

Next:
  $PYTHON demo.py --model_id $RUN --folder $WORLD/test/images --text "A red circle at top left."
  bash scripts/gallery.sh               # a page to search them; before: .venv/bin/pip install -e ".[gallery]"
  bash scripts/test.sh                  # every test
  bash scripts/miniature/mbeir.sh       # stage 2 on the same world
  bash scripts/miniature/rank.sh        # LamRA-Rank on it
  bash scripts/miniature/zeroshot.sh    # the paper's zero-shot suite, drawn
  MODEL_ID=$RUN bash scripts/export.sh  # for sentence-transformers
  bash scripts/miniature/study.sh       # which pre-training data, and how much
  bash scripts/download.sh              # Qwen2-VL-7B, the NLI triplets, Flickr30K and COCO
  bash scripts/lamra_ret/pretrain.sh    # stage 1 at full size
EOF
