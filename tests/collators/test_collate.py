"""Prompts, token ids and pixels: equal to upstream's collator up to the pooled token, and never quietly cut wrong."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lamra.collators.processing import IMAGE_TOKEN, Processor
from lamra.collators.retrieval import RetrievalCollator
from lamra.datasets.items import Item, Pair
from lamra.datasets.usable import UsablePairs

EMB = 151657  # upstream's <emb>, the token after the pooled position


@pytest.fixture(scope="module")
def upstream(shared):
    return load_file(shared / "golden" / "upstream_collate.safetensors")


@pytest.fixture(scope="module")
def real_processor(shared):
    return Processor(shared / "data" / "qwen2vl_processor")


@pytest.fixture(scope="module")
def processor(tiny_model):
    return Processor(tiny_model)


def rows(batch):
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]


def upstream_rows(upstream, group):
    batch = {name: upstream[f"{group}.{name}"] for name in ("input_ids", "attention_mask")}
    return [ids[: ids.index(EMB)] for ids in rows(batch)]


def test_nli_batch_equals_upstream(shared, upstream, real_processor):
    frame = pd.read_csv(shared / "data" / "nli_sample.csv", dtype=str, keep_default_na=False)[:4]
    pairs = [Pair(Item(f"q{i}", row.sent0), Item(f"t{i}", row.sent1)) for i, row in frame.iterrows()]
    collator = RetrievalCollator(real_processor)
    batch = collator(UsablePairs(pairs, collator.encode, most_faults=0).__getitems__(range(4)))
    assert batch.pop("num_queries") == 4 and batch.pop("ids") == ["q0", "q1", "q2", "q3"]
    assert rows(batch) == upstream_rows(upstream, "nli")


def test_flickr_batch_equals_upstream(shared, upstream, real_processor):
    folder = shared / "data" / "flickr8k"
    images = json.loads((folder / "dataset_flickr8k.json").read_text())["images"][:4]
    batch = real_processor([Item(im["filename"], images=(folder / "images" / im["filename"],)) for im in images])
    assert rows(batch) == upstream_rows(upstream, "flickr")
    assert torch.equal(batch["image_grid_thw"], upstream["flickr.image_grid_thw"])
    torch.testing.assert_close(
        batch["pixel_values"][::17], upstream["flickr.pixel_values_fp16"].float(), atol=2e-3, rtol=0
    )


def test_prompts_byte_for_byte(processor):
    picture = Image.new("RGB", (28, 28))
    frame = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    seen = "<|vision_start|>" + 4 * IMAGE_TOKEN + "<|vision_end|>"  # 28 x 28 is enlarged to 4 tokens of 28 x 28
    for item, user_turn in (
        (Item("t", "A dog."), "A dog.\nSummarize above sentence in one word: "),
        (Item("i", images=(picture,)), seen + "\nSummarize above image in one word: "),
        (Item("b", "A dog.", (picture,)), seen + "A dog.\nSummarize above image and sentence in one word: "),
        (Item("q", "A dog.", instruction="Find it."), "Find it. A dog.\nSummarize above sentence in one word: "),
        (
            Item("qi", images=(picture, picture), instruction="Find it."),
            2 * seen + "Find it.\nSummarize above image and sentence in one word: ",
        ),
    ):
        assert processor.tokenizer.decode(processor.encode(item)["input_ids"]) == frame.format(user_turn)


def test_padding_is_on_the_right(processor):
    batch = processor([Item("long", "a red circle and a blue box"), Item("short", "a")])
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths[0] == batch["input_ids"].shape[1] > lengths[1]
    assert batch["attention_mask"][1].tolist() == [1] * lengths[1] + [0] * (lengths[0] - lengths[1])


def test_a_long_text_loses_its_end_and_keeps_its_frame(tiny_model):
    processor = Processor(tiny_model, max_length=60)
    text = " ".join(f"red{i}" for i in range(200))
    kept = processor.tokenizer.decode(processor.encode(Item("x", text, (Image.new("RGB", (28, 28)),)))["input_ids"])
    assert 50 < len(processor.tokenizer(kept)["input_ids"]) <= 60
    assert kept.endswith("\nSummarize above image and sentence in one word: <|im_end|>\n<|im_start|>assistant\n")
    assert kept.count(IMAGE_TOKEN) == 4
    user = kept.split("<|vision_end|>")[1].split("\nSummarize")[0]
    assert user and text.startswith(user)
    with pytest.raises(ValueError, match="'big' needs more than 60 tokens"):
        processor.encode(Item("big", "a", (Image.new("RGB", (300, 300)),)))


def test_image_modes_and_faults(processor, tmp_path):
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        path = tmp_path / f"{mode.replace(';', '')}.{'tiff' if mode in ('CMYK', 'I;16') else 'png'}"
        Image.new(mode, (30, 40)).save(path)
        assert processor.encode(Item("x", images=(path,)))["image_grid_thw"].tolist() == [[1, 6, 4]]
    truncated = tmp_path / "truncated.png"
    Image.effect_noise((200, 200), 50).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:5000])
    (tmp_path / "no_picture.png").write_text("hello")
    for path, words in (
        (truncated, "truncated.png cannot be read"),
        (tmp_path / "no_picture.png", "no_picture.png cannot be read"),
        (tmp_path / "absent.png", "absent.png does not exist"),
    ):
        with pytest.raises(ValueError, match=words):
            processor.encode(Item("x", images=(path,)))
    with pytest.raises(ValueError, match="aspect ratio"):
        processor.encode(Item("thin", images=(Image.new("RGB", (2000, 5)),)))
    with pytest.raises(ValueError, match="stands for pixels"):
        processor.encode(Item("x", f"a {IMAGE_TOKEN} b"))
    with pytest.raises(ValueError, match="neither text nor picture"):
        Item("empty")
