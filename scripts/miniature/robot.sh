#!/usr/bin/env bash
# The robot's memory (docs/robot.md): an agent in MiniGrid takes its next step from what BabyAI's expert once did. How
# often it succeeds by chance, by the mission's text alone, and with pictures too: base model, stage 1, stage 2. Ends with
# a table, a picture and films. What is finished is not done again. Needs minigrid.
#   SEEDS=0 bash scripts/miniature/robot.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/setup.sh
source scripts/env.sh

SEEDS=${SEEDS:-0 1 2} # of the memories, of the trainings and of the episodes
SPLIT=${SPLIT:-test}  # settings were chosen on val
BASE=checkpoints/hf_models/miniature_robot # one base model for all seeds, as there is one Qwen2-VL
NAME=checkpoints/miniature_robot_LamRA_Ret
RESULTS=results/miniature_robot/$SPLIT

export MODEL_ID=miniature NUM_GPUS=${NUM_GPUS:-1}
export DS_STAGE=none BF16=False GRADIENT_CHECKPOINTING=False LORA_R=16 LORA_ALPHA=32 PER_DEVICE_BATCH_SIZE=64

for seed in $SEEDS; do
  data=data/miniature_robot/seed$seed stage1=${NAME}_Pretrain_seed$seed both=${NAME}_seed$seed
  if [ -e "$RESULTS/seed$seed.json" ]; then continue; fi
  "$PYTHON" miniature/build_robot.py --seed "$seed"
  if [ ! -e "${stage1}_merged/lamra.json" ]; then # on sentences alone
    MODEL_LOCAL_PATH=$BASE TRAIN_DATA_PATH=$data/nli.csv OUTPUT_DIR=$stage1 NUM_EPOCHS=1 LR=1e-3 \
      bash scripts/lamra_ret/pretrain.sh --seed "$seed" --force True
    rm -rf "${stage1}_merged"
    MODEL_ID=$stage1 SAVE_PATH=${stage1}_merged DTYPE=fp32 bash scripts/merge_lora.sh
  fi
  MODEL_LOCAL_PATH=${stage1}_merged DATA_PATH=$data OUTPUT_DIR=$both NUM_EPOCHS=${NUM_EPOCHS:-3} LR=${LR:-1e-3} \
    bash scripts/lamra_ret/finetune.sh --seed "$seed" --force True # on the expert's memories
  "$PYTHON" miniature/run_robot.py --seed "$seed" --split "$SPLIT" --output_dir "$RESULTS" --film \
    --text "${stage1}_merged" --models "base model=$BASE" "stage 1=${stage1}_merged" "stage 2+=$both"
done
"$PYTHON" miniature/run_robot.py --output_dir "$RESULTS" --report
