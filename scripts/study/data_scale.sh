#!/usr/bin/env bash
# How much pre-training data: nested subsets of each kind. Settings: scripts/study/env.sh.
#   KINDS=text bash scripts/study/data_scale.sh
# What is finished is not done again; a broken run goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
KINDS=${KINDS:-text image image-text mixture}
PERCENTS=${PERCENTS:-10 25 50 100}

for seed in $SEEDS; do
  for kind in $KINDS; do
    for percent in $PERCENTS; do
      study_run "$kind" "$percent" "$seed"
    done
  done
done
report
