"""Who is who, what a launcher left behind, and how errors of the machine end a run."""

from __future__ import annotations

import os
import time

import pytest
import torch.distributed as dist

from lamra.common import processes
from lamra.common.cli import run, what_the_machine_says
from lamra.common.processes import Owner


def test_a_process_is_known_again():
    me = Owner.this()
    assert str(Owner.parse(str(me))) == str(me) and not me.ended()
    assert Owner(me.host, me.pid, "1").ended()  # another process with the same number
    assert not Owner("another-1", me.pid, "1").ended()  # nobody knows


def test_half_a_launcher_is_forgotten(monkeypatch):
    for name in (*processes.TAKEN_FOR_IT, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert processes.forget_half_a_launcher() is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in processes.forget_half_a_launcher()
    assert "WORLD_SIZE" not in os.environ and "LOCAL_WORLD_SIZE" not in os.environ
    whole = dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1")
    for name, value in whole.items():
        monkeypatch.setenv(name, value)
    assert processes.forget_half_a_launcher() is None and os.environ["WORLD_SIZE"] == "2"


def test_what_the_machine_says(tmp_path):
    for error, words in (
        (
            PermissionError(13, "Permission denied", "/x/lamra.json"),
            "/x/lamra.json cannot be read or written (Permission denied)",
        ),
        (NotADirectoryError(20, "Not a directory", b"/x"), "/x cannot be read or written (Not a directory)"),
        (OSError(28, "No space left on device", str(tmp_path / "a" / "b")), f"{tmp_path}/a/b cannot be written"),
        (dist.DistNetworkError("port: 1, useIpv6: 0, code: -98, name: EADDRINUSE"), "the port is in use"),
    ):
        assert words in what_the_machine_says(error)
    for bug in (
        RuntimeError("size mismatch"),
        FileNotFoundError(2, "No such file", "x"),
        BrokenPipeError(32, "Broken"),
    ):
        assert what_the_machine_says(bug) is None


def test_a_closed_pipe_ends_in_a_sentence(monkeypatch, capsys):
    """Whoever reads what is printed has ended, as `| head` does."""
    read, write = os.pipe()
    os.close(read)
    kept = os.dup(1)
    os.dup2(write, 1)

    def main():
        os.write(1, b"x")

    try:
        with pytest.raises(SystemExit) as exit_:
            run(main)
        os.write(1, b"x")  # goes nowhere
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(write)
    assert exit_.value.code == 2
    assert "error: what this run prints goes into a pipe that was closed" in capsys.readouterr().err


def test_a_process_that_works_alone_says_so(monkeypatch, capsys):
    monkeypatch.setattr(processes, "HEARTBEAT", 0.02)
    with processes.heartbeat("the first process reads"):  # alone, nobody waits
        time.sleep(0.1)
    assert not capsys.readouterr().err
    monkeypatch.setattr(processes, "several_processes", lambda: True)
    monkeypatch.setattr(processes, "broadcast", lambda value: value)
    assert processes.on_first_process(lambda: time.sleep(0.2) or 7, "the first process reads") == 7
    said = capsys.readouterr().err.splitlines()
    assert 2 < len(said) < 12
    assert set(said) == {"note: the first process reads, for 0 min now; the others wait for it"}
    with pytest.raises(ValueError, match="broken"):
        processes.on_first_process(lambda: int("broken"))
    time.sleep(0.1)
    assert not capsys.readouterr().err  # it ends with the work
    monkeypatch.setattr(processes, "process_rank", lambda: 1)
    with processes.heartbeat("the first process reads"):
        time.sleep(0.1)
    assert not capsys.readouterr().err
