"""A folder is loaded whole or refused: weights without a place, a base that is none, and what 4-bit weights are."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations import HfDeepSpeedConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from lamra.export import merge_lora
from lamra.models import loading
from lamra.models.embedder import Embedder
from lamra.models.loading import load_model, load_trained
from lamra.models.settings import Settings
from lamra.train.build import load_to_train
from lamra.train.flags import ModelArguments
from lamra.train.throughput import flops_per_token


@pytest.fixture
def variant(golden_folder, tmp_path):
    """The golden model's folder with another config or other weights."""

    def build(change=lambda _config: None, more=None, without=()):
        folder = tmp_path / "variant"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(golden_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        weights = load_file(folder / "model.safetensors") | (more or {})
        weights = {name: tensor for name, tensor in weights.items() if name not in without}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return build


def one_layer(config: dict) -> None:
    config["text_config"] |= {"num_hidden_layers": 1, "layer_types": ["full_attention"]}


def no_vision(config: dict) -> None:
    config["vision_config"]["depth"] = 0


def tied(config: dict) -> None:
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True


@pytest.mark.parametrize(
    ("change", "count", "example"),
    [(one_layer, 12, "model.language_model.layers.1"), (no_vision, 24, "model.visual.blocks.0")],
)
def test_layers_that_are_not_used_are_refused(variant, change, count, example):
    with pytest.raises(ValueError, match=f"holds {count} weights that its config.json has no place for, .* {example}"):
        load_model(variant(change), dtype=torch.float32)


def test_what_published_folders_hold_is_not_refused(variant, golden_folder):
    rows = load_file(golden_folder / "model.safetensors")["model.embed_tokens.weight"]
    frequencies = {f"{part}.inv_freq": torch.ones(8) for part in ("visual.rotary_pos_emb", "model.rotary_emb")}
    for folder in (
        variant(more=frequencies),
        variant(tied, without={"lm_head.weight"}),
        variant(tied, more={"lm_head.weight": rows.clone()}),
    ):
        model = load_model(folder, dtype=torch.float32)
        assert torch.equal(model.get_input_embeddings().weight, rows)

    def taller(config: dict) -> None:  # LamRA's merged checkpoints have a row more for <emb>
        config["text_config"]["vocab_size"] += 1

    row = torch.zeros(1, rows.shape[1])
    more = {name: torch.cat([rows, row]) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    assert len(load_model(variant(taller, more=more), dtype=torch.float32).get_input_embeddings().weight) == 513


def test_an_adapter_goes_on_its_own_base_only(golden_folder, golden_adapter, tmp_path):
    """Folders as training and merging leave them: base <- first -> merged <- second, trained on top of merged."""

    def folder(name: str, source, base_model=None):
        copy = shutil.copytree(source, tmp_path / name)
        if base_model:
            (copy / "lamra.json").write_text(json.dumps(asdict(Settings(str(base_model), "sequential"))))
        return copy

    base = folder("base", golden_folder)
    first = folder("first", golden_adapter, base)
    merged = folder("merged", golden_folder, base)
    second = folder("second", golden_adapter, merged)
    other = folder("other", golden_folder, tmp_path / "another base")

    def load(adapter, original_model=None):
        return load_trained(adapter, original_model, dtype=torch.float32)[1]

    assert load(first).base_model == str(base) and load(second).base_model == str(merged)
    assert load(first, folder("copy of base", golden_folder)) and load(second, merged)
    assert load(second, folder("copy of merged", merged))
    for adapter, wrong in ((first, merged), (first, other), (second, other)):
        with pytest.raises(ValueError, match=f"{wrong} has an adapter merged into it already.*give that model"):
            load(adapter, wrong)
    both = folder("both", golden_folder)
    shutil.copy(first / "adapter_config.json", both)
    with pytest.raises(ValueError, match=f"{both} holds an adapter itself"):
        load(first, both)
    with pytest.raises(ValueError, match=f"--original_model_id {base}: {merged} is a whole model, not an adapter"):
        load(merged, base)
    with pytest.raises(ValueError, match="--save_path .*first: expected a folder without a model"):
        merge_lora.MergeArguments(str(first), str(first))

    shutil.move(base, tmp_path / "elsewhere" / "base")
    assert load(first, tmp_path / "elsewhere" / "base")
    with pytest.raises(ValueError, match="has an adapter merged into it already"):  # from base, wherever that is
        load(first, merged)
    assert load(second, shutil.move(merged, tmp_path / "elsewhere" / "merged"))


def test_only_the_language_model_is_in_4_bits(golden_folder, monkeypatch):
    seen = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda _name: True)
    stock = load_model(golden_folder, dtype=torch.float32)

    def from_pretrained(_folder, **options):
        seen.update(options)
        return stock, {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}

    monkeypatch.setattr(type(stock), "from_pretrained", from_pretrained)
    load_model(golden_folder, dtype=torch.bfloat16, quantize=True)
    skipped = seen["quantization_config"].llm_int8_skip_modules
    linears = [name for name, module in stock.named_modules() if isinstance(module, nn.Linear)]
    packed = [name for name in linears if should_convert_module(name, skipped)]
    assert len(packed) == 14 and all(name.startswith("model.language_model.layers.") for name in packed)

    # bitsandbytes packs a weight of (out, in) into out * in / 2 bytes of its own.
    embedder = Embedder(stock, "sequential")
    whole = flops_per_token(embedder)
    for name in packed:
        weight = stock.get_submodule(name).weight
        weight.data = torch.zeros(weight.numel() // 2, 1)
    assert flops_per_token(embedder) == whole


def test_4_bits_are_refused_under_zero_3(golden_folder, no_model):
    alive = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    args = SimpleNamespace(deepspeed="ds_configs/zero3.json")
    with pytest.raises(ValueError, match="--q_lora True cannot be used with --deepspeed ds_configs/zero3.json"):
        load_to_train(golden_folder, ModelArguments(q_lora=True), args)
    del alive
