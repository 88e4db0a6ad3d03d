"""From a trainer to a saved model: training, a stop on request, the best weights, a full disk or GPU."""

from __future__ import annotations

import sys
from pathlib import Path

from lamra.common.cli import note
from lamra.common.processes import is_first_process
from lamra.train.guards.full import tell_when_full
from lamra.train.guards.preemption import EXIT_STATUS
from lamra.train.output import PREEMPTED
from lamra.train.trainer import LamRATrainer


def fit(trainer: LamRATrainer, checkpoint: str | None) -> None:
    """Train, from a checkpoint where there is one, and save; a run that is told to stop exits with EXIT_STATUS."""
    args = trainer.args
    with tell_when_full(trainer):
        trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.preemption.happened:
        if is_first_process():
            Path(args.output_dir, PREEMPTED).touch()
        note(f"asked to stop: checkpoint-{trainer.state.global_step} is complete; go on with --resume auto")
        sys.exit(EXIT_STATUS)
    if args.load_best_model_at_end:
        best, score = trainer.state.best_global_step, trainer.state.best_metric
        kept = f"step {best}: {args.metric_for_best_model} {score:.4f}" if best else "the last: none was measured"
        note(f"the weights are those of {kept}")
    with tell_when_full(trainer):
        trainer.save_model()
