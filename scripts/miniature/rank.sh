#!/usr/bin/env bash
# LamRA-Rank in miniature, with the real scripts: mine what the stage-2 model confuses, train a reranker on it, rerank what
# the stage-2 model retrieves. Ends with recall@1 before and after, pointwise against listwise, and what each costs.
# Minutes on 2 cores: 13 for both stages (miniature/mbeir.sh), 12 for a base model that can compare, 17 for the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/setup.sh
source scripts/env.sh

SEED=${SEED:-0}
FAMILY=${FAMILY:-qwen2_vl} # of the base model: or qwen2_5_vl, qwen3_vl
NAME=miniature_$FAMILY NAME=${NAME%_qwen2_vl}
SPLIT=${SPLIT:-test} # weights are chosen on val
RETRIEVER=checkpoints/${NAME}_LamRA_Ret # both stages, by miniature/mbeir.sh
RETRIEVED=results/${NAME}_mbeir/both
BASE=checkpoints/hf_models/${NAME}_rank
RERANKER=checkpoints/${NAME}_LamRA_Rank
RESULTS=results/${NAME}_rank

export NUM_GPUS=${NUM_GPUS:-1} DATA_PATH=data/miniature_mbeir
export TASKS=mscoco_task0_test,mscoco_task3_test,nights_task4,cirr_task7,infoseek_task6

if ! grep -qs "^ *\"seed\": $SEED,$" "$RETRIEVER/run.json" || [ ! -e "$RETRIEVED/${SPLIT}_global/metrics.json" ]; then
  env -u LR -u NUM_EPOCHS SEED="$SEED" FAMILY="$FAMILY" SPLIT="$SPLIT" bash scripts/miniature/mbeir.sh
fi
rm -rf "$RESULTS" # of an earlier retriever or reranker
MODEL_ID=$RETRIEVER OUTPUT_DIR=$RETRIEVED bash scripts/eval/eval_mbeir.sh --split val --data_name "miniature M-BEIR"

"$PYTHON" miniature/build_rank.py --seed "$SEED" --family "$FAMILY"

MODEL_ID=$RETRIEVER OUTPUT_DIR=$RESULTS/mined bash scripts/lamra_rank/mine.sh --seed "$SEED"

# The prompts are new to this base model, so the first steps are far off: a longer warm-up, clipped gradients. A model this
# small needs no dropout.
MODEL_ID=$NAME INIT=$BASE MINED=$RESULTS/mined/mined.arrow OUTPUT_DIR=$RERANKER \
  DS_STAGE=none BF16=False GRADIENT_CHECKPOINTING=False LORA_R=32 LORA_ALPHA=64 \
  PER_DEVICE_BATCH_SIZE=16 GRAD_ACCUM=1 NUM_EPOCHS=${NUM_EPOCHS:-1} LR=${LR:-1e-3} \
  bash scripts/lamra_rank/train_rerank.sh --seed "$SEED" --force True \
  --max_grad_norm 1 --warmup_ratio 0.1 --lora_dropout 0

rerank() {
  MODEL_ID=$1 STYLE=$2 OUTPUT_DIR=$RESULTS/$3 RANKINGS=$RETRIEVED/${SPLIT}_local DEPTH=10 \
    bash scripts/eval/rerank_mbeir.sh --split "$SPLIT" --data_name "miniature M-BEIR" "${@:4}"
}
rerank "$BASE" pointwise base --tune_weight "$RETRIEVED/val_local"
rerank "$RERANKER" pointwise trained --tune_weight "$RETRIEVED/val_local"
rerank "$RERANKER" listwise trained

echo
"$PYTHON" eval/compare_rerank.py --output_dir "$RESULTS" "base model=$RESULTS/base/pointwise" \
  "pointwise=$RESULTS/trained/pointwise" "listwise=$RESULTS/trained/listwise"

cat <<EOF

Next:
  bash scripts/miniature/zeroshot.sh    # both models on sets that none was trained on
EOF
