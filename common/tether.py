"""Run a command that ends when the process that started it does, also by kill -9.

python common/tether.py COMMAND ...; a COMMAND that ends in .py is run by this Python, a launcher by common/launcher.py.
scripts/ put it before launchers and before what launchers start: it takes effect before the seconds in which torch is
imported, and imports little.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = "LAMRA_PARENT"  # number of the process that started this one: set here and by scripts/env.sh
LAUNCHERS = ("torchrun", "accelerate")
PR_SET_PDEATHSIG = 1  # linux/prctl.h; it survives exec, and a fork does not inherit it


def end_with(parent: int) -> None:
    """Let the system kill this process when `parent`, which started it, ends; now, if it has ended already.

    Linux only. The signal comes when the thread of `parent` that started this process ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # before the signal was asked for: it will not come
            os.kill(os.getpid(), signal.SIGKILL)


def end_with_named_parent() -> None:
    """`end_with` the process that started this one; also ends if the one that LAMRA_PARENT names has ended before."""
    end_with(os.getppid())
    named = os.environ.get(PARENT)
    if sys.platform == "linux" and named and not os.path.exists(f"/proc/{named}"):
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    command = sys.argv[1:]
    end_with_named_parent()
    os.environ[PARENT] = str(os.getpid())
    if command[0] in LAUNCHERS:
        command = [sys.executable, os.path.join(os.path.dirname(__file__), "launcher.py"), *command]
    elif command[0].endswith(".py"):
        command = [sys.executable, "-u", *command]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"error: {command[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main()
