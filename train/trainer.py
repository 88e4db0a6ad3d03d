"""What every training here adds to Hugging Face's Trainer: complete checkpoints, faults that end in a sentence."""

from __future__ import annotations

import json
import math
import shutil
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import TRAINER_STATE_NAME

from lamra.collators.texts import ToldTexts
from lamra.common.cli import note
from lamra.common.gather import sum_over_processes
from lamra.common.processes import heartbeat, is_first_process
from lamra.models.settings import Settings
from lamra.train.checkpoints import MANIFEST, PARTIAL, commit_checkpoint, load_weights, require_shared, save_model
from lamra.train.guards.full import DiskGuard, tell_when_full
from lamra.train.guards.nonfinite import NonFinite
from lamra.train.guards.skipped import SkippedPairs
from lamra.train.guards.stopping import EXIT_STATUS, Preemption
from lamra.train.output import PREEMPTED
from lamra.train.throughput import Throughput


class LamRATrainer(Trainer):
    """The Trainer around a loss: a subclass gives compute_loss and in_batch_negatives.

    `processing_class` is the Processor.

    Args:
        settings, record: written with every checkpoint, as lamra.json and into its manifest.
        preemption: tells whether the run was told to stop.
        skipped: counts the pairs that cannot be used.
        sampler: orders the rows of a mixture; None shuffles them.
    """

    in_batch_negatives: bool  # whether the loss is one over the whole gathered batch

    def __init__(
        self,
        *,
        settings: Settings,
        record: dict,
        preemption: Preemption,
        skipped: SkippedPairs,
        sampler: Sampler | None,
        **rest: Any,
    ):
        self._sampler = sampler
        super().__init__(**rest)
        self.model.pixels_from_bytes = self.processing_class.visuals.floats
        self.settings, self.record, self.preemption, self.skipped_pairs = settings, record, preemption, skipped
        self.learnt: dict[str, float] = {}  # beside the weights, for the manifest; a subclass fills it as it saves
        self.texts = ToldTexts()
        self.disk, self.nonfinite = DiskGuard(), NonFinite(self.args)
        self.throughput = Throughput(self.args.device, self.model)

    def fit(self, checkpoint: str | None) -> None:
        """Train, from a checkpoint where there is one, and save; a run that is told to stop exits with EXIT_STATUS."""
        args = self.args
        with tell_when_full(self):
            self.train(resume_from_checkpoint=checkpoint)
        self.texts.tell()
        if self.preemption.happened:
            if is_first_process():
                Path(args.output_dir, PREEMPTED).touch()
            note(f"asked to stop: checkpoint-{self.state.global_step} is complete; go on with --resume auto")
            sys.exit(EXIT_STATUS)
        if args.load_best_model_at_end:
            best, score = self.state.best_global_step, self.state.best_metric
            kept = f"step {best}: {args.metric_for_best_model} {score:.4f}" if best else "the last: none was measured"
            note(f"the weights are those of {kept}")
        with tell_when_full(self):
            self.save_model()

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        return self._sampler or super()._get_train_sampler(train_dataset)

    @property
    def step(self) -> int:
        """The number of the step that is computed now."""
        return self.state.global_step + 1

    def count_faults(self, faults: list[tuple[int, str]]) -> None:
        """Count the pairs that a batch lacks, on all processes; after too many the run ends."""
        if sum_over_processes(torch.tensor(len(faults), device=self.args.device)):
            self.skipped_pairs.add(faults, self.step)

    def _get_grad_norm(self, model, grad_norm=None):
        # Called before the update; under DeepSpeed after it, which skips by itself where a gradient is not finite.
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(norm) and self.nonfinite.skip_update(self.step, norm, self._loss_scale()):
            model.zero_grad()  # without gradients the optimizer changes nothing
        return norm

    def _loss_scale(self) -> float:
        """What fp16 multiplies the loss by; an overflow is normal while there is something to lower. 1 without fp16."""
        if not self.args.fp16:
            return 1.0
        return self.optimizer.optimizer.loss_scale if self.is_deepspeed_enabled else self.accelerator.scaler.get_scale()

    def _maybe_log_save_evaluate(self, tr_loss, *args, **kwargs) -> None:
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        if self._globalstep_last_logged == self.state.global_step:
            tr_loss.zero_()  # the Trainer takes it from itself, and NaN less NaN is NaN for ever

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy, pairs/s and useful tokens/s of all ranks, and MFU where the device's peak is known."""
        super().log(logs | self.throughput.report() if "loss" in logs else logs, start_time)

    # Hugging Face's Trainer knows how to save and load a PeftModel, but not one inside an Embedder.

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            with self.disk():
                folder = output_dir or self.args.output_dir
                save_model(self.model, self.processing_class, self.settings, folder, state_dict)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.nonfinite.check_weights(self.state.global_step, self.model)
        super().save_model(output_dir, _internal_call)
        self.disk.stop_if_full(self.args.device)

    @property
    def partial_dir(self) -> Path:
        """Where a checkpoint is written until it is complete."""
        return Path(self.args.output_dir) / PARTIAL

    def _get_output_dir(self, trial=None) -> str:
        return str(self.partial_dir)

    def _save_checkpoint(self, model, trial=None) -> None:
        if is_first_process():
            shutil.rmtree(self.partial_dir, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        # DeepSpeed's part has collective calls of its own: there the guard is around each of its files.
        with nullcontext() if self.is_deepspeed_enabled else self.disk():
            super()._save_checkpoint(model, trial)
        self.disk.stop_if_full(self.args.device)
        name = f"checkpoint-{self.state.global_step}"
        partial, final = self.partial_dir / name, Path(self.args.output_dir) / name
        require_shared(partial)
        if best := self._best_checkpoint():
            self.state.best_model_checkpoint = str(best)  # the Trainer noted where it was written, not where it will be
        if is_first_process():
            more = {"updates_skipped": self.nonfinite.skipped, "save_only_model": self.args.save_only_model}
            more |= self.learnt
            with self.disk(), heartbeat("the first process writes the checkpoint"):
                self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
                commit_checkpoint(partial, final, record=self.record | more, keep=self.args.save_total_limit, best=best)
                shutil.rmtree(self.partial_dir, ignore_errors=True)
        self.disk.stop_if_full(self.args.device)

    def _save_rng_state(self, output_dir: str) -> None:
        # Each process writes its own: none may write on while another, without room, removes the folder.
        if self.is_deepspeed_enabled:
            self.disk.stop_if_full(self.args.device)
        with self.disk():
            super()._save_rng_state(output_dir)

    def _best_checkpoint(self) -> Path | None:
        step = self.state.best_global_step
        return Path(self.args.output_dir, f"checkpoint-{step}") if step else None

    def _determine_best_metric(self, metrics, trial) -> bool:
        # With --save_strategy best its answer replaces the wish to save of a run that is told to stop.
        return super()._determine_best_metric(metrics, trial) or self.control.should_save

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(self.model_wrapped, str(self._best_checkpoint()), load_module_strict=False)
        else:
            self._load_from_checkpoint(str(self._best_checkpoint()))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        load_weights(self.model, resume_from_checkpoint)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        engine, train_dataloader = super()._prepare_for_training(max_steps, train_dataloader, None)
        if self.is_deepspeed_enabled:  # frozen base weights, 15 GB at 7B, are no part of a checkpoint
            engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)
            engine.checkpoint_engine.save = self.disk.saving(engine.checkpoint_engine.save)
        if resume_from_checkpoint is not None:
            manifest = json.loads(Path(resume_from_checkpoint, MANIFEST).read_text())
            self.nonfinite.skipped = manifest.get("updates_skipped", 0)
            if self.is_deepspeed_enabled:
                deepspeed_load_checkpoint(engine, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return engine, train_dataloader
