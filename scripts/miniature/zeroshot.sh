#!/usr/bin/env bash
# The zero-shot suite in miniature, with the real scripts: what each stage gives on sets that no stage was trained on. Ends
# with a table beside the chance level and a picture. Started again it goes on where it stopped. About 10 minutes of one
# core, after both stages (miniature/mbeir.sh), with which it begins where they are missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/setup.sh
source scripts/env.sh

SEED=${SEED:-0}
FAMILY=${FAMILY:-qwen2_vl} # of the base model: or qwen2_5_vl, qwen3_vl
NAME=miniature_$FAMILY NAME=${NAME%_qwen2_vl}
BASE=checkpoints/hf_models/$NAME
STAGE1=checkpoints/${NAME}_LamRA_Ret_Pretrain_merged
BOTH=checkpoints/${NAME}_LamRA_Ret # both stages, by miniature/mbeir.sh
RERANKER=checkpoints/${NAME}_LamRA_Rank # by miniature/rank.sh: where it is there, it reranks what both stages retrieve
PROTOCOL=${PROTOCOL:-released} # or clean
RESULTS=results/${NAME}_zeroshot/$PROTOCOL
DATA=data/miniature_zeroshot

if ! grep -qs "^ *\"seed\": $SEED,$" "$BOTH/run.json"; then
  SEED=$SEED FAMILY=$FAMILY bash scripts/miniature/mbeir.sh
fi
"$PYTHON" miniature/build_zeroshot.py --seed "$SEED" --folder "$DATA"

export NUM_GPUS=${NUM_GPUS:-1}
export PROTOCOL TASKS=${TASKS:-sharegpt4v,urban1k,circo,genecis,visdial,vist,multiturn_fashion,ccneg,sugarcrepe,msrvtt,msvd}
export SUGARCREPE_TEXTS=$DATA/sugarcrepe/data SUGARCREPE_IMAGES=$DATA/sugarcrepe/images/val2017
export CCNEG_TEXTS=$DATA/ccneg/ccneg_preprocessed.pt CCNEG_IMAGES=$DATA/ccneg
export SHAREGPT4V_TEXTS=$DATA/sharegpt4v/datas_for_validation.json SHAREGPT4V_IMAGES=$DATA/sharegpt4v/val_data
export URBAN1K_TEXTS=$DATA/urban1k/caption URBAN1K_IMAGES=$DATA/urban1k/image
export CIRCO_TEXTS=$DATA/circo/annotations CIRCO_IMAGES=$DATA/circo/unlabeled2017
export GENECIS_TEXTS=$DATA/genecis/annotations GENECIS_IMAGES=$DATA/genecis
export VISDIAL_TEXTS=$DATA/visdial/visdial_1.0_val.json VISDIAL_IMAGES=$DATA/visdial/VisualDialog_val2018
export VIST_TEXTS=$DATA/vist/sis/val.story-in-sequence.json VIST_IMAGES=$DATA/vist/images/val
export MULTITURN_FASHION=$DATA/multiturn_fashion FASHIONIQ_IMAGES=$DATA/multiturn_fashion/images
export MSRVTT_TEXTS=$DATA/msrvtt/annotations/MSRVTT_JSFUSION_test.csv MSRVTT_VIDEOS=$DATA/msrvtt/videos
export MSVD_TEXTS=$DATA/msvd/raw-captions.pkl MSVD_CLIPS=$DATA/msvd/test_list.txt MSVD_VIDEOS=$DATA/msvd/YouTubeClips
evaluate() {
  MODEL_ID=$2 OUTPUT_DIR=$RESULTS/$1 bash scripts/eval/eval_zeroshot.sh
}
evaluate base "$BASE"
evaluate stage1 "$STAGE1"
evaluate both "$BOTH"

echo
"$PYTHON" eval/compare_zeroshot.py --output_dir "$RESULTS" \
  "base model=$RESULTS/base" "stage 1=$RESULTS/stage1" "stages 1 and 2=$RESULTS/both"

if [ -e "$RERANKER/lamra.json" ]; then
  MODEL_ID=$RERANKER RETRIEVED=$RESULTS/both OUTPUT_DIR=$RESULTS/reranked bash scripts/eval/rerank_zeroshot.sh
fi
