#!/usr/bin/env bash
# Create .venv and install the project in it. Does nothing when that is done already, for this folder: the .venv of a
# checkout that was copied or moved starts the code of the old place, and is made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}           # 3.10 to 3.13
PIP_ARGS=${PIP_ARGS:-}              # e.g. "--index-url https://your.mirror/simple"
CONSTRAINTS=${CONSTRAINTS:-constraints.txt} # the versions tested; /dev/null takes the newest that requirements.txt admits

stamp=.venv/installed place=$(pwd -P)
made_here() { [[ $(head -n 2 .venv/bin/pip 2>/dev/null) == *[\"\ !]"$place/.venv/bin/python"* ]]; }
wanted=$(cat requirements.txt pyproject.toml "$CONSTRAINTS" | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && made_here; then
  exit 0
fi

"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || {
  echo "error: $("$PYTHON" --version) is not supported: set PYTHON to a Python 3.10 to 3.13" >&2
  exit 2
}
echo "installing into .venv (once, about two minutes)"
if [ -L .venv ] && ! made_here; then
  echo "error: .venv is a link to $(readlink .venv), where another folder's code is installed: delete the link" >&2
  exit 2
fi
made_here || "$PYTHON" -m venv --clear .venv
# To keep a torch of your own, install it into .venv first and set CONSTRAINTS=/dev/null.
# shellcheck disable=SC2086
.venv/bin/python -m pip install --quiet --disable-pip-version-check $PIP_ARGS -c "$CONSTRAINTS" -e ".[dev]"
echo "$wanted" >"$stamp"
