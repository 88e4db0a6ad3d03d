"""ContrastiveTrainer: InfoNCE between the queries and targets of all processes' batches, for stages 1 and 2."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl

from lamra.common.errors import UserError
from lamra.eval.encode import encode
from lamra.eval.search import top_k
from lamra.models.losses import LossOptions, distillation, info_nce, matryoshka
from lamra.train.checkpoints import MANIFEST
from lamra.train.trainer import LamRATrainer

OFFSET = "temperature.offset"  # of a temperature that is trained: in the state of the model, and in a manifest


class ContrastiveTrainer(LamRATrainer):
    """Trains an Embedder on batches of collators.retrieval.RetrievalCollator.

    Args:
        distill_weight, distill_temperature: of losses.distillation, where batches have a teacher's scores.
    """

    in_batch_negatives = True
    control: TrainerControl

    def __init__(self, *, distill_weight: float = 1.0, distill_temperature: float = 1.0, **rest: Any):
        super().__init__(**rest)
        self.distill_weight, self.distill_temperature = distill_weight, distill_temperature

    @property
    def loss_options(self) -> LossOptions:
        args = self.args
        masks = args.false_negative_margin, args.false_negative_above
        return LossOptions(args.symmetric_loss, *masks, args.hardness_weight)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        self.count_faults(inputs.pop("faults"))
        self.texts.add(inputs.pop("notes"))
        teacher = inputs.pop("teacher", None)  # (B, 1 + K)
        num_queries, self.nonfinite.rows = inputs.pop("num_queries"), inputs.pop("ids")
        item_ids, hit_ids = inputs.pop("item_ids"), inputs.pop("hit_ids")  # (B + M,) each
        more = {}  # measures to log
        if self.model.temperature is None:
            embeddings, temperature = model(**inputs), self.settings.temperature  # (B + M, D): queries, then targets
        else:
            embeddings, temperature = model(**inputs, with_temperature=True)
            more["temperature"] = temperature.detach()
        query, target = embeddings[:num_queries], embeddings[num_queries:]
        options = self.loss_options
        loss_of = partial(info_nce, temperature=temperature, item_ids=item_ids, hit_ids=hit_ids, options=options)
        loss, accuracy, false_negatives = matryoshka(loss_of, query, target, self.settings.matryoshka_dims)
        if options.drop:
            more["false_negatives"] = false_negatives
        if teacher is not None:
            scores = torch.tensor(teacher, device=query.device)  # (B, 1 + K) float32
            of_teacher = distillation(query, target, scores, temperature, self.distill_temperature)
            loss = loss + self.distill_weight * of_teacher
        if not self.nonfinite.is_finite_everywhere(loss.detach()):
            finite = embeddings[: 2 * num_queries].isfinite().all(dim=1).view(2, -1).all(dim=0).tolist()
            suspects = [row for row, is_finite in zip(self.nonfinite.rows, finite) if not is_finite]
            self.nonfinite.stop(self.step, "loss", suspects)
        self.throughput.count(accuracy, inputs["attention_mask"].sum(), num_queries, **more)
        return loss

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        is_there = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.model.temperature is not None and not is_there:
            offset, args = self.model.temperature.offset, self.args
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if parameter is not offset]
            rate = args.learning_rate if args.temperature_lr is None else args.temperature_lr
            optimizer.add_param_group({"params": [offset], "lr": rate, "weight_decay": 0.0})
        return optimizer

    # A temperature that is trained is no part of the adapter: lamra.json says what it is, and the manifest of a
    # checkpoint its parameter, whose float32 a JSON number holds exactly. DeepSpeed keeps it in its own files as well.

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save and (temperature := self.model.temperature) is not None:
            # ZeRO-3 leaves an empty tensor in the model.
            offset = (temperature.offset if state_dict is None else state_dict.pop(OFFSET)).item()
            self.learnt[OFFSET] = offset
            self.settings = replace(self.settings, temperature=temperature.at(offset))
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.model.temperature is not None:
            manifest = json.loads(Path(resume_from_checkpoint, MANIFEST).read_text())
            if OFFSET not in manifest:
                raise UserError(f"{resume_from_checkpoint} has no learnt temperature: leave --learn_temperature out")
            self.model.temperature.offset.data.fill_(manifest[OFFSET])

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
        queries, targets = [pair.query.content for pair in pairs], [pair.target.content for pair in pairs]
        positives: dict[Hashable, set[Hashable]] = {}
        for of_query, of_target in zip(queries, targets):
            positives.setdefault(of_query, set()).add(of_target)
        accuracy, recall = (
            sum(targets[row] in positives[of_query] for of_query, row in zip(queries, best.tolist())) / len(pairs)
            for best in (in_batch, overall)
        )
        metrics = {f"{metric_key_prefix}_accuracy": accuracy, f"{metric_key_prefix}_recall@1": recall}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.throughput.restart_clock()
        return metrics
