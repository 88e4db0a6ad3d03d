"""The proof that a family is one: every path of ours equals the stock forward, in loss and in every gradient."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from families import END, IMAGE, START, VIDEO, config_of, random_model
from peft import PeftModel

from lamra.common.errors import UserError
from lamra.models.embedder import Embedder
from lamra.models.families import FAMILIES, family_of
from lamra.models.inspect import inspect_weights
from lamra.models.loading import load_embedder, load_model
from lamra.models.lora import (
    LANGUAGE_LINEARS,
    add_lora,
    freeze,
    load_adapter,
    vision_encoder_modules,
    vision_projector_modules,
)
from lamra.models.losses import info_nce
from lamra.models.settings import Settings
from lamra.models.shapes import Sizes

# Rows of parts: a number of text tokens, a picture's patches (height, width), or a video's (time, height, width).
# Each begins with the same 6 tokens.
ROWS = [
    [9],
    [8, (4, 6), 3],
    [6, (4, 2), 1, (2, 8), 3],  # pictures of two sizes
    [50],
    [6, (3, 4, 6), 3],
    [6, (4, 6), 2, (2, 4, 2), (1, 4, 4), 5, (2, 2), 1],  # pictures and videos
    [6, 20, (5, 2, 2), 2],
    [12],
]
PATHS = {
    "plain": dict(padding_free=False),
    "packed": dict(last_token_only=False),
    "trimmed": dict(),
    "recomputed": dict(checkpointing=True),
    "cached": dict(grad_cache_chunk=2),
    "cached, plain": dict(grad_cache_chunk=3, padding_free=False),
    "prefix": dict(shared_prefix=6),
    "all": dict(shared_prefix=6, grad_cache_chunk=2, checkpointing=True, selective_checkpointing=True),
}


@pytest.fixture(scope="module", params=FAMILIES)
def stock(request):
    model = random_model(request.param)
    model.lm_head.requires_grad_(False)
    return model


def inputs_of(rows, family, seed=1):
    """The stock model's inputs, and ours."""
    torch.manual_seed(seed)
    sequences, seen, clips, grids = [], [], [], []  # clips: whether each visual is a video
    for parts in rows:
        ids = []
        for part in parts:
            if isinstance(part, int):
                ids += torch.randint(3, 500, (part,)).tolist()
                continue
            clips.append(len(part) == 3)
            grids.append((1, *part)[-3:])
            time, height, width = grids[-1]
            token = VIDEO if clips[-1] else IMAGE
            if clips[-1] and family.frames_apart:
                for step in range(time):  # a time in words before each
                    ids += [400 + step, START, *[token] * (height * width // 4), END]
            else:
                ids += [START, *[token] * (time * height * width // 4), END]
        ids[:6] = range(10, 16)
        sequences.append(torch.tensor(ids))
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad(sequences, batch_first=True)
    mask = pad([torch.ones_like(ids) for ids in sequences], batch_first=True)
    if not grids:
        seen = {"input_ids": input_ids, "attention_mask": mask}
        return dict(seen), dict(seen)
    clips, grids = torch.tensor(clips), torch.tensor(grids)
    side = 16 if family.token_side == 32 else 14
    patches = torch.randn(int(grids.prod(dim=1).sum()), 3 * 2 * side**2).split(grids.prod(dim=1).tolist())
    seen = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int(),
    }
    for kind, grid, pixels in (
        (False, "image_grid_thw", "pixel_values"),
        (True, "video_grid_thw", "pixel_values_videos"),
    ):
        if any(clips == kind):
            seen[grid] = grids[clips == kind]
            seen[pixels] = torch.cat([of for of, is_clip in zip(patches, clips) if is_clip == kind])
    ours = {"input_ids": input_ids.masked_fill(input_ids == VIDEO, IMAGE), "attention_mask": mask}
    ours |= {"pixel_values": torch.cat(patches), "image_grid_thw": grids}
    if family.frames_apart:
        ours["image_grid_thw"] = torch.cat([torch.tensor([[1, h, w]] * t) for t, h, w in grids.tolist()])
    return seen, ours


def gradients_of(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def loss_of(embeddings):
    return info_nce(embeddings[::2], embeddings[1::2], temperature=0.5).loss


def positions_of(stock, inputs, scheme):
    ids = inputs["input_ids"]
    if scheme == "sequential" or "mm_token_type_ids" not in inputs:
        return torch.arange(ids.shape[1]).expand(3, *ids.shape)
    names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    return stock.model.get_rope_index(ids, **{name: inputs[name].clone() for name in names if name in inputs})[0]


@pytest.mark.parametrize("rows", [ROWS, [row for row in ROWS if len(row) == 1]], ids=["mixed", "texts"])
@pytest.mark.parametrize("scheme", ["sequential", "mrope"])
def test_every_path_equals_the_stock_forward(stock, scheme, rows, monkeypatch):
    monkeypatch.setattr("lamra.models.backbone.LOW_RANK", 8)  # so that selective checkpointing keeps something here
    rows = rows + rows[-1:] * (len(rows) % 2)
    family = FAMILIES[stock.config.model_type]
    inputs, ours = inputs_of(rows, family)
    positions, last = positions_of(stock, inputs, scheme), inputs["attention_mask"].sum(dim=1) - 1
    reference = copy.deepcopy(stock).train()
    hidden = reference.model(**inputs, position_ids=positions).last_hidden_state
    expected = torch.nn.functional.normalize(hidden[torch.arange(len(hidden)), last], dim=-1)
    loss = loss_of(expected)
    loss.backward()
    gradients = gradients_of(reference)
    if "pixel_values" in ours:  # the table of positions, every projector, every norm
        assert len(gradients) == sum(p.requires_grad for p in stock.parameters())
    largest = max(gradient.norm() for gradient in gradients.values())
    for path, flags in PATHS.items():
        flags = dict(flags)
        checkpointing = flags.pop("checkpointing", False)
        embedder = Embedder(copy.deepcopy(stock), scheme, **flags).train()
        if checkpointing:
            embedder.activation_checkpointing_enable()
        found = embedder._position_ids(*(ours.get(n) for n in ("input_ids", "attention_mask", "image_grid_thw")))
        padding = inputs["attention_mask"] == 0
        assert torch.equal(found.masked_fill(padding, 0), positions.masked_fill(padding, 0)), path
        embeddings = embedder(**ours)
        torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0, msg=path)
        ours_loss = loss_of(embeddings)
        torch.testing.assert_close(ours_loss, loss, atol=1e-5, rtol=0, msg=path)
        ours_loss.backward()
        found = {name.removeprefix("model."): gradient for name, gradient in gradients_of(embedder.model).items()}
        assert {name.removeprefix("model.") for name in gradients} == found.keys(), path
        for name, gradient in gradients.items():
            difference = (found[name.removeprefix("model.")] - gradient).norm()
            assert difference <= 1e-5 * max(gradient.norm(), 1e-3 * largest), (path, name)
    assert (expected @ expected.T).fill_diagonal_(0).max() < 0.9999


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_attention_and_pooling(stock, attention, pooling):
    """Against the stock forward of each row alone, where nothing is padded, under a mask that hides nothing."""
    family, reference = FAMILIES[stock.config.model_type], copy.deepcopy(stock).train()
    expected = []
    for number, row in enumerate(ROWS):
        inputs, _ = inputs_of([row], family, seed=number)
        length, positions = inputs["input_ids"].shape[1], positions_of(stock, inputs, "mrope")
        mask = torch.zeros(1, 1, length, length)
        if attention == "causal":
            mask = mask.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), torch.finfo(mask.dtype).min)
        hidden = reference.model(**inputs | {"attention_mask": mask}, position_ids=positions).last_hidden_state[0]
        expected.append(hidden[-1] if pooling == "last_token" else hidden.mean(dim=0))
    expected = torch.nn.functional.normalize(torch.stack(expected), dim=-1)
    loss_of(expected).backward()
    gradients = gradients_of(reference)
    largest = max(gradient.norm() for gradient in gradients.values())
    alone = [inputs_of([row], family, seed=number)[1] for number, row in enumerate(ROWS)]
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {n: pad([of[n][0] for of in alone], batch_first=True) for n in ("input_ids", "attention_mask")}
    batch |= {n: torch.cat([of[n] for of in alone if n in of]) for n in ("pixel_values", "image_grid_thw")}
    for path, flags in PATHS.items():
        checkpointing = path in ("recomputed", "all")
        flags = {name: value for name, value in flags.items() if name != "checkpointing"}
        model = copy.deepcopy(stock)
        embedder = Embedder(model, "mrope", attention=attention, pooling=pooling, **flags).train()
        assert embedder.shares_prefix == (embedder.padding_free and (attention, pooling) == ("causal", "last_token"))
        if checkpointing:
            embedder.activation_checkpointing_enable()
        embeddings = embedder(**batch)
        torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0, msg=path)
        loss_of(embeddings).backward()
        for name, parameter in model.named_parameters():
            if name in gradients:
                difference = (parameter.grad - gradients[name]).norm()
                assert difference <= 1e-5 * max(gradients[name].norm(), 1e-3 * largest), (path, name)


@torch.no_grad()
def test_a_picture_that_none_shows_changes_nothing(stock):
    """What a process without pictures runs where others have some (Backbone.vision_must_run)."""
    _, ours = inputs_of([[9], [30]], FAMILIES[stock.config.model_type])
    embedder = Embedder(copy.deepcopy(stock), "mrope").eval()
    torch.testing.assert_close(embedder.hidden_state(**ours, run_vision=True), embedder.hidden_state(**ours))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tensors_are_those_of_the_stock_model(model_type):
    config = config_of(model_type)
    with torch.device("meta"):
        model = FAMILIES[model_type].model_class(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert Sizes.read("config.json", config.to_dict()).shapes() == expected


def test_lora_and_modules_trained_in_full(stock, tmp_path):
    """LoRA is on all linears of the language model's layers, or also of the tower's blocks; merging changes nothing."""
    family = FAMILIES[stock.config.model_type]
    linears = {name for name, module in stock.named_modules() if isinstance(module, torch.nn.Linear)}
    language = {name for name in linears if ".language_model." in name}
    tower = {name for name in linears if re.match(r"model\.visual\.blocks\.", name)}
    assert len(language) == 7 * 3 and len(tower) == stock.config.vision_config.depth * (2 + len(family.vision.mlp))
    stock.save_pretrained(tmp_path / "base")
    _, ours = inputs_of(ROWS, family)
    for vision in (False, True):
        trained = (*vision_encoder_modules(stock), *vision_projector_modules(stock)) if not vision else ()
        model = add_lora(copy.deepcopy(stock), r=4, alpha=8, dropout=0.0, vision=vision, trained=trained)
        found = (name for name, _ in model.named_modules() if name.endswith(".lora_A"))
        targets = {name.removeprefix("base_model.model.").removesuffix(".lora_A") for name in found}
        assert targets == language | (tower if vision else set())
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
        saved = (name for name, _ in model.named_parameters() if ".modules_to_save.default" in name)
        in_full = {name for name in stock.state_dict() if name.startswith("model.visual.")} if trained else set()
        names = {name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for name in saved}
        assert names == in_full
        with torch.no_grad():
            expected = Embedder(model, "mrope").eval()(**ours)
        folder = tmp_path / f"adapter{vision}"
        model.save_pretrained(folder)
        Settings(str(tmp_path / "base"), "mrope").write(folder)
        adapter, _ = load_embedder(folder, dtype=torch.float32, merge=False)
        merged, _ = load_embedder(folder, dtype=torch.float32)
        assert isinstance(adapter.model, PeftModel) and not isinstance(merged.model, PeftModel)
        with torch.no_grad():
            torch.testing.assert_close(adapter(**ours), expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(merged(**ours), expected, atol=1e-5, rtol=0)


def test_parts_are_frozen_by_name(stock):
    projectors = [p for name in vision_projector_modules(stock) for p in stock.model.get_submodule(name).parameters()]
    model = copy.deepcopy(stock)
    freeze(model, language=True, vision_encoder=False, vision_projector=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    tower = {name for name in trained if name.startswith("model.visual.")}
    assert len(tower) == len(projectors) and not any(".blocks." in name for name in tower)
    freeze(model, language=False, vision_encoder=True, vision_projector=False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    everything = {name for name, _ in model.named_parameters() if name.startswith("model.visual.")}
    assert trained == everything - tower and trained


def test_a_folder_is_read_back(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    family = family_of(tmp_path)
    assert family.model_type == stock.config.model_type
    assert f"{family.model_type}: 0." in inspect_weights(tmp_path).describe()
    again = load_model(tmp_path, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(stock.state_dict().values(), again.state_dict().values(), strict=True))


CHANGES = {
    "model_type": (None, "qwen3_vl_moe", "'qwen3_vl_moe' model: supported are Qwen2-VL (qwen2_vl), Qwen2.5-VL"),
    "audio": (None, "qwen2_audio", "Qwen3-VL (dense) (qwen3_vl)"),
    "text alone": (None, "qwen3", "'qwen3' model: supported are"),
    "part": ("text_config", dict(model_type="qwen3_vl_moe_text"), "a part that is a 'qwen3_vl_moe_text' in a qwen3_vl"),
    "tower": ("vision_config", dict(model_type="qwen3_5"), "a part that is a 'qwen3_5' in a qwen3_vl"),
    "table": ("vision_config", dict(num_position_embeddings=24), "num_position_embeddings 24, no square"),
    "deepstack": ("vision_config", dict(deepstack_visual_indexes=[0, 1, 2]), "[0, 1, 2] for 3 blocks and 3 layers"),
    "deepstack beyond": ("vision_config", dict(deepstack_visual_indexes=[3]), "[3] for 3 blocks"),
    "projectors": ("vision_config", dict(deepstack_visual_indexes=[0]), "no place for"),
    "heads": ("text_config", dict(num_attention_heads=8), "q_proj.weight as [96, 64], and config.json asks for [192"),
    "head": ("text_config", dict(head_dim="x"), "has head_dim 'x': expected a whole number"),
    "no head": ("text_config", dict(head_dim=None), "has head_dim None: expected a whole number"),
    "layers": ("text_config", dict(num_hidden_layers=4), "lacks 11 weights"),
    "biases": ("text_config", dict(attention_bias=True), "attention_bias True"),
    "flat": ("text_config", None, "text_config None"),
}


@pytest.mark.parametrize(("where", "change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_folder_that_does_not_fit_is_refused(where, change, said, tmp_path):
    random_model("qwen3_vl").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if where is None:
        config["model_type"] = change
    elif change is None:
        config = config.pop(where) | config
    else:
        config[where] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=re.escape(said)):
        inspect_weights(tmp_path)


def test_an_adapter_of_another_family_is_refused(tmp_path):
    for model_type in ("qwen2_5_vl", "qwen3_vl"):
        random_model(model_type).save_pretrained(tmp_path / model_type)
    model = load_model(tmp_path / "qwen2_5_vl", dtype=torch.float32)
    add_lora(model, r=4, alpha=8, dropout=0.0).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="does not fit the base model"):
        load_adapter(load_model(tmp_path / "qwen3_vl", dtype=torch.float32), tmp_path / "adapter")


def test_the_pattern_of_the_language_model_fits_every_family(stock):
    names = [name for name, module in stock.named_modules() if isinstance(module, torch.nn.Linear)]
    assert sum(bool(re.fullmatch(LANGUAGE_LINEARS, name)) for name in names) == 7 * 3
