"""mteb's tasks and ours in its way. mteb itself where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch
from conftest import ROOT, call
from PIL import Image

from lamra.datasets.caption import captioned_tasks, load_captioned_images
from lamra.datasets.pairs import task_of_pairs
from lamra.datasets.tasks import KS
from lamra.eval import eval_mteb
from lamra.eval.evaluate import evaluate
from lamra.eval.mteb_tasks import as_mteb
from lamra.export import sentence_transformers as export

LIBRARIES = ("mteb", "sentence_transformers", "torchvision")
has_mteb = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in LIBRARIES),
    reason=f"{', '.join(LIBRARIES)} are not all here: mteb's numbers are not compared",
)


@pytest.fixture
def pairs(tmp_path):
    """Two captions of a picture, one of another, and a caption of both."""
    for number in (1, 2):
        Image.new("RGB", (30, 30), (90 * number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [("dark", 1), ("red", 2), ("brown", 1), ("red", 1)]
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"query": {"text": text}, "target": {"image": f"{number}.png"}}) for text, number in rows]
    path.write_text("\n".join(lines))
    return path


def test_pairs_become_a_task(pairs):
    task = task_of_pairs(pairs)
    assert [item.text for item in task.queries] == ["dark", "red", "brown"]
    assert [item.files[0].name for item in task.gallery] == ["1.png", "2.png"]
    assert task.answers == [[0], [0, 1], [0]]


def test_bad_input(pairs, fails, tmp_path, tiny_model, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mteb" else found("json"))
    assert "mteb is not installed: pip install" in fails(eval_mteb.main, model_id=tiny_model, own=pairs)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("json"))
    for flags, parts in (
        (dict(), ["nothing to evaluate", "--tasks", "--own"]),
        (dict(tasks="SugarCrepe", image_root=tmp_path), ["--image_root", "--own"]),
        (dict(own=pairs), ["has no modules.json", "scripts/export.sh"]),
    ):
        sentence = fails(eval_mteb.main, model_id=tiny_model, **flags)
        assert all(part in sentence for part in parts), sentence


def check_prompts_of_the_folder(folder, world, monkeypatch):
    """mteb's wrapper alone, on tasks called as its own, gives what this project measures with its instructions."""
    import mteb
    from sentence_transformers import SentenceTransformer

    from lamra import load

    own = load(folder, dtype=torch.float32, device="cpu")
    library = SentenceTransformer(str(folder), device="cpu")
    encode, told = library.encode_query, []
    monkeypatch.setattr(library, "encode_query", lambda *args, **kw: told.append(kw["prompt"]) or encode(*args, **kw))
    model = mteb.models.SentenceTransformerEncoderWrapper(library)
    model.mteb_model_meta = model.mteb_model_meta.model_copy(update={"modalities": ["image", "text"]})
    files = world / "test/images", world / "test/captions.json"
    tasks = captioned_tasks(load_captioned_images(*files), "captions", files[1], "clean")
    for task, _, found in evaluate(tasks, lambda items: own.encode(items, None), depth=max(KS)):
        name = {"image_retrieval": "Flickr30kT2IRetrieval", "text_retrieval": "Flickr30kI2TRetrieval"}[task.name]
        result = mteb.evaluate(model, as_mteb(task, name), cache=None, co2_tracker=False)
        assert {*told} == {task.queries[0].instruction}
        told.clear()
        scores = result.task_results[0].scores["test"][0]
        for k in KS:
            assert scores[f"hit_rate_at_{k}"] == round(found[f"recall@{k}"], 5)


@has_mteb
def test_mteb_measures_what_we_do(world, stage1, pairs, fails, tmp_path, monkeypatch, capsys):
    """The benchmark, then the command on pairs, on names, and on pairs of several kinds."""
    folder = tmp_path / "export"
    call(export.main, model_id=stage1, save_path=folder, dtype="fp32", instruction_tuned=True)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    data = ["--image_data_path", world / "test/images", "--text_data_path", world / "test/captions.json"]
    monkeypatch.setattr(sys, "argv", ["mteb_agreement", "--model_id", str(folder), *map(str, data)])
    importlib.import_module("mteb_agreement").main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"numbers": 18, "max_abs_difference": 0.0}

    check_prompts_of_the_folder(folder, world, monkeypatch)

    call(eval_mteb.main, model_id=folder, own=pairs, output_dir=tmp_path / "out", bf16=False, instruction="Find it.")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["pairs"]["hit_rate_at_5"] == 1 and metrics["instruction"] == "Find it."
    assert json.loads((tmp_path / "out" / "pairs.json").read_text())["task_name"] == "pairs"
    pairs.write_text(pairs.read_text() + '\n{"query": {"text": "b"}, "target": {"text": "c"}}')
    for flags, words in (
        (dict(own=pairs), "all queries are of one kind"),
        (dict(tasks="SugarCreep"), "--tasks SugarCreep"),
        (dict(tasks="MSRVTTT2V"), "inputs of the kind video"),
    ):
        assert words in fails(eval_mteb.main, model_id=folder, output_dir=tmp_path / "out", **flags)
