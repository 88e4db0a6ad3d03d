"""No process outlives its parent, and one process decides on files for all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import ROOT

from lamra.common import files, lock, processes
from lamra.common.cli import what_the_machine_says
from lamra.common.errors import UserError
from lamra.train import checkpoints
from lamra.train.output import clear_output


def in_child(work) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def two_processes(work, folder: Path, results) -> None:
    """`work` on two gloo processes, forked; each puts its rank and what it returns into `results`."""

    def of(rank: int):
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        results.put((rank, work(rank)))
        dist.destroy_process_group()

    children = [in_child(lambda rank=rank: of(rank)) for rank in range(2)]
    for child in children:
        child.join(120)
        assert child.exitcode == 0


class Unpicklable(Exception):
    def __init__(self, one: int, two: int):
        super().__init__(f"{one} and {two}")


def raise_what_no_pickle_takes():
    raise Unpicklable(1, 2)


def test_files_are_decided_on_by_one_process(tmp_path):
    def work(rank: int) -> list:
        for trial in range(20):
            folder = tmp_path / f"run{trial}"
            if rank == 0:
                for step in range(10):
                    (folder / f"checkpoint-{step}" / "global_step").mkdir(parents=True)
                    for file in range(5):
                        (folder / f"checkpoint-{step}" / f"{file}.pt").touch()
            dist.barrier()
            processes.on_first_process(lambda folder=folder: clear_output(folder))
            assert not list(folder.iterdir())

        def refuse():
            raise UserError(f"asked on {rank}")

        said = [processes.on_first_process(lambda: f"of {rank}")]
        machine = tmp_path / f"machine{rank}" / ".partial" / "checkpoint-1"  # a disk of its own
        machine.mkdir(parents=True)
        (machine / f"rng_state_{rank}.pth").touch()
        files.PATIENCE = 0
        for attempt in (refuse, None):
            try:
                processes.on_first_process(attempt) if attempt else checkpoints.require_shared(machine)
            except ValueError as error:
                said.append(str(error))
        for attempt in ((tmp_path / "run0").read_text, raise_what_no_pickle_takes):
            try:
                processes.on_first_process(attempt)
            except Exception as error:
                said.append(f"{type(error).__name__}: {what_the_machine_says(error) or error}")
        checkpoints.require_shared(tmp_path / "run0")
        with pytest.raises(ValueError, match="they must share it"):
            lock.folder_lock(tmp_path / f"other{rank}").__enter__()
        with lock.folder_lock(tmp_path / "same"):
            dist.barrier()
        return said

    results = multiprocessing.get_context("fork").Queue()
    two_processes(work, tmp_path, results)
    first, second = (said for _, said in sorted(results.get() for _ in range(2)))
    assert first[:2] == second[:2] == ["of 0", "asked on 0"]
    folder = f"IsADirectoryError: {tmp_path}/run0 cannot be read or written (Is a directory)"  # a sentence on each rank
    assert first[3].startswith(folder) and second[3].startswith(folder)
    assert first[4] == "Unpicklable: 1 and 2" and second[4] == "RuntimeError: 1 and 2"
    assert all("the first machine does not see rng_state_1.pth, which another" in said[2] for said in (first, second))


def gone(pid: int, seconds: float = 5) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if processes.start_of(pid) is None:
            return True
        time.sleep(0.05)
    return False


SCRIPTS = {
    "outer": 'source scripts/env.sh; bash "$FOLDER/inner.sh"; echo "went on" >"$FOLDER/after"',
    "inner": 'source scripts/env.sh; tethered bash -c "tee \\$FOLDER/pids <<<\\"$PPID $$ \\$\\$\\"; sleep 60 & wait"',
}


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_script_takes_everything_along(tmp_path, victim):
    """A script that starts a script that starts a command; the first or the second is killed."""
    for name, text in SCRIPTS.items():
        # env.sh goes to the folder above its caller's: let that be the repository
        text = text.replace("source scripts/env.sh", f"cd {ROOT}; source scripts/env.sh")
        (tmp_path / f"{name}.sh").write_text(text + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "LAMRA_PARENT"}
    environment |= {"FOLDER": str(tmp_path), "PYTHON": sys.executable}
    outer = subprocess.Popen(["bash", tmp_path / "outer.sh"], env=environment, start_new_session=True)
    pids = tmp_path / "pids"
    while not pids.exists() or not pids.read_text():
        assert outer.poll() is None
        time.sleep(0.05)
    chain = list(map(int, pids.read_text().split()))
    assert chain[0] == outer.pid
    os.kill(chain[victim], signal.SIGKILL)
    outer.wait(5)
    assert all(gone(pid) for pid in chain[victim:]) and (tmp_path / "after").exists() == (victim == 1)


def test_a_process_whose_parent_ended_before_it_looked_ends(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    command = [sys.executable, "common/tether.py", "echo", "alive"]
    for parent, status in ((ended.pid, -signal.SIGKILL), (os.getpid(), 0)):
        result = subprocess.run(command, cwd=ROOT, env=os.environ | {"LAMRA_PARENT": str(parent)}, capture_output=True)
        assert result.returncode == status and (result.stdout == b"alive\n") == (status == 0)


def test_data_workers_end_with_their_process(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(
        "import os, sys, time\n"
        "from lamra.common.cli import run\n"
        "def main():\n"
        "    worker = os.fork()\n"
        "    if not worker: time.sleep(60)\n"
        "    print('路径', worker, flush=True)\n"
        "    time.sleep(60)\n"
        "run(main)\n"
    )
    environment = os.environ | {"LAMRA_PARENT": str(os.getpid()), "PYTHONIOENCODING": "ascii", "RANK": "1"}
    process = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    note, line = process.stdout.readline(), process.stdout.readline()
    assert "RANK in the environment is ignored, this process works alone" in note
    assert line.startswith("\\u8def\\u5f84 ")  # no letter ends a run
    process.kill()
    process.wait()
    assert gone(int(line.split()[1]))
