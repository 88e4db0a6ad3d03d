#!/usr/bin/env bash
# Everything that only a GPU shows, in at most 9 minutes: bash benchmarks/gpu.sh
# One H100 or H200, no network, nothing but this repository: random weights in true shapes.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
OUTPUT_DIR=${OUTPUT_DIR:-${OUT:-results/gpu}} # results.jsonl, results.md and profile.txt
SECONDS_IN_ALL=${SECONDS_IN_ALL:-510}         # a part that does not fit any more is skipped
PARTS=${PARTS:-abcdefghijk}                   # which, see benchmarks/gpu.py

exec "$PYTHON" benchmarks/gpu.py --output_dir "$OUTPUT_DIR" --seconds "$SECONDS_IN_ALL" --parts "$PARTS" "$@"
