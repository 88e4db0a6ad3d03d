#!/usr/bin/env bash
# Upstream's name of rerank_mbeir.sh, listwise, for all tasks and with its results. Takes the same variables and flags.
STYLE=listwise exec bash "$(dirname "$0")/rerank_mbeir.sh" "$@"
