"""Embedding from Python: `from lamra import load`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image

from lamra import load
from lamra.datasets.items import Item
from lamra.eval import embed


@pytest.fixture(scope="module")
def retriever(tiny_model):
    return load(tiny_model)


def test_texts_pictures_and_items_together(retriever, world, capfd):
    path = world / "test" / "images" / "0.png"
    capfd.readouterr()
    with Image.open(path) as image:
        both = Item("both", "a red circle", (path,), "Find it.")
        found = retriever.embed(["a red circle", path, image, both, str(path)])
    assert capfd.readouterr() == ("", "")  # no progress bar
    assert found.shape[0] == 5 and found.dtype == torch.float32 and found.device.type == "cpu"
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(found[1], found[2])  # a picture, by its path and open
    assert (found[[0, 1, 3, 4]] @ found[[0, 1, 3, 4]].T < 0.9999).sum() == 12  # a str is a text, also a path's
    torch.testing.assert_close(found[:1], retriever.embed(["a red circle"]))
    assert not found.requires_grad


def test_as_the_entrypoint_embeds(retriever, tiny_model, tmp_path):
    (tmp_path / "items.jsonl").write_text('{"id": "a", "text": "a red circle"}\n{"id": "b", "text": "a blue box"}\n')
    call(embed.main, model_id=tiny_model, input=tmp_path / "items.jsonl", output=tmp_path / "out.npz", num_workers=0)
    found = retriever.embed(["a red circle", "a blue box"])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["embeddings"], found.numpy())


def test_flags_and_what_is_refused(tiny_model, retriever, tmp_path):
    small = load(str(tiny_model), max_pixels=4 * 28 * 28)
    assert small.settings.max_pixels == 4 * 28 * 28 and small.processor.image_processor.size["longest_edge"] == 3136
    with pytest.raises(ValueError, match="--max_pixels 3000: expected 3136 .* or more"):
        load(tiny_model, max_pixels=3000)
    with pytest.raises(ValueError, match="there is nothing to embed"):
        retriever.embed([])
    with pytest.raises(ValueError, match="none.png does not exist"):
        retriever.embed([tmp_path / "none.png"])
    with pytest.raises(TypeError, match="int: a text is a str, a picture a Path"):
        retriever.embed([7])
