"""The processes of a run: what a launcher says of them, what one decides for all, and that none outlives its parent."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from lamra.train.tether import PARENT, end_with, end_with_named_parent

T = TypeVar("T")

ALONE_UNDER_ACCELERATE = "ACCELERATE_USE_CPU"  # it starts one process without RANK

# How long processes wait for one that works alone: an index of 5.6 million rows, digests of 15 GB of weights. That a
# process has died is noticed otherwise, and at once.
TIMEOUT = timedelta(hours=2)
FROM_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What torch, accelerate and this project take for a launcher's word.
TAKEN_FOR_IT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
TAKEN_FOR_IT += ("MV2_COMM_WORLD_SIZE",)


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


def of_all_processes(mine: list) -> list:
    """The lists of all processes in rank order, joined; all must call this."""
    if not dist.is_initialized():
        return mine
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return [entry for part in gathered for entry in part]


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
    """Let the system kill this process when the one that started it ends, and its data workers when it ends.

    Only below a launcher or one of scripts/: what a user starts by hand may outlive the shell.
    """
    global _hooked
    if any(name in os.environ for name in (PARENT, "RANK", ALONE_UNDER_ACCELERATE)):
        end_with_named_parent()
        if not _hooked:
            os.register_at_fork(before=_remember_who_forks, after_in_child=_end_with_who_forked)
            _hooked = True


_hooked = False
_forked_by: int | None = None


def _remember_who_forks() -> None:
    global _forked_by
    in_main = threading.current_thread() is threading.main_thread()  # a child would end with any other thread
    _forked_by = os.getpid() if in_main else None


def _end_with_who_forked() -> None:
    if _forked_by is not None:
        end_with(_forked_by)
