"""Reranker: a stock Qwen2-VL (with or without LoRA) that answers, read by its logits instead of by generation.

Dimension letters: B sequences in the batch, L tokens of the longest, A tokens asked for, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from lamra.models.backbone import Backbone
from lamra.models.packing import KeysAndValues


class Reranker(Backbone):
    """Gives the logits of the tokens that are asked for, and of no others: a vocabulary of 152,000 is not free."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        asked: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        prefix: KeysAndValues | None = None,
        picture_features: Tensor | None = None,
    ) -> Tensor:
        """Next-token logits of right-padded prompts.

        Args:
            input_ids, attention_mask, image_grid_thw: as for Embedder.
            asked: (B, L) bool, the tokens whose successor is asked for; none of them in the prefix.
            pixel_values: patches of the pictures in order, without those of the prefix.
            prefix: what `prefix_of` gave for tokens that every row begins with; they are then not computed again.
            picture_features: what `picture_features` gave for the pictures, instead of pixel_values.

        Returns:
            (A, V) float32 logits, row after row.

        Raises:
            ValueError: a prefix in training, where it would share one dropout mask among all rows.
        """
        hidden, packing = self.hidden(input_ids, attention_mask, pixel_values, image_grid_thw, prefix, picture_features)
        if prefix is not None:
            asked = asked[:, prefix[0][0].shape[2] :]
        hidden = hidden[asked] if packing is None else hidden[0, asked.flatten()[packing.slots]]  # (A, D)
        return self.stock.lm_head(hidden).float()
