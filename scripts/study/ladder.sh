#!/usr/bin/env bash
# The ladder: LamRA's stage 2, and a rung for each method beyond it, all of one seed from the same merged stage-1 model.
#   RUNGS="recipe listed" SEEDS="0 1" bash scripts/study/ladder.sh
# Where a rung has several settings, the val queries choose, with the first seed; test is measured of the chosen one alone.
# What is finished is not done again; a broken run goes on. On the miniature: scripts/miniature/ladder.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Model and machine
export MODEL_ID=${MODEL_ID:-qwen2-vl-7b} NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
STAGE1=${STAGE1:-./checkpoints/${MODEL_ID}_LamRA_Ret_Pretrain_seed@_merged} # @ stands for the seed
STAGE1_BIDIRECTIONAL=${STAGE1_BIDIRECTIONAL:-${STAGE1/_Pretrain/_Pretrain_bidirectional}}
JOBS=${JOBS:-1} # seeds at once after the first, where the machine has room for them

# Data, and what to call them
export DATA_PATH=${DATA_PATH:-./data/M-BEIR} TASKS=${TASKS:-all}
DATA_NAME=${DATA_NAME:-M-BEIR}
STUDY=${STUDY:-ladder} # checkpoints/$STUDY and results/$STUDY
SEEDS=${SEEDS:-0 1 2}
RERANKER=${RERANKER:-} # variables and flags of train_rerank.sh for the teacher of "distilled"
SAVE_STEPS=${SAVE_STEPS:-100} # a broken run goes on from its last checkpoint

# A rung a line: name = [steps:] flags for scripts/lamra_ret/finetune.sh. "or" stands between settings of which val
# chooses. A step is a function below and the value that it is given, such as mine-100, and @ in the flags is the folder
# of the seed's steps. "soup: A B" trains nothing: it is the mean of the weights of rungs above it.
ladder="
recipe          =
another-order   = --seed 1000
homogeneous     = --mixture_batches homogeneous
temperature     = --learn_temperature True --temperature_lr 1e-2
symmetric       = --symmetric_loss True
false-negatives = --false_negative_margin 0.1
hardness        = --hardness_weight 9
bidirectional   = --attention bidirectional --pooling mean
listed          = --hard_negatives 4
mined           = mine-20: --mined @/mine-20/mined.arrow --hard_negatives 4
mined-filtered  = negatives-98: --mined @/negatives-98/negatives.arrow --hard_negatives 4
mined-batches   = mine-100 batches-8: --batches @/batches-8/batches.jsonl
together        = negatives-98: --mined @/negatives-98/negatives.arrow --hard_negatives 4 --hardness_weight 9
distilled       = mine-20 negatives-98 reranker-20 teacher-98: --mined @/negatives-98/negatives.arrow --hard_negatives 4 --teacher @/teacher-98/teacher.arrow
soup            = soup: mined-filtered hardness together
"
names=$(sed -n 's/ *=.*//p' <<<"$ladder" | xargs)
RUNGS=${RUNGS:-$names}
for rung in $RUNGS; do
  [[ " $names " == *" $rung "* ]] || refuse "unknown rung $rung: choose of $names"
done

# The run of a rung and seed with the setting that val chose: run_of RUNG SEED
run_of() { echo "$1.$(cat "results/$STUDY/chosen/$1")-seed$2"; }

# Steps: STEP VALUE FOLDER SEED. Each begins with the seed's run of `recipe`, and does nothing twice.
mine() { # the VALUE best wrong candidates of each training query
  if [ ! -e "$2/mined.arrow" ]; then
    MODEL_ID=checkpoints/$STUDY/$(run_of recipe "$3") TOP=$1 OUTPUT_DIR=$2 bash scripts/lamra_rank/mine.sh --seed "$3"
  fi
}

negatives() { # hard negatives below VALUE percent of the similarity of the query's positive
  if [ ! -e "$2/negatives.arrow" ]; then
    MODEL_ID=checkpoints/$STUDY/$(run_of recipe "$3") KEEP=10 OUTPUT_DIR=$2 \
      BELOW_SHARE=$("$PYTHON" -c "print($1 / 100)") bash scripts/lamra_ret/mine_negatives.sh --seed "$3"
  fi
}

reranker() { # LamRA-Rank, trained on what mine-VALUE found
  local word variables=() flags=()
  for word in $RERANKER; do
    if [[ $word == [A-Z]*=* ]]; then variables+=("$word"); else flags+=("$word"); fi
  done
  if [ ! -e "$2/lamra.json" ]; then
    env MINED="${2%/*}/mine-$1/mined.arrow" OUTPUT_DIR="$2" "${variables[@]}" \
      bash scripts/lamra_rank/train_rerank.sh --seed "$3" --force True "${flags[@]}"
  fi
}

teacher() { # what it says of negatives-VALUE
  if [ ! -e "$2/teacher.arrow" ]; then
    MODEL_ID=${2%/*}/reranker-20 MINED=${2%/*}/negatives-$1/negatives.arrow OUTPUT_DIR=$2 \
      bash scripts/lamra_ret/teacher_scores.sh --seed "$3"
  fi
}

batches() { # communities of VALUE rows, from what mine-100 found
  MINED=${2%/*}/mine-100/mined.arrow COMMUNITY_SIZE=$1 SKIP=0 NEIGHBOURS=30 OUTPUT=$2/batches.jsonl \
    bash scripts/lamra_ret/mine_batches.sh
}

# The settings of a rung, into `settings`, numbered from 1.
settings_of() {
  local line
  line=$(sed -n "s/^$1 *= *//p" <<<"$ladder")
  settings=("" "${line%% or *}")
  while [[ $line == *" or "* ]]; do
    line=${line#* or }
    settings+=("${line%% or *}")
  done
}

# Train a run unless that is done: make_run RUNG NUMBER SEED SETTING
make_run() {
  local name=$1.$2-seed$3 rung=$1 seed=$3 setting=$4 steps="" flags step begin begun
  local run=checkpoints/$STUDY/$name results=results/$STUDY/$name made=results/$STUDY/steps-seed$seed
  if [ -e "$results/rung.json" ]; then
    grep -qF "\"flags\": \"$setting\"" "$results/rung.json" ||
      refuse "$results was made with other flags than \"$setting\": set STUDY to a new name"
    return
  fi
  if [[ $setting == *:* ]]; then steps=${setting%%:*}; fi
  read -ra flags <<<"${setting#*:}"
  flags=("${flags[@]//@/$made}")
  if [ "$steps" = soup ]; then
    begin=$SECONDS
    for step in "${!flags[@]}"; do flags[step]=checkpoints/$STUDY/$(run_of "${flags[step]}" "$seed"); done
    OUTPUT_DIR=$run bash scripts/soup.sh "${flags[@]}"
  else
    for step in $steps; do "${step%%-*}" "${step#*-}" "$made/$step" "$seed"; done
    begin=$SECONDS
    if compgen -G "$run/checkpoint-*/manifest.json" >/dev/null; then flags+=(--resume auto); else flags+=(--force True); fi
    begun=${STAGE1//@/$seed}
    if [[ $setting == *--attention* ]]; then begun=${STAGE1_BIDIRECTIONAL//@/$seed}; fi # a model keeps its attention
    MODEL_LOCAL_PATH=$begun OUTPUT_DIR=$run RUN_ID=$name bash scripts/lamra_ret/finetune.sh \
      --seed "$seed" --save_strategy steps --save_steps "$SAVE_STEPS" --save_total_limit 1 "${flags[@]}"
  fi
  mkdir -p "$results"
  printf '{"rung": "%s", "number": %d, "seed": %d, "flags": "%s", "seconds": %d}\n' \
    "$rung" "$(grep -n "^$rung *=" <<<"$ladder" | cut -d: -f1)" "$seed" "$setting" $((SECONDS - begin)) \
    >"$results/rung.json"
}

# Recall of a run on val or test, unless that is done: measure RUN SPLIT
measure() {
  if [ ! -e "results/$STUDY/$1/$2_local/metrics.json" ]; then
    MODEL_ID=checkpoints/$STUDY/$1 OUTPUT_DIR=results/$STUDY/$1 POOL=local \
      bash scripts/eval/eval_mbeir.sh --split "$2" --data_name "$DATA_NAME"
  fi
}

# Write the number of a rung's best setting on val to results/$STUDY/chosen/RUNG, unless that is done: choose RUNG SEED
choose() {
  local rung=$1 seed=$2 best=1 number runs=()
  if [ -e "results/$STUDY/chosen/$rung" ]; then return; fi
  if [ "${#settings[@]}" -gt 2 ]; then
    for ((number = 1; number < ${#settings[@]}; number++)); do
      make_run "$rung" "$number" "$seed" "${settings[number]}"
      runs+=("$rung.$number-seed$seed")
      measure "${runs[-1]}" val
    done
    best=$("$PYTHON" eval/ladder.py --study "$STUDY" --choose "${runs[@]}")
    best=${best%-seed*} best=${best##*.}
  fi
  mkdir -p "results/$STUDY/chosen"
  echo "$best" >"results/$STUDY/chosen/$rung"
}

# All rungs of a seed, one after the other: climb SEED
climb() {
  local rung number settings
  for rung in $RUNGS; do
    settings_of "$rung"
    choose "$rung" "$1"
    number=$(cat "results/$STUDY/chosen/$rung")
    make_run "$rung" "$number" "$1" "${settings[number]}"
    measure "$(run_of "$rung" "$1")" test
  done
}

read -r first others <<<"$SEEDS"
climb "$first"
for seed in $others; do
  while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
  climb "$seed" &
done
while [ -n "$(jobs -rp)" ]; do wait -n; done
"$PYTHON" eval/ladder.py --study "$STUDY"
