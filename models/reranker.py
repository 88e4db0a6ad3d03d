"""Reranker: a stock Qwen2-VL (with or without LoRA) that answers, read by its logits instead of by generation.

Dimension letters: B sequences in the batch, L tokens of the longest, A answer positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

from torch import Tensor

from lamra.models.backbone import Backbone
from lamra.models.float32 import inner_products
from lamra.models.packing import KeysAndValues, prefix_length


class Reranker(Backbone):
    """Gives the logits at the answers' positions, and nowhere else: a vocabulary of 152,000 is not free."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        answer_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        prefix: KeysAndValues | None = None,
        picture_features: Tensor | None = None,
        answers: Tensor | None = None,
    ) -> Tensor:
        """Next-token logits of right-padded prompts.

        Args:
            input_ids, attention_mask, image_grid_thw, prefix: as for Embedder.
            answer_mask: (B, L) bool, the tokens whose next-token logits are wanted; none of them in the prefix.
            pixel_values: patches of the pictures in order, without the prefix's.
            picture_features: from `picture_features`, of the pictures, instead of pixel_values.
            answers: (n,) ids of the tokens whose logits are compared. They are computed in float32 whatever the model's
                dtype is: in bf16 logits of 16 to 32 are 0.125 apart, and most of a list would tie.

        Returns:
            (A, V) float32 logits, row after row, or with `answers` (A, n).
        """
        run_vision = self.vision_must_run(input_ids, pixel_values)
        pictures = (pixel_values, image_grid_thw)
        hidden, packing = self.hidden(
            input_ids, attention_mask, *pictures, prefix, picture_features, run_vision=run_vision
        )
        if prefix is not None:
            answer_mask = answer_mask[:, prefix_length(prefix) :]  # (B, L - P)
        hidden = hidden[answer_mask] if packing is None else hidden[0, answer_mask.flatten()[packing.slots]]  # (A, D)
        if answers is not None:
            return inner_products(hidden, self.stock.lm_head.weight[answers])  # (A, n)
        return self.stock.lm_head(hidden).float()  # (A, V)
