"""What every stage does around its own data: check first, then build, train, save."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path

from torch.utils.data import Dataset
from transformers import set_seed

from lamra.collators.processing import Processor
from lamra.collators.retrieval import TrainingCollator, what_is_shown
from lamra.common.cli import note, require
from lamra.common.errors import UserError
from lamra.common.lock import folder_lock
from lamra.common.processes import on_first_process
from lamra.models.folders import model_folder
from lamra.models.settings import Settings, settings_to_train
from lamra.train.arguments import ModelArguments, TrainingArguments
from lamra.train.build import build_embedder
from lamra.train.checkpoints import (
    PREEMPTED,
    check_unchanged,
    checkpoint_to_resume,
    clear_output,
    prepare_output,
    run_record,
    write_run_record,
)
from lamra.train.dry_run import print_dry_run
from lamra.train.early_stopping import EarlyStopping
from lamra.train.limits import explained
from lamra.train.preemption import EXIT_STATUS, Preemption
from lamra.train.sampling import MixtureSampler, SetEpoch
from lamra.train.skipped import SkippedPairs
from lamra.train.trainer import ContrastiveTrainer, StageTrainer


def alone_in_output(args: TrainingArguments) -> AbstractContextManager:
    """Around all of a run: no other job writes into its folder. A dry run writes nothing."""
    return nullcontext() if args.dry_run else folder_lock(args.output_dir)


class Stage:
    """One training run. Making it checks what is cheap to check, so that a mistake is told before data are read.

    The contrastive stages are this class; train_rerank.py puts another model, collator and trainer in their places.
    """

    trainer_class: type[StageTrainer] = ContrastiveTrainer
    build = staticmethod(build_embedder)

    def __init__(self, model_args: ModelArguments, args: TrainingArguments):
        set_seed(args.seed)
        self.model_args, self.args = model_args, args
        self.folder = model_folder(model_args.model_id, model_args.model_local_path)
        self.resume = on_first_process(self._checkpoint_to_resume)
        self.settings = replace(self.settings_to_train(), quantized=model_args.q_lora)
        self.processor = Processor(
            self.folder,
            min_pixels=self.settings.min_pixels,
            max_pixels=self.settings.max_pixels,
            max_length=args.model_max_length,
            text_max_tokens=self.settings.text_max_tokens,
        )

    def _checkpoint_to_resume(self) -> str | None:
        args = self.args
        if not args.dry_run:
            prepare_output(args.output_dir, self.folder, force=args.force, resume=args.resume)
        return checkpoint_to_resume(args.output_dir, args.resume) if args.resume else None

    def settings_to_train(self) -> Settings:
        """What the checkpoints will remember."""
        model_args = self.model_args
        return settings_to_train(
            self.folder,
            position_ids=model_args.position_ids,
            min_pixels=model_args.min_pixels,
            max_pixels=model_args.max_pixels,
            text_max_tokens=self.args.text_max_tokens,
            temperature=self.args.temperature,
        )

    def collator(self, pairs: Dataset, most_faults: int) -> TrainingCollator:
        return TrainingCollator(self.processor, pairs, most_faults, self.args.mask_duplicates)

    def train(self, pairs: Dataset, eval_pairs: Dataset | None, data_args, data: dict, done: str) -> None:
        """Train on `pairs`, and save; or, with --dry_run, print what would be done.

        Args:
            data: what the run records of its data: "path", "sha256", "pairs".
            done: the last line of a finished run, {output_dir} filled in.
        """
        model_args, args = self.model_args, self.args
        global_batch = args.per_device_train_batch_size * args.world_size
        require(
            len(pairs) >= global_batch,
            "per_device_train_batch_size",
            f"{args.per_device_train_batch_size} on {args.world_size} processes",
            f"at most the {len(pairs)} pairs of {data['path']} in a step",
        )
        if args.contrastive:
            self._require_negatives(pairs, global_batch, data["path"])
        if eval_pairs is None and (args.metric_for_best_model or args.eval_on_start or args.eval_strategy != "no"):
            self._without_evaluation()
        record = run_record(self.settings, data, model_args, data_args, args)
        if self.resume:
            check_unchanged(self.resume, record, allow_changes=args.allow_changes)
        preemption, sampler = Preemption(), self._sampler(pairs)
        skipped = SkippedPairs(
            args.output_dir,
            len(pairs),
            args.max_skipped_share,
            resume=bool(self.resume),
            smallest=min(map(len, getattr(pairs, "groups", {}).values()), default=None),
        )
        trainer = self.trainer_class(
            model=self.build(
                self.folder, model_args, args, self.settings.train_position_ids or self.settings.position_ids
            ),
            args=args,
            settings=self.settings,
            record=record,
            skipped=skipped,
            processing_class=self.processor,
            data_collator=self.collator(pairs, skipped.most),
            train_dataset=range(len(pairs)),  # the collator looks them up
            sampler=sampler,
            eval_dataset=eval_pairs,
            callbacks=[preemption, SetEpoch(sampler, pairs), EarlyStopping()],
        )
        if args.dry_run:
            if args.process_index == 0:
                print_dry_run(trainer)
            return

        if args.force and not self.resume:
            on_first_process(lambda: clear_output(args.output_dir))
        preempted = Path(args.output_dir, PREEMPTED)
        if args.process_index == 0:
            arguments = {**asdict(model_args), **asdict(data_args), **args.to_dict()}
            write_run_record(args.output_dir, self.settings, arguments, data)
            preempted.unlink(missing_ok=True)
        with explained(trainer):
            trainer.train(resume_from_checkpoint=self.resume)
        if preemption.happened:
            if args.process_index == 0:
                preempted.touch()
            note(f"asked to stop: checkpoint-{trainer.state.global_step} is complete; go on with --resume auto")
            sys.exit(EXIT_STATUS)
        if args.load_best_model_at_end:
            best, score = trainer.state.best_global_step, trainer.state.best_metric
            kept = f"step {best}: {args.metric_for_best_model} {score:.4f}" if best else "the last: none was measured"
            note(f"the weights are those of {kept}")
        with explained(trainer):
            trainer.save_model()
        note(done.format(output_dir=args.output_dir))

    def _require_negatives(self, pairs: Dataset, global_batch: int, path: str) -> None:
        """Refuse data and batches in which no target is another query's negative: the loss would be constant."""
        if global_batch == 1 and not pairs[0].negatives:
            raise UserError(
                "--per_device_train_batch_size 1 on 1 process: a pair alone has no negatives; give 2 or more"
            )
        targets = _targets(pairs)
        first = next(targets, None)
        if all(target == first for target in targets):
            raise UserError(f"there is nothing to learn from {path}: its {len(pairs)} targets are all the same")

    def _without_evaluation(self) -> None:
        """Nothing to evaluate on: note what is ignored for it, and refuse what cannot be done without."""
        args = self.args
        if args.metric_for_best_model:
            raise UserError(
                f"the best checkpoint by --metric_for_best_model {args.metric_for_best_model} needs pairs to evaluate "
                "on: give --eval_data_path (stage 1) or --eval_queries (stage 2), or leave out "
                "--load_best_model_at_end, --early_stopping_patience, --metric_for_best_model and --save_strategy best"
            )
        for flag, value in (("eval_strategy", args.eval_strategy.value), ("eval_on_start", args.eval_on_start)):
            if value not in ("no", False):
                note(f"--{flag} {value} is ignored: --eval_data_path is not set")
        args.eval_strategy, args.eval_on_start = "no", False

    def _sampler(self, pairs: Dataset) -> MixtureSampler | None:
        """The order of a mixture's rows; None shuffles all rows together."""
        args, groups = self.args, getattr(pairs, "groups", {})
        if args.mixture_weights is None and args.mixture_batches == "mixed":
            return None
        flag = "mixture_batches" if args.mixture_weights is None else "mixture_weights"
        require(len(groups) > 1, flag, getattr(args, flag), "several sources, such as --data_path A,B,C")
        return MixtureSampler(
            groups,
            weights=args.mixture_weights and [float(weight) for weight in args.mixture_weights.split(",")],
            step=args.per_device_train_batch_size * args.world_size,
            homogeneous=args.mixture_batches == "homogeneous",
            seed=args.seed if args.data_seed is None else args.data_seed,
        )


def _targets(pairs: Dataset) -> Iterator[tuple]:
    """What the targets and hard negatives show, without rows that cannot be read: training leaves them out."""
    for i in range(len(pairs)):
        with suppress(ValueError):
            pair = pairs[i]
            yield from map(what_is_shown, (pair.target, *pair.negatives))
