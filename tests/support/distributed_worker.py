"""Started by test_distributed.py under torchrun: one global batch on this rank's share, results to a file a rank."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from plain_loss import OPTIONS
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from lamra.common.gather import all_gather_with_grad
from lamra.models import losses
from lamra.models.embedder import Embedder
from lamra.models.loading import load_model
from lamra.models.lora import freeze
from lamra.models.losses import distillation, info_nce
from lamra.models.temperature import Temperature


def share(rows: torch.Tensor, rank: int, world: int) -> torch.Tensor:
    """This rank's part of queries and of targets; rows are (queries, targets)."""
    return torch.cat([half.chunk(world)[rank] for half in rows.chunk(2)])


def results(folder: Path) -> dict[str, torch.Tensor]:
    rank, world = dist.get_rank(), dist.get_world_size()
    batch = load_file(folder / "batch.safetensors")
    stock = load_model(folder / "model", dtype=torch.float32)
    freeze(stock, language=True, vision_encoder=False, vision_projector=False)
    model = DistributedDataParallel(Embedder(stock, "sequential"))
    embeds = model(**{name: share(rows, rank, world) for name, rows in batch.items()})
    n = len(embeds) // 2
    result = info_nce(embeds[:n], embeds[n:], temperature=0.05)
    result.loss.backward()
    gradients = {f"grad.{name}": p.grad for name, p in model.module.named_parameters() if p.grad is not None}

    equal = load_file(folder / "equal.safetensors")
    rows = [equal[name].chunk(world)[rank].clone().requires_grad_() for name in ("query", "target", "negative")]
    item_ids = torch.cat([equal[f"{name}_content"].chunk(world)[rank] for name in ("query", "target", "negative")])
    masked = info_nce(rows[0], torch.cat(rows[1:]), temperature=0.5, item_ids=item_ids)
    masked.loss.backward()

    options = {}
    for blocks, name in product((1024, 1), OPTIONS):
        losses.QUERIES_PER_BLOCK = blocks
        leaves = [row.detach().clone().requires_grad_() for row in rows]
        leaves.append(torch.tensor(0.5, requires_grad=True))
        found = info_nce(leaves[0], torch.cat(leaves[1:3]), leaves[3], item_ids, options=OPTIONS[name])
        found.loss.backward()
        options |= {f"{name} {blocks} {i}": leaf.grad for i, leaf in enumerate(leaves)}
        options |= {f"{name} {blocks} loss": found.loss.detach(), f"{name} {blocks} dropped": found.false_negatives}

    # At its lowest, with gradients whose sum leads up on the first try and further down on the second.
    for name, factors in (("up", (1.0, -3.0)), ("down", (3.0, -1.0))):
        temperature = Temperature(0.05, 0.05, 1.0)
        (factors[rank] * temperature()).backward()
        options[f"bound {name}"] = temperature.offset.grad
    taught = [row.detach().requires_grad_() for row in rows]
    teacher = equal["teacher"].chunk(world)[rank]
    of_teacher = distillation(taught[0], torch.cat(taught[1:]), teacher, 0.5, 2.0)
    of_teacher.backward()

    x = torch.full((2, 3), float(rank), requires_grad=True)
    gathered = all_gather_with_grad(x)
    (gathered * torch.arange(2 * world).unsqueeze(1)).sum().backward()
    return {
        "loss": result.loss.detach(),
        "accuracy": result.accuracy,
        "masked_loss": masked.loss.detach(),
        "masked_accuracy": masked.accuracy,
        **{f"masked_grad{i}": row.grad for i, row in enumerate(rows)},
        "distillation": of_teacher.detach(),
        **{f"distillation_grad{i}": row.grad for i, row in enumerate(taught)},
        "gathered": gathered.detach(),
        "grad_of_x": x.grad,
        **options,
        **gradients,
    }


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    save_file(results(folder), folder / f"rank{dist.get_rank()}.safetensors")
    # Only now, when the data-parallel wrapper is gone: as the group's last holder it can block its end (torch 2.13).
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
