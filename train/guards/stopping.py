"""A run that ends before its last step, because it is told to stop or has not become better for long."""

from __future__ import annotations

import os
import signal

import torch
from transformers import TrainerCallback

from lamra.common.gather import sum_over_processes

EXIT_STATUS = 75  # EX_TEMPFAIL: try again later


class Preemption(TrainerCallback):
    """SIGTERM or SIGINT to any process: all finish the step, save, and exit alike. `happened` tells afterwards."""

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
        if sum_over_processes(torch.tensor(float(self.requested), device=args.device)):
            self.happened = True
            control.should_save = control.should_training_stop = True


class EarlyStopping(TrainerCallback):
    """--early_stopping_patience: the run ends when so many evaluations in a row were not better.

    Counts in the history that every checkpoint carries, so that a resumed run counts as an unbroken one.
    """

    def on_evaluate(self, args, state, control, **_):
        name = f"eval_{args.metric_for_best_model}"
        values = [entry[name] for entry in state.log_history if name in entry]
        if args.early_stopping_patience and len(values) - 1 - values.index(max(values)) >= args.early_stopping_patience:
            control.should_training_stop = True
