"""Guests: models of sentence-transformers in our evaluations.

The library itself where it is installed; what does not need it runs with a stand-in (support/guests).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call, run_script
from guest_worker import evaluate_all
from PIL import Image

from lamra import demo, load
from lamra.datasets.items import Item, Picture, Text
from lamra.datasets.zeroshot.sugar_crepe import KINDS
from lamra.eval import embed, mine_rerank
from lamra.eval.flags import GuestArguments
from lamra.export import sentence_transformers as export

STAND_IN = ROOT / "tests" / "support" / "guests"
LIBRARY = "sentence-transformers"
ALL = ["text", "image", "message"]


@pytest.fixture
def stand_in(monkeypatch):
    """The stand-in as the installed library; its class, which remembers what it was called with."""
    monkeypatch.syspath_prepend(STAND_IN)
    monkeypatch.delitem(sys.modules, "sentence_transformers", raising=False)
    importlib.invalidate_caches()
    module = importlib.import_module("sentence_transformers")
    monkeypatch.setattr(module.SentenceTransformer, "calls", [])
    yield module.SentenceTransformer
    del sys.modules["sentence_transformers"]


def guest(folder: Path, modalities: list[str] = ALL, **more: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps({"modalities": modalities, **more}))
    return folder


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """SugarCrepe, ShareGPT4V and items to embed, about the world's test pictures."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "sugarcrepe").mkdir()
    rows = {str(n): {"filename": f"{n}.png", "caption": f"ball {n}", "negative_caption": f"box {n}"} for n in range(5)}
    for kind in KINDS:
        (folder / "sugarcrepe" / f"{kind}.json").write_text(json.dumps(rows))
    pairs = [{"image_name": f"{number}.png", "caption": f"a long caption {number}"} for number in range(8)]
    (folder / "sharegpt4v.json").write_text(json.dumps(pairs))
    items = [{"id": str(n), **({"text": f"word {n}"} if n % 2 else {"image": f"{n}.png"})} for n in range(10)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files; rankings without their scores, whose last bit depends on how many processes share a search."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: re.sub(rb'"score": [^,]+', b"", of) if "ranking_" in name else of for name, of in found.items()}


def test_one_and_two_processes(stand_in, world, mbeir, suite, tmp_path):
    model = guest(tmp_path / "model")
    evaluate_all(model, world, mbeir, suite, tmp_path / "one", library=LIBRARY)
    command = ("torchrun", "--standalone", "--nproc_per_node", 2, "tests/support/guest_worker.py", STAND_IN)
    run_script(*command, model, world, mbeir, suite, tmp_path / "two")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys() and not [name for name in one if one[name] != two[name]]
    metrics = {name: json.loads(one[name]) for name in one if name.endswith("metrics.json")}
    assert len(metrics) == 5 and {found["library"] for found in metrics.values()} == {f"{LIBRARY} 6.2.0 (stand-in)"}
    manifests = [json.loads(one[name]) for name in one if name.endswith(("made_by.json", "manifest.json"))]
    assert len(manifests) > 10 and all(of["library"] == f"{LIBRARY} 6.2.0 (stand-in)" for of in manifests)


def test_what_the_library_is_given(stand_in, world, tmp_path):
    path = world / "test" / "images" / "0.png"
    retriever = load(guest(tmp_path / "chats"), library=LIBRARY)
    several = Item("s", parts=(Text("a"), Picture(path), Text("b")))
    both = Item("b", "a circle", (path,), "Find it.")
    with Image.open(path) as image:
        found = retriever.encode([str(path), image, both, several, Item("q", "a circle", instruction="Find it.")])
    assert found.shape == (5, 16) and found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    calls = {(prompt, str(seen)) for prompt, inputs in stand_in.calls for seen in inputs}
    prompts = [prompt for prompt, _ in stand_in.calls]
    assert len(stand_in.calls) == 5 and prompts.count("Find it.") == 2 and prompts.count(None) == 3
    assert (None, str({"text": str(path)})) in calls  # a text, not the picture of that path
    assert ("Find it.", str({"text": "a circle"})) in calls
    shown = next(inputs[0] for prompt, inputs in stand_in.calls if isinstance(inputs[0], list))
    (turn,) = shown
    assert turn["role"] == "user" and [part["type"] for part in turn["content"]] == ["text", "image", "text"]
    pair = next(inputs[0] for _, inputs in stand_in.calls if isinstance(inputs[0], dict) and len(inputs[0]) == 2)
    assert list(pair) == ["image", "text"] and pair["image"].mode == "RGB"  # in the order of the item

    stand_in.calls.clear()
    load(guest(tmp_path / "clip", ["text", "image"]), library=LIBRARY).encode(["a circle"], instruction="Find it.")
    assert stand_in.calls == [("Find it. ", [{"text": "a circle"}])]  # no chat template sets them apart
    load(guest(tmp_path / "texts", ["text"]), library=LIBRARY).encode(["a circle"])
    assert stand_in.calls[1] == (None, ["a circle"])
    half = load(tmp_path / "texts", library=LIBRARY, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and half.encode(["a circle"]).dtype == torch.float32


def test_what_a_guest_does_not_take(stand_in, world, tmp_path, fails):
    path = world / "test" / "images" / "0.png"
    both = Item("b", "a circle", (path,))
    several = Item("s", images=(path, path))
    for modalities, entry, words in (
        (["text"], path, "item 1 is a picture, and this model of sentence-transformers takes a text alone: leave"),
        (["text", "image"], both, "item b is a picture and a text, and .* takes a text or a picture alone: leave"),
        (["text", "image"], several, "item s is a picture and a picture, and"),
        (ALL, Path("clip.mp4"), "item 1 is a video, and .* takes a text or a picture: leave"),
    ):
        retriever = load(guest(tmp_path / "model", modalities), library=LIBRARY)
        with pytest.raises(ValueError, match=words):
            retriever.encode(["a", entry])
        assert not stand_in.calls  # nothing is embedded before
    flags = dict(model_id=guest(tmp_path / "texts", ["text"]), library=LIBRARY, folder=path.parent, text="a")
    assert "takes a text alone: leave this task out, or give another model" in fails(demo.main, **flags)


def test_what_is_refused(stand_in, tiny_model, tmp_path, fails, monkeypatch):
    def sentence(folder: Path | str, **flags: object) -> str:
        (tmp_path / "items.jsonl").write_text('{"id": "a", "text": "a"}\n')
        files = dict(input=tmp_path / "items.jsonl", output=tmp_path / "out.npz")
        return fails(embed.main, model_id=folder, **files, **{"library": LIBRARY, **flags})

    model = guest(tmp_path / "model")
    for name in ("colpali", "colpali-engine", "PyLate"):
        assert f"--library {name}: its models have a vector for each token" in sentence(model, library=name)
    assert "--library openclip: expected sentence-transformers" in sentence(model, library="openclip")
    assert "--max_pixels 3136 is a setting of LamRA's models" in sentence(model, max_pixels=3136)
    assert "--padding_free False is a setting of LamRA's" in sentence(model, padding_free=False)
    (tmp_path / "empty").mkdir()
    assert "is no whole model of sentence-transformers" in sentence(tmp_path / "empty")
    for file, content in (
        ("config_sentence_transformers.json", {"model_type": "MultiVectorEncoder"}),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}),
        ("config.json", {"model_type": "colqwen2"}),
        ("config.json", {"model_type": "bert", "architectures": ["HF_ColBERT"]}),
    ):
        (guest(tmp_path / "other") / file).write_text(json.dumps(content))
        kind = content.get("architectures", [content["model_type"]])[0]
        assert f"is a {kind}: it does not have one dense vector for an item" in sentence(tmp_path / "other")
        (tmp_path / "other" / file).unlink()
    code = guest(tmp_path / "code", code=True)
    assert "runs its own code: read it, and give --trust_remote_code True" in sentence(code)
    assert load(code, library=LIBRARY, trust_remote_code=True).encode(["a"]).shape == (1, 16)
    faulty = guest(tmp_path / "faulty", fault="ImportError")
    assert 'It says why: --library needs it installed: pip install "sentence-transformers[image]"' in sentence(faulty)
    assert "cannot be loaded by sentence-transformers 6.2.0 (stand-in): It says why" in sentence(
        guest(tmp_path / "faulty", fault="OSError")
    )
    with pytest.raises(ValueError, match="It says why"):  # a bug of somebody's, with its traceback
        load(guest(tmp_path / "faulty", fault="ValueError"), library=LIBRARY)
    with pytest.raises(ValueError, match="--trust_remote_code True: expected --library beside it"):
        load(tiny_model, trust_remote_code=True)
    monkeypatch.delattr(stand_in, "supports")
    assert "6.2.0 (stand-in) is too old" in sentence(model)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert 'sentence-transformers needs it installed: pip install "sentence-transformers[image]"' in sentence(model)


def test_demo_and_mining(stand_in, world, mbeir, tiny_model, tmp_path, capsys):
    model = guest(tmp_path / "model")
    flags = dict(model_id=model, library=LIBRARY, folder=world / "test" / "images", text="a red circle", top=3)
    call(demo.main, **flags, rerank=tiny_model)
    assert "a guest of sentence-transformers 6.2.0 (stand-in), takes text, image, message" in capsys.readouterr().out
    call(mine_rerank.main, model_id=model, library=LIBRARY, data_path=mbeir, output_dir=tmp_path / "mined", top=3)
    assert json.loads((tmp_path / "mined" / "made_by.json").read_text())["library"].startswith(LIBRARY)


def test_other_weights_are_told(stand_in, tmp_path):
    """Any file of the guest's folder may decide its vectors, also one below it."""
    model = guest(tmp_path / "model")
    args = GuestArguments(str(model), library=LIBRARY)
    retriever = load(model, library=LIBRARY)
    provenance = retriever.provenance(args)
    (model / "1_Dense").mkdir()
    (model / "1_Dense" / "model.safetensors").write_bytes(b"1")
    other = retriever.provenance(args)
    assert {name for name in other if other[name] != provenance[name]} == {"model"}


def test_a_clip(world, suite, tmp_path):
    """The library itself: our vectors are its own, in every evaluation that a CLIP can enter."""
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed: no CLIP of its own is tried"
    )
    from random_clip import build_clip

    folder = build_clip(tmp_path)
    evaluate_all(folder, world, None, suite, tmp_path / "out", library=LIBRARY)
    metrics = json.loads((tmp_path / "out" / "flickr" / "metrics.json").read_text())
    assert metrics["library"] == f"sentence-transformers {library.__version__}"
    retriever = load(folder, library=LIBRARY)
    paths = sorted((world / "test" / "images").iterdir())
    texts = ["a red circle", "a blue box", str(paths[0])]
    clip = library.SentenceTransformer(str(folder), device="cpu")
    for entries, inputs in (
        (texts, [{"text": text} for text in texts]),
        (paths, [Image.open(path).convert("RGB") for path in paths]),
    ):
        own = clip.encode(inputs, normalize_embeddings=True, convert_to_tensor=True)
        found = retriever.encode(entries)
        torch.testing.assert_close(found, own, atol=1e-5, rtol=0)
        assert (found @ found.T).fill_diagonal_(0).max() < 0.9999  # they differ
    with pytest.raises(ValueError, match="takes a text or a picture alone"):
        retriever.encode([{"text": "a", "image": paths[0]}])
    prompted = clip.encode(["Find it. a red circle"], normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(retriever.encode(texts[:1], instruction="Find it."), prompted, atol=1e-5, rtol=0)


def test_an_export_is_its_model(stage1, world, suite, tmp_path):
    """LamRA's own export as a guest: its vectors, and every recall, are those of the model itself."""
    pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed: no export is tried as a guest"
    )
    folder, trusted = tmp_path / "export", {"library": LIBRARY, "trust_remote_code": True}
    call(export.main, model_id=stage1, save_path=folder, dtype="fp32")
    path = world / "test" / "images" / "0.png"
    entries = ["a red circle", path, {"image": path, "text": "a box"}, Item("q", "a box", instruction="Find it.")]
    torch.testing.assert_close(load(folder, **trusted).encode(entries), load(stage1).encode(entries), atol=2e-6, rtol=0)
    evaluate_all(folder, world, None, suite, tmp_path / "guest", **trusted)
    evaluate_all(stage1, world, None, suite, tmp_path / "own")
    for name in ("flickr", "sugarcrepe", "sharegpt4v"):
        found, own = (json.loads((tmp_path / of / name / "metrics.json").read_text()) for of in ("guest", "own"))
        assert found.pop("library").startswith(LIBRARY) and found == own
