"""Pictures travel as bytes, once; what the model makes of them is what it made of the library's float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clips import drawn, write_clip
from PIL import Image

from lamra.collators.processing import Processor
from lamra.collators.rerank import RerankCollator
from lamra.collators.retrieval import RetrievalCollator
from lamra.datasets.items import Item, Pair, Picture, Text, Video
from lamra.datasets.rerank import RerankExample
from lamra.datasets.usable import UsablePairs
from lamra.models.embedder import Embedder
from lamra.models.loading import load_model


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_batch_of_60_pictures_is_an_eighth_of_its_floats(tiny_model):
    """420 x 560 each, as a photograph of 640 x 480 is shown: 42 MB instead of 339."""
    processor, picture = Processor(tiny_model), noise(640, 480)
    pairs = [Pair(Item("q", None, (picture,)), Item("t", None, (picture,)))] * 30
    collator = RetrievalCollator(processor, mask_duplicates=True)
    batch = collator(UsablePairs(pairs, collator.encode, most_faults=0).__getitems__(range(30)))
    assert batch["pixel_values"].nbytes == 60 * 420 * 560 * 3 == 42_336_000
    library = processor.visuals.image_processor([picture])["pixel_values"]
    assert 60 * library.nbytes == 8 * batch["pixel_values"].nbytes
    assert len(set(batch["item_ids"].tolist())) == 1  # of bytes, too

    example = RerankExample(*(Item(name, None, (picture,)) for name in "qpn"), (Item("o", None, (picture,)),), 0)
    collator = RerankCollator(processor.for_evaluation(4096))
    batch = collator(UsablePairs([example], collator.encode, most_faults=0).__getitems__([0]))
    assert batch["pixel_values"].nbytes == (2 + 2 + 3) * 420 * 560 * 3


def test_a_picture_beside_a_video_is_there_twice(tiny_model, tmp_path):
    processor = Processor(tiny_model, max_length=4096)
    clip = Video(write_clip(tmp_path / "clip.mkv", drawn(9), codec="ffv1"), nframes=4)
    single = Video(write_clip(tmp_path / "single.mkv", drawn(1), codec="ffv1"))
    items = [
        Item("p", None, (noise(90, 60),)),
        Item("m", parts=[Text("a"), Picture(noise(60, 90, 1)), clip, Picture(noise(56, 56, 2))]),
        Item("s", parts=[single]),
        Item("t", "a text"),
    ]
    floats = processor.visuals.floats
    alone = torch.cat([floats(processor.visuals.pixels(Item("", parts=[part]))["pixel_values"])
                       for item in items for part in item.visuals])  # fmt: skip
    batch = processor.pad([processor.encode(item) for item in items])
    assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].shape[1] == 3 * 2 * 14 * 14
    assert torch.equal(floats(batch["pixel_values"]), alone)
    assert torch.equal(processor(items)["pixel_values"], alone)
    assert len(processor.visuals.pixels(items[2])["pixel_values"][0]) == 3 * 14 * 14  # one frame is its own second


@pytest.mark.parametrize("flags", [{}, {"padding_free": False}, {"grad_cache_chunk": 2}], ids=str)
def test_embeddings_and_gradients_are_those_of_the_floats(tiny_model, flags):
    """Bit for bit, those of the vision tower too; a chunk has no picture, and another begins with a text."""
    processor = Processor(tiny_model)
    items = [Item("a", "a red circle"), Item("b", "a blue box"), Item("c", "both"), Item("d", None, (noise(60, 90),))]
    items.append(Item("e", "and", (noise(90, 60, 1), noise(56, 56, 2))))
    as_bytes, as_floats = processor.pad([processor.encode(item) for item in items]), processor(items)
    assert as_floats["pixel_values"].nbytes == 8 * as_bytes["pixel_values"].nbytes
    found = []
    for batch, from_bytes in ((as_bytes, processor.visuals.floats), (as_floats, None)):
        stock = load_model(tiny_model, dtype=torch.float32)
        embedder = Embedder(stock, "sequential", **flags).train()
        embedder.pixels_from_bytes = from_bytes
        embeddings = embedder(**batch)
        (embeddings @ embeddings.T).square().sum().backward()
        found.append([embeddings, *(parameter.grad for parameter in stock.parameters() if parameter.grad is not None)])
        assert stock.model.visual.patch_embed.proj.weight.grad.any()
    assert len(found[0]) == len(found[1]) and all(map(torch.equal, *found))
    with pytest.raises(AssertionError, match="no processor was given to is shown bytes"):
        Embedder(stock, "sequential")(**as_bytes)
