#!/usr/bin/env bash
# Check the types.  bash scripts/types.sh [mypy arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# An editable install maps this folder to the package lamra by an import hook, which mypy does not read: a link does.
mkdir -p .mypy_cache
ln -sfn .. .mypy_cache/lamra
MYPYPATH=.mypy_cache .venv/bin/mypy --package lamra "$@" | sed 's|^\.mypy_cache/lamra/||'
