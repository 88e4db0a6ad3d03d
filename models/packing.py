"""Padding-free computation: all sequences of a forward as one row of tokens, which only attention knows to separate.

The library's own attention interface carries it: the layers receive a `Packing` where they expect a mask, hand it on
unread, and the attention function registered here reads the boundaries from it. Linears, norms and MLPs see one long
row. Nothing of the library's forward is copied.

Dimension letters: B sequences, L tokens of the longest, T tokens of all, H heads, K key-value heads, E head size.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "padding_free"


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a packed row begin and end.

    Attributes:
        starts: (B + 1,) int32, starts[i] is sequence i's first token in the row, starts[B] is T.
        slots: (T,) each token's place in the padded (B, L) layout, flattened.
        longest: L.
    """

    starts: Tensor
    slots: Tensor
    longest: int

    @classmethod
    def of(cls, attention_mask: Tensor) -> Packing:
        """From a right-padded (B, L) mask."""
        starts = F.pad(attention_mask.sum(dim=1).cumsum(dim=0), (1, 0)).int()  # (B + 1,)
        return cls(starts, attention_mask.flatten().nonzero()[:, 0], attention_mask.shape[1])

    @property
    def last(self) -> Tensor:
        """(B,) each sequence's last token in the row."""
        return self.starts[1:].long() - 1

    def pad(self, x: Tensor) -> Tensor:
        """(T, ...) tokens to (B, L, ...), zeros behind each sequence."""
        batch = len(self.starts) - 1
        padded = x.new_zeros(batch * self.longest, *x.shape[1:]).index_copy(0, self.slots, x)
        return padded.view(batch, self.longest, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """(B, L, ...) to (T, ...), the inverse of pad."""
        return x.flatten(0, 1)[self.slots]


def padding_free_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Packing, scaling: float, **_
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a packed row.

    Args:
        query: (1, H, T, E), or (1, H, B, E) when only each sequence's last token asks (see `keep_last_token`).
        key, value: (1, K, T, E).

    Returns:
        (1, T or B, H, E) and None, as the attention interface wants.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, E)
    only_last = len(q) != len(k)
    if varlen := _varlen_kernel(q.device.type, q.dtype):
        starts_q = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device) if only_last else attention_mask.starts
        longest_q = 1 if only_last else attention_mask.longest
        # Causal from the end: a single query is its sequence's last token and sees all of it.
        out = varlen(q, k, v, starts_q, attention_mask.starts, longest_q, attention_mask.longest, scaling)
    else:
        out = _padded_attention(q, k, v, attention_mask, scaling, only_last)
    return out.unsqueeze(0), None


def _padded_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scaling: float, only_last: bool) -> Tensor:
    """Pad on the right, where causal attention never looks, run PyTorch's SDPA, and pack again: (T or B, H, E)."""
    k, v = (packing.pad(x).transpose(1, 2) for x in (k, v))  # (B, K, L, E)
    options = dict(scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    if not only_last:
        out = F.scaled_dot_product_attention(packing.pad(q).transpose(1, 2), k, v, is_causal=True, **options)
        return packing.unpad(out.transpose(1, 2))  # (B, H, L, E) -> (T, H, E)
    lengths = packing.starts.diff()  # (B,)
    seen = torch.arange(packing.longest, device=q.device) < lengths[:, None]  # (B, L)
    out = F.scaled_dot_product_attention(q.unsqueeze(2), k, v, attn_mask=seen[:, None, None, :], **options)
    return out.squeeze(2)  # (B, H, 1, E) -> (B, H, E)


@cache
def _varlen_kernel(device: str, dtype: torch.dtype):
    """A kernel that takes packed rows as they are: flash-attn's, else PyTorch's own; None where neither can run."""
    if device != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func

        def kernel(q, k, v, starts_q, starts_k, longest_q, longest_k, scaling):
            return flash_attn_varlen_func(
                q, k, v, starts_q, starts_k, longest_q, longest_k, softmax_scale=scaling, causal=True
            )

        return kernel
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn

        def kernel(q, k, v, starts_q, starts_k, longest_q, longest_k, scaling):
            if k.shape[1] != q.shape[1]:
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            causal = dict(scale=scaling, window_size=(-1, 0))
            return varlen_attn(q, k.contiguous(), v.contiguous(), starts_q, starts_k, longest_q, longest_k, **causal)

        return kernel
    return None


AttentionInterface.register(ATTENTION, padding_free_attention)


class _GivenKeys:
    """Stands where a layer expects its key-value cache: answers with the keys and values of all tokens."""

    def __init__(self, key: Tensor, value: Tensor):
        self.key, self.value = key, value

    def update(self, _key: Tensor, _value: Tensor, *_) -> tuple[Tensor, Tensor]:
        return self.key, self.value


def keep_last_token(layer: nn.Module) -> None:
    """Make a language model's last decoder layer compute no more than the embeddings need.

    Of the last layer only the pooled tokens' output is used: they alone need a query, the output projection and the
    MLP, while keys and values are those of all tokens. The layer's own forward runs on the pooled tokens, (1, B, D),
    with the keys and values given to it as if from a cache. Without a Packing the layer works as before.
    """
    stock_forward = layer.forward
    attention = layer.self_attn
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb

    def forward(hidden_states, attention_mask=None, position_embeddings=None, past_key_values=None, **kwargs):
        if not isinstance(attention_mask, Packing):
            return stock_forward(
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
        cos, sin = position_embeddings  # (1, T, E)
        normed = layer.input_layernorm(hidden_states)  # (1, T, D)
        key, value = (
            projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # (1, K, T, E)
            for projection in (attention.k_proj, attention.v_proj)
        )
        _, key = rotate(key, key, cos, sin)
        last = attention_mask.last
        return stock_forward(
            hidden_states[:, last],  # (1, B, D)
            attention_mask=attention_mask,
            position_embeddings=(cos[:, last], sin[:, last]),
            past_key_values=_GivenKeys(key, value),
            **kwargs,
        )

    layer.forward = forward
