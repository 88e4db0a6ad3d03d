"""--early_stopping_patience: a run ends when its evaluations have not become better for so long."""

from __future__ import annotations

from transformers import TrainerCallback


class EarlyStopping(TrainerCallback):
    """Counts in the history that every checkpoint carries, so that a resumed run counts as an unbroken one."""

    def on_evaluate(self, args, state, control, **_):
        name = f"eval_{args.metric_for_best_model}"
        values = [entry[name] for entry in state.log_history if name in entry]
        if args.early_stopping_patience and len(values) - 1 - values.index(max(values)) >= args.early_stopping_patience:
            control.should_training_stop = True
