"""What published folders have and folders of our own have not: the pixel limits' old keys, cuts inside characters."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from lamra.collators.processing import Processor
from lamra.collators.rerank import RankPrompts
from lamra.datasets.items import Item

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
    found = processor.pixels(picture(640, 480))
    assert found["image_grid_thw"].tolist() == [[1, 30, 40]]  # 420 x 560, at most 235,200 pixels; 34 x 46 without a cap
    assert len(processor.encode(picture(640, 480))["input_ids"]) == processor.length(picture(640, 480))
    processor.save_pretrained(tmp_path / "merged")
    again = Processor(tmp_path / "merged").pixels(picture(640, 480))
    assert all(found[name].equal(again[name]) for name in found)
    larger = Processor(folder_with(FORMS[form]), max_pixels=600 * 28 * 28)
    assert larger.pixels(picture(640, 480))["image_grid_thw"].tolist() == [[1, 34, 46]]


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
        found, again = processor.pixels(item), merged.pixels(item)
        assert int(found["image_grid_thw"].prod()) * 14 * 14 <= 300 * 28 * 28
        assert all(found[name].equal(again[name]) for name in found)
        if path.name in known:
            assert found["image_grid_thw"][0].tolist() == known[path.name]["grid"]
            digest = hashlib.sha256((found["pixel_values"].numpy() + 0.0).tobytes())
            assert digest.hexdigest() == known[path.name]["sha256"]


def test_training_cuts_within_a_character_as_upstream_and_evaluation_not_at_all(tiny_model, capsys):
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
    assert capsys.readouterr().out == ""  # upstream's own cut in training, and nothing lost in evaluation
    evaluation = training.for_evaluation(100)
    assert len(evaluation.encode(long)["input_ids"]) <= 100
    assert capsys.readouterr().out.startswith("note: item 'a long one' has ")


@pytest.mark.parametrize("style", ["released", "clean"])
def test_a_reranker_is_trained_on_cut_texts_and_asked_about_whole_ones(tiny_model, style):
    training = RankPrompts(Processor(tiny_model, max_length=2048, text_max_tokens=6), style)
    asked = RankPrompts(training.processor.for_evaluation(2048), style)
    shown = training.shown(Item("i", "\U0001f98a" * 3))
    first, second = (
        prompts.processor.tokenizer.decode(prompts.pointwise(shown, shown)["input_ids"])
        for prompts in (training, asked)
    )
    assert first.count("\U0001f98a") == 2 and second.count("\U0001f98a") == 6
    assert first.count("\ufffd") == (2 if style == "released" else 0)
