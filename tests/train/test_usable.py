"""Whatever makes a pair unusable is replaced; a bug is not, and shows its traceback."""

from __future__ import annotations

import pytest
from conftest import call
from PIL import Image
from torch.utils.data import DataLoader

from lamra.collators.processing import IMAGE_TOKEN, Processor
from lamra.collators.retrieval import RetrievalCollator
from lamra.common.files import path_inside
from lamra.datasets.items import Item, Pair
from lamra.datasets.usable import UsablePairs
from lamra.train import train_nli


def pair(number: int, text: str | None = None, *images) -> Pair:
    return Pair(Item(f"q{number}", f"query {number}"), Item(f"t{number}", text, images))


class Pairs(list):
    """Pairs whose row 4 has a path out of its folder, which is found when the row is read."""

    def __getitem__(self, row: int) -> Pair:
        return pair(4, None, path_inside("root", "../x.png")) if row == 4 else super().__getitem__(row)


def test_every_fault_of_a_row_is_replaced(tiny_model, tmp_path):
    (tmp_path / "no_picture.png").write_text("hello")
    pairs = Pairs(pair(i, f"target {i}") for i in range(8))
    pairs[1] = pair(1, None, tmp_path / "no_picture.png")
    pairs[2] = pair(2, "too long", Image.new("RGB", (300, 300)))
    pairs[3] = pair(3, f"a {IMAGE_TOKEN} b")
    pairs[5] = pair(5, None, Image.new("RGB", (2000, 5)))
    usable = UsablePairs(pairs, RetrievalCollator(Processor(tiny_model, max_length=60)).encode, most_faults=5)
    batch = usable.__getitems__([0, 1, 7])
    assert batch.rows == [0, 6, 7] and [pair.query.id for pair in batch.pairs] == ["q0", "q6", "q7"]
    assert len(usable) == 8 and len(batch.encoded) == 3 and all(len(prompts) == 2 for prompts in batch.encoded)
    reasons = dict(batch.faults)
    for row, words in enumerate(("cannot be read", "more than 60 tokens", "stands for pixels", "leaves", "aspect"), 1):
        assert words in reasons.pop(row)
    assert not reasons


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_not_skipped(workers):
    def encode(pair: Pair):
        raise ValueError("a bug")

    usable = UsablePairs([pair(i, "text") for i in range(4)], encode, most_faults=4)
    with pytest.raises(ValueError, match="a bug"):
        list(DataLoader(usable, batch_size=2, collate_fn=list, num_workers=workers))


def test_a_bug_in_training_shows_its_traceback(world, tiny_model, tmp_path, monkeypatch):
    def encode(self, item):
        raise ValueError("a bug")

    monkeypatch.setattr(Processor, "encode", encode)
    flags = dict(model_id="miniature", model_local_path=tiny_model, data_path=world / "nli.csv", output_dir=tmp_path)
    with pytest.raises(ValueError, match="^a bug$"):
        call(train_nli.main, **flags, per_device_train_batch_size=8, dataloader_num_workers=0, report_to="none")
    assert not (tmp_path / "skipped.jsonl").exists()
