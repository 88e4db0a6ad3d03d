"""torchrun or accelerate, which says no more where a process that it started has ended in a sentence.

python common/launcher.py torchrun|accelerate ARGUMENTS ...     # see common/tether.py

They would bury the sentence under a traceback of their own, and end in status 1.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module

REFUSED = 2  # common.cli's, which imports more


def launch(program: str, arguments: Sequence[str]) -> None:
    """What the command `program arguments` does.

    Raises:
        SystemExit: with REFUSED, where a process ended in a sentence.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    name = "torch.distributed.run" if program == "torchrun" else "accelerate.commands.accelerate_cli"
    command = import_module(name)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_is_news)
    sys.argv = [program, *arguments]
    try:
        command.main()
    except ChildFailedError as error:
        ends = {failure.exitcode for failure in error.failures.values()}
        if ends - {-signal.SIGTERM} != {REFUSED}:  # the others were ended for the first
            raise
    except subprocess.CalledProcessError as error:  # accelerate's one process
        if error.returncode != REFUSED:
            raise
    else:
        return
    sys.exit(REFUSED)


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a process ended in a sentence, nor that the others are ended for it."""
    return not record.getMessage().startswith((f"failed (exitcode: {REFUSED})", "Sending process"))


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose secrets.py would stand before Python's
    launch(sys.argv[1], sys.argv[2:])
