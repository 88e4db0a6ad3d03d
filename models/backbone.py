"""Backbone: a stock model (with or without LoRA) run on packed rows. Embedder and Reranker are built on it.

Dimension letters: B sequences in the batch, L tokens of the longest, T tokens of all, D hidden size, P image patches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext, create_selective_checkpoint_contexts
from transformers import PreTrainedConfig, PreTrainedModel

from lamra.common.gather import all_gather_with_grad
from lamra.common.processes import several_processes
from lamra.models.norm import fuse_norms
from lamra.models.packing import ATTENTION, KeysAndValues, Packing, prefix_length
from lamra.models.settings import POSITION_IDS

MATRIX_PRODUCTS = {torch.ops.aten.mm.default: (0, 1), torch.ops.aten.addmm.default: (1, 2)}  # op -> its two factors
LOW_RANK = 128  # products with LoRA's matrices are cheap to repeat, and as large to keep as the weights'


def _keep_matrix_products() -> tuple[AbstractContextManager, AbstractContextManager]:
    def policy(_context: SelectiveCheckpointContext, op: Callable, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
        if op in MATRIX_PRODUCTS:
            _, weight = (args[i] for i in MATRIX_PRODUCTS[op])
            if min(weight.shape) > LOW_RANK:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _whole_prompts(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, L, L) of a right-padded (B, L) mask: 0 at tokens, at padding what softmax makes 0."""
    length = attention_mask.shape[1]
    added = torch.zeros_like(attention_mask, dtype=dtype).masked_fill(attention_mask == 0, torch.finfo(dtype).min)
    return added[:, None, None].expand(-1, 1, length, -1)


class Backbone(nn.Module):
    """Right-padded prompts to hidden states.

    Args:
        model: the stock model of a family (models.families), or a PeftModel around it.
        position_ids: "sequential" counts 0..L-1 on all three rotary axes, image tokens too, as LamRA's published
            Qwen2-VL embedding checkpoints were trained; "mrope" is the multimodal scheme of the base model itself.
        causal: a token attends to those before it; False: to its whole prompt.
        padding_free: run all sequences as one row of tokens (models.packing); False pads them to a rectangle.
        selective_checkpointing: where activation checkpointing is on, keep the outputs of matrix products and
            recompute what is cheap.

    Attributes:
        pixels_from_bytes: pixel_values that are bytes to those that the vision tower reads, on the device and just
            before it, see Visuals.floats in collators; set where a model meets the processor that makes its inputs.
    """

    pixels_from_bytes: Callable[[Tensor], Tensor] | None = None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        position_ids: str,
        *,
        causal: bool = True,
        padding_free: bool = True,
        selective_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if position_ids not in POSITION_IDS:
            raise ValueError(f"--position_ids {position_ids!r}: choose one of {', '.join(POSITION_IDS)}")
        self.model = model
        self.position_ids = position_ids
        self.causal = causal
        self.padding_free = padding_free
        self.selective_checkpointing = selective_checkpointing
        fuse_norms(self.stock.model.language_model)
        if not (padding_free or causal):  # flash-attn takes no such mask; SDPA computes the same
            self.config.text_config._attn_implementation = "sdpa"
        if padding_free:
            self.config.text_config._attn_implementation = ATTENTION

    @property
    def stock(self) -> PreTrainedModel:
        """The transformers model, whether or not PEFT is around it."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def config(self) -> PreTrainedConfig:
        return self.stock.config

    @property
    def context_length(self) -> int:
        """Tokens of the longest prompt that the model was made for."""
        return self.config.text_config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        return self.stock.get_input_embeddings().weight.device

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Called by the Trainer. Always non-reentrant, so that frozen inputs need no gradient to be recomputed from."""
        enable = getattr(self.stock, "activation_checkpointing_enable", self.stock.gradient_checkpointing_enable)
        selective = {"context_fn": _keep_matrix_products} if self.selective_checkpointing else {}
        enable({"use_reentrant": False, **selective})
        self.stock.disable_input_require_grads()  # enabled for reentrant checkpointing; it only adds backward work

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """The name before transformers 5.20."""
        self.activation_checkpointing_enable()

    def picture_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """(image tokens, S * D) of the pictures in order: the embeddings of their image tokens (S = 1).

        pixel_values are the library's, or bytes. Where features also enter layers of the language model (DeepStack),
        what each of these adds stands behind.
        """
        if pixel_values.dtype == torch.uint8:
            assert self.pixels_from_bytes is not None, "a model that no processor was given to is shown bytes"
            pixel_values = self.pixels_from_bytes(pixel_values)
        output = self.stock.model.get_image_features(pixel_values, image_grid_thw)
        entries = [output.pooler_output, *getattr(output, "deepstack_features", ())]
        return torch.cat([torch.cat(features) for features in entries], dim=-1)

    def vision_must_run(self, input_ids: Tensor, pixel_values: Tensor | None) -> bool:
        """Whether this forward, and each chunk of it, runs the vision tower even where it has no picture.

        Every process must run the same modules where their weights are shared out (ZeRO-3 gathers them as they run) or
        trained (their gradients are reduced in the order in which they ran), so it does if any process has a picture;
        else gloo aborts and NCCL hangs. A collective call, once before a forward.
        """
        parameters: list[nn.Parameter] = list(self.stock.model.visual.parameters())
        shared_out = any(hasattr(parameter, "ds_id") for parameter in parameters)
        trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
        if shared_out and trained:  # ZeRO-3 steps once more with the gradient of before where a weight gets none
            return True
        if not several_processes() or not (shared_out or trained):
            return False
        # Not self.device: under ZeRO-3 a look at a weight gathers it.
        pictures = torch.tensor([int(pixel_values is not None)], device=input_ids.device)
        return bool(all_gather_with_grad(pictures).any())

    def prefix_of(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        picture_features: Tensor | None = None,
    ) -> KeysAndValues:
        """Keys and values of (P,) tokens in every layer, for prompts that begin with them; needs padding_free."""
        seen: KeysAndValues = {}
        ids = input_ids.unsqueeze(0)  # (1, P)
        positions = self._position_ids(ids, torch.ones_like(ids), image_grid_thw)  # (3, 1, P)
        packing = Packing.of(torch.ones_like(ids), seen=seen)
        self._last_hidden_state(ids, packing, positions, pixel_values, image_grid_thw, picture_features)
        return dict(seen)  # a recomputed layer fills `seen` again

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        prefix: KeysAndValues | None = None,
        picture_features: Tensor | None = None,
        run_vision: bool = False,
    ) -> tuple[Tensor, Packing | None]:
        """Hidden states (1, T, D) and their packing; without padding_free (B, L, D) and None.

        Args:
            input_ids, attention_mask: (B, L), padded on the right.
            pixel_values: (patches, C) of the pictures in order, without the prefix's, or None.
            image_grid_thw: (pictures, 3) of all pictures of the rows, also the prefix's, or None.
            prefix: from `prefix_of`, of tokens that every row begins with; they are then not computed again.
            picture_features: from `picture_features`, instead of pixel_values.
            run_vision: from `vision_must_run`.
        """
        positions = self._position_ids(input_ids, attention_mask, image_grid_thw)  # (3, B, L)
        if not self.padding_free:
            # With padding on the right, causal attention alone keeps it out of every token: no mask is needed.
            seen = None if self.causal else _whole_prompts(attention_mask, self.stock.dtype)
            pictures = pixel_values, image_grid_thw, picture_features, run_vision
            return self._last_hidden_state(input_ids, seen, positions, *pictures), None  # (B, L, D)
        if prefix is not None:
            known = prefix_length(prefix)
            if image_grid_thw is not None:
                image_grid_thw = image_grid_thw[self._pictures_after(input_ids, known)]
                image_grid_thw = image_grid_thw if len(image_grid_thw) else None
            input_ids, attention_mask = input_ids[:, known:], attention_mask[:, known:]  # (B, L - P)
            positions = positions[..., known:]  # (3, B, L - P)
        packing = Packing.of(attention_mask, causal=self.causal, prefix=prefix)
        ids = input_ids.flatten()[packing.slots].unsqueeze(0)  # (1, T)
        positions = positions.flatten(1)[:, packing.slots].unsqueeze(1)  # (3, 1, T)
        pictures = pixel_values, image_grid_thw, picture_features, run_vision
        return self._last_hidden_state(ids, packing, positions, *pictures), packing  # (1, T, D)

    def _pictures_after(self, input_ids: Tensor, known: int) -> Tensor:
        """(pictures,) bool, in order: whether a picture begins after the first `known` tokens of its row."""
        return self.picture_begins(input_ids).nonzero()[:, 1] >= known  # (pictures,)

    def picture_begins(self, input_ids: Tensor) -> Tensor:
        """(B, L) bool: the tokens before a picture's first. A text may spell the same token; no image token follows."""
        follows = (input_ids == self.config.image_token_id).roll(-1, dims=1)  # (B, L)
        follows[:, -1] = False
        return (input_ids == self.config.vision_start_token_id) & follows

    def _last_hidden_state(
        self,
        input_ids: Tensor,
        seen: Packing | Tensor | None,
        position_ids: Tensor,
        pixel_values: Tensor | None,
        image_grid_thw: Tensor | None,
        picture_features: Tensor | None,
        run_vision: bool = False,
    ) -> Tensor:
        """(B, L, D) of the stock model; of packed rows B is 1 and L is T.

        Args:
            seen: the packing of a packed row, or what is added to attention's scores; None is causal attention.
        """
        embeds = self.stock.get_input_embeddings()(input_ids)  # (B, L, D)
        if run_vision and pixel_values is None:  # here on every process, so that all run their modules in one order
            pixel_values, image_grid_thw = self._unseen_picture(input_ids.device)
        if pixel_values is not None:
            assert image_grid_thw is not None
            picture_features = self.picture_features(pixel_values, image_grid_thw)
        inputs: dict[str, Any] = {}
        if picture_features is not None:
            is_image = input_ids == self.config.image_token_id  # (B, L)
            features, *added = picture_features.to(embeds.dtype).split(embeds.shape[-1], dim=-1)  # (image tokens, D)
            embeds = embeds.masked_scatter(is_image.unsqueeze(-1), features)
            if added:  # an unseen picture's single row is broadcast to no rows
                inputs = {"visual_pos_masks": is_image, "deepstack_visual_embeds": added}
        if seen is not None:  # the layers hand a packing on to the attention function
            inputs["packing" if isinstance(seen, Packing) else "attention_mask"] = seen
        outputs = self.stock.model.language_model(
            inputs_embeds=embeds, position_ids=position_ids, use_cache=False, **inputs
        )
        return outputs.last_hidden_state

    def _unseen_picture(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """pixel_values and image_grid_thw of a smallest picture. It has no token: its gradients are exact zeros."""
        vision = self.config.vision_config
        side = vision.spatial_merge_size
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return torch.zeros(side * side, patch, device=device), torch.tensor([[1, side, side]], device=device)

    def _position_ids(self, input_ids: Tensor, attention_mask: Tensor, image_grid_thw: Tensor | None) -> Tensor:
        """(3, B, L) rotary positions in time, height and width.

        Stock models ask which tokens are a video's (2) and which a picture's (1), because Qwen2.5-VL counts a video's
        time in steps of its own: one temporal patch is a second, as with two frames a second. A clip of one temporal
        patch has no such step, and is a picture here.
        """
        if self.position_ids == "mrope" and image_grid_thw is not None:
            tokens = image_grid_thw.prod(dim=1) // self.config.vision_config.spatial_merge_size**2  # (visuals,)
            is_video = image_grid_thw[:, 0] > 1  # (visuals,)
            kinds = (1 + is_video.int()).repeat_interleave(tokens)  # (image tokens,)
            is_image = input_ids == self.config.image_token_id  # (B, L)
            positions, _ = self.stock.model.get_rope_index(
                input_ids,
                mm_token_type_ids=is_image.int().masked_scatter(is_image, kinds),
                image_grid_thw=image_grid_thw[~is_video],
                video_grid_thw=image_grid_thw[is_video],
                attention_mask=attention_mask,
            )
            return positions
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand(3, *input_ids.shape)
