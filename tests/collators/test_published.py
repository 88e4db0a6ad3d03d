"""What published folders have and folders of our own have not: the pixel limits' old keys, cuts inside characters."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image
from safetensors.torch import load_file, save_file

from lamra.collators.processing import Processor
from lamra.collators.rerank import RankPrompts
from lamra.datasets.items import Item
from lamra.eval import embed
from lamra.eval.zeroshot import evaluate_captions
from lamra.export import merge_lora
from lamra.models.loading import load_embedder, load_reranker

PUBLISHED = {"min_pixels": 3136, "max_pixels": 12845056}
# How transformers of several versions write the same limits.
FORMS = {
    "4.45": PUBLISHED,
    "4.48": PUBLISHED | {"size": PUBLISHED},
    "4.50": PUBLISHED | {"size": {"shortest_edge": 3136, "longest_edge": 12845056}},
    "5": {"size": {"shortest_edge": 3136, "longest_edge": 12845056}},
}


@pytest.fixture
def folder_with(tiny_model, tmp_path):
    def build(keys: dict):
        folder = shutil.copytree(tiny_model, tmp_path / "published", dirs_exist_ok=True)
        config = json.loads((tiny_model / "preprocessor_config.json").read_text())
        config.pop("size", None)
        (folder / "preprocessor_config.json").write_text(json.dumps(config | keys))
        return folder

    return build


def picture(width: int, height: int) -> Item:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Item("noise", images=(Image.fromarray(noise),))


@pytest.mark.parametrize("form", FORMS)
def test_pictures_are_capped_whatever_the_folder_says(folder_with, tmp_path, form):
    processor = Processor(folder_with(FORMS[form]))
    found = processor.visuals.pixels(picture(640, 480))
    assert found["image_grid_thw"].tolist() == [[1, 30, 40]]  # 420 x 560, at most 235,200 pixels; 34 x 46 without a cap
    assert len(processor.encode(picture(640, 480))["input_ids"]) == processor.length(picture(640, 480))
    processor.save_pretrained(tmp_path / "merged")
    again = Processor(tmp_path / "merged").visuals.pixels(picture(640, 480))
    assert all(found[name].equal(again[name]) for name in found)
    larger = Processor(folder_with(FORMS[form]), max_pixels=600 * 28 * 28)
    assert larger.visuals.pixels(picture(640, 480))["image_grid_thw"].tolist() == [[1, 34, 46]]


@pytest.mark.parametrize("size", [{"longest_edge": 235200}, {"max_pixels": 235200}])
def test_limits_that_contradict_each_other_are_refused(folder_with, size):
    folder = folder_with(PUBLISHED | {"size": size})
    with pytest.raises(ValueError, match="preprocessor_config.json contradicts itself: .*235200 and 12845056; remove"):
        Processor(folder)


def test_real_photographs(shared, tmp_path):
    """The published settings: all grids under the cap, pixels as upstream's, equal in a merged folder."""
    data = shared / "data"
    processor = Processor(data / "qwen2vl_processor")
    processor.save_pretrained(tmp_path)
    merged = Processor(tmp_path)
    known = json.loads((shared / "golden" / "stage2_rank" / "upstream_mbeir.json").read_text())["photographs"]
    photographs = sorted((data / "coco" / "images").iterdir())
    assert len(photographs) == 100 and len(known) == 50
    for path in photographs:
        item = Item(path.name, images=(path,))
        found, again = processor.visuals.pixels(item), merged.visuals.pixels(item)
        assert int(found["image_grid_thw"].prod()) * 14 * 14 <= 300 * 28 * 28
        assert all(found[name].equal(again[name]) for name in found)
        if path.name in known:
            assert found["image_grid_thw"][0].tolist() == known[path.name]["grid"]
            pixels = processor.visuals.floats(found["pixel_values"])
            digest = hashlib.sha256((pixels.numpy() + 0.0).tobytes())
            assert digest.hexdigest() == known[path.name]["sha256"]


def test_training_cuts_within_a_character_as_upstream_and_evaluation_not_at_all(tiny_model):
    training = Processor(tiny_model, max_length=60, text_max_tokens=7)
    item = Item("i", "\U0001f98a" * 3, instruction="a")  # a token a byte
    cut = training.cut(item, 7)
    assert (cut.instruction, cut.text) == (None, "a \U0001f98a\ufffd")
    assert training.cut(item, 7, whole_characters=True).text == "a \U0001f98a"
    assert "\ufffd" in training.tokenizer.decode(training.encode(item)["input_ids"])

    evaluation = training.for_evaluation(2048)
    assert evaluation.cut(item, evaluation.text_max_tokens) is item
    long = Item("a long one", "word " * 100)
    assert len(training.encode(long)["input_ids"]) < 60 < len(evaluation.encode(long)["input_ids"])


@pytest.mark.parametrize("style", ["released", "clean"])
def test_a_reranker_is_trained_on_cut_texts_and_asked_about_whole_ones(tiny_model, style):
    training = RankPrompts(Processor(tiny_model, max_length=2048, text_max_tokens=6), style)
    asked = RankPrompts(training.processor.for_evaluation(2048), style)
    shown = training.prepare(Item("i", "\U0001f98a" * 3))
    first, second = (
        prompts.processor.tokenizer.decode(prompts.pointwise(shown, shown)["input_ids"])
        for prompts in (training, asked)
    )
    assert first.count("\U0001f98a") == 2 and second.count("\U0001f98a") == 6
    assert first.count("\ufffd") == (2 if style == "released" else 0)


@pytest.fixture(scope="module")
def published(tiny_model, tmp_path_factory):
    """A base model as published (transformers 4: flat config, key layout, shards, chat_template.json), an adapter."""
    folder, adapter = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("adapter")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / file, folder)
    template = (tiny_model / "chat_template.jinja").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    processor = json.loads((tiny_model / "preprocessor_config.json").read_text())
    processor.pop("size", None)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | PUBLISHED))

    config = json.loads((tiny_model / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    (folder / "config.json").write_text(json.dumps(text | config | {"transformers_version": "4.41.2"}))

    state = load_file(tiny_model / "model.safetensors")
    state = {re.sub(r"^model\.(language_model\.|(?=visual))", r"model.", name): t for name, t in state.items()}
    state = {name.replace("model.visual", "visual"): tensor for name, tensor in state.items()}
    assert "model.embed_tokens.weight" in state and any(name.startswith("visual.blocks.0.") for name in state)
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for i, name in enumerate(sorted(state)):
        list(shards.values())[i % 2][name] = state[name]
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    generator = torch.Generator().manual_seed(0)
    linears = [name.removesuffix(".weight") for name in state if re.search(r"layers\.\d+\..*_proj\.weight", name)]
    lora = {}
    for name in linears:
        rows, columns = state[f"{name}.weight"].shape
        for part, shape in (("lora_A", (8, columns)), ("lora_B", (rows, 8))):
            lora[f"base_model.model.{name}.{part}.weight"] = 0.1 * torch.randn(shape, generator=generator)
    save_file(lora, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = dict(peft_type="LORA", r=8, lora_alpha=16, lora_dropout=0.05, target_modules=linears, bias="none")
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(folder)}))
    return folder, adapter


def test_an_adapter_of_transformers_4_and_its_merged_folder_give_one_result(published, tmp_path):
    base, adapter = published
    pictures, rng = tmp_path / "images", np.random.default_rng(0)
    pictures.mkdir()
    for i in range(6):  # above the cap, where the published keys once let 1.4 times the tokens through
        blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((640, 480)).save(pictures / f"{i}.png")
    (tmp_path / "captions.json").write_text(json.dumps([f"picture {i // 5}, caption {i % 5}" for i in range(30)]))
    items = [{"id": "text", "text": "a dog"}, {"id": "picture", "image": "0.png"}]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))

    call(merge_lora.main, model_id=adapter, save_path=tmp_path / "merged", dtype="fp32")
    found = []
    for name, model in (("adapter", adapter), ("merged", tmp_path / "merged"), ("base", base)):
        data = dict(image_data_path=pictures, text_data_path=tmp_path / "captions.json")
        call(lambda: evaluate_captions("Flickr30K"), model_id=model, output_dir=tmp_path / name, **data)
        call(embed.main, model_id=model, input=tmp_path / "items.jsonl", image_root=pictures, output=tmp_path / "e.npz")
        vectors = np.load(tmp_path / "e.npz")["embeddings"]
        found.append(((tmp_path / name / "metrics.json").read_bytes(), vectors))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)
    assert np.abs(found[0][1] - found[2][1]).max() > 0.01  # the adapter does something


@pytest.mark.parametrize(
    ("role", "style", "load"), [("retriever", None, load_embedder), ("reranker", "clean", load_reranker)]
)
def test_checkpoints_of_before_are_used_as_they_remember(tiny_model, tmp_path, role, style, load):
    """What version 0.1.0 wrote into lamra.json, field for field."""
    folder = shutil.copytree(tiny_model, tmp_path / "merged")
    written = dict(base_model="b", position_ids="mrope", min_pixels=784, max_pixels=78400, temperature=0.02)
    written |= dict(text_max_tokens=256, role=role, rank_style=style)
    (folder / "lamra.json").write_text(json.dumps(written))
    model, settings = load(folder, dtype=torch.float32)
    assert model.position_ids == "mrope" and settings.train_position_ids is None
    assert {name: getattr(settings, name) for name in written} == written
    limits = dict(min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)
    found = Processor(folder, **limits).visuals.pixels(picture(640, 480))
    assert int(found["image_grid_thw"].prod()) * 14 * 14 <= 78400
