"""Items of several texts and pictures inside a prompt, and the common case byte for byte."""

from __future__ import annotations

import pytest
import torch
from conftest import call
from PIL import Image

from lamra.collators.messages import SUMMARIZE_BOTH, SUMMARIZE_IMAGE, SUMMARIZE_TEXT, embedding_messages, item_content
from lamra.collators.messages import listwise_messages as listwise
from lamra.collators.processing import Processor
from lamra.datasets.items import Item, Picture, Text
from lamra.eval import embed

IMAGE = {"type": "image"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def embedded(*parts, instruction: str | None = None) -> list[dict]:
    (message,) = embedding_messages(Item("a", parts=parts, instruction=instruction))
    assert message["role"] == "user"
    return message["content"]


def test_parts_stand_in_their_order():
    a, b, picture = Text("a"), Text("b"), Picture("x.png")
    assert embedded(a) == [text("a" + SUMMARIZE_TEXT)]
    assert embedded(picture) == [IMAGE, text(SUMMARIZE_IMAGE)]
    assert embedded(picture, a) == [IMAGE, text("a" + SUMMARIZE_BOTH)]
    assert embedded(a, picture) == [text("a"), IMAGE, text(SUMMARIZE_BOTH)]
    assert embedded(picture, a, picture, b) == [IMAGE, text("a"), IMAGE, text("b" + SUMMARIZE_BOTH)]
    assert embedded(picture, picture) == [IMAGE, IMAGE, text(SUMMARIZE_IMAGE)]
    assert embedded(Text("")) == [text(SUMMARIZE_TEXT)]


def test_a_story_is_asked_about_in_the_plural_whatever_is_cut_of_it():
    story = Item("a", parts=(Text("a"), Picture("x.png"), Text("b")), plural=True)
    end = "\nSummarize above images and sentences in one word: "
    assert embedding_messages(story)[0]["content"] == [text("a"), IMAGE, text("b" + end)]
    assert embedding_messages(story.with_texts(["a"]))[0]["content"] == [text("a"), IMAGE, text(end)]
    assert story.content != Item("a", parts=story.parts).content


def test_the_instruction_begins_the_first_text_or_ends_the_item():
    a, picture = Text("a"), Picture("x.png")
    assert embedded(picture, a, instruction="Find.") == [IMAGE, text("Find. a" + SUMMARIZE_BOTH)]
    assert embedded(a, picture, Text("b"), instruction="Find.") == [
        *(text("Find. a"), IMAGE, text("b" + SUMMARIZE_BOTH))
    ]
    assert embedded(picture, instruction="Find.") == [IMAGE, text("Find." + SUMMARIZE_BOTH)]
    query = Item("q", parts=(picture, a, picture), instruction="Find.")
    assert item_content(query) == [IMAGE, text("Find. a"), IMAGE]
    content = listwise("clean", query, [Item("c", parts=(a, picture))])[0]["content"]
    assert content[1:] == [IMAGE, text("Find. a"), IMAGE, text("Candidates:"), text("(1) "), text("a"), IMAGE]


def test_the_common_case_is_parts_too():
    assert Item("a", "words", ["x.png"]) == Item("a", parts=(Picture("x.png"), Text("words")))
    assert (Item("a", "words", ["x.png"]).images, Item("a", "words").text) == (("x.png",), "words")
    for arguments in (dict(), dict(text="a", parts=(Text("a"),))):
        with pytest.raises(ValueError, match="item 'a' has "):
            Item("a", **arguments)
    item = Item("a", parts=(Text("a"), Picture("x.png"), Text("b")), instruction="i")
    assert item.with_texts(["c"]) == Item("a", parts=(Text("c"), Picture("x.png")))
    assert item.with_texts(["c", "d", "e"]).texts == ("c", "d", "e")
    assert Item("a", "t").content == Item("b", "t").content != Item("b", "t", instruction="i").content


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        Image.new("RGB", (56, 84), colour).save(folder / f"{name}.png")
    (folder / "items.jsonl").write_text(
        '{"id": "common", "text": "words", "image": "red.png"}\n'
        '{"id": "same", "content": [{"image": "red.png"}, {"text": "words"}]}\n'
        '{"id": "other order", "content": [{"text": "words"}, {"image": "red.png"}]}\n'
        '{"id": "two", "content": [{"image": "red.png"}, {"text": "words"}, {"image": "blue.png"}]}\n'
        '{"id": "swapped", "content": [{"image": "blue.png"}, {"text": "words"}, {"image": "red.png"}]}\n'
    )
    return folder


def test_content_lines_are_embedded(items, tiny_model, tmp_path):
    import numpy as np

    call(embed.main, model_id=tiny_model, input=items / "items.jsonl", output=tmp_path / "out.npz")
    embeddings = torch.from_numpy(np.load(tmp_path / "out.npz")["embeddings"])
    assert torch.equal(embeddings[0], embeddings[1])
    others = (embeddings[1:] @ embeddings[1:].T).fill_diagonal_(0)
    assert others.max() < 0.99999  # neither the order nor the pictures are lost


def test_cuts_go_through_the_texts_from_their_end(tiny_model):
    processor = Processor(tiny_model, text_max_tokens=3)
    item = Item("a", parts=(Text("a red circle"), Picture(Image.new("RGB", (56, 56))), Text("a blue square")))
    assert processor.cut(item, 6).texts == ("a red circle", "a blue square")
    assert processor.cut(item, 5).texts == ("a red circle", "a blue")
    assert processor.cut(item, 2).texts == ("a red",)
    whole = Processor(tiny_model)
    tokens = len(whole.encode(item)["input_ids"])
    for excess in (1, 3):
        short = Processor(tiny_model, max_length=tokens - excess)
        assert len(short.encode(item)["input_ids"]) <= tokens - excess
    assert whole.length(item) == tokens
