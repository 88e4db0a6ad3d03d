"""What every command line here shares: flags to dataclasses, notes, and how a run ends.

A user's mistake is a `UserError` and ends in one sentence. Any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import shutil
import signal
import sys
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import Field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, get_type_hints

from lamra.common.errors import UserError
from lamra.common.files import DISK_ERRORS, MIB, is_disk_full
from lamra.common.flags import LIMITS, Flags, shown
from lamra.common.processes import end_process_group, end_with_parent, forget_half_a_launcher, is_first_process
from lamra.common.secrets import without_secrets

# What a path can be that cannot be read or written.
PATH_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
PATH_ERRORS |= {errno.ELOOP, errno.ESTALE}
REFUSED = 2  # exit status of what ends in a sentence; a bug's is 1
# Read when the libraries are imported.
OFFLINE = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"), "1")
OFFLINE |= dict.fromkeys(("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"), "1")
NONE = ("None", "none", "")  # how a script spells a flag's value that is not there


def parse(
    *dataclasses: type[Flags],
    command_line: Sequence[str] | None = None,
    words: str | None = None,
    epilog: str | None = None,
) -> list[Any]:
    """Parse sys.argv, or another command line, into one instance of each dataclass; its paths are checked last.

    Abbreviated and unknown flags are errors.

    Args:
        words: what --help calls the words that belong to no flag; their list comes last. None: there are none.
        epilog: ends --help.
    """
    parser = parser_of(*dataclasses, epilog=epilog)
    if words:
        parser.add_argument("words", nargs="*", metavar=words)
    found, unknown = parser.parse_known_args(command_line)
    if unknown:
        raise UserError(f"unknown flag {shown(' '.join(unknown))}: --help lists the flags")
    given = vars(found)
    parsed = [of(**{name: given[name] for name in get_type_hints(of) if name in given}) for of in dataclasses]
    for flags in parsed:
        flags.check_paths()
    return [*parsed, found.words] if words else parsed


def parser_of(*dataclasses: type, epilog: str | None = None) -> ArgumentParser:
    """Hugging Face's parser of dataclasses, whose refusals are a UserError like every other mistake."""
    from transformers import HfArgumentParser  # most of a second

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(" ".join(message.split()))

        @staticmethod
        def _parse_dataclass_field(parser: ArgumentParser, field: Field) -> None:
            field = copy(field)
            field.metadata = MappingProxyType({name: word for name, word in field.metadata.items() if name != LIMITS})
            HfArgumentParser._parse_dataclass_field(parser, field)

    usage = "%(prog)s [--flag value ...]  (--help lists them)"
    return Parser(dataclasses, allow_abbrev=False, usage=usage, epilog=epilog)


def note(message: str) -> None:
    """One line for the user, from the first process of the first machine only."""
    if is_first_process():
        print(f"note: {message}", flush=True)


def run(main: Callable[[], None], online: bool = False) -> None:
    """Call `main` and exit: 0, or REFUSED after one line on stderr for a UserError, a full disk, a path or a port.

    Args:
        online: it may reach for a hub; for all but scripts/download.py libraries are told not to.
    """
    end_with_parent()
    if not online:
        os.environ |= OFFLINE
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
    if not is_first_process():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)  # the first process says the same, and the launcher then ends this process before it repeats it
    sentence = " ".join(sentence.splitlines())
    with suppress(BrokenPipeError):
        # On a line of its own, below a progress bar.
        print(f"\nerror: {without_secrets(sentence)}", file=sys.stderr, flush=True)
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
