#!/usr/bin/env bash
# Upstream's name of rerank_mbeir.sh, pointwise, for all tasks and with its results. Takes the same variables and flags.
STYLE=pointwise exec bash "$(dirname "$0")/rerank_mbeir.sh" "$@"
