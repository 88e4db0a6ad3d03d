#!/usr/bin/env bash
# Upstream's name of mine.sh, which mines the queries of all tasks in one run. Takes the same variables and flags.
exec bash "$(dirname "$0")/mine.sh" "$@"
