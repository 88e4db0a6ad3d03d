"""What every training here adds to Hugging Face's Trainer; ContrastiveTrainer connects embedder and loss."""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import TRAINER_STATE_NAME

from lamra.collators.retrieval import what_is_shown
from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.processes import of_all_processes
from lamra.eval.encode import encode
from lamra.eval.search import top_k
from lamra.models.losses import info_nce
from lamra.models.settings import Settings
from lamra.train.checkpoints import (
    MANIFEST,
    PARTIAL,
    checkpoints,
    commit_checkpoint,
    fault,
    load_weights,
    require_shared,
    save_model,
)
from lamra.train.limits import DiskGuard
from lamra.train.skipped import SkippedPairs
from lamra.train.throughput import flops_per_token, peak_flops


class StageTrainer(Trainer):
    """Complete checkpoints, faults that end in a sentence, throughput. A subclass gives compute_loss and `shown`.

    `processing_class` is the Processor; `settings` and `record` are written with every checkpoint; `skipped` counts the
    pairs that cannot be used; `sampler` orders the rows of a mixture.
    """

    def __init__(
        self, *args, settings: Settings, record: dict, skipped: SkippedPairs, sampler: Sampler | None = None, **kwargs
    ):
        self._sampler = sampler
        super().__init__(*args, **kwargs)
        self.settings, self.record, self.skipped_pairs = settings, record, skipped
        self.disk = DiskGuard()
        self._skipped = 0
        self._peak, self._flops_per_token = peak_flops(self.args.device), flops_per_token(self.model)
        self._reset_throughput()

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        return self._sampler or super()._get_train_sampler(train_dataset)

    def _count_faults(self, faults: list[tuple[int, str]]) -> None:
        found = torch.tensor(len(faults), device=self.args.device)
        if dist.is_initialized():
            dist.all_reduce(found)
        if found:
            self.skipped_pairs.add(faults, self.state.global_step + 1)

    def _get_grad_norm(self, model, grad_norm=None):
        # Called before the update; under DeepSpeed after one that it skipped by itself if a gradient was not finite.
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(norm) and self._loss_scale() > 1:
            note(f"step {self.state.global_step + 1}: fp16 overflows, the loss scale {self._loss_scale():g} is lowered")
        elif not math.isfinite(norm):
            if self.args.on_nonfinite == "stop":
                self._stop("gradient norm", self._rows)
            self._skipped += 1
            if self._skipped > self.args.max_nonfinite:
                raise UserError(
                    f"step {self.state.global_step + 1}: more than --max_nonfinite {self.args.max_nonfinite} updates "
                    f"were not finite and skipped; lower the learning rate, or look at the data. {self._last_good()}"
                )
            note(f"step {self.state.global_step + 1}: gradient norm {norm}, the update is skipped ({self._skipped})")
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

    def _finite_everywhere(self, value: Tensor) -> bool:
        bad = (~torch.isfinite(value)).float()
        if dist.is_initialized():
            dist.all_reduce(bad)
        return not bad

    def _stop(self, what: str, suspects: list[str]) -> NoReturn:
        rows = of_all_processes(suspects) or of_all_processes(self._rows)
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        raise UserError(
            f"step {self.state.global_step + 1}: {what} is not finite, with rows {', '.join(rows[:8])}{more}; "
            f"nothing was updated. {self._last_good()}"
        )

    def _last_good(self) -> str:
        saved = next((path for path in checkpoints(Path(self.args.output_dir)) if not fault(path)), None)
        return f"The last checkpoint is {saved}" if saved else "There is no checkpoint to go on from"

    def _check_weights(self) -> None:
        """Refuse to save trained weights that are not finite: an update can break what loss and gradient did not show.

        Raises:
            UserError: there are, on this process or another; names one.
        """
        trained = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        # ZeRO-3 leaves empty tensors in the model, and each process a share of the weights beside them.
        bad = [name for name, p in trained if not getattr(p, "ds_tensor", p).isfinite().all()]
        if bad := of_all_processes(bad[:1]):
            raise UserError(
                f"step {self.state.global_step}: trained weights are not finite after the update, such as {bad[0]}: "
                f"nothing is saved. Lower --learning_rate, or look at the optimizer's flags. {self._last_good()}"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy, pairs/s and useful tokens/s of all ranks, and MFU where the device's peak is known.

        Useful tokens are those that can influence the loss: padding is not counted, nor anything computed twice.
        """
        if "loss" in logs and self._batches:
            seconds = time.perf_counter() - self._since
            totals = torch.stack([self._accuracy, self._tokens.float(), torch.ones_like(self._accuracy)])
            if dist.is_initialized():
                dist.all_reduce(totals)
            accuracy, tokens, ranks = totals.tolist()
            logs["accuracy"] = accuracy / (self._batches * ranks)
            logs["samples_per_second"] = self._pairs * ranks / seconds
            logs["useful_tokens_per_second"] = tokens / seconds
            if self._peak:
                logs["mfu"] = tokens / ranks * self._flops_per_token / seconds / self._peak
            self._reset_throughput()
        super().log(logs, start_time)

    def _count(self, accuracy: Tensor, tokens: Tensor, rows: int) -> None:
        """Add a batch to what `log` shows next: its accuracy, useful tokens and rows of the data."""
        self._accuracy += accuracy
        self._tokens += tokens
        self._pairs += rows
        self._batches += 1

    def _reset_throughput(self) -> None:
        self._accuracy = torch.zeros((), device=self.args.device)
        self._tokens = torch.zeros((), dtype=torch.long, device=self.args.device)
        self._pairs = self._batches = 0
        self._since = time.perf_counter()

    # Hugging Face's Trainer knows how to save and load a PeftModel, but not one inside an Embedder.

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            with self.disk():
                folder = output_dir or self.args.output_dir
                save_model(self.model, self.processing_class, self.settings, folder, state_dict)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._check_weights()
        super().save_model(output_dir, _internal_call)
        self.disk.stop_if_full(self.args.device)

    @property
    def partial_dir(self) -> Path:
        """Where a checkpoint is written, beside its place, until it is complete."""
        return Path(self.args.output_dir) / PARTIAL

    def _get_output_dir(self, trial=None) -> str:
        return str(self.partial_dir)

    def _save_checkpoint(self, model, trial=None) -> None:
        if self.args.process_index == 0:
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
        if self.args.process_index == 0:
            more = {"updates_skipped": self._skipped, "save_only_model": self.args.save_only_model}
            with self.disk():
                self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
                commit_checkpoint(partial, final, record=self.record | more, keep=self.args.save_total_limit, best=best)
                shutil.rmtree(self.partial_dir, ignore_errors=True)
        self.disk.stop_if_full(self.args.device)

    def _best_checkpoint(self) -> Path | None:
        step = self.state.best_global_step
        return Path(self.args.output_dir, f"checkpoint-{step}") if step else None

    def _determine_best_metric(self, metrics, trial) -> bool:
        # With --save_strategy best its answer stands in place of the wish to save of a run that is asked to stop.
        return super()._determine_best_metric(metrics, trial) or self.control.should_save

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(self.model_wrapped, str(self._best_checkpoint()), load_module_strict=False)
        else:
            load_weights(self.model, self._best_checkpoint())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        load_weights(self.model, resume_from_checkpoint)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        engine, train_dataloader = super()._prepare_for_training(max_steps, train_dataloader, None)
        if self.is_deepspeed_enabled:  # frozen base weights, 15 GB at 7B, are no part of a checkpoint
            engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)
            engine.checkpoint_engine.save = self.disk.saving(engine.checkpoint_engine.save)
        if resume_from_checkpoint is not None:
            manifest = json.loads(Path(resume_from_checkpoint, MANIFEST).read_text())
            self._skipped = manifest.get("updates_skipped", 0)
            if self.is_deepspeed_enabled:
                deepspeed_load_checkpoint(engine, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return engine, train_dataloader


class ContrastiveTrainer(StageTrainer):
    """Trains an Embedder with InfoNCE on batches of collators.retrieval.TrainingCollator."""

    def shown(self, batch: dict) -> dict[str, int]:
        """Rows of a batch that --dry_run decodes."""
        return {"query": 0, "target": batch["num_queries"]}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        self._count_faults(inputs.pop("faults"))
        num_queries, self._rows, item_ids, hit_ids = (
            inputs.pop(name) for name in ("num_queries", "ids", "item_ids", "hit_ids")
        )
        embeddings = model(**inputs)  # (B + M, D): queries, then targets
        loss, accuracy = info_nce(
            embeddings[:num_queries], embeddings[num_queries:], self.settings.temperature, item_ids, hit_ids
        )
        if self.args.on_nonfinite == "stop" and not self._finite_everywhere(loss.detach()):
            finite = embeddings[: 2 * num_queries].isfinite().all(dim=1).view(2, -1).all(dim=0).tolist()
            self._stop("loss", [row for row, is_finite in zip(self._rows, finite) if not is_finite])
        self._count(accuracy, inputs["attention_mask"].sum(), num_queries)
        return loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """In-batch accuracy (blocks of one global batch) and R@1 (each query against all targets) on a set of pairs."""
        pairs = list(self.eval_dataset if eval_dataset is None else eval_dataset)
        query, target = (
            encode(
                self.model,
                self.processing_class.for_evaluation(self.model.context_length),
                items,
                max_tokens_per_batch=max(self.args.model_max_length, self.args.per_device_eval_batch_size * 64),
                num_workers=self.args.dataloader_num_workers,
                share_prefix=False,  # computed apart, it would miss the Trainer's autocast
                description=f"evaluate {name}",
            )  # (N, D)
            for name, items in (("queries", [p.query for p in pairs]), ("targets", [p.target for p in pairs]))
        )
        block = self.args.per_device_train_batch_size * self.args.world_size
        in_batch = torch.cat(
            [top_k(query[i : i + block], target[i : i + block], 1)[1][:, 0] + i for i in range(0, len(pairs), block)]
        )
        overall = top_k(query, target, 1)[1][:, 0]
        # Pairs may share a query or a target (five captions of a picture): the targets of equal queries are hits.
        queries, targets = [what_is_shown(pair.query) for pair in pairs], [what_is_shown(pair.target) for pair in pairs]
        wanted: dict[tuple, set[tuple]] = {}
        for of_query, of_target in zip(queries, targets):
            wanted.setdefault(of_query, set()).add(of_target)
        accuracy, recall = (
            sum(targets[row] in wanted[of_query] for of_query, row in zip(queries, best.tolist())) / len(pairs)
            for best in (in_batch, overall)
        )
        metrics = {f"{metric_key_prefix}_accuracy": accuracy, f"{metric_key_prefix}_recall@1": recall}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since = time.perf_counter()  # training throughput does not count the evaluation
        return metrics
