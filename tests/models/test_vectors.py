"""Smaller vectors: what their bytes hold, the loss over first dimensions, and the search against plain numpy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_vectors import matryoshka_reference
from test_golden import close

from lamra.models import losses
from lamra.models.losses import info_nce, matryoshka
from lamra.models.vectors import from_bits, from_int8, to_bits, to_int8, truncated


@pytest.fixture
def rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(n, 24, generator=generator), dim=1).requires_grad_() for n in (6, 9)]


def test_without_sizes_it_is_the_loss_itself(rows):
    loss_of, calls = partial(info_nce, temperature=0.05), []
    plain = torch.autograd.grad(loss_of(*rows).loss, rows)
    for none in (None, []):
        result = matryoshka(lambda *given: calls.append(given) or loss_of(*given), *rows, none)
        assert torch.equal(result.loss, loss_of(*rows).loss) and result.accuracy == loss_of(*rows).accuracy
        assert all(map(torch.equal, torch.autograd.grad(result.loss, rows), plain))
    assert all(given is row for call in calls for given, row in zip(call, rows))  # not even a copy


@pytest.mark.parametrize("queries_per_block", [1024, 4])
def test_the_mean_over_sizes(rows, monkeypatch, queries_per_block):
    """Hard negatives are among the targets; blocks are recomputed in the backward pass."""
    monkeypatch.setattr(losses, "QUERIES_PER_BLOCK", queries_per_block)
    result = matryoshka(partial(info_nce, temperature=0.05), *rows, [12, 3, 1])
    expected = matryoshka_reference(*rows, 0.05, [12, 3, 1])
    close(result.loss, expected)
    assert result.accuracy == info_nce(*rows, 0.05).accuracy
    for found, gradient in zip(torch.autograd.grad(result.loss, rows), torch.autograd.grad(expected, rows)):
        close(found, gradient)
    assert (result.loss - info_nce(*rows, 0.05).loss).abs() > 0.1


def test_equal_items_are_masked_at_every_size(rows):
    ids = torch.tensor([1, 2, 3, 4, 5, 6, *range(11, 17), 1, 2, 12])
    masked, sizes = partial(info_nce, temperature=0.05, item_ids=ids), (24, 4)
    expected = torch.stack([masked(*(truncated(row, size) for row in rows)).loss for size in sizes]).mean()
    assert torch.equal(matryoshka(masked, *rows, [4]).loss, expected)
    assert expected < matryoshka(partial(info_nce, temperature=0.05), *rows, [4]).loss


def test_bytes_of_int8():
    generator = torch.Generator().manual_seed(0)
    unit = F.normalize(torch.randn(50, 3584, generator=generator), dim=1)
    values, scales = to_int8(torch.cat([unit, torch.zeros(1, 3584)]))
    assert values.dtype == torch.int8 and scales.dtype == torch.float32
    assert values[:50].abs().amax(dim=1).eq(127).all() and not values[50].any()  # all of the range, of either sign
    again = from_int8(values, scales)
    assert ((again[:50] - unit).abs() <= scales[:50, None] * 0.5001).all() and not again[50].any()
    assert torch.equal(to_int8(unit[7:8])[0][0], values[7])  # a vector's bytes depend on no other vector
    fixed = (unit * 127).round() / 127
    assert (fixed - unit).norm() > 10 * (again[:50] - unit).norm()  # why a vector has a scale of its own


@pytest.mark.parametrize("size", [8, 13])
def test_bytes_of_bits(size):
    generator = torch.Generator().manual_seed(0)
    unit = F.normalize(torch.randn(50, size, generator=generator), dim=1)
    unit[3, 2] = 0.0
    bits = to_bits(unit)
    assert bits.shape == (50, -(-size // 8)) and bits.dtype == torch.uint8
    np.testing.assert_array_equal(bits.numpy(), np.packbits((unit.numpy() > 0).astype(np.uint8), axis=-1))
    again = from_bits(bits, size)
    assert torch.equal(again > 0, unit > 0) and not again[3, 2] > 0
    torch.testing.assert_close(again.norm(dim=1), torch.ones(50))


def test_all_dimensions_are_the_vectors_themselves(rows):
    assert truncated(rows[0], 24) is rows[0]
    torch.testing.assert_close(truncated(rows[0], 5).norm(dim=1), torch.ones(6))
