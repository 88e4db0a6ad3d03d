"""The processes of a run: what a launcher says of them, what one decides for all, and that none outlives its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

T = TypeVar("T")

# How long processes wait for one that works alone: an index of 5.6 million rows, digests of 15 GB of weights. That a
# process has died is noticed otherwise, and at once.
TIMEOUT = timedelta(hours=2)
FROM_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What torch, accelerate and this project take for a launcher's word.
TAKEN_FOR_IT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
TAKEN_FOR_IT += ("MV2_COMM_WORLD_SIZE",)
PARENT = "LAMRA_PARENT"  # number of the process that started this one: set by scripts/env.sh and train/tether.py
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start_processes() -> PartialState:
    """This process among those that a launcher started, or alone; starts the process group."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def on_first_process(decide: Callable[[], T]) -> T:
    """What `decide` returns on the first process, on every process; it runs there alone, and the others wait for it.

    All must call this. Whatever looks at files, deletes or makes them goes through here: on its own each process would
    see, and do, something else.

    Raises:
        Exception: `decide` raised it; on the other processes a ValueError with its words.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return decide()
    answer, failure = None, None
    if dist.get_rank() == 0:
        try:
            answer = decide()
        except Exception as error:
            failure = error
    said = [answer, failure and str(failure)]
    dist.broadcast_object_list(said, src=0)
    if failure:
        raise failure
    if said[1] is not None:
        raise ValueError(said[1])
    return said[0]


def forget_half_a_launcher() -> str | None:
    """Drop RANK, WORLD_SIZE, ... from the environment where not all that a launcher sets is there; say what was.

    Left over from elsewhere, they would make this process wait for others that nobody starts.
    """
    found = [name for name in TAKEN_FOR_IT if name in os.environ]
    lacking = [name for name in FROM_A_LAUNCHER if name not in os.environ]
    if not found or not lacking:
        return None
    for name in found:
        del os.environ[name]
    return (
        f"{', '.join(found)} in the environment is ignored, this process works alone: a launcher would also have set "
        f"{', '.join(lacking)}"
    )


def end_with_parent() -> None:
    """Let the system kill this process when the one that started it ends, also its data workers when it ends.

    Only below a launcher or one of scripts/: what a user starts by hand may outlive the shell.
    """
    if not (PARENT in os.environ or "RANK" in os.environ) or not _arm(os.getppid()):
        return
    parent = os.environ.get(PARENT)
    if parent and not os.path.exists(f"/proc/{parent}"):  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)
    global _hooked
    if not _hooked:
        _hooked = True
        os.register_at_fork(before=_remember_thread, after_in_child=_arm_child)


_hooked = False
_forking: tuple[int, bool] = (0, False)  # the process that forks, and whether its main thread does


def _remember_thread() -> None:
    global _forking
    _forking = os.getpid(), threading.current_thread() is threading.main_thread()


def _arm_child() -> None:
    parent, by_main_thread = _forking
    if by_main_thread:  # the signal comes when the *thread* that forked ends
        _arm(parent)


def _arm(parent: int) -> bool:
    """Whether this system has such a signal."""
    if sys.platform != "linux":
        return False
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended in between: the signal will not come
        os.kill(os.getpid(), signal.SIGKILL)
    return True
