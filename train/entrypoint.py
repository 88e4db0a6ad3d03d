"""How every entrypoint ends: a user's mistake in one sentence, our own bug with its traceback."""

from __future__ import annotations

import errno
import gc
import os
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from lamra.train.processes import end_with_parent, forget_half_a_launcher
from lamra.train.whole_files import DISK_ERRORS, MIB, is_disk_full

PROJECT = Path(__file__).resolve().parents[1]
# What a path can be that cannot be read or written.
PATH_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
PATH_ERRORS |= {errno.ELOOP, errno.ESTALE}


def run(main: Callable[[], None]) -> None:
    """Call `main` and exit: 0, or 1 after one line on stderr for a ValueError of this project or a full disk."""
    end_with_parent()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where it is closed
            stream.reconfigure(errors="backslashreplace")  # no letter of a path ends a run
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' word to their developers
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns when a data worker forks
    try:
        if dropped := forget_half_a_launcher():
            print(f"note: {dropped}", flush=True)
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except ValueError as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if PROJECT not in raised_in.parents or ".venv" in raised_in.parts:
            raise
        fail(str(error))
    except DISK_ERRORS as error:
        if (sentence := what_the_machine_says(error)) is None:
            raise
        fail(sentence)
    if dist.is_initialized():
        gc.collect()  # a data-parallel wrapper that outlives its group can block the group's end (gloo, torch 2.13)
        dist.destroy_process_group()


def fail(sentence: str) -> NoReturn:
    """Print it, from the first process that comes to it, and exit with status 1."""
    if int(os.environ.get("RANK", 0)) > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)  # the first process says the same, and the launcher then ends this one before it repeats it
    with suppress(BrokenPipeError):
        print(f"\nerror: {sentence}", file=sys.stderr, flush=True)  # on a line of its own, below a progress bar
    sys.exit(1)


def what_the_machine_says(error: Exception) -> str | None:
    """A sentence for an error of DISK_ERRORS that comes from disks, paths, ports or pipes; None for a bug."""
    file = getattr(error, "filename", None)
    if isinstance(error, BrokenPipeError) and _drop_closed_pipes():
        return "what this run prints goes into a pipe that was closed: write it to a file"
    if is_disk_full(error):
        there = Path(os.fsdecode(file)).absolute().parent if file else Path.cwd()
        there = next(folder for folder in (there, *there.parents) if folder.is_dir())
        free = f" ({shutil.disk_usage(there).free / MIB:.1f} MiB free)" if file else ""
        name = os.fsdecode(file) if file else "the output"
        return f"{name} cannot be written, the disk, a quota or a limit is full{free}: make room, and start again"
    if isinstance(error, OSError) and file and error.errno in PATH_ERRORS:
        return (
            f"{os.fsdecode(file)} cannot be read or written ({error.strerror}): give another path, or the right to it"
        )
    if isinstance(error, dist.DistNetworkError):
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = "the port is in use" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
        return f"the processes cannot meet at {where} ({reason}): set MASTER_PORT to another, the same on all machines"
    return None


def _drop_closed_pipes() -> bool:
    """Let what is still to be written to a pipe that nobody reads go nowhere; whether there is such a pipe."""
    found = False
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            found = True
    return found
