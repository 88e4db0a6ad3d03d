"""Caches and checkpoints know what they were made of: weights, tokenizer, prompts, pictures; old ones are told."""

from __future__ import annotations

import json
import os
import resource
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lamra.collators import messages
from lamra.collators.processing import Processor
from lamra.collators.rerank import RankPrompts
from lamra.collators.texts import ToldTexts
from lamra.common.files import sha256
from lamra.datasets.items import Item
from lamra.datasets.rankings import RankedQuery
from lamra.datasets.tasks import ItemList, RetrievalTask
from lamra.eval.cache.embeddings import encode_to_shards
from lamra.eval.cache.manifest import VERSION, prompts_sha256, provenance_of
from lamra.eval.flags import RetrieverArguments
from lamra.eval.rerank import answers as rerank_answers
from lamra.eval.rerank.answers import answers_of, divided, joined
from lamra.models import digests
from lamra.models.digests import KEPT, MODEL_FILES, model_sha256
from lamra.models.loading import load_trained
from lamra.models.settings import Settings, settings_to_train
from lamra.train.record import check_unchanged


def exchange(a, b) -> None:
    """The two files' contents, under the size and time that the names had."""
    contents, times = [path.read_bytes() for path in (a, b)], [path.stat().st_mtime_ns for path in (a, b)]
    for path, content, time in zip((a, b), reversed(contents), times):
        path.write_bytes(content)
        os.utime(path, ns=(time, time))


def test_every_file_that_decides_is_in_the_digest_and_read_once(tiny_model, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for name in MODEL_FILES:
        if not list(folder.glob(name)):
            (folder / name.replace("*", "x")).write_text("{}")
    read = []
    stock = digests.sha256
    monkeypatch.setattr(digests, "sha256", lambda path: read.append(path.name) or stock(path))
    found = [model_sha256(folder)]
    files = {path.name for pattern in MODEL_FILES for path in folder.glob(pattern)}
    assert set(read) == files and len(files) >= len(MODEL_FILES)
    digests._sha256_at.cache_clear()  # another process
    assert model_sha256(folder) == found[0] and len(read) == len(files)
    assert set(json.loads((folder / KEPT).read_text())) == files
    for name in sorted(files):
        path, before = folder / name, (folder / name).stat()
        path.write_bytes(path.read_bytes()[:-1] + b"!")  # as long as before, and as old
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        found.append(model_sha256(folder))
    assert len(set(found)) == len(found) == 1 + len(files)
    (folder / "trainer_state.json").write_text("{}")
    assert model_sha256(folder) == found[-1]

    (folder / KEPT).write_text("half")
    digests._sha256_at.cache_clear()
    monkeypatch.setattr(digests, "LARGE", 0)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    assert model_sha256(folder) == found[-1]
    assert "cannot be written (Read-only file system): its files are read" in capsys.readouterr().out
    assert not list(folder.glob(f"{KEPT}.*"))


def test_an_adapter_knows_its_base_by_content(golden_folder, golden_adapter, tmp_path, capsys):
    base = shutil.copytree(golden_folder, tmp_path / "base")
    adapter = shutil.copytree(golden_adapter, tmp_path / "adapter")
    settings = settings_to_train(base, text_max_tokens=None, temperature=0.05)
    assert settings.base_sha256 == model_sha256(base)
    settings.write(adapter)
    load_trained(adapter, dtype=torch.float32)
    moved = shutil.copytree(base, tmp_path / "moved")
    assert not capsys.readouterr().out
    shutil.move(base, tmp_path / "gone")
    load_trained(adapter, moved, dtype=torch.float32)
    assert not capsys.readouterr().out
    shutil.move(tmp_path / "gone", base)

    config = json.loads((base / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-5
    (base / "config.json").write_text(json.dumps(config))
    ids = f"{settings.base_sha256[:16]}, and {base} has {model_sha256(base)[:16]}: its weights, config or tokenizer"
    with pytest.raises(ValueError, match=ids):
        load_trained(adapter, dtype=torch.float32)
    replace(settings, base_sha256=None).write(adapter)  # of an earlier version
    load_trained(adapter, dtype=torch.float32)
    assert "does not say what its base model held" in capsys.readouterr().out


def test_a_run_goes_on_with_its_base_only(tmp_path, capsys):
    before, now = {"seed": 0, "base_model": "b", "base_sha256": "old"}, {"seed": 0, "base_model": "b"}
    (tmp_path / "manifest.json").write_text(json.dumps(before))
    check_unchanged(tmp_path, now | {"base_sha256": "old"}, allow_changes=False)
    with pytest.raises(ValueError, match="base_sha256 was old and is new; set them back"):
        check_unchanged(tmp_path, now | {"base_sha256": "new"}, allow_changes=True)
    (tmp_path / "manifest.json").write_text(json.dumps(now))  # of an earlier version
    check_unchanged(tmp_path, now | {"base_sha256": "new"}, allow_changes=False)
    assert "does not say its base_sha256: they are not compared" in capsys.readouterr().out


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (28, 28), (80 * i, 0, 0)).save(folder / f"{i}.bmp")  # of one size
    return folder


def encoded(items, folder, manifest) -> np.ndarray:
    """Embeddings (N, 1) by a model that sees the first red pixel."""

    def encode(part, _, dtype, **options):
        red = [[float(Image.open(item.images[0]).getpixel((0, 0))[0])] for item in part]
        return torch.tensor(red, dtype=dtype)

    retriever = SimpleNamespace(encode=encode)
    found = encode_to_shards(retriever, items, folder, manifest, 2)
    return found[: len(found)][:, 0].tolist()


def test_a_cache_in_half_the_space_is_another_and_read_as_float32(pictures, tmp_path):
    items = [Item(f"{i}", images=(pictures / f"{i}.bmp",)) for i in range(3)]
    half, whole = {"version": 2, "store": "float16"}, {"version": 2}
    assert encoded(items, tmp_path / "half", half) == encoded(items, tmp_path / "whole", whole)
    assert np.load(tmp_path / "half" / "00000.npy").dtype == np.float16
    assert np.load(tmp_path / "whole" / "00000.npy").dtype == np.float32
    with pytest.raises(ValueError, match=r"made otherwise \(not the same: store\)"):
        encoded(items, tmp_path / "whole", half)


def test_a_cache_is_not_another_models_prompts_or_pictures(tiny_model, pictures, tmp_path, monkeypatch, capsys):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    settings, module = Settings(str(model), "mrope"), torch.nn.Linear(1, 1)

    def manifest(**more) -> dict:
        return provenance_of(RetrieverArguments(str(model)), settings, module, **more)

    # Caches that are there hold this digest: another one makes every embedding and answer anew.
    assert prompts_sha256() == "8e8937eca515689ec511a58dba454373b5215df51fdad0c41d987dfd25cdabd2"
    items = [Item(str(i), None, (pictures / f"{i}.bmp",)) for i in range(3)]
    cache, before = tmp_path / "cache", manifest()
    assert encoded(items, cache, before) == [0, 80, 160] == encoded(items, cache, manifest())
    exchange(pictures / "0.bmp", pictures / "1.bmp")
    assert encoded(items, cache, before) == [0, 80, 160]  # sizes and times tell, and these were restored
    times = [path.stat().st_mtime_ns for path in sorted(pictures.iterdir())]
    os.utime(pictures / "0.bmp", ns=(times[0], times[0] + 1000))
    with pytest.raises(ValueError, match=r"made otherwise \(not the same: pictures\): choose another --output_dir"):
        encoded(items, cache, before)
    assert encoded(items, tmp_path / "fresh", before) == [80, 0, 160]
    (pictures / "0.bmp").unlink()
    with pytest.raises(ValueError, match="not the same: pictures"):
        encoded(items, cache, before)

    assert {name: manifest(protocol="clean")[name] != before[name] for name in ("protocol", "model")} == {
        "protocol": True,
        "model": False,
    }
    assert "special_tokens_in_text" not in before  # older caches of such models go on
    with monkeypatch.context() as patch:
        patch.setitem(vars(settings), "special_tokens_in_text", "plain")
        assert set(manifest().items()) - set(before.items()) == {("special_tokens_in_text", "plain")}
    with monkeypatch.context() as patch:
        patch.setattr(messages, "SUMMARIZE_IMAGE", "\nSummarize above image in one word:")  # a blank less
        assert {name for name, value in manifest().items() if value != before[name]} == {"prompts"}
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        (model / name).write_text((model / name).read_text() + " ")
        changed = manifest()
        assert {name for name, value in changed.items() if value != before[name]} == {"model"}
        before = changed


def test_a_cache_of_an_earlier_version_is_made_anew_with_a_note(pictures, tmp_path, capsys):
    items = [Item(str(i), None, (pictures / f"{i}.bmp",)) for i in range(3)]
    (tmp_path / "cache").mkdir()
    np.save(tmp_path / "cache" / "00000.npy", np.zeros((2, 1), np.float32))
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps({"model": "a", "items": 3, "shard_size": 2}))
    for noted in (True, False):
        assert encoded(items, tmp_path / "cache", {"version": VERSION}) == [0, 80, 160]
        assert ("holds embeddings of an earlier version, which are made anew" in capsys.readouterr().out) is noted
    (tmp_path / "cache" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="made otherwise"):
        encoded(items, tmp_path / "cache", {"version": VERSION})


class Answering:
    """A judge that answers with the pictures' first red values, from the pixels that arrive."""

    num_workers, queries, seconds = 1, 0, 0.0

    def __init__(self, folder):
        self.prompts, self.texts = RankPrompts(Processor(folder), "released"), ToldTexts()

    def answer(self, _style, _query, candidates):
        pixels = (shown.pixel_values for shown in candidates)
        return [None if of_item is None else round(float(of_item[0, 0]), 3) for of_item in pixels]


def test_a_reranked_query_needs_few_file_handles_and_sees_exchanged_pictures(tiny_model, pictures, tmp_path):
    many = [Item(str(i), None, (pictures / f"{i % 3}.bmp",)) for i in range(200)] + [Item("text", "a")]
    queries = [Item("q", "a"), Item("p", None, (pictures / "2.bmp",))]
    task = RetrievalTask("task", ItemList(queries, "queries", ""), ItemList(many, "gallery", ""), [[], []])
    ranking = [RankedQuery(query, [*range(201)], [0.0] * 201) for query in (0, 1)]
    judge = Answering(tiny_model)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, limit[1]))
    try:
        answers = answers_of(judge, task, ranking, "pointwise", 300, tmp_path / "answers", {"version": 2}, "ask")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    shown = [judge.prompts.prepare(item) for item in many]
    assert [*answers] == 2 * [judge.answer("", None, shown)] and len(set(answers[0])) == 4
    for one, again in zip(shown, divided(joined(shown)), strict=True):
        assert one.item == again.item and (one.pixel_values is None) == (again.pixel_values is None)
        assert one.pixel_values is None or torch.equal(one.pixel_values, again.pixel_values)
        assert one.pixel_values is None or torch.equal(one.image_grid_thw, again.image_grid_thw)
    assert divided(joined(shown[-1:])) == shown[-1:]  # a text alone

    os.utime(pictures / "1.bmp", ns=(0, 0))
    with pytest.raises(ValueError, match=r"holds answers made otherwise \(not the same: pictures\)"):
        answers_of(judge, task, ranking, "pointwise", 300, tmp_path / "answers", {"version": 2}, "ask")


def test_a_candidate_of_many_queries_is_decoded_once(tiny_model, pictures, tmp_path, monkeypatch):
    """8 queries with the same 3 pictures among their candidates, and one picture that is a query and no candidate."""
    gallery = [Item(str(i), "a" if i % 2 else None, (pictures / f"{i % 3}.bmp",)) for i in range(6)]
    Image.new("L", (56, 28), 7).save(pictures / "query.png")  # grey: decoding makes it RGB
    queries = [Item("picture", None, (pictures / "query.png",)), *(Item(str(i), "a") for i in range(7))]
    task = RetrievalTask("task", ItemList(queries, "queries", ""), ItemList(gallery, "gallery", ""), 8 * [[]])
    ranking = [RankedQuery(query, [*range(6)], 6 * [0.0]) for query in range(8)]
    judge, opened, found = Answering(tiny_model), [], {}
    judge.num_workers = 0
    stock = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **of: opened.append(path) or stock(path, **of))
    picture = 3 * 28 * 28  # bytes
    for kept, decoded in ((0, 8 * 6 + 1), (2 * picture, 8 * 6 + 1), (3 * picture, 3 + 1), (2**20, 3 + 1)):
        monkeypatch.setattr(rerank_answers, "PIXELS_KEPT", kept)
        opened.clear()
        answers_of(judge, task, ranking, "pointwise", 6, tmp_path / str(kept), {"version": 2}, "ask")
        found[kept] = (tmp_path / str(kept) / "0.jsonl").read_bytes()
        # The query's picture is of two, and drops what it has no room beside.
        assert len(opened) == decoded, kept
    assert len(set(found.values())) == 1


def test_a_large_file_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "KEPT_FROM", 4)
    read: list[str] = []
    monkeypatch.setattr(digests, "sha256", lambda path: read.append(path.name) or sha256(path))
    path, small = tmp_path / "pool.jsonl", tmp_path / "small"
    path.write_text("12345")
    small.write_text("1")
    for _ in range(3):
        digests._sha256_at.cache_clear()  # as in another process
        assert digests.file_sha256(path) == sha256(path) and digests.file_sha256(small) == sha256(small)
    assert read == ["pool.jsonl", *3 * ["small"]]
    path.write_text("54321")
    assert digests.file_sha256(path) == sha256(path) and read[-1] == "pool.jsonl"
    (tmp_path / digests.KEPT).write_text('{"pool.jsonl": {"size": 5, "sha256": "0"}}')
    assert digests.file_sha256(path) == sha256(path)
