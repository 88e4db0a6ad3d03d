"""Whether data and batches can teach anything, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from transformers.trainer_utils import IntervalStrategy

from lamra.common.cli import note
from lamra.common.errors import ItemError, UserError
from lamra.common.flags import require
from lamra.datasets.items import Indexed, Pair
from lamra.train.arguments import TrainingArguments


def check_pairs(pairs: Indexed, args: TrainingArguments, path: str, *, in_batch_negatives: bool) -> None:
    """Refuse pairs that are fewer than a step's; with in-batch negatives also those in which no target is another
    query's negative: the loss would be constant.

    Raises:
        UserError: what is wrong with the pairs of `path`, or with the batch size.
    """
    in_a_step = args.per_device_train_batch_size * args.world_size
    require(
        len(pairs) >= in_a_step,
        "per_device_train_batch_size",
        f"{args.per_device_train_batch_size} on {args.world_size} processes",
        f"at most the {len(pairs)} pairs of {path} in a step",
    )
    if not in_batch_negatives:
        return
    if in_a_step == 1 and not pairs[0].negatives:
        raise UserError("--per_device_train_batch_size 1 on 1 process: a pair alone has no negatives; give 2 or more")
    targets = _targets(pairs)
    first = next(targets, None)
    if all(target == first for target in targets):
        raise UserError(f"there is nothing to learn from {path}: its {len(pairs)} targets are all the same")


def _targets(pairs: Indexed[Pair]) -> Iterator:
    """What targets and hard negatives show, without rows that cannot be read: training leaves them out."""
    for row in range(len(pairs)):
        with suppress(ItemError):
            pair = pairs[row]
            yield from (item.content for item in (pair.target, *pair.negatives))


def check_evaluation(eval_pairs: Indexed[Pair] | None, args: TrainingArguments) -> None:
    """Without pairs to evaluate on: note which flags are ignored, and refuse those that cannot be."""
    if eval_pairs is not None:
        return
    if args.metric_for_best_model:
        raise UserError(
            f"the best checkpoint by --metric_for_best_model {args.metric_for_best_model} needs pairs to evaluate on: "
            "give --eval_data_path (stage 1) or --eval_queries (stage 2), or leave out --load_best_model_at_end, "
            "--early_stopping_patience, --metric_for_best_model and --save_strategy best"
        )
    for flag, value in (
        ("eval_strategy", IntervalStrategy(args.eval_strategy).value),
        ("eval_on_start", args.eval_on_start),
    ):
        if value not in ("no", False):
            note(f"--{flag} {value} is ignored: --eval_data_path is not set")
    args.eval_strategy, args.eval_on_start = "no", False
