"""Two processes train and search smaller vectors as one does, and as plain references say."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from conftest import run_script
from plain_vectors import brute_force, matryoshka_reference
from safetensors.torch import load_file, save_file
from test_golden import close, prompts
from vectors_worker import CASES, SIZES, found_in

from lamra.eval.search import Blocks, search
from lamra.models.embedder import Embedder
from lamra.models.loading import load_model


def gallery_rows() -> dict[str, torch.Tensor]:
    """Rows of 16 values: random unit vectors, and others that are exact in every form, with many equal products.

    Of the latter the largest value is 127, and the norms of the first 4 and of 16 signs are powers of two.
    """
    generator = torch.Generator().manual_seed(0)
    rows = {}
    for name, count, largest in (("query", 11, 1.0), ("gallery", 41, 127.0)):
        signs = torch.randint(0, 2, (count, 4), generator=generator) * 2 - 1
        others = torch.randint(-1, 2, (count, 12), generator=generator)
        rows[f"ties {name}"] = largest * torch.cat([signs, others], dim=1)
        rows[f"random {name}"] = F.normalize(torch.randn(count, 16, generator=generator), dim=1)
    return rows


def test_two_processes_equal_one_and_the_references(tmp_path, golden, golden_folder):
    batch, rows = prompts(golden, "text"), gallery_rows()
    (tmp_path / "model").symlink_to(golden_folder)
    save_file(batch, tmp_path / "batch.safetensors")
    save_file(rows, tmp_path / "gallery.safetensors")
    run_script("torchrun", "--standalone", "--nproc_per_node", 2, "tests/support/vectors_worker.py", tmp_path)
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]

    model = load_model(golden_folder, dtype=torch.float32)
    embeds = Embedder(model, "sequential", padding_free=False)(**batch)
    loss = matryoshka_reference(embeds[:4], embeds[4:], 0.05, SIZES)
    loss.backward()
    close((ranks[0]["loss"] + ranks[1]["loss"]) / 2, loss)
    expected = {f"grad.model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert expected.keys() == {name for name in ranks[0] if name.startswith("grad.")}
    for name, gradient in expected.items():
        close(ranks[0][name], gradient)
        assert torch.equal(ranks[0][name], ranks[1][name])

    one = found_in(tmp_path)
    for name, tensor in one.items():
        assert torch.equal(tensor, ranks[0][name]) and torch.equal(tensor, ranks[1][name])
    for number, (kind, k, _, stored) in enumerate(CASES):
        query, gallery = (rows[f"{kind} {name}"] for name in ("query", "gallery"))
        scores, indices = brute_force(query.numpy(), gallery.numpy(), k, **stored)
        np.testing.assert_array_equal(one[f"{number} indices"].numpy(), indices, f"{kind} {k} {stored}")
        np.testing.assert_allclose(one[f"{number} scores"].numpy(), scores, rtol=1e-5, atol=1e-6)
        if stored["rescore"] > len(gallery):  # all are scored again: the exact search
            exact = search(query, gallery, k, Blocks(100, 100, 100))
            assert torch.equal(one[f"{number} indices"], exact[1])
            torch.testing.assert_close(one[f"{number} scores"], exact[0])
