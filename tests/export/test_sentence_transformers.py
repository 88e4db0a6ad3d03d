"""An export gives sentence-transformers this project's prompts and vectors, and this project the model itself."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys

import pytest
import torch
from clips import noise, write_clip
from conftest import call
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoTokenizer

from lamra import load
from lamra.collators.messages import embedding_messages, pointwise_messages
from lamra.collators.processing import Processor
from lamra.collators.videos import clip_of, frames_of
from lamra.common.errors import UserError
from lamra.datasets.items import Item, Picture, Text, Video
from lamra.eval.zeroshot import evaluate_captions
from lamra.export import sentence_transformers as export
from lamra.export import verify
from lamra.models.loading import load_model
from lamra.models.lora import add_lora
from lamra.models.settings import Settings

TEXTS = ["", "a", "Two dogs.", "两只狗 🙂", "line\nline", " blanks ", "{braces} 'quotes' \\ back", "\nafter a line end"]
INSTRUCTIONS = [None, "Find me a picture.", "它的图片'\\n"]
LIBRARY = ("sentence_transformers", "torchvision")
has_library = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in LIBRARY),
    reason=f"{' and '.join(LIBRARY)} are not both here: its own vectors are not compared",
)


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """An adapter with weights that are no zeros."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    model = add_lora(load_model(tiny_model, dtype=torch.float32), r=4, alpha=8, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    Settings(str(tiny_model), "sequential").write(folder)
    return folder


@pytest.fixture(scope="module")
def sources(adapter, stage1, tiny_qwen3, tmp_path_factory):
    reranker = tmp_path_factory.mktemp("reranker") / "reranker"
    shutil.copytree(stage1, reranker)
    Settings("elsewhere", "mrope", role="reranker", rank_style="released").write(reranker)
    qwen3 = shutil.copytree(tiny_qwen3, tmp_path_factory.mktemp("qwen3") / "qwen3")
    limits = dict(min_pixels=4 * 32 * 32, max_pixels=300 * 32 * 32)
    Settings("elsewhere", "mrope", **limits).write(qwen3)
    reranker3 = shutil.copytree(tiny_qwen3, tmp_path_factory.mktemp("reranker3") / "reranker3")
    Settings("elsewhere", "mrope", role="reranker", rank_style="qwen3_reranker", **limits).write(reranker3)
    return {"sequential": adapter, "mrope": stage1, "reranker": reranker, "qwen3": qwen3, "reranker3": reranker3}


@pytest.fixture(scope="module")
def exports(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for name, source in sources.items():
        call(export.main, model_id=source, save_path=folder / name, dtype="fp32")
    return {name: folder / name for name in sources}


def turns(*roles):
    """Messages as sentence-transformers makes them of what it is given."""
    messages = []
    for role, item in roles:
        pictures = [{"type": "video" if isinstance(part, Video) else "image"} for part in item.visuals]
        if item.instruction:
            messages.append({"role": "system", "content": [{"type": "text", "text": item.instruction}]})
        texts = [{"type": "text", "text": item.text}] if item.text is not None else []
        messages.append({"role": role, "content": [*texts, *pictures]})  # its order is the user's, ours pictures first
    return messages


def items():
    for text, pictures, instruction in itertools.product([None, *TEXTS], (0, 1, 2), INSTRUCTIONS):
        if text is not None or pictures:
            yield Item("", text, [verify.draw(30, 20, 0)] * pictures, instruction)


def videos():
    for text, pictures, instruction in itertools.product([None, *TEXTS[1:]], (0, 1), INSTRUCTIONS):
        parts = [Picture("not read")] * pictures + [Video("not read")]
        yield Item("", parts=[*parts, *([Text(text)] if text else [])], instruction=instruction)


def render(folder, messages):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("name", ["sequential", "mrope", "qwen3"])
def test_the_template_writes_this_projects_prompts(exports, name):
    processor = Processor(exports[name])
    found, apart = 0, name == "qwen3"  # which shows no videos there
    for item in items() if apart else (*items(), *videos()):
        assert render(exports[name], turns(("user", item))) == processor.render(embedding_messages(item)), item
        found += 1
    assert found == 78 + 48 * (not apart)
    clip = Item("", parts=[Video("not read")], instruction="Find.")
    if apart:
        with pytest.raises(TemplateError, match="no videos"):
            render(exports[name], turns(("user", clip)))
    for item in (Item("", "ready", instruction="Find."), *([] if apart else [clip])):
        ready = embedding_messages(item)
        assert render(exports[name], ready) == processor.render(ready)


@pytest.mark.parametrize(("name", "style"), [("reranker", "released"), ("reranker3", "qwen3_reranker")])
def test_the_rerankers_template_writes_its_question(exports, name, style):
    processor = Processor(exports[name])
    candidates = [item for item in items() if not item.instruction]
    for number, query in enumerate(items()):
        candidate = candidates[number % len(candidates)]
        expected = processor.render(pointwise_messages(style, query, candidate))
        assert render(exports[name], turns(("query", query), ("document", candidate))) == expected
    with pytest.raises(TemplateError, match="no videos"):
        render(exports[name], turns(("query", query), ("document", next(videos()))))


def test_this_project_loads_the_export_as_the_same_model(sources, exports, world, tmp_path):
    found = {}
    for name, folder in (("adapter", sources["sequential"]), ("export", exports["sequential"])):
        texts, images = world / "test" / "captions.json", world / "test" / "images"
        out = tmp_path / name
        flags = dict(image_data_path=images, text_data_path=texts, output_dir=out, bf16=False)
        call(lambda: evaluate_captions("Flickr30K"), model_id=folder, **flags)
        found[name] = (out / "metrics.json").read_bytes()
    assert found["adapter"] == found["export"]
    options = dict(dtype=torch.float32, device="cpu")
    for name in ("mrope", "sequential", "qwen3"):
        vectors = [load(of[name], **options).encode(list(items()), None) for of in (sources, exports)]
        assert torch.equal(*vectors)
    pair = Item("", "a query"), [Item("", "a candidate"), Item("", images=[verify.draw(30, 20, 1)])]
    assert torch.equal(*(load(of["reranker"], **options).rerank(*pair) for of in (sources, exports)))


def test_golden_inputs_are_of_all_kinds(exports):
    inputs = json.loads((exports["mrope"] / "golden.json").read_text())["inputs"]
    assert {len(entry["vector"]) for entry in inputs} == {128}
    kinds = [tuple(sorted(entry.keys() - {"vector"})) for entry in inputs]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("text",): 9,
        ("picture",): 7,
        ("picture", "text"): 4,
        ("instruction", "text"): 5,
        ("instruction", "picture"): 3,
        ("instruction", "picture", "text"): 2,
        ("clip",): 1,
        ("clip", "text"): 1,
        ("clip", "instruction", "text"): 1,
    }


@has_library
@pytest.mark.parametrize("name", ["sequential", "mrope", "reranker", "qwen3", "reranker3"])
def test_verify_tells_the_same_model_from_another(exports, name, tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "export"
    shutil.copytree(exports[name], folder)
    assert max(verify.measure(folder, "float32", name == "sequential", "cpu")) < 1e-6
    assert max(verify.measure(folder, "bfloat16", name == "sequential", "cpu")) < verify.LIMITS["bfloat16"]
    weights = load_file(folder / "model.safetensors")
    weights[next(name for name in weights if "mlp.up_proj" in name)][3, 5] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(verify, "__file__", str(folder / "verify.py"))
    monkeypatch.setattr(sys, "argv", ["verify.py", *(["--trust_remote_code"] if name == "sequential" else [])])
    assert verify.main() == 1 and "NOT the same" in capsys.readouterr().out


@has_library
@pytest.mark.parametrize("name", ["sequential", "mrope"])
def test_the_library_gives_the_same_vectors(exports, name, tmp_path):
    """One at a time and in padded batches of 32, texts, pictures and frames of clips mixed."""
    from sentence_transformers import SentenceTransformer

    clip = write_clip(tmp_path / "clip.mkv", [noise(80, 60, number) for number in range(30)], rate=10, codec="ffv1")
    read = clip_of(Video(clip), "clip")
    rows = read.rows(Video(clip))
    height, width = read.size(len(rows), 28)
    sized = [frame.resize((width, height), Image.Resampling.BICUBIC) for frame in frames_of(Video(clip), rows, "clip")]
    assert len(sized) == 6
    frames = {"array": sized, "video_metadata": {"fps": 2, "total_num_frames": 6}}
    library = SentenceTransformer(str(exports[name]), device="cpu", trust_remote_code=name == "sequential")
    own = load(exports[name], dtype=torch.float32, device="cpu")
    for instruction in INSTRUCTIONS:
        chosen = [item for item in items() if item.instruction == instruction and len(item.images) < 2 and item.text]
        shown = [{"image": item.images[0], "text": item.text} if item.images else item.text for item in chosen]
        pictures = [Item("", None, [verify.draw(*size, 3)], instruction) for size in ((30, 20), (300, 200), (1, 1))]
        chosen, shown = chosen + pictures, shown + [item.images[0] for item in pictures]
        clips = [Item("", parts=[Video(clip), *text], instruction=instruction) for text in ([], [Text("a dog")])]
        chosen, shown = chosen + clips, [*shown, {"video": frames}, {"text": "a dog", "video": frames}]
        expected = own.encode(chosen, None)
        for size in (1, 32):
            found = library.encode(shown, prompt=instruction, batch_size=size, convert_to_tensor=True)
            assert (found - expected).abs().max() < 1e-6
    with pytest.raises(ValueError, match="no video metadata was provided"):  # else a rate of 24 would be taken
        library.encode([{"video": sized}])


@has_library
def test_code_of_the_folder_is_not_run_unasked(exports):
    from sentence_transformers import SentenceTransformer

    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(exports["sequential"]))


def test_verify_says_what_it_needs(exports, tmp_path):
    """-S: without any package."""
    ran = subprocess.run(
        [sys.executable, "-S", exports["mrope"] / "verify.py"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 2 and 'pip install "sentence-transformers[image]"' in ran.stderr


def test_the_card_says_what_was_trained_and_measured(adapter, tmp_path):
    source, results = tmp_path / "run", tmp_path / "results"
    shutil.copytree(adapter, source)
    run_json = {"arguments": {"model_id": "qwen2-vl-2b", "queries": "q.jsonl", "learning_rate": 2e-4, "lora_r": 64}}
    run_json["arguments"] |= {"learn_temperature": True, "temperature": 0.07}
    (source / "run.json").write_text(json.dumps(run_json))
    (results / "flickr30k").mkdir(parents=True)
    measured = {"image_retrieval_recall@1": 0.8123, "protocol": "clean", "queries": 5000}
    (results / "flickr30k" / "metrics.json").write_text(json.dumps(measured))
    call(export.main, model_id=source, save_path=tmp_path / "out", results=results)
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "base_model: qwen2-vl-2b",
        "| learning_rate | 0.0002 |",
        "| temperature | 0.05, learnt from 0.07 |",
        "| flickr30k | clean | image_retrieval_recall@1 | 0.8123 |",
        "trust_remote_code=True",
        "prompt=",
    ):
        assert part in card
    assert "5000" not in card


def prompts_of(folder):
    return json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]


def test_an_instruction_tuned_retriever_tells_mteb_what_to_find(adapter, exports, tmp_path, capsys):
    assert prompts_of(exports["sequential"]) == prompts_of(exports["mrope"]) == {"query": "", "document": ""}
    assert prompts_of(exports["reranker"]) == {}
    stage2 = tmp_path / "stage2"
    shutil.copytree(adapter, stage2)
    for arguments, told, expected in (
        ({"data_path": "nli.csv"}, None, False),
        ({"data_path": "nli.csv"}, True, True),
        ({"queries": "q.jsonl"}, False, False),
        ({"queries": "q.jsonl"}, None, True),
    ):
        (stage2 / "run.json").write_text(json.dumps({"arguments": arguments}))
        assert export.is_instruction_tuned(str(stage2), told) is expected
    assert "run.json" not in capsys.readouterr().out
    assert not export.is_instruction_tuned(str(adapter), None)
    assert f"no run.json says how {adapter} was trained" in capsys.readouterr().out
    call(export.main, model_id=stage2, save_path=tmp_path / "out")
    find = "Find me an everyday image that matches the given caption."
    describe = "Find an image caption describing the following everyday image."
    assert prompts_of(tmp_path / "out") == {
        "query": "",
        "document": "",
        "Flickr30kT2IRetrieval-query": find,
        "Flickr30kI2TRetrieval-query": describe,
        "MSCOCOT2IRetrieval-query": find,
        "MSCOCOI2TRetrieval-query": describe,
    }
    assert f'prompt="{find}"' in (tmp_path / "out" / "README.md").read_text()


def test_bad_input(sources, exports, fails, tmp_path, no_model):
    taken, holiday = exports["mrope"], tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "photo.jpg").touch()
    for flags, parts in (
        (dict(save_path=taken), ["--save_path", "is not empty", "--force True"]),
        (dict(save_path=holiday), ["--save_path", "is not empty"]),
        (dict(save_path=holiday, force=True), ["--save_path", "no export to replace"]),
        (dict(save_path=sources["mrope"]), ["--save_path", "the model's own folder"]),
        (dict(save_path=tmp_path / "new", public=True), ["--public True needs --push"]),
    ):
        sentence = fails(export.main, model_id=sources["mrope"], **flags)
        assert all(part in sentence for part in parts), sentence
    assert list(holiday.iterdir()) == [holiday / "photo.jpg"]
    judge = dict(model_id=sources["reranker"], save_path=tmp_path / "new", instruction_tuned=True)
    assert "--instruction_tuned True is of retrievers" in fails(export.main, **judge)
    orphan = tmp_path / "orphan"
    shutil.copytree(sources["sequential"], orphan)
    Settings(str(tmp_path / "gone"), "sequential").write(orphan)
    assert "its base model is not in" in fails(export.main, model_id=orphan, save_path=tmp_path / "new")


def test_an_export_of_another_kind_is_replaced_as_a_whole(sources, exports, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exports["sequential"], folder)
    call(export.main, model_id=sources["reranker"], save_path=folder, dtype="fp32", force=True)
    names = [sorted(path.name for path in of.iterdir() if path.name[0] != ".") for of in (folder, exports["reranker"])]
    assert names[0] == names[1]


def test_a_push_is_private(sources, monkeypatch, tmp_path):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))
            if name == "nobody/none":
                raise OSError("no such namespace")

        def upload_folder(self, folder_path, repo_id, **_):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
            return "https://hub/me/model"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    call(export.main, model_id=sources["mrope"], save_path=tmp_path / "export", push="me/model")
    assert calls[0] == ("me/model", {"private": True, "exist_ok": True}) and "README.md" in calls[1][1]
    with pytest.raises(UserError, match="--push nobody/none: no such namespace"):
        export.push(tmp_path, "nobody/none", private=True)
