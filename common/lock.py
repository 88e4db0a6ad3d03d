"""One job at a time in an output folder: the second is refused in one sentence."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import appears
from lamra.common.machines import require_same_code
from lamra.common.processes import Owner, of_all_processes, on_first_process

FILE_NAME = ".lock"


@contextmanager
def folder_lock(folder: str | Path, flag: str = "output_dir", name: str = FILE_NAME) -> Iterator[None]:
    """Keep other jobs from writing into `folder` while the block runs. All processes of a job enter; the first locks.

    The lock is a file {owner, since, job} in the folder. If its process has ended (killed, another boot), it is taken
    over. A job may lock what it holds already.

    Args:
        flag: how the user chose the folder, for the sentence.
        name: of the lock; for an output that is one file, let it hold the file's name.

    Raises:
        UserError: another job holds it, or one on another machine that may; or not all processes see the folder, or
            run the same code.
    """
    lock = Path(folder) / name
    is_new = on_first_process(lambda: not lock.parent.exists())
    owner = on_first_process(lambda: _take(lock, flag))
    try:
        if not all(of_all_processes([appears(lock)])):
            raise UserError(f"--{flag} {lock.parent} is not the same folder on all machines: they must share it")
        require_same_code()
        yield
    finally:
        if owner == str(Owner.this()):
            lock.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # unless something was written
                    lock.parent.rmdir()


def _take(lock: Path, flag: str) -> str | None:
    """The owner as written, or None where this process holds it already."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    me = Owner.this()
    record = {"owner": str(me), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "job": _slurm_job()}
    folder = os.open(lock.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without: creating is exclusive all the same
            fcntl.flock(folder, fcntl.LOCK_EX)  # two that find the same stale lock take turns
        try:
            holder = json.loads(lock.read_text())
            owner, job = Owner.parse(holder["owner"]), holder["job"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # or killed while it wrote this
            owner = None
        if owner == me:
            return None
        if owner and not owner.ended() and not _was_requeued(job):
            elsewhere = "" if owner.host == me.host else f"; if that job is gone, delete {lock}"
            raise UserError(
                f"--{flag} {lock.parent} is written by another job, process {owner.pid} on "
                f"{owner.host.rpartition('-')[0]} since {holder['since']}: wait for it, or choose another{elsewhere}"
            )
        lock.unlink(missing_ok=True)
        try:
            with open(lock, "x") as file:
                file.write(json.dumps(record) + "\n")
        except FileExistsError:
            raise UserError(f"--{flag} {lock.parent} was locked by another job just now: choose another") from None
    finally:
        os.close(folder)
    return str(me)


def _slurm_job() -> list[str | None]:
    return [os.environ.get(name) for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")]


def _was_requeued(job: list[str | None]) -> bool:
    """Whether a lock's job is this one before Slurm stopped it and started it again, maybe on another machine."""
    number, restart = _slurm_job()
    return number is not None and job[0] == number and job[1] != restart
