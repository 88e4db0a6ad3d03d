#!/usr/bin/env bash
# Set up, check style, types and spelling, and run every test.  bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # several processes share the cores

if git rev-parse --git-dir >/dev/null 2>&1; then
  .venv/bin/pre-commit run --all-files
else
  echo "note: this is no git checkout: of the checks before the tests only ruff and mypy run"
  .venv/bin/ruff check . && .venv/bin/ruff format --check . && bash scripts/types.sh
fi
# Two files at a time: while one waits for its processes to start, the other computes. In the order of their names: sorted
# by their number of tests, as is the default, the longest would come last and run alone.
exec .venv/bin/pytest -n "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@"
