"""Padding-free rows, the trimmed last layer and the gradient cache equal the plain path, in every gradient too."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from test_golden import close

from lamra.models.embedder import Embedder
from lamra.models.loading import load_model
from lamra.models.lora import add_lora
from lamra.models.losses import info_nce
from lamra.models.packing import Packing, _torch_kernel

IMAGE, START, END = 507, 505, 506

# Each row is a list of parts: a number of text tokens, or an image's patch grid (height, width).
BATCHES = {
    "a single sequence": [[7]],
    "equal lengths": [[9], [9], [9], [9]],
    "long among short": [[4], [3], [120], [5], [1], [6]],
    "pictures only": [[2, (4, 6), 3], [1, (2, 2), 3]],
    "pictures and texts": [[5], [2, (4, 6), 3], [30], [1, (2, 2), 9]],
    "several pictures in one item": [[2, (4, 6), 1, (2, 8), 3], [6], [(2, 2), (2, 2), 4], [3]],
}


def batch_of(rows):
    torch.manual_seed(0)
    sequences, grids = [], []
    for parts in rows:
        ids = []
        for part in parts:
            if isinstance(part, int):
                ids += torch.randint(3, 500, (part,)).tolist()
            else:
                grids.append((1, *part))
                ids += [START] + [IMAGE] * (part[0] * part[1] // 4) + [END]
        sequences.append(torch.tensor(ids))
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad(sequences, batch_first=True),
        "attention_mask": pad([torch.ones_like(ids) for ids in sequences], batch_first=True),
    }
    if grids:
        batch["image_grid_thw"] = torch.tensor(grids)
        batch["pixel_values"] = torch.randn(int(batch["image_grid_thw"].prod(dim=1).sum()), 1176)
    return batch


@pytest.fixture(scope="module")
def stock(golden_folder):
    model = load_model(golden_folder, dtype=torch.float32)
    model.lm_head.requires_grad_(False)
    return model


def results(stock, batch, *, position_ids="sequential", checkpointing=False, **flags):
    """Embeddings and the gradient of every parameter under a random cotangent."""
    embedder = Embedder(copy.deepcopy(stock), position_ids, **flags).train()
    if checkpointing:
        embedder.activation_checkpointing_enable()
    embeddings = embedder(**batch)
    cotangent = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1))
    (embeddings * cotangent).sum().backward()
    return embeddings.detach(), {name: p.grad for name, p in embedder.named_parameters() if p.grad is not None}


def equal(found, expected):
    close(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    scale = max(gradient.norm() for gradient in expected[1].values())
    for name, gradient in expected[1].items():  # a bias that has no effect has a gradient of rounding errors
        assert (found[1][name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-3 * scale), name


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("position_ids", ["sequential", "mrope"])
def test_every_path_equals_the_plain_one(stock, rows, position_ids, monkeypatch):
    monkeypatch.setattr("lamra.models.backbone.LOW_RANK", 8)  # so that selective checkpointing keeps something here
    batch = batch_of(rows)
    plain = results(stock, batch, position_ids=position_ids, padding_free=False)
    for flags in (
        dict(padding_free=False, checkpointing=True),
        dict(last_token_only=False),
        dict(last_token_only=True),
        dict(last_token_only=True, checkpointing=True),
        dict(selective_checkpointing=True, checkpointing=True),
        *(dict(grad_cache_chunk=chunk) for chunk in (1, 2, 3, 100)),
        dict(grad_cache_chunk=2, checkpointing=True),
        dict(grad_cache_chunk=2, padding_free=False),
    ):
        equal(results(stock, batch, position_ids=position_ids, **flags), plain)


@pytest.mark.parametrize("position_ids", ["sequential", "mrope"])
@pytest.mark.parametrize("last_token_only", [True, False])
def test_a_prefix_computed_once_changes_nothing(stock, position_ids, last_token_only):
    batch = batch_of([[6, (4, 6), 3], [9], [40], [6, 1, (2, 2), (2, 4), 2]])
    batch["input_ids"][:, :6] = torch.arange(10, 16)
    embedder = Embedder(copy.deepcopy(stock), position_ids, last_token_only=last_token_only).eval()
    with torch.no_grad():
        prefix = embedder.prefix_of(torch.arange(10, 16))
        close(embedder(**batch, prefix=prefix), embedder(**batch))


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("position_ids", ["sequential", "mrope"])
def test_a_prefix_shared_in_training_changes_no_gradient(stock, rows, position_ids):
    batch = batch_of([[7, *row] for row in rows])
    batch["input_ids"][:, :6] = torch.arange(10, 16)
    batch["input_ids"][0, 5] = 17  # a row whose text merged with the prefix's last token: 5 are shared
    plain = results(stock, batch, position_ids=position_ids, padding_free=False)
    for flags in (
        dict(),
        dict(last_token_only=False),
        dict(checkpointing=True),
        dict(selective_checkpointing=True, checkpointing=True),
        dict(grad_cache_chunk=2),
        dict(grad_cache_chunk=2, checkpointing=True),
    ):
        equal(results(stock, batch, position_ids=position_ids, shared_prefix=6, **flags), plain)


def test_a_shared_prefix_is_computed_once(stock):
    embedder = Embedder(copy.deepcopy(stock), "sequential", shared_prefix=6).train()
    seen = []
    layer = embedder.stock.model.language_model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    batch = batch_of([[9], [12], [40]])
    batch["input_ids"][:, :6] = torch.arange(10, 16)
    embedder(**batch)
    assert seen == [6, 9 + 12 + 40 - 3 * 6]


def test_the_last_layer_computes_pooled_tokens_only(stock):
    """The MLP of the last layer sees B tokens, that of the first all T."""
    embedder = Embedder(copy.deepcopy(stock), "sequential")
    seen = []
    for layer in (embedder.stock.model.language_model.layers[i] for i in (0, -1)):
        layer.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    batch = batch_of(BATCHES["long among short"])
    embedder(**batch)
    assert seen == [int(batch["attention_mask"].sum()), 6]


def test_packed_kernels_get_the_right_rows(stock, monkeypatch):
    """flash-attn's and PyTorch's varlen kernels need CUDA; here a plain loop stands in for them, with their meaning."""

    def loop(q, k, v, starts_q, starts_k, longest_q, longest_k, softmax_scale, causal):
        assert longest_q == starts_q.diff().max() and longest_k == starts_k.diff().max()
        rows = []
        for i in range(len(starts_q) - 1):
            qs, ks, vs = (x[s[i] : s[i + 1]].transpose(0, 1) for x, s in ((q, starts_q), (k, starts_k), (v, starts_k)))
            n, m = qs.shape[1], ks.shape[1]
            mask = torch.ones(n, m, dtype=torch.bool)
            mask = mask.tril(m - n) if causal else mask  # causal from the end
            options = dict(attn_mask=mask, scale=softmax_scale, enable_gqa=True)
            rows.append(torch.nn.functional.scaled_dot_product_attention(qs, ks, vs, **options).transpose(0, 1))
        return torch.cat(rows)

    def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        assert query.shape[1] == key.shape[1]  # neither grouped heads nor another scale
        return loop(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, query.shape[-1] ** -0.5, is_causal)

    def torch_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):
        assert window_size in ((-1, 0), (-1, -1)) and query.shape[1] == key.shape[1]
        return loop(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size[1] == 0)

    q, k = torch.randn(5, 4, 8), torch.randn(5, 2, 8)
    rows_of_5 = torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([0, 2, 5], dtype=torch.int32), 3, 3
    for version, causal in itertools.product((torch_2_10, torch_2_11), (True, False)):
        options = dict(softmax_scale=0.7, causal=causal)  # another scale than the root of the head size
        close(_torch_kernel(version)(q, k, k, *rows_of_5, **options), loop(q, k, k, *rows_of_5, **options))

    batch = batch_of([[6, (4, 6), 3], [9], [40], [7]])
    batch["input_ids"][:, :6] = torch.arange(10, 16)
    kernels = loop, _torch_kernel(torch_2_10), _torch_kernel(torch_2_11)
    for last_token_only, kernel in itertools.product((True, False), kernels):
        embedder = Embedder(copy.deepcopy(stock), "mrope", last_token_only=last_token_only).eval()
        expected = embedder(**batch).detach()
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr("lamra.models.packing._varlen_kernel", lambda *_, kernel=kernel: kernel)
            close(embedder(**batch), expected)
            close(embedder(**batch, prefix=embedder.prefix_of(torch.arange(10, 16))), expected)
    whole = Embedder(copy.deepcopy(stock), "mrope", attention="bidirectional", pooling="mean").eval()
    expected = whole(**batch).detach()
    for kernel in kernels:
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr("lamra.models.packing._varlen_kernel", lambda *_, kernel=kernel: kernel)
            close(whole(**batch), expected)


def test_packing_pads_and_unpads():
    packing = Packing.of(torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]))
    assert packing.starts.tolist() == [0, 2, 3, 6] and packing.last.tolist() == [1, 2, 5]
    x = torch.arange(1.0, 7).unsqueeze(1)
    assert packing.pad(x).squeeze(-1).tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    assert torch.equal(packing.unpad(packing.pad(x)), x)


def test_the_gradient_cache_repeats_its_dropout(stock):
    """With dropout on, the recomputed chunks draw the masks of the first pass: gradients fit the loss that was seen."""
    batch = batch_of([[5], [9], [30], [2], [7], [8]])
    embedder = Embedder(add_lora(copy.deepcopy(stock), r=4, alpha=8, dropout=0.5), "sequential").train()
    trained = {name: p for name, p in embedder.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.1)

    def step(chunked: bool):
        torch.manual_seed(3)
        embedder.grad_cache_chunk = 2 if chunked else 0
        if chunked:
            embeddings = embedder(**batch)
        else:  # the same chunks without recomputation
            split = zip(batch["input_ids"].split(2), batch["attention_mask"].split(2))
            embeddings = torch.cat([embedder(ids, mask) for ids, mask in split])
        loss = info_nce(embeddings[:3], embeddings[3:], temperature=0.05).loss
        gradients = torch.autograd.grad(loss, list(trained.values()))
        return embeddings.detach(), dict(zip(trained, gradients)), loss.detach()

    cached, plain = step(chunked=True), step(chunked=False)
    close(cached[2], plain[2])
    equal(cached[:2], plain[:2])
    assert (step(chunked=True)[0] - embedder.eval()(**batch)).norm() > 0.1  # dropout was on


def test_dropout_draws_a_mask_for_each_token(stock):
    """Padding-free or padded, a token's LoRA input is dropped on its own: same rate, no mask shared between tokens."""
    rates = []
    for padding_free in (True, False):
        model = add_lora(copy.deepcopy(stock), r=4, alpha=8, dropout=0.25)
        embedder = Embedder(model, "sequential", padding_free=padding_free).train()
        kept = []
        dropout = embedder.stock.model.language_model.layers[0].self_attn.v_proj.lora_dropout["default"]
        dropout.register_forward_hook(lambda _, inputs, out, kept=kept: kept.append((out != 0)[inputs[0] != 0]))
        masks = []
        dropout.register_forward_hook(lambda _, inputs, out, masks=masks: masks.append((out != 0).flatten(0, 1)))
        torch.manual_seed(0)
        embedder(**batch_of([[40]] * 20))
        rates.append(kept[0].float().mean().item())
        assert len({tuple(row.tolist()) for row in masks[0]}) == len(masks[0]) == 800
    assert rates == pytest.approx([0.75, 0.75], abs=0.01)
