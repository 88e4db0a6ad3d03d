# shellcheck shell=bash
# Sourced by eval_zeroshot.sh and rerank_zeroshot.sh: the sets of the zero-shot suite, their files, and the way through.

ALL=sharegpt4v,urban1k,circo,genecis,visdial,vist,multiturn_fashion,ccneg,sugarcrepe,msrvtt,msvd
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
for flag in "$@"; do
  [[ $flag != --output_dir* ]] || refuse "$flag: set OUTPUT_DIR instead, below which each set has a folder"
done

# Fill `names` from TASKS.
read_tasks() {
  local name
  IFS=', ' read -r -a names <<<"$TASKS"
  for name in "${names[@]}"; do
    [[ ,$ALL, == *,"$name",* ]] || refuse "TASKS=$TASKS: expected names of $ALL with commas between"
  done
}

with_files() { # with_files NAME ENTRYPOINT [FLAG PATH]...: unless a path is not there
  local given=("${@:3}") i
  for ((i = 1; i < ${#given[@]}; i += 2)); do
    if [ ! -e "${given[i]}" ]; then
      absent+=("$1: ${given[i]} is not there")
      return
    fi
  done
  if start_set "$@"; then written+=("$1"); else failed+=("$1"); fi
}

# each_set NAME...: start_set NAME ENTRYPOINT [FLAG PATH]..., which the script defines, for each; one that fails does not
# end the others.
each_set() {
  local name
  for name in "$@"; do
    # shellcheck disable=SC2153 # COCO_IMAGES is no CIRCO_IMAGES: rerank_zeroshot.sh has it
    case $name in
      flickr) with_files flickr30k eval_flickr.py --image_data_path "$FLICKR_IMAGES" --text_data_path "$FLICKR_TEXTS" ;;
      coco) with_files coco eval_coco.py --image_data_path "$COCO_IMAGES" --text_data_path "$COCO_TEXTS" ;;
      sugarcrepe)
        with_files "$name" eval_sugar_crepe.py \
          --annotation_path_prefix "$SUGARCREPE_TEXTS" --image_path_prefix "$SUGARCREPE_IMAGES"
        ;;
      ccneg)
        with_files "$name" eval_ccneg.py --data_path "$CCNEG_TEXTS" --image_path_prefix "$CCNEG_IMAGES"
        ;;
      sharegpt4v)
        with_files "$name" eval_sharegpt4v.py \
          --text_data_path "$SHAREGPT4V_TEXTS" --image_data_path "$SHAREGPT4V_IMAGES"
        ;;
      urban1k)
        with_files "$name" eval_urban1k.py --text_data_path "$URBAN1K_TEXTS" --image_data_path "$URBAN1K_IMAGES"
        ;;
      circo)
        with_files "$name" eval_circo.py --annotation_path_prefix "$CIRCO_TEXTS" --image_path_prefix "$CIRCO_IMAGES"
        ;;
      genecis)
        with_files "$name" eval_genecis.py --annotation_path "$GENECIS_TEXTS" --image_path_prefix "$GENECIS_IMAGES"
        ;;
      visdial)
        with_files "$name" eval_visdial.py --data_path "$VISDIAL_TEXTS" --image_path_prefix "$VISDIAL_IMAGES"
        ;;
      vist)
        with_files "$name" eval_vist.py --data_path "$VIST_TEXTS" --image_path_prefix "$VIST_IMAGES"
        ;;
      multiturn_fashion)
        with_files "$name" eval_multiturn_fashion.py \
          --query_data_path "$MULTITURN_FASHION/data/all.val.json" \
          --cand_data_path "$MULTITURN_FASHION/image_splits/split.all.val.json" \
          --image_path_prefix "$FASHIONIQ_IMAGES" \
          ${FASHIONIQ_CAPTIONS:+--fashioniq_captions "$FASHIONIQ_CAPTIONS"}
        ;;
      msrvtt)
        with_files "$name" eval_msrvtt.py --data_path "$MSRVTT_TEXTS" --video_data_path "$MSRVTT_VIDEOS"
        ;;
      msvd)
        with_files "$name" eval_msvd.py \
          --video_path_prefix "$MSVD_VIDEOS" --test_video_path "$MSVD_CLIPS" --captions_path "$MSVD_TEXTS"
        ;;
    esac
  done
}

# report PROGRAM [FLAG VALUE]...: what was left out, what failed, and the table of the others.
report() {
  if [ ${#absent[@]} -gt 0 ]; then printf 'left out: %s\n' "${absent[@]}" >&2; fi
  if [ ${#failed[@]} -gt 0 ]; then printf 'failed, see above: %s\n' "${failed[@]}" >&2; fi
  if [ $((${#written[@]} + ${#failed[@]})) -eq 0 ]; then refuse "no set of TASKS=$TASKS has all its files: docs/zeroshot.md says how to get them"; fi
  if [ ${#written[@]} -gt 0 ]; then
    "$PYTHON" "$@" --model_id "$MODEL_ID" ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} "${written[@]}"
  fi
  if [ ${#failed[@]} -gt 0 ]; then exit 1; fi
}
