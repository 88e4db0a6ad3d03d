"""RerankTrainer: next-token loss on the assistant's turn of LamRA-Rank's three prompts together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lamra.collators.rerank import IGNORED
from lamra.train.trainer import StageTrainer


class RerankTrainer(StageTrainer):
    """Trains a Reranker on batches of collators.rerank.RerankTrainingCollator.

    The loss is the mean over all tokens of the assistant's turns of a batch, header and end of turn too, as upstream.
    Every query brings equally many: the mean over accumulated batches and processes is that of the global batch.
    """

    def shown(self, _batch: dict) -> dict[str, int]:
        """Rows of a batch that --dry_run decodes."""
        return {"Yes": 0, "No": 1, "list": 2}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        self._count_faults(inputs.pop("faults"))
        self._rows, labels = inputs.pop("ids"), inputs.pop("labels")  # labels: (B, L)
        answer_mask = F.pad(labels[:, 1:] != IGNORED, (0, 1))  # (B, L), the tokens before the labels
        logits, answers = model(answer_mask=answer_mask, **inputs), labels[labels != IGNORED]  # (A, V), (A,)
        loss = F.cross_entropy(logits, answers)
        if self.args.on_nonfinite == "stop" and not self._finite_everywhere(loss.detach()):
            self._stop("loss", [])
        example = answer_mask.nonzero()[:, 0]  # (A,)
        wrong = torch.zeros(len(labels), device=labels.device).index_add(
            0, example, (logits.argmax(dim=-1) != answers).float()
        )
        self._count((wrong == 0).float().mean(), inputs["attention_mask"].sum(), len(self._rows))
        return loss
