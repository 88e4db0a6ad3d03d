"""What every command line here shares: flags to dataclasses, notes, and how a run ends.

A user's mistake is a `UserError` and ends in one sentence. Any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import errno
import gc
import math
import os
import select
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn

from lamra.common.errors import UserError
from lamra.common.files import DISK_ERRORS, MIB, is_disk_full
from lamra.common.processes import end_process_group, end_with_parent, forget_half_a_launcher

# What a path can be that cannot be read or written.
PATH_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
PATH_ERRORS |= {errno.ELOOP, errno.ESTALE}
REFUSED = 2  # exit status of what ends in a sentence; a bug's is 1
NONE = ("None", "none", "")  # how a script spells a flag's value that is not there


def flag(default: Any, words: str, **argument: Any) -> Any:
    """A field of a dataclass of flags: its default, its --help, and what else argparse's add_argument takes."""
    return field(default=default, metadata={"help": words, **argument})


def parse(*dataclasses: type, command_line: Sequence[str] | None = None, epilog: str | None = None) -> list[Any]:
    """Parse sys.argv, or another command line, into one instance of each dataclass.

    Abbreviated and unknown flags are errors. The epilog ends --help.
    """
    from transformers import HfArgumentParser  # most of a second

    usage = "%(prog)s [--flag value ...]  (--help lists them)"
    parser = HfArgumentParser(dataclasses, allow_abbrev=False, usage=usage, epilog=epilog)
    parser.error = _raise  # one sentence for what argparse refuses, too
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(command_line, return_remaining_strings=True)
    except ValueError as error:  # also a library's word on a bad value
        raise UserError(str(error)) from None
    if unknown:
        raise UserError(f"unknown flag {' '.join(unknown)}: --help lists the flags")
    return parsed


def _raise(message: str) -> NoReturn:
    raise UserError(message)


def require(condition: bool, flag: str, value: object, wanted: str) -> None:
    """Refuse a flag's value; `wanted` says what is expected instead."""
    if not condition:
        raise UserError(f"--{flag} {value}: expected {wanted}")


def require_finite(arguments: Any) -> None:
    """Refuse NaN and infinity in every flag of a dataclass."""
    for argument in fields(arguments):
        value = getattr(arguments, argument.name)
        if isinstance(value, float):
            require(math.isfinite(value), argument.name, value, "a finite number")


def note(message: str) -> None:
    """One line for the user, from the first process of the first machine only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"note: {message}", flush=True)


def run(main: Callable[[], None]) -> None:
    """Call `main` and exit: 0, or REFUSED after one line on stderr for a UserError, a full disk, a path or a port."""
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
    except UserError as error:
        fail(str(error))
    except DISK_ERRORS as error:
        if (sentence := what_the_machine_says(error)) is None:
            raise
        fail(sentence)
    gc.collect()  # a data-parallel wrapper that outlives its group can block the group's end (gloo, torch 2.13)
    end_process_group()


def fail(sentence: str) -> NoReturn:
    """Print it, from the first process that comes to it, and exit with status 2."""
    if int(os.environ.get("RANK", 0)) > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)  # the first process says the same, and the launcher then ends this process before it repeats it
    with suppress(BrokenPipeError):
        print(f"\nerror: {sentence}", file=sys.stderr, flush=True)  # on a line of its own, below a progress bar
    sys.exit(REFUSED)


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
    if type(error).__name__ == "DistNetworkError":  # torch's
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
