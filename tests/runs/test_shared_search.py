"""The search shared out between two processes finds what a plain sort of every score finds; mining what one finds."""

from __future__ import annotations

import numpy as np
import torch
from conftest import run_script
from full_sort import full_sort, with_ties
from mining_files import mined_in, write_files
from safetensors.torch import load_file
from search_worker import KS, SIZES, found_in


def test_equal_to_a_full_sort_on_one_and_two_processes(tmp_path):
    query, gallery = with_ties(11, seed=0), with_ties(41, seed=1)
    np.save(tmp_path / "query.npy", query.numpy())
    np.save(tmp_path / "gallery.npy", gallery.numpy())
    (tmp_path / "mined").mkdir()
    write_files(tmp_path / "mined")
    mined_in(tmp_path / "mined", tmp_path / "one", positives=True)
    torchrun = ["torchrun", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    run_script(*torchrun, "tests/support/search_worker.py", tmp_path)
    for found in (found_in(tmp_path), *(load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))):
        for k in KS:
            scores, indices = full_sort(query, gallery, k)
            for i in range(len(SIZES)):
                assert torch.equal(found[f"scores {k} {i}"], scores)
                assert torch.equal(found[f"indices {k} {i}"], indices)
    mined = sorted((tmp_path / "one").iterdir())
    assert [file.read_bytes() for file in mined] == [(tmp_path / "two" / file.name).read_bytes() for file in mined]
