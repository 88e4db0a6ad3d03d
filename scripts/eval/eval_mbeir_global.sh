#!/usr/bin/env bash
# As eval_mbeir.sh, with one pool of all tasks' candidates (5.6 million). Takes the same variables and flags.
set -euo pipefail
POOL=global exec bash "$(dirname "${BASH_SOURCE[0]}")/eval_mbeir.sh" "$@"
