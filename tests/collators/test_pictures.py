"""Pictures that cannot be read are named, and training replaces their pairs; others are shown as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_pictures import FAULTY
from PIL import Image
from torch.utils.data import DataLoader
from training import batch_of

from lamra.collators.pictures import open_image, picture_size
from lamra.collators.processing import Processor
from lamra.collators.retrieval import RetrievalCollator
from lamra.common.errors import PictureError
from lamra.datasets.items import Crop, Item, Pair
from lamra.datasets.pairs import Mixture
from lamra.datasets.usable import UsablePairs
from lamra.eval.cache.manifest import pictures_sha256
from lamra.eval.rerank.pictures import DecodedPictures
from lamra.train.guards.skipped import SkippedPairs


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_picture_is_named(tiny_model, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FAULTY[name])
    item, processor = Item("x", images=(path,)), Processor(tiny_model)
    with pytest.raises(ValueError, match=f"picture {path} cannot be read"):
        processor.encode(item)
    if name != "truncated":  # its header is sound
        with pytest.raises(ValueError, match=f"picture {path} cannot be read"):
            processor.length(item)


def test_a_picture_of_any_mode_is_shown_as_it_is(tmp_path):
    grey = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
    colours = Image.fromarray(np.dstack([grey >> 8] * 3).astype(np.uint8))
    expected = np.asarray(colours)
    for image, name, tolerance in (
        (Image.fromarray(grey), "grey16.png", 0),
        (Image.fromarray(grey), "grey16.tiff", 0),
        (Image.fromarray(grey.astype(np.int32)), "grey32.tiff", 0),
        (colours.convert("L"), "grey.png", 0),
        (colours.quantize(256), "palette.png", 2),
        (colours.convert("CMYK"), "cmyk.tiff", 1),
        (colours.convert("RGBA"), "rgba.png", 0),
        (colours.convert("LA"), "la.png", 0),
        (colours.convert("1"), "bits.png", 255),
    ):
        image.save(tmp_path / name)
        shown = np.asarray(open_image(tmp_path / name)).astype(int)
        assert shown.shape == (40, 30, 3) and abs(shown - expected).max() <= tolerance, name
        assert abs(shown.mean() - expected.mean()) < 10, name


def test_a_part_of_a_picture_is_padded_to_a_square(tmp_path, tiny_model):
    """As expand2square of GeneCIS's reader does it; what the box has beyond the picture is not there."""
    pixels = np.arange(1, 1 + 10 * 6 * 3, dtype=np.uint8).reshape(6, 10, 3)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    for box, (left, top, right, bottom), at in (
        ((2, 1, 5, 3), (2, 1, 5, 3), (0, 0)),  # 3 x 2: the odd row goes below
        ((1.4, 0, 3.5, 5), (1, 0, 4, 5), (1, 0)),  # rounded, to even where it is halfway; 3 x 5
        ((2.5, 0, 6.5, 4), (2, 0, 6, 4), (0, 0)),
        ((-3, -3, 4, 100), (0, 0, 4, 6), (1, 0)),
        ((7, 4.6, 17, 20), (7, 5, 10, 6), (0, 1)),
    ):
        side = max(right - left, bottom - top)
        expected = np.zeros((side, side, 3), dtype=np.uint8)
        expected[at[1] : at[1] + bottom - top, at[0] : at[0] + right - left] = pixels[top:bottom, left:right]
        crop = Crop(path, box)
        assert np.array_equal(np.asarray(open_image(crop)), expected), box
        assert picture_size(crop) == (side, side)
    for box in ((10, 0, 20, 3), (0, 6.4, 3, 9), (4, 4, 4.2, 5)):
        for reads in (open_image, picture_size):
            with pytest.raises(
                PictureError, match=r"a\.png \[.*\] cannot be read \(the part lies outside of its 10 x 6 pix"
            ):
                reads(Crop(path, box))
    with pytest.raises(PictureError, match=r"picture .*b\.png \[0, 0, 1, 1\] does not exist"):
        open_image(Crop(tmp_path / "b.png", (0, 0, 1, 1)))
    crops = (Crop(path, (0, 0, 4, bottom)) for bottom in (4, 5, 4))
    whole, one, other, same = (Item("x", images=(image,)) for image in (path, *crops))
    assert len({whole.content, one.content, other.content}) == 3 and one.content == same.content
    assert len({pictures_sha256([item]) for item in (whole, one, other)}) == 3
    assert [Path(file) for file in one.files] == [path]
    processor = Processor(tiny_model)
    assert len(processor.encode(one)["input_ids"]) == processor.length(one)
    decoded = DecodedPictures(10**6)
    assert decoded.decoded(one).images[0].size == (4, 4) and decoded.decoded(whole).images[0].size == (10, 6)
    assert decoded.decoded(other).images[0].size == (5, 5)


def test_a_part_may_not_become_huge(tmp_path, monkeypatch):
    """A thin picture fits, and the square around it does not."""
    Image.new("RGB", (400, 2)).save(tmp_path / "thin.png")
    monkeypatch.setenv("LAMRA_MAX_PICTURE_PIXELS", "10000")
    assert open_image(tmp_path / "thin.png").size == (400, 2)
    with pytest.raises(PictureError, match="400 x 400 pixels, more than 10000"):
        open_image(Crop(tmp_path / "thin.png", (0, 0, 400, 2)))


def test_a_part_is_turned_as_exif_says(tmp_path):
    """The box is of the pixels as they are stored."""
    pixels = np.arange(1, 1 + 4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    crop = Crop(tmp_path / "turned.png", (0, 1, 3, 4))
    assert np.array_equal(np.asarray(open_image(crop)), pixels[1:4, 0:3])
    assert np.array_equal(np.asarray(open_image(crop, exif_rotation=True)), np.rot90(pixels[1:4, 0:3], -1))


def test_pixels_are_those_of_the_library(tiny_model):
    """Sizes below, between and above the limits, and as they are shown already."""
    processor = Processor(tiny_model)
    generator = torch.Generator().manual_seed(0)
    for width, height in ((1, 1), (5, 9), (56, 84), (640, 480), (3, 200), (1100, 300)):
        colours = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(colours.numpy())
        found, expected = (
            processor.visuals.pixels(Item("", images=[picture])),
            processor.visuals.image_processor([picture]),
        )
        assert found["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist()
        assert found["pixel_values"].dtype == torch.uint8 and found["pixel_values"].shape[1] == 3 * 14 * 14
        floats = processor.visuals.floats(found["pixel_values"])
        assert np.array_equal(floats.numpy(), expected["pixel_values"])


def test_a_processor_turns_pictures_where_its_settings_say_so(tiny_model, tmp_path):
    lying = Image.fromarray(np.linspace(0, 255, 28 * 84 * 3).reshape(28, 84, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    lying.save(tmp_path / "lying.png", exif=exif)
    lying.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    stored, upright = (Item("x", images=(tmp_path / f"{name}.png",)) for name in ("lying", "upright"))
    plain, turning = Processor(tiny_model), Processor(tiny_model, exif_rotation=True).for_evaluation(1024)
    for processor, same in ((plain, False), (turning, True)):
        pixels = [processor.visuals.pixels(item) for item in (stored, upright)]
        assert torch.equal(pixels[0]["image_grid_thw"], pixels[1]["image_grid_thw"]) == same
        assert torch.equal(pixels[0]["pixel_values"], pixels[1]["pixel_values"]) == same
        assert processor.length(stored) == len(processor.encode(stored)["input_ids"])


def test_a_faulty_pair_is_replaced_alike_by_any_number_of_workers(tiny_model, pictures):
    files = sorted(pictures.iterdir())
    pairs = [Pair(Item(f"q{i}", "A picture."), Item(f.name, images=(f,))) for i, f in enumerate(files)]
    collator = RetrievalCollator(Processor(tiny_model))
    usable = UsablePairs(pairs, collator.encode, most_faults=3)
    rows = [[4, 5, 7], [16, 17, 18], [0, 1, 2]]
    for workers in (0, 2):
        batches = list(DataLoader(usable, batch_sampler=rows, collate_fn=collator, num_workers=workers))
        # 6 is faulty too, 7 is in the batch already: 8 stands for 5.
        assert [batch["ids"] for batch in batches] == [["q4", "q8", "q7"], ["q16", "q19", "q18"], ["q0", "q1", "q2"]]
        assert [[row for row, _ in batch["faults"]] for batch in batches] == [[5, 6], [17], []]
        assert batches[0]["item_ids"].tolist() == [8, 16, 14, 9, 17, 15]
        sound = collator(usable.__getitems__([4, 8, 7]))
        assert sound.pop("faults") == [] and all(
            torch.equal(value, batches[0][name]) for name, value in sound.items() if isinstance(value, torch.Tensor)
        )
    # Nothing else is left: a row of the batch stands twice, and "item_ids" say so.
    whole = collator(UsablePairs(pairs[4:8], collator.encode, most_faults=3).__getitems__([0, 1, 2, 3]))
    assert whole["ids"] == ["q4", "q7", "q7", "q7"] and whole["item_ids"].tolist() == [0, 6, 6, 6, 1, 7, 7, 7]
    assert collator(UsablePairs(pairs, collator.encode, most_faults=1).__getitems__([5])).keys() == {"faults"}


class Faulty(list):
    """Pairs of which some cannot be read."""

    def __init__(self, pairs, faulty):
        super().__init__(pairs)
        self.faulty = faulty

    def __getitem__(self, row):
        if row in self.faulty:
            raise PictureError(f"row {row} cannot be read")
        return super().__getitem__(row)


def texts(name: str, count: int, faulty=()) -> Faulty:
    return Faulty([Pair(Item(f"{name}{i}", f"{name} {i}"), Item("t", f"{name} {i}")) for i in range(count)], faulty)


def test_a_faulty_row_of_a_mixture_is_replaced_from_its_source(tiny_model, tmp_path):
    mixture = Mixture({"a": texts("a", 6, faulty=(4, 5)), "b": texts("b", 6, faulty=(2,))})
    assert batch_of(tiny_model, mixture, [5, 0, 1], 3)["ids"] == ["a2", "a0", "a1"]  # round to a's first, not on to b's
    assert batch_of(tiny_model, mixture, [8, 11], 3)["ids"] == ["b3", "b5"]
    mixture.groups = {name: np.array(rows) for name, rows in mixture.groups.items()}  # as M-BEIR's are
    assert batch_of(tiny_model, mixture, [5, 0, 1], 3)["ids"] == ["a2", "a0", "a1"]
    # Of the smallest source one row is always left.
    assert SkippedPairs(tmp_path, 1000, 0.5, resume=False, smallest=3).most == 2
    small = Mixture({"a": texts("a", 600), "b": texts("b", 3, faulty=(0, 1, 2))})
    assert batch_of(tiny_model, small, [600], 2).keys() == {"faults"}


def test_a_faulty_row_that_stands_twice_in_a_batch_counts_once(tiny_model, tmp_path):
    """One count in the collator and another in the trainer left one process without a batch, the others waiting."""
    pairs = texts("a", 8, faulty=(3,))
    skipped = SkippedPairs(tmp_path, len(pairs), 0.001, resume=False)
    batch = batch_of(tiny_model, pairs, [3, 0, 3, 1], skipped.most)
    assert batch["ids"] == ["a4", "a0", "a5", "a1"] and batch["faults"] == [(3, "row 3 cannot be read")]
    skipped.add(batch["faults"], step=1)
    pairs.faulty = (3, 4)
    batch = batch_of(tiny_model, pairs, [3, 0, 3, 1], skipped.most)
    assert batch.keys() == {"faults"}
    with pytest.raises(ValueError, match="2 of 8 pairs cannot be used"):
        skipped.add(batch["faults"], step=2)
