"""A run that is told to stop ends with a checkpoint: all processes finish the step, save, and exit alike."""

from __future__ import annotations

import os
import signal

import torch
import torch.distributed as dist
from transformers import TrainerCallback

EXIT_STATUS = 75  # EX_TEMPFAIL: try again later


class Preemption(TrainerCallback):
    """SIGTERM or SIGINT to any process lets every process save after the step it is in. `happened` tells afterwards."""

    def __init__(self):
        self.requested = self.happened = False
        self.process = os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, number, _frame) -> None:
        if os.getpid() == self.process:
            self.requested = True
        elif number == signal.SIGTERM:  # a data worker, forked with this handler: it is told to end
            os._exit(0)

    def on_step_end(self, args, state, control, **_):
        requested = torch.tensor(float(self.requested), device=args.device)
        if dist.is_initialized():
            dist.all_reduce(requested, op=dist.ReduceOp.MAX)
        if requested:
            self.happened = True
            control.should_save = control.should_training_stop = True
