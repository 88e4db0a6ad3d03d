"""Embedder: a stock Qwen2-VL (with or without LoRA) that turns prompts into unit embeddings.

Dimension letters: B sequences in the batch, L tokens of the longest, D hidden size, P image patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from lamra.models.grad_cache import embed_in_chunks
from lamra.models.packing import ATTENTION, KeysAndValues, Packing, keep_last_token

POSITION_IDS = ("sequential", "mrope")

MATRIX_PRODUCTS = {torch.ops.aten.mm.default: (0, 1), torch.ops.aten.addmm.default: (1, 2)}  # op -> its two factors
LOW_RANK = 128  # products with LoRA's matrices are cheap to repeat, and as large to keep as those with the weights


def _keep_matrix_products():
    def policy(_context, op, *args, **_kwargs):
        if op in MATRIX_PRODUCTS:
            _, weight = (args[i] for i in MATRIX_PRODUCTS[op])
            if min(weight.shape) > LOW_RANK:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


class Embedder(nn.Module):
    """Pools the hidden state of each prompt's last token, the end of its generation prompt.

    The paper's `<emb>` token comes after that position and cannot influence it under causal attention, so it is not
    there (arXiv 2412.01720, section 3.2; DESIGN decision 2).

    Args:
        model: `Qwen2VLForConditionalGeneration`, `Qwen2_5_VLForConditionalGeneration`, or a PEFT wrapper around one.
        position_ids: "sequential" counts 0..L-1 on all three rotary axes, image tokens too, as LamRA's published
            Qwen2-VL checkpoints were trained; "mrope" is the multimodal scheme of Qwen2-VL itself.
        padding_free: run all sequences as one row of tokens (models.packing); False pads them to a rectangle.
        last_token_only: with padding_free, the last layer computes nothing but the pooled tokens.
        grad_cache_chunk: in training, embed so many sequences at a time and recompute them in the backward pass
            (models.grad_cache); 0 embeds all at once.
        selective_checkpointing: where activation checkpointing is on, keep the outputs of matrix products and
            recompute what is cheap.
    """

    def __init__(
        self,
        model: nn.Module,
        position_ids: str,
        *,
        padding_free: bool = True,
        last_token_only: bool = True,
        grad_cache_chunk: int = 0,
        selective_checkpointing: bool = False,
    ):
        super().__init__()
        if position_ids not in POSITION_IDS:
            raise ValueError(f"--position_ids {position_ids!r}: choose one of {', '.join(POSITION_IDS)}")
        self.model = model
        self.position_ids = position_ids
        self.padding_free = padding_free
        self.last_token_only = padding_free and last_token_only
        self.grad_cache_chunk = grad_cache_chunk
        self.selective_checkpointing = selective_checkpointing
        if padding_free:
            self.config.text_config._attn_implementation = ATTENTION
        if self.last_token_only:
            keep_last_token(self.stock.model.language_model.layers[-1])

    @property
    def stock(self) -> nn.Module:
        """The transformers model, whether or not PEFT is around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def config(self):
        return self.stock.config

    @property
    def device(self) -> torch.device:
        return self.stock.get_input_embeddings().weight.device

    def activation_checkpointing_enable(self, *_, **__) -> None:
        """Called by the Trainer. Always non-reentrant, so that frozen inputs need no gradient to be recomputed from."""
        enable = getattr(self.stock, "activation_checkpointing_enable", self.stock.gradient_checkpointing_enable)
        selective = {"context_fn": _keep_matrix_products} if self.selective_checkpointing else {}
        enable({"use_reentrant": False, **selective})
        self.stock.disable_input_require_grads()  # enabled for reentrant checkpointing; it only adds backward work
        if self.last_token_only:  # it keeps next to nothing, and a recomputed layer would not take the given keys
            self.stock.model.language_model.layers[-1].gradient_checkpointing = False

    gradient_checkpointing_enable = activation_checkpointing_enable  # the name before transformers 5.20

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        prefix: KeysAndValues | None = None,
    ) -> Tensor:
        """Embed right-padded prompts.

        Args:
            input_ids: (B, L) token ids, one `image_token_id` for each merged image patch.
            attention_mask: (B, L), 1 for tokens and then 0 for padding.
            pixel_values: (P, channels * temporal * 14 * 14) patches of all images in order, or None.
            image_grid_thw: (images, 3) patches in time, height and width, or None.
            prefix: what `prefix_of` gave for tokens that every row begins with; they are then not computed again.

        Returns:
            (B, D) float32 embeddings of unit norm.

        Raises:
            ValueError: a prefix in training, where it would share one dropout mask among all rows.
        """
        if prefix is not None and self.training:
            raise ValueError(
                "a shared prefix is exact in evaluation only: in training all rows would share its dropout"
            )
        inputs = (input_ids, attention_mask, pixel_values, image_grid_thw)
        if self.grad_cache_chunk and torch.is_grad_enabled():
            images_per_row = (input_ids == self.config.vision_start_token_id).sum(dim=1)
            hidden = embed_in_chunks(self.hidden_state, self.grad_cache_chunk, *inputs, images_per_row)
        else:
            hidden = self.hidden_state(*inputs, prefix)
        return F.normalize(hidden.float(), dim=-1)

    def prefix_of(self, input_ids: Tensor) -> KeysAndValues:
        """Keys and values of (P,) tokens in every layer, for prompts that begin with them; needs padding_free."""
        seen: KeysAndValues = {}
        positions = torch.arange(len(input_ids), device=input_ids.device).expand(3, 1, -1)
        packing = Packing.of(torch.ones_like(input_ids).unsqueeze(0), seen=seen)
        self._backbone(input_ids.unsqueeze(0), {"full_attention": packing}, positions)
        return seen

    def hidden_state(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        prefix: KeysAndValues | None = None,
    ) -> Tensor:
        """(B, D) hidden states of the last tokens, in the model's dtype, not normalised; arguments as for forward."""
        positions = self._position_ids(input_ids, attention_mask, image_grid_thw)  # (3, B, L)
        if not self.padding_free:
            # With padding on the right, causal attention alone keeps it out of every pooled token: no mask is needed.
            hidden = self._backbone(input_ids, None, positions, pixel_values, image_grid_thw)  # (B, L, D)
            return hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(dim=1) - 1]
        if prefix is not None:
            known = prefix[0][0].shape[2]
            input_ids, attention_mask, positions = (
                input_ids[:, known:],
                attention_mask[:, known:],
                positions[..., known:],
            )
        packing = Packing.of(attention_mask, prefix=prefix)
        ids = input_ids.flatten()[packing.slots].unsqueeze(0)  # (1, T)
        positions = positions.flatten(1)[:, packing.slots].unsqueeze(1)  # (3, 1, T)
        hidden = self._backbone(ids, {"full_attention": packing}, positions, pixel_values, image_grid_thw)[0]  # (T, D)
        return hidden if self.last_token_only else hidden[packing.last]  # (B, D)

    def _backbone(self, input_ids, attention_mask, position_ids, pixel_values=None, image_grid_thw=None) -> Tensor:
        return self.stock.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            use_cache=False,
        ).last_hidden_state

    def _position_ids(self, input_ids: Tensor, attention_mask: Tensor, image_grid_thw: Tensor | None) -> Tensor:
        """(3, B, L) rotary positions in time, height and width."""
        if self.position_ids == "mrope" and image_grid_thw is not None:
            positions, _ = self.stock.model.get_rope_index(
                input_ids,
                mm_token_type_ids=(input_ids == self.config.image_token_id).int(),
                image_grid_thw=image_grid_thw,
                attention_mask=attention_mask,
            )
            return positions
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand(3, *input_ids.shape)
