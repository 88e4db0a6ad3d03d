"""Whole numbers: each once, and which of them are among others."""

from __future__ import annotations

import numpy as np
import pytest

from lamra.common.arrays import among, distinct


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_distinct_is_unique(dtype):
    rng = np.random.default_rng(0)
    edges = np.iinfo(dtype)
    for count in (0, 1, 2, 50, 1000):
        values = np.concatenate([rng.integers(-20, 20, count), [edges.max, edges.min][:count]]).astype(dtype)
        found = distinct(values)
        assert found.dtype == dtype and np.array_equal(found, np.unique(values))


def test_among_is_isin():
    rng = np.random.default_rng(0)
    for count in (0, 1, 5, 300):
        values, others = rng.integers(0, 200, 100), np.sort(rng.integers(0, 200, count))
        assert np.array_equal(among(values, others), np.isin(values, others))
    assert not among(values, others[:0]).any() and len(among(values[:0], others)) == 0
