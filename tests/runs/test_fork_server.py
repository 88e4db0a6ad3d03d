"""The stand-ins for python, torchrun and accelerate do what the tests expect of the real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import run_script, script_environment

TORCHRUN = ("torchrun", "--nnodes", 1, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0")
ACCELERATE = ("accelerate", "launch", "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no")


@pytest.fixture
def program(tmp_path):
    """Write a program; its path."""

    def write(text: str) -> Path:
        path = tmp_path / "program.py"
        path.write_text("import os, signal, sys, time\nrank = int(os.environ.get('RANK', -1))\n" + text)
        return path

    return write


def test_a_program_sees_its_flags_streams_environment_and_folder(program):
    path = program("print(sys.argv[1:], os.environ['A'], os.getcwd(), sys.path[0], __name__, file=sys.stderr)\n1 / 0")
    result = run_script("python", path, "--flag", "two words", check=False, A="value")
    first, *traceback = result.stderr.splitlines()
    assert first == f"['--flag', 'two words'] value {Path.cwd()} {path.parent} __main__"
    assert traceback[-1] == "ZeroDivisionError: division by zero" and result.returncode == 1


@pytest.mark.parametrize(("end", "status"), [("sys.exit(3)", 3), ("pass", 0), ("os.kill(os.getpid(), 9)", -9)])
def test_the_status_is_the_programs(program, end, status):
    text = f"import atexit\natexit.register(print, 'at its end')\n{end}\n"
    result = run_script("python", program(text), check=False)
    assert result.returncode == status and (result.stdout == "at its end\n") == (status >= 0)


@pytest.mark.parametrize(
    "launcher",
    [
        (*TORCHRUN, "--nproc_per_node", 2),
        (*ACCELERATE, "--num_processes", 1),
        (*ACCELERATE, "--num_processes", 2, "--multi_gpu", "--main_process_port", 0),
    ],
)
def test_a_launcher_gives_each_rank_its_variables(program, launcher):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION")
    path = program(f"print(*(os.environ.get(name) for name in {names}), sys.argv[1:])")
    lines = sorted(run_script(*launcher, "common/tether.py", path, "-x", LAMRA_PARENT=os.getpid()).stdout.splitlines())
    precision = None if launcher[0] == "torchrun" else "no"
    if 1 in launcher[-1:]:
        assert lines == [f"None None None None None {precision} ['-x']"]
    else:
        assert lines == [f"{rank} {rank} 2 2 localhost {precision} ['-x']" for rank in range(2)]


def test_a_rank_that_fails_ends_the_others(program):
    path = program("if rank == 1: sys.exit(5)\ntime.sleep(60)")
    began = time.monotonic()
    assert run_script(*TORCHRUN, "--nproc_per_node", 3, path, check=False).returncode == 1
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_launchers_signal_is_its_ranks(program, tmp_path, number):
    """SIGTERM lets them come to an end; SIGKILL ends them with it."""
    handler = "def stop(*_):\n    open(f'{sys.argv[1]}/stopped{rank}', 'w').close()\n    sys.exit()\n"
    ready = "signal.signal(signal.SIGTERM, stop)\nopen(f'{sys.argv[1]}/{rank}', 'w').write(str(os.getpid()))\n"
    path = program(f"{handler}{ready}time.sleep(60)")
    command = [*map(str, TORCHRUN), "--nproc_per_node", "2", "common/tether.py", str(path), str(tmp_path)]
    process = subprocess.Popen(command, env=script_environment({}), stderr=subprocess.DEVNULL)
    files = [tmp_path / str(rank) for rank in range(2)]
    while not all(file.exists() and file.read_text() for file in files):
        assert process.poll() is None
        time.sleep(0.02)
    ranks = [psutil.Process(int(file.read_text())) for file in files]
    process.send_signal(number)
    assert process.wait(20) == (1 if number == signal.SIGTERM else -number)
    assert not psutil.wait_procs(ranks, timeout=5)[1]
    assert [(tmp_path / f"stopped{rank}").exists() for rank in range(2)] == 2 * [number == signal.SIGTERM]


def test_a_launchers_flags_are_checked_by_the_launcher(program):
    result = run_script("torchrun", "--nproc_per_node", "few", program(""), check=False)
    assert result.returncode == 1 and "Unsupported nproc_per_node value: few" in result.stderr
