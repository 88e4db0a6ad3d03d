"""The processes of a run: who is who, what one decides for all, what they exchange, and that none outlives its parent.

Until torch.distributed is imported there is no process group: nothing here imports torch before it is needed.
"""

from __future__ import annotations

import os
import pickle
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from lamra.common.errors import UserError
from lamra.common.tether import PARENT, end_with, end_with_named_parent

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")

ALONE_UNDER_ACCELERATE = "ACCELERATE_USE_CPU"  # it starts one process without RANK

# How long processes wait for one that works alone: an index of 5.6 million rows, digests of 15 GB of weights. That a
# process has died is noticed otherwise, and at once.
TIMEOUT = timedelta(hours=2)
HEARTBEAT = 60.0  # seconds between two lines about it
FROM_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What torch, accelerate and this project take for a launcher's word.
TAKEN_FOR_IT = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"]
TAKEN_FOR_IT += ["MV2_COMM_WORLD_SIZE"]


def start_processes() -> PartialState:
    """This process among those that a launcher started, or alone; starts the process group."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def _process_group() -> Any | None:
    """torch.distributed where the process group has started."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


def process_rank() -> int:
    """This process's rank in the group; 0 without a group."""
    group = _process_group()
    return group.get_rank() if group else 0


def world_size() -> int:
    """The number of processes of the group; 1 without a group."""
    group = _process_group()
    return group.get_world_size() if group else 1


def several_processes() -> bool:
    return world_size() > 1


def is_first_process() -> bool:
    """Whether this process prints and writes for all: the first of the first machine, also before the group starts."""
    return process_rank() == 0 if _process_group() else os.environ.get("RANK", "0") == "0"


@contextmanager
def heartbeat(doing: str) -> Iterator[None]:
    """Around what the first process does while the others wait for it: a line a minute says so, on stderr.

    Args:
        doing: "the first process reads ...", for the line.
    """
    if not several_processes() or process_rank() != 0:
        yield
        return
    ended, since = threading.Event(), time.monotonic()

    def beat() -> None:
        while not ended.wait(HEARTBEAT):
            minutes = (time.monotonic() - since) / 60
            print(f"note: {doing}, for {minutes:.0f} min now; the others wait for it", file=sys.stderr, flush=True)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def first_process_first(doing: str) -> Iterator[None]:
    """Around what every process does: the first alone, then the others, which find the files that it left.

    Args:
        doing: as `heartbeat` takes it.
    """
    from accelerate import PartialState

    with PartialState().main_process_first(), heartbeat(doing):
        yield


def on_first_process(decide: Callable[[], T], doing: str = "the first process works alone") -> T:
    """What `decide` returns on the first process, on every process; it runs there alone, and the others wait for it.

    All must call this. Whatever looks at files, deletes or makes them goes through here: on its own each process would
    see, and do, something else.

    Args:
        doing: as `heartbeat` takes it.

    Raises:
        Exception: `decide` raised it; the other processes raise an equal one, or a RuntimeError with its words where it
            cannot be pickled.
    """
    if not several_processes():
        return decide()
    answer: Any = None
    failure: Exception | None = None
    if process_rank() == 0:
        try:
            with heartbeat(doing):
                answer = decide()
        except Exception as error:
            failure = error
    answer, told = broadcast([answer, failure and _pickled(failure)])
    if failure:
        raise failure
    if told is not None:
        raise pickle.loads(told)
    return answer


def _pickled(error: Exception) -> bytes:
    """An exception for other processes to raise; of one that does not survive pickling its words."""
    try:
        whole = pickle.dumps(error)
        pickle.loads(whole)
    except Exception:  # whatever a library's exception does when it is taken apart
        return pickle.dumps(RuntimeError(str(error)))
    return whole


def broadcast(value: T) -> T:
    """The first process's `value`, on every process; anything that can be pickled. All must call this."""
    group = _process_group()
    if group is None:
        return value
    values = [value]
    group.broadcast_object_list(values, src=0)
    return values[0]


def of_all_processes(mine: list[T]) -> list[T]:
    """The lists of all processes in rank order, joined; all must call this."""
    group = _process_group()
    if group is None:
        return mine
    gathered: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(gathered, mine)
    return [entry for part in gathered for entry in part]


def end_process_group() -> None:
    if group := _process_group():
        group.destroy_process_group()


def check_devices(bf16: bool) -> None:
    """Refuse more processes than GPUs, and bf16 on a GPU without it."""
    import torch

    processes, found = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > found:
        raise UserError(f"NUM_GPUS={processes}, but this machine has {found}: set NUM_GPUS={found}")
    if bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("--bf16 True: this GPU has no bf16; use --bf16 False")


def default_workers() -> int:
    """Data workers for each process: this machine's cores shared out, one left to the process itself, at most 8."""
    return max(0, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


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


class Owner(NamedTuple):
    """A process that can be told from any other: its machine, its number and when it started.

    The machine is its name and the process-number space (a container has one of its own).
    """

    host: str
    pid: int
    start: str

    @classmethod
    def this(cls) -> Owner:
        return cls(this_host(), os.getpid(), start_of(os.getpid()) or "0")

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        match = re.fullmatch(r"(.+)_(\d+)_(\d+)", text)
        return cls(match[1], int(match[2]), match[3]) if match else None

    def __str__(self) -> str:
        return f"{self.host}_{self.pid}_{self.start}"

    def ended(self) -> bool:
        """Whether it certainly has; never known of another machine's."""
        return self.host == this_host() and start_of(self.pid) != self.start


def this_host() -> str:
    space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return f"{socket.gethostname()}-{''.join(filter(str.isdecimal, space))}".replace("/", "-")


def start_of(pid: int) -> str | None:
    """When a process started, in an unknown unit; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        pass
    else:
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    if os.path.exists("/proc/self/stat"):
        return None
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "0"
