"""When a loss, a gradient or a weight is not finite: the run stops before anything is written, or skips the update."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.gather import sum_over_processes
from lamra.common.processes import of_all_processes
from lamra.train.arguments import TrainingArguments
from lamra.train.checkpoints import checkpoints, fault


class NonFinite:
    """What --on_nonfinite says, for losses, gradients and weights. All processes must call each method.

    Attributes:
        rows: ids of the batch in work, for the sentence.
        skipped: updates so far that were not finite; a resumed run goes on counting.
    """

    def __init__(self, args: TrainingArguments):
        self.args, self.skipped = args, 0
        self.rows: list[str] = []

    def is_finite_everywhere(self, value: Tensor) -> bool:
        """Whether it is finite on all processes; always so where updates are skipped: their gradients tell."""
        if self.args.on_nonfinite != "stop":
            return True
        return not sum_over_processes((~torch.isfinite(value)).float())

    def stop(self, step: int, what: str, suspects: list[str]) -> NoReturn:
        """Name rows of all processes: the suspects, or where there is none, all of the batch."""
        rows = of_all_processes(suspects) or of_all_processes(self.rows)
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        raise UserError(
            f"step {step}: {what} is not finite, with rows {', '.join(rows[:8])}{more}; nothing was updated. "
            f"{self.last_good()}"
        )

    def skip_update(self, step: int, norm: float, loss_scale: float) -> bool:
        """Whether the update is to be skipped because its gradient norm is not finite.

        Raises:
            UserError: --on_nonfinite is stop, or --max_nonfinite updates were skipped.
        """
        if loss_scale > 1:
            note(f"step {step}: fp16 overflows, the loss scale {loss_scale:g} is lowered")
            return False  # the scaler leaves the update out
        if self.args.on_nonfinite == "stop":
            self.stop(step, "gradient norm", self.rows)
        self.skipped += 1
        if self.skipped > self.args.max_nonfinite:
            raise UserError(
                f"step {step}: more than --max_nonfinite {self.args.max_nonfinite} updates were not finite and "
                f"skipped; lower the learning rate, or look at the data. {self.last_good()}"
            )
        note(f"step {step}: gradient norm {norm}, the update is skipped ({self.skipped})")
        return True

    def check_weights(self, step: int, model: nn.Module) -> None:
        """Refuse to save trained weights that are not finite: an update can break what loss and gradient did not show.

        Raises:
            UserError: there are, on this process or another; names a weight.
        """
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        # ZeRO-3 leaves empty tensors in the model, and each process a share of the weights beside them.
        bad = [name for name, p in trained if not getattr(p, "ds_tensor", p).isfinite().all()]
        if bad := of_all_processes(bad[:1]):
            raise UserError(
                f"step {step}: trained weights are not finite after the update, such as {bad[0]}: nothing is saved. "
                f"Lower --learning_rate, or look at the optimizer's flags. {self.last_good()}"
            )

    def last_good(self) -> str:
        saved = next((path for path in checkpoints(Path(self.args.output_dir)) if not fault(path)), None)
        return f"The last checkpoint is {saved}" if saved else "There is no checkpoint to go on from"
