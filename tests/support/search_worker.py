"""The search over a folder's query.npy and gallery.npy, and mining in mined/; started by test_shared_search.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from mining_files import mined_in
from safetensors.torch import save_file

from lamra.eval.search import Blocks, search

SIZES = (Blocks(100, 100, 100), Blocks(4, 7, 3), Blocks(11, 1, 2))
KS = (1, 5, 30, 60)  # 30 is more than a rank's part, 60 more than the gallery


def found_in(folder: Path) -> dict[str, torch.Tensor]:
    """Scores and indices for each of KS and SIZES."""
    query, gallery = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("query", "gallery"))
    found = {}
    for k in KS:
        for i, blocks in enumerate(SIZES):
            found[f"scores {k} {i}"], found[f"indices {k} {i}"] = search(query, gallery, k, blocks)
    return {name: tensor.contiguous() for name, tensor in found.items()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    save_file(found_in(folder), folder / f"rank{dist.get_rank()}.safetensors")
    mined_in(folder / "mined", folder / "two", positives=True)
    dist.destroy_process_group()
