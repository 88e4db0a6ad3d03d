"""Embedder: a stock Qwen2-VL (with or without LoRA) that turns prompts into unit embeddings.

Dimension letters: B sequences in the batch, L tokens of the longest, D hidden size, P image patches.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lamra.models.backbone import Backbone
from lamra.models.grad_cache import embed_in_chunks
from lamra.models.packing import KeysAndValues, keep_last_token
from lamra.models.temperature import Temperature


class Embedder(Backbone):
    """Pools the hidden state of each prompt's last token, the end of its generation prompt, or the mean of all.

    The paper's `<emb>` token comes after that position and cannot influence it under causal attention, so it is not
    there (arXiv 2412.01720, section 3.2).

    Args:
        model, position_ids, padding_free, selective_checkpointing: see Backbone.
        attention: one of ATTENTION: "bidirectional" lets a token attend to its whole prompt.
        pooling: one of POOLING: "last_token", or "mean" of all of the prompt's tokens, template and instruction too.
        last_token_only: with padding_free, the last layer computes nothing but the pooled token.
        grad_cache_chunk: in training, embed so many sequences at a time and recompute them in the backward pass
            (models.grad_cache); 0 embeds all at once.
        shared_prefix: in training with padding_free, of so many tokens at every prompt's beginning those that a batch
            has in common are computed once. Embeddings and gradients stay the same but where the model drops out: the
            prefix then has one dropout mask for all rows.
        temperature: of the loss, where it is trained: here, data parallelism and DeepSpeed reduce its gradient.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        position_ids: str,
        *,
        attention: str = "causal",
        pooling: str = "last_token",
        padding_free: bool = True,
        last_token_only: bool = True,
        grad_cache_chunk: int = 0,
        selective_checkpointing: bool = False,
        shared_prefix: int = 0,
        temperature: Temperature | None = None,
    ) -> None:
        super().__init__(
            model,
            position_ids,
            causal=attention == "causal",
            padding_free=padding_free,
            selective_checkpointing=selective_checkpointing,
        )
        self.pooling = pooling
        self.last_token_only = padding_free and last_token_only and pooling == "last_token"
        self.grad_cache_chunk = grad_cache_chunk
        self.shared_prefix = shared_prefix if self.shares_prefix else 0
        self.temperature = temperature
        if self.last_token_only:
            keep_last_token(self.stock.model.language_model.layers[-1])

    @property
    def shares_prefix(self) -> bool:
        """Whether what prompts have in common at their beginning can be computed once for all of them."""
        return self.padding_free and self.causal and self.pooling == "last_token"

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        super().activation_checkpointing_enable()
        if self.last_token_only:  # it keeps next to nothing, and a recomputed layer would not take the given keys
            self.stock.model.language_model.layers[-1].gradient_checkpointing = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        prefix: KeysAndValues | None = None,
        with_temperature: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embed right-padded prompts.

        Args:
            input_ids: (B, L) token ids, one `image_token_id` for each merged image patch.
            attention_mask: (B, L), 1 for tokens and then 0 for padding.
            pixel_values: (P, channels * temporal * 14 * 14) patches of all images in order, or None.
            image_grid_thw: (images, 3) patches in time, height and width, or None.
            prefix: from `prefix_of`, of tokens that every row begins with; they are then not computed again.
            with_temperature: where one is trained, give it too: only what a forward returns is known to be trained.

        Returns:
            (B, D) float32 embeddings of unit norm; with_temperature beside them the temperature, ().
        """
        inputs = (input_ids, attention_mask, pixel_values, image_grid_thw)
        run_vision = self.vision_must_run(input_ids, pixel_values)
        if self.grad_cache_chunk and torch.is_grad_enabled() and prefix is None:
            images_per_row = self.picture_begins(input_ids).sum(dim=1)
            embed = partial(self.hidden_state, run_vision=run_vision)
            hidden = embed_in_chunks(embed, self.grad_cache_chunk, *inputs, images_per_row)
        else:
            hidden = self.hidden_state(*inputs, prefix, run_vision)
        embeddings = F.normalize(hidden.float(), dim=-1)  # (B, D)
        if with_temperature:
            assert self.temperature is not None
            return embeddings, self.temperature()
        return embeddings

    def hidden_state(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        prefix: KeysAndValues | None = None,
        run_vision: bool = False,
    ) -> Tensor:
        """(B, D) pooled hidden states, not normalised; of last tokens in the model's dtype, means in float32.

        Args and Raises: as for forward; run_vision is from `vision_must_run`, of the whole batch.
        """
        if self.training and self.shared_prefix and prefix is None:
            first = input_ids[:, : self.shared_prefix]
            equal = (first == first[0]).all(dim=0)  # (P,): a text's first letters may merge with the prefix's last
            prefix = self.prefix_of(first[0, : int(equal.cumprod(dim=0).sum())])
        pictures = (pixel_values, image_grid_thw)
        hidden, packing = self.hidden(input_ids, attention_mask, *pictures, prefix, run_vision=run_vision)
        if self.pooling == "mean":
            if packing is not None:
                hidden = packing.pad(hidden[0])  # (B, L, D)
            tokens = attention_mask.unsqueeze(-1)  # (B, L, 1)
            return (hidden.float() * tokens).sum(dim=1) / tokens.sum(dim=1)  # (B, D)
        if packing is None:
            return hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(dim=1) - 1]  # (B, D)
        return hidden[0] if self.last_token_only else hidden[0, packing.last]  # (B, D)
