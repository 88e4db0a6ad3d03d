"""Upstream LamRA's own numbers: embeddings, losses, gradients and a training curve, to 1e-5 relative in float32."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamra.models.embedder import Embedder
from lamra.models.loading import load_model
from lamra.models.lora import load_adapter
from lamra.models.losses import info_nce


def prompts(golden, group):
    """Upstream's left-padded rows, cut before <emb>, as right-padded input_ids and attention_mask."""
    rows = []
    for ids, mask in zip(golden[f"{group}.input_ids"], golden[f"{group}.attention_mask"]):
        ids = ids[mask.bool()]
        rows.append(ids[: (ids == 511).nonzero()[0, 0]])  # 511 is <emb>
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
    }


def close(actual, expected, tolerance=1e-5):
    error = (actual - expected).norm() / expected.norm()
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.fixture
def model(golden_folder):
    return load_model(golden_folder, dtype=torch.float32)


@pytest.fixture(params=["plain", "padding_free", "last_token_only", "everything"])
def embedder_of(request):
    """Embedder(model, position_ids) in each way to compute the same."""

    def build(model, position_ids="sequential"):
        if request.param != "everything":
            flags = dict(padding_free=request.param != "plain", last_token_only=request.param == "last_token_only")
            return Embedder(model, position_ids, **flags)
        embedder = Embedder(model, position_ids, grad_cache_chunk=3, selective_checkpointing=True).train()
        embedder.activation_checkpointing_enable()
        return embedder

    return build


def test_text_embeddings_loss_and_gradients(golden, model, embedder_of):
    embedder = embedder_of(model)
    batch = prompts(golden, "text")
    close(embedder.hidden_state(**batch), golden["text.embeds"])
    embeds = embedder(**batch)  # (8, D): 4 queries, then their targets
    loss = info_nce(embeds[:4], embeds[4:], temperature=0.05).loss
    close(loss, golden["text.loss"][0])
    loss.backward()
    for name, parameter in {
        "embed_tokens.weight": model.model.language_model.embed_tokens.weight,
        "layers.0.self_attn.q_proj.weight": model.model.language_model.layers[0].self_attn.q_proj.weight,
        "layers.1.mlp.down_proj.weight": model.model.language_model.layers[1].mlp.down_proj.weight,
    }.items():
        close(parameter.grad, golden[f"text.grad.model.{name}"])


def test_hard_negatives_are_extra_targets(golden, model, embedder_of):
    embeds = embedder_of(model)(**prompts(golden, "hardneg"))  # (12, D): queries, targets, hard negatives
    close(info_nce(embeds[:4], embeds[4:], temperature=0.05).loss, golden["hardneg.loss"][0])


@pytest.mark.parametrize("position_ids", ["sequential", "mrope"])
def test_image_embeddings(golden, model, embedder_of, position_ids):
    batch = prompts(golden, "image") | {name: golden[f"image.{name}"] for name in ("pixel_values", "image_grid_thw")}
    close(embedder_of(model, position_ids).hidden_state(**batch), golden[f"image.embeds_{position_ids}"])


def test_training_curve_with_an_adapter_of_transformers_4(golden, model, golden_adapter, embedder_of):
    embedder = embedder_of(load_adapter(model, golden_adapter))
    batch = prompts(golden, "text")
    trained = [p.requires_grad_() for name, p in embedder.named_parameters() if ".lora_" in name]
    assert len(trained) == 28  # A and B of 14 linears
    optimizer = torch.optim.AdamW(trained, lr=3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for step in range(20):
        embeds = embedder(**batch)
        loss = info_nce(embeds[:4], embeds[4:], temperature=0.05).loss
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
            close(norm, golden["curve.grad_norm_step0"][0])
        optimizer.step()
        losses.append(loss.detach())
    close(torch.stack(losses), golden["curve.losses"].float())
    close(embedder.hidden_state(**batch), golden["curve.embeds_after"])


def test_an_adapter_with_a_resized_vocabulary(golden, golden_folder, golden_adapter, tmp_path):
    """Upstream adds <emb>: PEFT may store token embeddings of another height and an lm_head. Neither changes ours."""
    folder = shutil.copytree(golden_adapter, tmp_path / "adapter")
    state = load_file(folder / "adapter_model.safetensors")
    rows = load_file(golden_folder / "model.safetensors")["model.embed_tokens.weight"]
    state["base_model.model.model.embed_tokens.weight"] = torch.cat([rows, torch.ones(3, rows.shape[1])])
    state["base_model.model.lm_head.weight"] = torch.ones(515, rows.shape[1])
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    found, expected = (
        Embedder(load_adapter(load_model(golden_folder, dtype=torch.float32), adapter), "sequential")
        for adapter in (folder, golden_adapter)
    )
    batch = prompts(golden, "text")
    assert torch.equal(found(**batch), expected(**batch))

    state["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.ones(8, 64)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="0 tensors are missing and 1 have no place, for example .*layers.9"):
        load_adapter(load_model(golden_folder, dtype=torch.float32), folder)
