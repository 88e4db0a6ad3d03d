"""A run that is asked to stop ends with a checkpoint: all processes finish the step, save, and exit with one status."""

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
        self.asked = self.happened = False
        self.process = os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number, _frame) -> None:
        if os.getpid() == self.process:
            self.asked = True
        elif number == signal.SIGTERM:  # a data worker, forked with this handler: it is told to end
            os._exit(0)

    def on_step_end(self, args, state, control, **_):
        asked = torch.tensor(float(self.asked), device=args.device)
        if dist.is_initialized():
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked:
            self.happened = True
            control.should_save = control.should_training_stop = True
