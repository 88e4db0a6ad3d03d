"""A launcher says no more where what it started ended in a sentence, and all it has to say where something broke."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch.distributed.run
from conftest import run_script
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from lamra.common import cli
from lamra.common.launcher import REFUSED, launch

TORCHRUN = [
    "torchrun",
    "--nnodes",
    1,
    "--rdzv_backend",
    "c10d",
    "--rdzv_endpoint",
    "localhost:0",
    "--nproc_per_node",
    2,
]
ACCELERATE = ["accelerate", "launch", "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
ACCELERATE += ["--num_processes", 1]


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE])
def test_the_sentence_is_the_last_word(launcher, real, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        "import os, sys, time\nif os.environ.get('RANK') == '1':\n    time.sleep(60)\n"
        "print('error: a mistake', file=sys.stderr)\nsys.exit(2)\n"
    )
    done = run_script("python", "common/tether.py", *launcher, path, check=False, real=real, OMP_NUM_THREADS=1)
    assert (done.returncode, done.stderr.strip()) == (REFUSED, "error: a mistake") and REFUSED == cli.REFUSED


def broken(*statuses: int) -> ChildFailedError:
    ranks = enumerate(statuses)
    return ChildFailedError("", {rank: ProcessFailure(rank, pid=1, exitcode=end, error_file="") for rank, end in ranks})


@pytest.mark.parametrize(
    "error",
    [broken(1), broken(-9, 2), broken(2, 1), broken(-15), subprocess.CalledProcessError(1, "program.py"), OSError()],
)
def test_what_broke_is_told(error, monkeypatch):
    def main() -> None:
        raise error

    monkeypatch.setattr(torch.distributed.run, "main", main)
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(type(error)) as raised:
        launch("torchrun", ["program.py"])
    assert raised.value is error and sys.argv == ["torchrun", "program.py"]
    error = broken(-15, 2, 2)
    with pytest.raises(SystemExit):
        launch("torchrun", [])
