"""Stand-ins for Slurm's commands: srun starts the task of each machine on this one, scancel signals them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SCRIPTS = {
    "srun": """
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
  SLURM_NODEID=$node "$@" &
  tasks+=($!)
done
echo "${tasks[@]}" >"$STEP"
highest=0
for task in "${tasks[@]}"; do
  status=0
  wait "$task" || status=$?
  ((status <= highest)) || highest=$status
done
exit "$highest"
""",
    "scancel": """
[[ $* == "--signal=TERM $SLURM_JOB_ID" ]] && kill -TERM $(<"$STEP")
""",
    "scontrol": """
if [[ $1 == show ]]; then printf 'localhost\\nlocalhost\\n'; else echo "scontrol $*" >>"$STEP.scontrol"; fi
""",
}


def stand_ins(folder: Path, patch: pytest.MonkeyPatch | None = None) -> None:
    """srun, scancel and scontrol in a folder; what scontrol is told to do stands in step.scontrol there.

    Args:
        patch: to have scripts find them.
    """
    for name, text in SCRIPTS.items():
        (folder / name).write_text(f"#!/bin/bash\nSTEP={folder}/step\n{text.lstrip()}")
        (folder / name).chmod(0o755)
    if patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def job(nodes: int, **variables) -> dict[str, str]:
    """What Slurm sets for a job."""
    return dict(SLURM_JOB_ID="17", SLURM_JOB_NUM_NODES=str(nodes), SLURM_JOB_NODELIST=f"node[1-{nodes}]") | variables


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
