"""ContrastiveTrainer: InfoNCE between the queries and targets of all processes' batches, for stages 1 and 2."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl

from lamra.eval.encode import encode
from lamra.eval.search import top_k
from lamra.models.losses import distillation, info_nce
from lamra.train.trainer import LamRATrainer


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

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        self.count_faults(inputs.pop("faults"))
        self.texts.add(inputs.pop("notes"))
        teacher = inputs.pop("teacher", None)  # (B, 1 + K)
        num_queries, self.nonfinite.rows = inputs.pop("num_queries"), inputs.pop("ids")
        item_ids, hit_ids = inputs.pop("item_ids"), inputs.pop("hit_ids")  # (B + M,) each
        embeddings = model(**inputs)  # (B + M, D): queries, then targets
        query, target = embeddings[:num_queries], embeddings[num_queries:]
        loss, accuracy = info_nce(query, target, self.settings.temperature, item_ids, hit_ids)
        if teacher is not None:
            scores = torch.tensor(teacher, device=query.device)  # (B, 1 + K) float32
            of_teacher = distillation(query, target, scores, self.settings.temperature, self.distill_temperature)
            loss = loss + self.distill_weight * of_teacher
        if not self.nonfinite.is_finite_everywhere(loss.detach()):
            finite = embeddings[: 2 * num_queries].isfinite().all(dim=1).view(2, -1).all(dim=0).tolist()
            suspects = [row for row, is_finite in zip(self.nonfinite.rows, finite) if not is_finite]
            self.nonfinite.stop(self.step, "loss", suspects)
        self.throughput.count(accuracy, inputs["attention_mask"].sum(), num_queries)
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
