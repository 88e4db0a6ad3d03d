"""How every entrypoint ends: a user's mistake in one sentence, our own bug with its traceback."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

PROJECT = Path(__file__).resolve().parents[1]
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(main: Callable[[], None]) -> None:
    """Call `main` and exit: 0, or 1 after one line on stderr for a ValueError that this project raised."""
    end_with_launcher()
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' word to their developers
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns when a data worker forks
    try:
        main()
    except ValueError as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if PROJECT not in raised_in.parents or ".venv" in raised_in.parts:
            raise
        if int(os.environ.get("RANK", 0)) > 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(10)  # the first process says the same, and the launcher then ends this one before it repeats it
        print(f"\nerror: {error}", file=sys.stderr, flush=True)  # on a line of its own, below a progress bar
        sys.exit(1)
    if dist.is_initialized():
        gc.collect()  # a data-parallel wrapper that outlives its group can block the group's end (gloo, torch 2.13)
        dist.destroy_process_group()


def end_with_launcher() -> None:
    """A launcher that is killed takes its processes along, so that none writes beside the run that is started next."""
    if "RANK" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
