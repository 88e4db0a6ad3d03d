"""The model in Python: `from lamra import load`."""

from __future__ import annotations

import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import ROOT, call
from PIL import Image

from lamra import load
from lamra.datasets.items import Item, Picture, Text
from lamra.eval import embed
from lamra.eval.search import top_k
from lamra.models.settings import Settings


@pytest.fixture(scope="module")
def retriever(tiny_model):
    return load(tiny_model)


@pytest.fixture(scope="module")
def judge(tiny_model):
    return load(tiny_model, role="reranker")


@pytest.fixture(scope="module")
def pictures(world):
    return [world / "test" / "images" / f"{number}.png" for number in range(4)]


def test_texts_pictures_dicts_and_items_together(retriever, pictures, capfd):
    path = pictures[0]
    capfd.readouterr()
    with Image.open(path) as image:
        both = Item("both", "a red circle", (path,), "Find it.")
        as_dict = {"id": 7, "text": "a red circle", "image": image, "instruction": "Find it."}
        in_order = {"content": [{"text": "a"}, {"image": path}, {"text": "b"}]}
        found = retriever.encode(["a red circle", path, image, both, as_dict, in_order, str(path)])
    assert capfd.readouterr() == ("", "")  # no progress bar
    assert found.shape == (7, retriever.embedder.config.text_config.hidden_size)
    assert found.dtype == torch.float32 and found.device.type == "cpu" and not found.requires_grad
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(found[[1, 3]], found[[2, 4]])  # a picture, by its path and open
    different = found[[0, 1, 3, 5, 6]]
    assert (different @ different.T < 0.9999).sum() == 20  # a str is a text, also a path's
    torch.testing.assert_close(found[:1], retriever.encode(["a red circle"]))
    parts = (Text("a"), Picture(path), Text("b"))
    torch.testing.assert_close(found[5:6], retriever.encode((Item("", parts=parts),)))


def test_an_instruction_is_of_those_without_one(retriever, pictures):
    own = Item("", "a", instruction="Mine.")
    found = retriever.encode(["a", own, {"image": pictures[0]}], instruction="Find it.")
    with_it = [Item("", "a", instruction="Find it."), own, Item("", None, pictures[:1], "Find it.")]
    torch.testing.assert_close(found, retriever.encode(with_it))
    assert (found - retriever.encode(["a", "a", pictures[0]])).abs().amax(dim=1).min() > 1e-4


def test_batches_and_progress(retriever, capfd):
    texts = [f"{number} red circles" for number in range(70)]
    whole = retriever.encode(texts, "seventy")
    assert "seventy: 100%" in capfd.readouterr().err
    torch.testing.assert_close(retriever.encode(texts, None, max_tokens_per_batch=60), whole)
    assert capfd.readouterr().err == ""


def test_search(retriever, pictures):
    texts = ["a red circle", "a blue box"]
    scores, rows = retriever.search(texts, pictures, top=3, instruction="Find it.")
    gallery, queries = retriever.encode(pictures), retriever.encode(texts, instruction="Find it.")
    assert scores.shape == rows.shape == (2, 3)
    torch.testing.assert_close((queries @ gallery.T).gather(1, rows), scores)
    for same in (gallery, gallery.numpy()):  # embedded before
        found = retriever.search(texts, same, top=9, instruction="Find it.")
        assert all(torch.equal(a, b) for a, b in zip(found, top_k(queries, gallery, 4)))


def test_rerank(judge, pictures, tmp_path):
    query = {"text": "a red circle", "instruction": "Find it."}
    found = judge.rerank(query, [*pictures, "a blue box"])
    assert found.shape == (5,) and found.dtype == torch.float32 and (found > 0).all() and (found < 1).all()
    items = [Item(str(path), images=(path,)) for path in pictures]
    shown = [judge.prompts.prepare(item) for item in (*items, Item("t", "a blue box"))]
    asked = judge.prompts.prepare(Item("q", "a red circle", instruction="Find it."))
    torch.testing.assert_close(found.tolist(), judge.pointwise(asked, shown))
    # A file that is another picture at the next call is looked at anew.
    (tmp_path / "a.png").write_bytes(pictures[0].read_bytes())
    before = judge.rerank("a red circle", [tmp_path / "a.png"], instruction="Find it.")
    (tmp_path / "a.png").write_bytes(pictures[1].read_bytes())
    both = torch.cat([before, judge.rerank("a red circle", [tmp_path / "a.png"], instruction="Find it.")])
    torch.testing.assert_close(both, found[:2])
    with pytest.raises(ValueError, match="there is nothing to rerank"):
        judge.rerank("a", [])


def test_what_the_folder_was_trained_as(tiny_model, tmp_path):
    for path in tiny_model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    Settings("elsewhere", "mrope", role="reranker", rank_style="released").write(tmp_path)
    assert load(tmp_path).rerank("a red circle", ["a blue box"]).shape == (1,)
    with pytest.raises(ValueError, match="is a reranker, and a retriever is needed"):
        load(tmp_path, role="retriever")


@pytest.mark.parametrize("page", ["docs/own_data.md", "docs/zh/own_data.md"])
def test_the_page_runs(page, tiny_model, pictures, tmp_path, monkeypatch):
    code = re.search(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)[1]
    for path, name in zip(pictures, ("dog.jpg", "cat.jpg")):
        (tmp_path / name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    code = code.replace("checkpoints/my_run", str(tiny_model))
    found: dict = {}
    exec(code.replace('load("checkpoints/my_reranker")', f'load({str(tiny_model)!r}, role="reranker")'), found)
    assert found["vectors"].shape == found["pictures"].shape and found["yes"].shape == (2,)
    assert sorted(found["rows"].tolist()[0]) == [0, 1]


def test_threads(retriever, judge, pictures):
    """Calls of several threads find what each finds alone, and leave the process as it was."""
    texts = [[f"{number} {word}" for number in range(6)] for word in ("circles", "boxes", "crosses")]
    alone = [retriever.encode([*of, *pictures]) for of in texts]
    answers = judge.rerank("a red circle", pictures)
    filters = list(warnings.filters)
    with ThreadPoolExecutor(6) as threads:
        embedded = [threads.submit(retriever.encode, [*of, *pictures]) for of in texts * 3]
        answered = [threads.submit(judge.rerank, "a red circle", pictures) for _ in range(4)]
        assert all(torch.equal(of.result(), alone[number % 3]) for number, of in enumerate(embedded))
        assert all(torch.equal(of.result(), answers) for of in answered)
    assert warnings.filters == filters


def test_one_call_at_a_time(retriever, monkeypatch):
    inside, most = [], []

    def forward(*_args, **_kwargs):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()
        return torch.ones(1, 1)

    monkeypatch.setattr("lamra.eval.inference.encode", forward)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(retriever.encode, [["a"]] * 4))
    assert most == [1] * 4


def test_as_the_entrypoint_embeds(retriever, tiny_model, tmp_path):
    lines = '{"id": "a", "text": "a red circle"}\n{"id": "b", "text": "a blue box", "instruction": "Find it."}\n'
    (tmp_path / "items.jsonl").write_text(lines)
    call(embed.main, model_id=tiny_model, input=tmp_path / "items.jsonl", output=tmp_path / "out.npz", num_workers=0)
    found = retriever.encode(["a red circle", {"text": "a blue box", "instruction": "Find it."}])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["embeddings"], found.numpy())


def test_options_and_what_is_refused(tiny_model, retriever, tmp_path):
    small = load(str(tiny_model), max_pixels=4 * 28 * 28, dtype=torch.bfloat16, device="cpu")
    assert (
        small.settings.max_pixels == 4 * 28 * 28
        and small.processor.visuals.image_processor.size["longest_edge"] == 3136
    )
    found = small.encode(["a red circle"])
    assert next(small.embedder.parameters()).dtype == torch.bfloat16 and found.dtype == torch.float32
    assert retriever.num_workers == 0 and load(tiny_model, num_workers=1).num_workers == 1
    with pytest.raises(ValueError, match="--max_pixels 3000: expected 3136 .* or more"):
        load(tiny_model, max_pixels=3000)
    with pytest.raises(ValueError, match="dtype torch.float16: expected torch.float32 or torch.bfloat16"):
        load(tiny_model, dtype=torch.float16)
    for entries, sentence in (
        ([], "there is nothing to embed"),
        ([tmp_path / "none.png"], "none.png does not exist"),
        ([{"txt": "a"}], "entry 0 has the key 'txt', which nothing reads: known are id, text"),
        (["a", {"text": "a", "instruction": 3}], 'entry 1: "instruction" is 3: give a string'),
    ):
        with pytest.raises(ValueError, match=sentence):
            retriever.encode(entries)
    for entries, sentence in (([7], "int: a text is a str"), ("a red circle", "str: give a list")):
        with pytest.raises(TypeError, match=sentence):
            retriever.encode(entries)
