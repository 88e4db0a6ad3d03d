#!/usr/bin/env bash
# The ladder on the hard miniature M-BEIR (miniature/mbeir_hard.py), without GPU and downloads: which methods beyond
# LamRA's stage 2 teach what it does not. What is finished is not done again.
#   RUNGS="recipe listed" SEEDS=0 bash scripts/miniature/ladder.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/setup.sh
source scripts/env.sh

export MODEL_ID=miniature SEEDS=${SEEDS:-0 1 2} NUM_GPUS=${NUM_GPUS:-1}
export DS_STAGE=none BF16=False GRADIENT_CHECKPOINTING=False LORA_R=16 LORA_ALPHA=32 PER_DEVICE_BATCH_SIZE=64
export DATA_PATH=data/miniature_mbeir_hard
export TASKS=mscoco_task0_test,mscoco_task3_test,nights_task4,cirr_task7,infoseek_task6

"$PYTHON" miniature/build.py --hard # one base model for all seeds, as there is one Qwen2-VL
if [ ! -e "$DATA_PATH/done" ]; then "$PYTHON" miniature/build_mbeir.py --hard; fi

stage1() { # stage1 FOLDER SEED FLAGS..: stage 1 on the base model, merged
  if [ ! -e "$1_merged/lamra.json" ]; then
    MODEL_LOCAL_PATH=checkpoints/hf_models/miniature_hard TRAIN_DATA_PATH=data/miniature/nli.csv OUTPUT_DIR=$1 \
      NUM_EPOCHS=1 LR=1e-3 bash scripts/lamra_ret/pretrain.sh --seed "$2" --force True "${@:3}"
    rm -rf "$1_merged"
    MODEL_ID=$1 SAVE_PATH=$1_merged DTYPE=fp32 bash scripts/merge_lora.sh
  fi
}
if [[ " ${RUNGS:-distilled} " == *" distilled "* ]]; then # as scripts/miniature/rank.sh trains it
  "$PYTHON" miniature/build_rank.py
  RERANKER="INIT=checkpoints/hf_models/miniature_rank LORA_R=32 LORA_ALPHA=64 PER_DEVICE_BATCH_SIZE=16 GRAD_ACCUM=1 NUM_EPOCHS=1"
  export RERANKER="$RERANKER LR=1e-3 --max_grad_norm 1 --warmup_ratio 0.1 --lora_dropout 0"
fi
before=checkpoints/miniature_hard_LamRA_Ret_Pretrain
for seed in $SEEDS; do
  stage1 "${before}_seed$seed" "$seed"
  if [[ " ${RUNGS:-bidirectional} " == *" bidirectional "* ]]; then
    stage1 "${before}_bidirectional_seed$seed" "$seed" --attention bidirectional --pooling mean
  fi
done

NUM_EPOCHS=${NUM_EPOCHS:-2} LR=${LR:-1e-3} STUDY=${STUDY:-miniature_ladder} DATA_NAME="hard miniature M-BEIR" \
  STAGE1=./${before}_seed@_merged bash scripts/study/ladder.sh
