#!/usr/bin/env bash
# The zero-shot suite, of an adapter, a merged model or a bare base model: all sets whose files are there, then one table.
#   MODEL_ID=./checkpoints/my_run TASKS=sugarcrepe,ccneg bash scripts/eval/eval_zeroshot.sh
# Started again it goes on with the set at which it stopped. docs/zeroshot.md says where the files come from.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Processes of one machine. Without a GPU, NUM_GPUS is the number of CPU processes.
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
NNODES=1

# Model
MODEL_ID=${MODEL_ID:-./checkpoints/qwen2-vl-7b_LamRA_Ret}
ORIGINAL_MODEL_ID=${ORIGINAL_MODEL_ID:-} # base model under an adapter; by default the one it remembers
LIBRARY=${LIBRARY:-} # sentence-transformers: the model is one of that library; by default of LamRA's kind
MAX_TOKENS_PER_BATCH=${MAX_TOKENS_PER_BATCH:-} # by default 32768 on GPUs, 4096 on CPUs
OUTPUT_DIR=${OUTPUT_DIR:-} # by default results/<model>; a folder for each set below it

# Data
ALL=sharegpt4v,urban1k,circo,genecis,visdial,vist,multiturn_fashion,ccneg,sugarcrepe,msrvtt,msvd
TASKS=${TASKS:-$ALL}
PROTOCOL=${PROTOCOL:-released} # or clean
SUGARCREPE_TEXTS=${SUGARCREPE_TEXTS:-./data/sugar-crepe/data}
SUGARCREPE_IMAGES=${SUGARCREPE_IMAGES:-./data/sugar-crepe/images/val2017}
CCNEG_TEXTS=${CCNEG_TEXTS:-./data/ccneg/ccneg_preprocessed.pt}
CCNEG_IMAGES=${CCNEG_IMAGES:-./data/ccneg} # the folder above cc3m_subset_images_extracted_final
SHAREGPT4V_TEXTS=${SHAREGPT4V_TEXTS:-./data/sharegpt4v/datas_for_validation.json}
SHAREGPT4V_IMAGES=${SHAREGPT4V_IMAGES:-./data/sharegpt4v/val_data}
URBAN1K_TEXTS=${URBAN1K_TEXTS:-./data/Urban1k/caption}
URBAN1K_IMAGES=${URBAN1K_IMAGES:-./data/Urban1k/image}
CIRCO_TEXTS=${CIRCO_TEXTS:-./data/circo/annotations}
CIRCO_IMAGES=${CIRCO_IMAGES:-./data/circo/images/unlabeled2017} # as CIRCO has it: ./data/circo/COCO2017_unlabeled/unlabeled2017
GENECIS_TEXTS=${GENECIS_TEXTS:-./data/genecis/annotations}
GENECIS_IMAGES=${GENECIS_IMAGES:-./data/genecis} # the folder above val2017 and vg
VISDIAL_TEXTS=${VISDIAL_TEXTS:-./data/visdial/visdial_1.0_val.json}
VISDIAL_IMAGES=${VISDIAL_IMAGES:-./data/visdial/VisualDialog_val2018}
VIST_TEXTS=${VIST_TEXTS:-./data/vist/sis/val.story-in-sequence.json}
VIST_IMAGES=${VIST_IMAGES:-./data/vist/images/val}
MULTITURN_FASHION=${MULTITURN_FASHION:-./data/multiturnfashion} # the repository's folder
FASHIONIQ_IMAGES=${FASHIONIQ_IMAGES:-./data/M-BEIR/mbeir_images/fashioniq_images}
FASHIONIQ_CAPTIONS=${FASHIONIQ_CAPTIONS:-} # ./data/fashioniq/captions: also the queries that end with no training pair
MSRVTT_TEXTS=${MSRVTT_TEXTS:-./data/msrvtt/annotations/MSRVTT_JSFUSION_test.csv}
MSRVTT_VIDEOS=${MSRVTT_VIDEOS:-./data/msrvtt/videos}
MSVD_TEXTS=${MSVD_TEXTS:-./data/MSVD/raw-captions.pkl}
MSVD_CLIPS=${MSVD_CLIPS:-./data/MSVD/test_list.txt} # their ids
MSVD_VIDEOS=${MSVD_VIDEOS:-./data/MSVD/YouTubeClips}

absent=() written=() failed=()
evaluate_set() { # evaluate_set NAME ENTRYPOINT [FLAG PATH]...: unless a path is not there
  local name=$1 entrypoint=$2 given=("${@:3}") i
  for ((i = 1; i < ${#given[@]}; i += 2)); do
    if [ ! -e "${given[i]}" ]; then
      absent+=("$name: ${given[i]} is not there")
      return
    fi
  done
  if evaluation "eval/eval_zeroshot/$entrypoint" \
    "${given[@]}" \
    --protocol "$PROTOCOL" \
    ${ORIGINAL_MODEL_ID:+--original_model_id "$ORIGINAL_MODEL_ID"} \
    --model_id "$MODEL_ID" \
    ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR/$name"} \
    ${LIBRARY:+--library "$LIBRARY"} \
    ${MAX_TOKENS_PER_BATCH:+--max_tokens_per_batch "$MAX_TOKENS_PER_BATCH"} \
    "${flags[@]}"; then
    written+=("$name")
  else
    failed+=("$name")
  fi
}

flags=("$@")
IFS=, read -r -a names <<<"$TASKS"
for name in "${names[@]}"; do
  [[ ,$ALL, == *,"$name",* ]] || refuse "TASKS=$TASKS: expected names of $ALL with commas between"
done
for name in "${names[@]}"; do
  case $name in
    sugarcrepe)
      evaluate_set "$name" eval_sugar_crepe.py \
        --annotation_path_prefix "$SUGARCREPE_TEXTS" --image_path_prefix "$SUGARCREPE_IMAGES"
      ;;
    ccneg)
      evaluate_set "$name" eval_ccneg.py --data_path "$CCNEG_TEXTS" --image_path_prefix "$CCNEG_IMAGES"
      ;;
    sharegpt4v)
      evaluate_set "$name" eval_sharegpt4v.py \
        --text_data_path "$SHAREGPT4V_TEXTS" --image_data_path "$SHAREGPT4V_IMAGES"
      ;;
    urban1k)
      evaluate_set "$name" eval_urban1k.py --text_data_path "$URBAN1K_TEXTS" --image_data_path "$URBAN1K_IMAGES"
      ;;
    circo)
      evaluate_set "$name" eval_circo.py --annotation_path_prefix "$CIRCO_TEXTS" --image_path_prefix "$CIRCO_IMAGES"
      ;;
    genecis)
      evaluate_set "$name" eval_genecis.py --annotation_path "$GENECIS_TEXTS" --image_path_prefix "$GENECIS_IMAGES"
      ;;
    visdial)
      evaluate_set "$name" eval_visdial.py --data_path "$VISDIAL_TEXTS" --image_path_prefix "$VISDIAL_IMAGES"
      ;;
    vist)
      evaluate_set "$name" eval_vist.py --data_path "$VIST_TEXTS" --image_path_prefix "$VIST_IMAGES"
      ;;
    multiturn_fashion)
      evaluate_set "$name" eval_multiturn_fashion.py \
        --query_data_path "$MULTITURN_FASHION/data/all.val.json" \
        --cand_data_path "$MULTITURN_FASHION/image_splits/split.all.val.json" \
        --image_path_prefix "$FASHIONIQ_IMAGES" \
        ${FASHIONIQ_CAPTIONS:+--fashioniq_captions "$FASHIONIQ_CAPTIONS"}
      ;;
    msrvtt)
      evaluate_set "$name" eval_msrvtt.py --data_path "$MSRVTT_TEXTS" --video_data_path "$MSRVTT_VIDEOS"
      ;;
    msvd)
      evaluate_set "$name" eval_msvd.py \
        --video_path_prefix "$MSVD_VIDEOS" --test_video_path "$MSVD_CLIPS" --captions_path "$MSVD_TEXTS"
      ;;
  esac
done
if [ ${#absent[@]} -gt 0 ]; then printf 'not evaluated: %s\n' "${absent[@]}" >&2; fi
if [ ${#failed[@]} -gt 0 ]; then printf 'failed, see above: %s\n' "${failed[@]}" >&2; fi
if [ $((${#written[@]} + ${#failed[@]})) -eq 0 ]; then refuse "no set of TASKS=$TASKS has its files: docs/zeroshot.md says how to get them"; fi
if [ ${#written[@]} -gt 0 ]; then
  "$PYTHON" eval/zeroshot_report.py --model_id "$MODEL_ID" ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} "${written[@]}"
fi
if [ ${#failed[@]} -gt 0 ]; then exit 1; fi
