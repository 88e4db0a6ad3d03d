"""The encode loop gives each item's own embedding, in order, however items are batched, shared or repeated."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from lamra.collators.processing import Processor
from lamra.common.errors import PictureError, UserError
from lamra.datasets.items import Item, Video
from lamra.eval import embed
from lamra.eval import encode as encode_module
from lamra.eval.encode import encode, prepared, token_batches
from lamra.eval.rerank.judge import Judge
from lamra.models.loading import load_embedder, load_reranker


@pytest.fixture(scope="module")
def processor(tiny_model):
    return Processor(tiny_model, max_length=100)


@pytest.fixture(scope="module")
def items(world):
    pictures = [world / "test" / "images" / f"{i}.png" for i in range(4)]
    texts = [
        "a",
        "a red circle at the top left",
        "\n\nbegins with a newline, which changes the last token of the prefix",
    ]
    found = [Item(f"t{i}", text) for i, text in enumerate(texts)] + [
        Item(f"p{i}", images=(p,)) for i, p in enumerate(pictures)
    ]
    found.append(Item("cut", 40 * "a red circle at the top left ", (pictures[1],)))  # beyond max_length
    return [*found, Item("both", "a", (pictures[0],)), *found[:4], Item("query", "a", instruction="Find it.")]


@pytest.mark.parametrize("position_ids", ["sequential", "mrope"])
def test_equal_to_one_at_a_time(tiny_model, processor, items, position_ids):
    plain, _ = load_embedder(tiny_model, dtype=torch.float32, position_ids=position_ids, padding_free=False)
    with torch.no_grad():
        expected = torch.cat([plain(**processor([item])) for item in items])
    lean, _ = load_embedder(tiny_model, dtype=torch.float32, position_ids=position_ids)
    longest = max(processor.length(item) for item in items)
    for embedder, budget, options in (
        (plain, longest, {}),
        (lean, longest, {}),
        (lean, 10_000, {"share_prefix": False}),
        (lean, 10_000, {"num_workers": 1}),
    ):
        found = encode(embedder, processor, items, max_tokens_per_batch=budget, **options)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_no_embedding_that_is_not_finite_leaves_the_model(tiny_model, processor, items, monkeypatch, tmp_path, fails):
    """Damage of many kinds: weights, config, pixels; a vector of zeros is no embedding either."""

    def found_of(embedder, some=items) -> str:
        with pytest.raises(ValueError, match="the model makes no finite embedding of unit norm of item") as raised:
            encode(embedder, processor, some, max_tokens_per_batch=10_000)
        return str(raised.value)

    for value in (torch.nan, torch.inf, 0.0, 1e38):
        for part in ("norm.weight", "layers.0.mlp.down_proj.weight"):
            embedder, _ = load_embedder(tiny_model, dtype=torch.float32)
            embedder.stock.model.language_model.get_parameter(part).data.fill_(value)
            if value or "norm" in part:
                assert "items t0, t1, t2, p0, p1, p2, p3, cut and" in found_of(embedder)
    embedder, _ = load_embedder(tiny_model, dtype=torch.float32)
    monkeypatch.setattr(processor.visuals, "_values", processor.visuals._values * torch.nan)
    assert found_of(embedder, items[:4] + items[-1:]).split(" of ")[-1].startswith("item p0: its weights")
    assert encode(embedder, processor, items[:3], max_tokens_per_batch=10_000).isfinite().all()

    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(1e38)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "items.jsonl").write_text(json.dumps({"id": "a line", "text": "a"}) + "\n")
    flags = dict(model_id=broken, input=tmp_path / "items.jsonl", output=tmp_path / "out.npz", num_workers=0)
    assert "of unit norm of item a line: its weights, its config.json" in fails(embed.main, **flags)
    assert not (tmp_path / "out.npz").exists()


def test_no_answer_that_is_not_finite_leaves_the_reranker(tiny_model, processor):
    model, settings = load_reranker(tiny_model, dtype=torch.float32)
    judge = Judge(model, Processor(tiny_model, max_length=2048), settings, 4096, 0, True)
    query, *candidates = (judge.prompts.prepare(Item(name, name)) for name in ("q", "a", "b"))
    model.stock.model.language_model.norm.weight.data.fill_(torch.nan)
    for style in ("pointwise", "listwise"):
        with pytest.raises(ValueError, match="answers to the query q about items a, b are not finite: its weights"):
            judge.answer(style, query, candidates)


def test_the_length_is_told_before_encoding(processor, items):
    lengths = {item.id: (processor.length(item), len(processor.encode(item)["input_ids"])) for item in items}
    told, true = lengths.pop("cut")  # cutting may take a token more
    assert told == 100 and 95 < true <= 100
    assert all(told == true for told, true in lengths.values())
    assert processor.tokenizer.decode(processor.prefix_ids).endswith("<|im_start|>user\n")


def test_each_different_item_is_encoded_once(tiny_model, processor, items, monkeypatch):
    embedder, _ = load_embedder(tiny_model, dtype=torch.float32)
    rows = []
    forward = embedder.hidden_state
    monkeypatch.setattr(embedder, "hidden_state", lambda ids, *rest: rows.append(len(ids)) or forward(ids, *rest))
    encode(embedder, processor, items, max_tokens_per_batch=200)
    assert sum(rows) == len(items) - 4


def test_token_batches_by_hand():
    lengths = [3, 9, 5, 4, 1]
    assert token_batches(lengths, 10, padding_free=True) == [[1], [2, 3], [0, 4]]  # 9; 5 + 4; 3 + 1
    assert token_batches(lengths, 10, padding_free=False) == [[1], [2, 3], [0, 4]]  # 1 x 9; 2 x 5; 2 x 3
    assert token_batches([5, 5, 4], 14, padding_free=False) == [[0, 1], [2]]  # 4 would be padded to 5: 15
    assert token_batches(lengths, 8, padding_free=True) == [[1], [2], [3, 0, 4]]  # 9 alone; 5; 4 + 3 + 1


def test_workers_count_the_tokens_of_many_items(processor, items, monkeypatch):
    """In pieces and in order; a video's frames are counted here, so that the workers of later know them."""
    monkeypatch.setattr(encode_module, "LENGTHS_TOGETHER", 3)
    counted_here: list[str] = []

    class Counting:
        device = "cpu"

        def length(self, item: Item) -> int:
            counted_here.append(item.id)
            return processor.length(item)

    expected = [processor.length(item) for item in items]
    assert encode_module._lengths(Counting(), items, 1, 0, 1) == expected and not counted_here
    assert encode_module._lengths(Counting(), items, 1, 0, 0) == expected and len(counted_here) == len(items)
    with pytest.raises(PictureError, match="does not exist"):
        encode_module._lengths(Counting(), [*items, Item("v", parts=[Video("no.mp4")])], 1, 0, 1)
    assert len(counted_here) == 2 * len(items) + 1


def test_a_bug_in_a_worker_shows_its_traceback_and_a_mistake_its_sentence():
    def prepare(i: int) -> int:
        if i == 0:
            return int("no number")
        raise UserError("the file is not there")

    for num_workers, words in ((0, "invalid literal"), (1, "Original Traceback")):
        with pytest.raises(ValueError, match=words) as bug:
            next(prepared(prepare, 2, num_workers))
        assert not isinstance(bug.value, UserError)
        with pytest.raises(UserError, match="^the file is not there$"):
            next(prepared(lambda i: prepare(1), 1, num_workers))


def test_workers_start_where_processes_are_spawned_by_default():
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert list(prepared(lambda i: i * i, 3, num_workers=1)) == [0, 1, 4]
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_hugging_faces_datasets_stays_importable():
    """A folder named datasets/ in the working directory, ours or tests/datasets, must not hide the package."""
    code = "import datasets, lamra.datasets.items as items; print(datasets.__file__, datasets.Dataset, items.__file__)"
    for working_directory in (ROOT, ROOT / "train", ROOT / "tests"):
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=working_directory, capture_output=True, text=True, check=True)
        assert "site-packages" in result.stdout.split()[0]
