"""The zero-shot suite in one start, with an end in the middle; started by test_zeroshot_restart.py under torchrun.

python tests/support/suite_worker.py PLAN.json

The plan: {"flags": {set: command line}, "dies": null, "half a shard" or "a task"}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lamra.common.cli import run
from lamra.common.processes import is_first_process
from lamra.eval import zeroshot_suite
from lamra.eval.zeroshot_suite import evaluate_set

SHARD_SIZE = 6  # that leaves no item alone: torchrun's processes round a forward of a single row otherwise than others
LAST = "sugarcrepe"  # the set in which it dies


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_shard(file: Any, array: np.ndarray) -> None:
    """In place of np.save: the set's second file is half written."""
    half_a_shard.written += 1
    if half_a_shard.written == 2:
        file.write(b"\x93NUMPY")
        file.flush()
        die()
    np.lib.format.write_array(file, array)


def after_a_task(path: Path, content: dict, write=zeroshot_suite.write_json) -> None:
    write(path, content)
    if path.name == "made_by.json" and len(content["tasks"]) == 3:
        die()


def measure_all(plan: dict) -> None:
    zeroshot_suite.SHARD_SIZE = SHARD_SIZE
    for name, flags in plan["flags"].items():
        if name == LAST and plan["dies"] and is_first_process():
            if plan["dies"] == "half a shard":
                half_a_shard.written, np.save = 0, half_a_shard
            else:
                zeroshot_suite.write_json = after_a_task
        sys.argv = [f"eval_{name}.py", *flags]
        evaluate_set(name)


if __name__ == "__main__":
    run(lambda: measure_all(json.loads(Path(sys.argv[1]).read_text())))
