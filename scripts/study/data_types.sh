#!/usr/bin/env bash
# Which pre-training data: pictures, text, pictures with captions, or all of them. Settings: scripts/study/env.sh.
#   SEEDS="0 1" bash scripts/study/data_types.sh
# What is finished is not done again; a broken run goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
KINDS=${KINDS:-text image image-text mixture}

study_run none 0 0
for seed in $SEEDS; do
  for kind in $KINDS; do
    study_run "$kind" 100 "$seed"
  done
done
report
