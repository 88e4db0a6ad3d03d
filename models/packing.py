"""Padding-free computation: all sequences of a forward as one row of tokens, which only attention knows to separate.

The library's own attention interface carries it: the layers hand a `Packing` on unread, as any keyword that they do not
know, and the attention function registered here reads the boundaries from it. Linears, norms and MLPs see one long row.
Nothing of the library's forward is copied.

Dimension letters: B sequences, L tokens of the longest, T tokens of all, H heads, K key-value heads, E head size.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

ATTENTION = "padding_free"

KeyAndValue = tuple[Tensor, Tensor]  # (1, K, P, E) each
KeysAndValues = dict[int, KeyAndValue]  # of each layer


def prefix_length(prefix: KeysAndValues) -> int:
    """P, its number of tokens."""
    return prefix[0][0].shape[2]


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a packed row begin and end.

    Attributes:
        starts: (B + 1,) int32, starts[i] is sequence i's first token in the row, starts[B] is T.
        slots: (T,) each token's index in the padded (B, L) layout, flattened.
        longest: L.
        causal: a token attends to those before it; False: to all of its sequence.
        prefix: keys and values (1, K, P, E) of P tokens that stand before every sequence, by layer.
        seen: is filled with each layer's keys and values, to make such a prefix of this row.
    """

    starts: Tensor
    slots: Tensor
    longest: int
    causal: bool = True
    prefix: KeysAndValues | None = None
    seen: KeysAndValues | None = None

    @classmethod
    def of(cls, attention_mask: Tensor, **kwargs: Any) -> Packing:
        """From a right-padded (B, L) mask."""
        starts = F.pad(attention_mask.sum(dim=1).cumsum(dim=0), (1, 0)).int()  # (B + 1,)
        return cls(starts, attention_mask.flatten().nonzero()[:, 0], attention_mask.shape[1], **kwargs)

    @property
    def last(self) -> Tensor:
        """(B,) each sequence's last token in the row."""
        return self.starts[1:].long() - 1

    def pad(self, x: Tensor) -> Tensor:
        """(T, ...) tokens to (B, L, ...), zeros behind each sequence."""
        batch = len(self.starts) - 1
        padded = x.new_zeros(batch * self.longest, *x.shape[1:]).index_copy(0, self.slots, x)  # (B * L, ...)
        return padded.view(batch, self.longest, *x.shape[1:])  # (B, L, ...)

    def unpad(self, x: Tensor) -> Tensor:
        """(B, L, ...) to (T, ...), the inverse of pad."""
        return x.flatten(0, 1)[self.slots]


def padding_free_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: None,
    *,
    scaling: float,
    packing: Packing,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a packed row, and to the prefix before all of them.

    Args:
        module: the attention module of a layer, which knows its `layer_idx`.
        query: (1, H, T, E), or (1, H, B, E) of each sequence's last token alone (see `keep_last_token`).
        key, value: (1, K, T, E).

    Returns:
        (1, T or B, H, E) and None, as the attention interface wants.
    """
    if packing.seen is not None:
        packing.seen[module.layer_idx] = (key, value)
    prefix = packing.prefix[module.layer_idx] if packing.prefix else None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, E)
    attend = _varlen_attention if _varlen_kernel(q.device.type, q.dtype) else _padded_attention
    return attend(q, k, v, packing, prefix, scaling).unsqueeze(0), None  # (1, T or B, H, E)


def _padded_attention(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, prefix: KeyAndValue | None, scaling: float
) -> Tensor:
    """Pad on the right, run PyTorch's SDPA, and pack again: (T or B, H, E). Causal attention never looks at padding."""
    only_last = len(q) != len(k)
    q = q.unsqueeze(2) if only_last else packing.pad(q).transpose(1, 2)  # (B, H, 1 or L, E)
    k, v = (packing.pad(x).transpose(1, 2) for x in (k, v))  # (B, K, L, E)
    mask, before = None, 0
    if prefix is not None:
        before = prefix[0].shape[2]
        k, v = (torch.cat([p.expand(len(x), -1, -1, -1), x], dim=2) for p, x in zip(prefix, (k, v)))  # (B, K, P + L, E)
    position = torch.arange(before + packing.longest, device=q.device)  # (P + L,)
    if only_last or not packing.causal:
        mask = (position < before + packing.starts.diff()[:, None])[:, None, None]  # (B, 1, 1, P + L)
    elif prefix is not None:
        mask = position <= position[before:, None]  # (L, P + L)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    ).transpose(1, 2)  # (B, 1 or L, H, E)
    return out[:, 0] if only_last else packing.unpad(out)  # (T or B, H, E)


def _varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, prefix: KeyAndValue | None, scaling: float
) -> Tensor:
    """A kernel that reads packed rows: (T or B, H, E). Causal from the end: the last query sees its whole sequence."""
    starts_q = starts_k = packing.starts
    longest_q = longest_k = packing.longest
    sequences = len(starts_k) - 1
    if len(q) != len(k):  # each sequence's last token alone
        starts_q, longest_q = torch.arange(sequences + 1, dtype=torch.int32, device=q.device), 1
    if prefix is not None:
        before = prefix[0].shape[2]
        k, v = (_with_prefix(x, p[0].transpose(0, 1), packing) for p, x in zip(prefix, (k, v)))  # (T + B * P, K, E)
        starts_k = starts_k + before * torch.arange(sequences + 1, dtype=torch.int32, device=q.device)
        longest_k += before
    kernel = _varlen_kernel(q.device.type, q.dtype)
    assert kernel is not None
    lengths = starts_q, starts_k, longest_q, longest_k
    return kernel(q, k, v, *lengths, softmax_scale=scaling, causal=packing.causal)  # (T or B, H, E)


def _with_prefix(x: Tensor, prefix: Tensor, packing: Packing) -> Tensor:
    """Packed rows (T, K, E) with prefix (P, K, E) before each sequence: (T + B * P, K, E)."""
    sequences, before = len(packing.starts) - 1, len(prefix)
    sequence = packing.slots // packing.longest  # (T,) the index of each token's sequence
    out = x.new_empty(len(x) + sequences * before, *x.shape[1:])
    out[torch.arange(len(x), device=x.device) + (sequence + 1) * before] = x
    first = packing.starts[:-1, None] + before * torch.arange(sequences, device=x.device)[:, None]  # (B, 1)
    out[first + torch.arange(before, device=x.device)] = prefix
    return out


@cache
def _varlen_kernel(device: str, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """A kernel that takes packed rows as they are: flash-attn's, else PyTorch's own; None where neither can run."""
    if device != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn

        return _torch_kernel(varlen_attn)
    return None


def _torch_kernel(varlen_attn: Callable[..., Any]) -> Callable[..., Tensor]:
    """PyTorch's varlen_attn with the arguments of flash-attn's; torch 2.10's has neither window_size nor scale."""
    windowed = "window_size" in inspect.signature(varlen_attn).parameters

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, *starts_and_longest: Tensor | int, softmax_scale: float, causal: bool
    ) -> Tensor:
        options: dict[str, Any]
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # (T, H, E)
        if windowed:
            options = dict(scale=softmax_scale, window_size=(-1, 0 if causal else -1))
        else:
            q = q * (softmax_scale * q.shape[-1] ** 0.5)  # torch 2.10 divides by the root of the head size itself
            options = dict(is_causal=causal)
        return varlen_attn(q, k.contiguous(), v.contiguous(), *starts_and_longest, **options)

    return kernel


AttentionInterface.register(ATTENTION, padding_free_attention)


class _GivenKeys:
    """In the role of a layer's key-value cache: it holds the keys and values of all tokens."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value

    def update(self, _key: Tensor, _value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return self.key, self.value


def keep_last_token(layer: GradientCheckpointingLayer) -> None:
    """Make a language model's last decoder layer compute no more than the embeddings need.

    Of the last layer only the pooled tokens' output is used: they alone need a query, the output projection and the
    MLP, while keys and values cover all tokens. The layer's own forward runs on the pooled tokens, (1, B, D),
    with the keys and values given to it as if from a cache. Without a Packing the layer works as before.
    """
    stock_forward = layer.forward
    attention = layer.self_attn
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    normalise = getattr(attention, "k_norm", nn.Identity())

    def forward(
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        packing: Packing | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if packing is None:
            return stock_forward(hidden_states, position_embeddings=position_embeddings, **kwargs)
        cos, sin = position_embeddings  # (1, T, E)
        normed = layer.input_layernorm(hidden_states)  # (1, T, D)
        key, value = (
            projection(normed).unflatten(-1, (-1, attention.head_dim))  # (1, T, K, E)
            for projection in (attention.k_proj, attention.v_proj)
        )
        key, value = normalise(key).transpose(1, 2), value.transpose(1, 2)  # (1, K, T, E)
        _, key = rotate(key, key, cos, sin)
        last = packing.last  # (B,)
        return stock_forward(
            hidden_states[:, last],  # (1, B, D)
            position_embeddings=(cos[:, last], sin[:, last]),  # (1, B, E)
            packing=packing,
            **kwargs | {"past_key_values": _GivenKeys(key, value)},
        )

    layer.forward = forward
