"""Two gloo processes compute the loss and the gradient of one process on the same global batch."""

from __future__ import annotations

import pytest
import torch
from conftest import run_script
from plain_loss import OPTIONS, plain_loss
from safetensors.torch import load_file, save_file
from test_golden import close, prompts

from lamra.models.embedder import Embedder
from lamra.models.loading import load_model
from lamra.models.losses import distillation, info_nce


def equal_items() -> dict[str, torch.Tensor]:
    """Queries, targets and hard negatives of 4 rows, with equal ones in both halves."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.nn.functional.normalize(torch.randn(4, 6, generator=generator), dim=1)
               for name in ("query", "target", "negative")}  # fmt: skip
    contents = {"query": [1, 2, 3, 1], "target": [11, 12, 13, 12], "negative": [21, 11, 3, 24]}
    teacher = torch.tensor([[2.0, 1], [0, 3], [-1, -torch.inf], [4, -4]])
    return (
        tensors | {f"{name}_content": torch.tensor(values) for name, values in contents.items()} | {"teacher": teacher}
    )


def test_two_processes_equal_one(tmp_path, golden, golden_folder):
    batch = prompts(golden, "text")
    equal = equal_items()
    save_file(equal, tmp_path / "equal.safetensors")
    (tmp_path / "model").symlink_to(golden_folder)
    save_file(batch, tmp_path / "batch.safetensors")
    run_script("torchrun", "--standalone", "--nproc_per_node", 2, "tests/support/distributed_worker.py", tmp_path)
    ranks = [load_file(tmp_path / f"rank{r}.safetensors") for r in range(2)]

    model = load_model(golden_folder, dtype=torch.float32)
    embeds = Embedder(model, "sequential")(**batch)
    result = info_nce(embeds[:4], embeds[4:], temperature=0.05)
    result.loss.backward()
    close((ranks[0]["loss"] + ranks[1]["loss"]) / 2, result.loss)
    assert (ranks[0]["accuracy"] + ranks[1]["accuracy"]) / 2 == result.accuracy
    expected = {f"grad.model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert expected.keys() == {name for name in ranks[0] if name.startswith("grad.")}
    for name, gradient in expected.items():
        close(ranks[0][name], gradient)
        assert torch.equal(ranks[0][name], ranks[1][name])

    rows = [equal[name].clone().requires_grad_() for name in ("query", "target", "negative")]
    item_ids = torch.cat([equal[f"{name}_content"] for name in ("query", "target", "negative")])
    masked = info_nce(rows[0], torch.cat(rows[1:]), temperature=0.5, item_ids=item_ids)
    masked.loss.backward()
    assert masked.loss < info_nce(rows[0], torch.cat(rows[1:]), temperature=0.5).loss - 0.1
    close((ranks[0]["masked_loss"] + ranks[1]["masked_loss"]) / 2, masked.loss)
    assert (ranks[0]["masked_accuracy"] + ranks[1]["masked_accuracy"]) / 2 == masked.accuracy
    for i, row in enumerate(rows):
        close(torch.cat([rank[f"masked_grad{i}"] for rank in ranks]) / 2, row.grad)

    for name, options in OPTIONS.items():
        leaves = [equal[part].clone().requires_grad_() for part in ("query", "target", "negative")]
        leaves.append(torch.tensor(0.5, requires_grad=True))
        loss, dropped = plain_loss(leaves[0], torch.cat(leaves[1:3]), leaves[3], item_ids, options)
        expected = torch.autograd.grad(loss, leaves)
        assert bool(dropped) == options.drop
        for found in ({key: [rank[f"{name} {blocks} {key}"] for rank in ranks] for key in ("loss", "dropped", *"0123")}
                      for blocks in (1024, 1)):  # fmt: skip
            assert sum(found["loss"]).item() / 2 == pytest.approx(loss.item(), rel=1e-5)
            assert sum(found["dropped"]).item() / 2 == pytest.approx(dropped)
            for i, gradient in enumerate(expected[:3]):
                close(torch.cat(found[str(i)]) / 2, gradient)
            close(sum(found["3"]) / 2, expected[3])
    for rank in ranks:
        assert rank["bound up"] and not rank["bound down"]
    rows = [row.detach().requires_grad_() for row in rows]
    of_teacher = distillation(rows[0], torch.cat(rows[1:]), equal["teacher"], 0.5, 2.0)
    of_teacher.backward()
    close((ranks[0]["distillation"] + ranks[1]["distillation"]) / 2, of_teacher)
    for i, row in enumerate(rows):
        close(torch.cat([rank[f"distillation_grad{i}"] for rank in ranks]) / 2, row.grad)

    for rank in range(2):
        assert torch.equal(ranks[rank]["gathered"][:, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
        # d/dx of 2 ranks' sum of i * row i: each of this rank's rows counts once for each rank.
        assert torch.equal(ranks[rank]["grad_of_x"][:, 0], 2 * torch.tensor([2.0 * rank, 2.0 * rank + 1]))
