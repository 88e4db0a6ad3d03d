"""Smaller vectors on this process's share; started by test_shared_vectors.py under torchrun, a file a rank.

Reads a folder's batch.safetensors, model and gallery.safetensors.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from distributed_worker import share
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from lamra.eval.search import Blocks
from lamra.eval.stored import search_stored
from lamra.models.embedder import Embedder
from lamra.models.loading import load_model
from lamra.models.lora import freeze
from lamra.models.losses import info_nce, matryoshka

SIZES = [48, 5, 16]
BLOCKS = (Blocks(100, 100, 100), Blocks(4, 7, 3))
KS = (5, 60)  # 60 is more than the gallery
STORED = [
    dict(truncate_dim=size, vectors=vectors, rescore=rescore)
    for size in (None, 4)
    for vectors in ("float32", "int8", "binary")
    for rescore in (0, 12, 100)
    if size or vectors != "float32" or not rescore
]
CASES = [
    (kind, k, blocks, stored)
    for kind in ("ties", "random")
    for k in KS
    for blocks in BLOCKS
    for stored in STORED
    if not 0 < stored["rescore"] < k
    # Of random rows few bits are often equal, and a matrix product may round equal rows differently.
    if kind == "ties" or stored["truncate_dim"] is None or stored["vectors"] != "binary"
]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """The loss of a step and its gradients, with packing and the gradient cache."""
    rank, world = dist.get_rank(), dist.get_world_size()
    stock = load_model(folder / "model", dtype=torch.float32)
    freeze(stock, language=True, vision_encoder=False, vision_projector=False)
    model = DistributedDataParallel(Embedder(stock, "sequential", grad_cache_chunk=3))
    embeds = model(**{name: share(rows, rank, world) for name, rows in load_file(folder / "batch.safetensors").items()})
    query, target = embeds.chunk(2)
    loss, accuracy, _ = matryoshka(partial(info_nce, temperature=0.05), query, target, SIZES)
    loss.backward()
    gradients = {f"grad.{name}": p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "accuracy": accuracy, **gradients}


def found_in(folder: Path) -> dict[str, torch.Tensor]:
    """Scores and indices of each of CASES."""
    rows, found = load_file(folder / "gallery.safetensors"), {}
    for number, (kind, k, blocks, stored) in enumerate(CASES):
        scores, indices = search_stored(rows[f"{kind} query"], rows[f"{kind} gallery"], k, blocks, **stored)
        found[f"{number} scores"], found[f"{number} indices"] = scores.contiguous(), indices.contiguous()
    return found


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    tensors = trained(folder) | found_in(folder)
    save_file(tensors, folder / f"rank{dist.get_rank()}.safetensors")
    dist.destroy_process_group()
