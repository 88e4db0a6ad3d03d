"""RerankTrainer: next-token loss on the assistant's turn of LamRA-Rank's three prompts together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lamra.collators.rerank import IGNORED
from lamra.train.trainer import LamRATrainer


class RerankTrainer(LamRATrainer):
    """Trains a Reranker on batches of collators.rerank.RerankCollator.

    The loss is the mean over all tokens of the assistant's turns of a batch, header and end of turn too, as upstream.
    Every query brings equally many: the mean over accumulated batches and processes is that of the global batch.
    """

    in_batch_negatives = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        self.count_faults(inputs.pop("faults"))
        self.texts.add(inputs.pop("notes"))
        self.nonfinite.rows, labels = inputs.pop("ids"), inputs.pop("labels")  # labels: (B, L)
        answer_mask = F.pad(labels[:, 1:] != IGNORED, (0, 1))  # (B, L): a token predicts its successor
        logits, answers = model(answer_mask=answer_mask, **inputs), labels[labels != IGNORED]  # (A, V), (A,)
        loss = F.cross_entropy(logits, answers)
        if not self.nonfinite.is_finite_everywhere(loss.detach()):
            self.nonfinite.stop(self.step, "loss", [])
        prompt = answer_mask.nonzero()[:, 0]  # (A,)
        wrong = torch.zeros(len(labels), device=labels.device).index_add(
            0, prompt, (logits.argmax(dim=-1) != answers).float()
        )
        self.throughput.count((wrong == 0).float().mean(), inputs["attention_mask"].sum(), len(self.nonfinite.rows))
        return loss
