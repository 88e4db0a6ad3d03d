"""The shared-out search finds what a plain sort of every score finds: on one and two processes, over block sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lamra.common.errors import UserError
from lamra.eval.cache.shards import RowsOf, Shards
from lamra.eval.search import CHUNK, Blocks, block_top_k, search


def test_a_slice_of_shards_is_a_slice_of_the_whole(tmp_path):
    whole = np.arange(82, dtype=np.float32).reshape(41, 2)
    files = [tmp_path / f"{name}.npy" for name in "abcd"]
    for file, part in zip(files, np.split(whole, [20, 21, 26])):
        np.save(file, part)
    gallery = Shards(files)
    assert gallery.shape == (41, 2)
    for start, stop in ((0, 41), (19, 22), (20, 21), (25, 99), (7, 7), (40, None)):
        np.testing.assert_array_equal(gallery[start:stop], whole[start:stop])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_gallery_in_files_is_found_as_in_memory(tmp_path, dtype):
    whole = F.normalize(torch.randn(41, 8, generator=torch.Generator().manual_seed(0)), dim=1).numpy().astype(dtype)
    for number, part in enumerate(np.split(whole, [20, 21, 26])):
        np.save(tmp_path / f"{number}.npy", part)
    shards, some = Shards(sorted(tmp_path.glob("*.npy"))), np.arange(1, 41, 3)
    whole = whole.astype(np.float32)
    for blocks in (Blocks(4, 7, 3), Blocks(50, 50, 50)):
        for files, memory in ((shards, whole), (RowsOf(shards, some, read_together=5), whole[some])):
            for found, expected in zip(search(files, files, 5, blocks), search(memory, memory, 5, blocks)):
                assert torch.equal(found, expected)


def test_blocks_stay_within_the_memory_or_say_what_is_needed():
    for memory in (2**26, 2**30, 2**34):
        blocks = Blocks.within(memory, dimension=3584, k=50)
        held = 4 * 3584 * (blocks.queries + 2 * blocks.block_size) + 16 * blocks.block_size * blocks.query_block_size
        assert 0.4 * memory < held + blocks.queries * 6 * 12 * 50 <= memory
    with pytest.raises(ValueError, match="--search_memory 1e-05 GiB is too little: give 0.00"):
        Blocks.within(1e-5 * 2**30, dimension=3584, k=50)


def test_faiss_finds_the_same():
    """faiss's exact index is an independent implementation of the same search."""
    faiss = pytest.importorskip("faiss", reason="faiss is absent: the search is not compared with it")
    generator = torch.Generator().manual_seed(0)
    query, gallery = (F.normalize(torch.randn(n, 64, generator=generator), dim=1) for n in (50, 3000))
    index = faiss.IndexFlatIP(64)
    index.add(gallery.numpy())
    scores, ids = index.search(query.numpy(), 20)
    found, indices = search(query, gallery, 20, Blocks(queries=7, block_size=256, query_block_size=5))
    assert (indices.numpy() == ids).all()
    np.testing.assert_allclose(found, scores, atol=1e-6)


@pytest.mark.parametrize("levels", [None, 3, 40])
def test_the_best_of_a_block_are_those_of_a_stable_sort(levels):
    """With few different scores most are ties, of which the lower columns come first; zeros of both signs are equal."""
    generator = torch.Generator().manual_seed(0)
    for n, k in ((1, 3), (4 * CHUNK - 1, 1), (4 * CHUNK, 1), (4 * CHUNK + 5, 1), (3000, 7), (3001, 20), (200, 50)):
        scores = torch.randn(5, n, generator=generator)
        if levels:
            scores = (scores * levels / 6).round()  # -0.0 among them
        values, columns = scores.sort(dim=1, descending=True, stable=True)
        found = block_top_k(scores, k)
        assert torch.equal(found[0], values[:, :k]) and torch.equal(found[1], columns[:, :k])


def test_a_nan_among_the_scores_is_told():
    scores = torch.zeros(2, 40 * CHUNK)
    scores[1, 700] = torch.nan
    with pytest.raises(UserError, match="a score is NaN"):
        block_top_k(scores, 3)
