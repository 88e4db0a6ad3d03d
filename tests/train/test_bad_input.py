"""A user's mistake is told in one sentence that names the file or flag, before a model is loaded; exit status 2."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamra.common.cli import run
from lamra.common.files import path_inside
from lamra.datasets.nli import NLIPairs
from lamra.eval import embed, zeroshot
from lamra.export import merge_lora
from lamra.models import loading
from lamra.models.settings import Settings
from lamra.train import train_nli
from lamra.train.arguments import TrainingArguments

FOLDERS = ("app", "benchmarks", "collators", "datasets", "eval", "models", "train")


@pytest.mark.parametrize(
    ("csv", "words"),
    [
        (None, "does not exist: bash scripts/download.sh nli gets it"),
        ("", "cannot be read as a csv: it is empty"),
        ("sent0,sent1,hard_neg\n", "has no row with sent0 and sent1"),
        ("sent0,sent1\n,\n  ,x\n", "has no row with sent0 and sent1 (2 rows with an empty one)"),
        ("a,b\n1,2\n", "lacks the column sent0, sent1: its header is a, b"),
        ('sent0,sent1\n"a,b\n', "cannot be read as a csv"),
        ("sent0,sent1\na,b\na,b,c,d\n", "line 3"),
        ("sent0,sent1\nx,a,b\ny,c,d\n", "line 2 has 3 columns and the header 2"),
        (b"sent0,sent1\n\xff\xfe,b\n", "line 2 is not UTF-8 (byte 0xff)"),
        ("sent0,sent1\na,b\n", "at most the 1 pairs of"),
    ],
)
def test_csv(fails, no_model, tiny_model, tmp_path, csv, words):
    path = tmp_path / "data.csv"
    if csv is not None:
        path.write_bytes(csv if isinstance(csv, bytes) else csv.encode())
    error = fails(
        train_nli.main, model_id="miniature", model_local_path=tiny_model, data_path=path, output_dir=tmp_path / "o"
    )
    assert words in error and str(path) in error


def test_words_that_pandas_takes_for_nothing_are_sentences(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("sent0,sent1,hard_neg\nNone,null,\nNA,nan,x\n,y,z\n")
    pairs = NLIPairs(path)
    assert [(p.query.text, p.target.text) for p in pairs] == [("None", "null"), ("NA", "nan")]
    assert pairs.dropped == 1
    with_negatives = NLIPairs(path, use_hard_negatives=True)
    assert with_negatives.dropped == 2 and with_negatives[0].negatives[0].text == "x"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_csv_as_spreadsheets_write_it(tmp_path, mark):
    path = tmp_path / "data.csv"
    null = "\0" if sys.version_info >= (3, 11) else " "  # Python 3.10's csv takes none
    path.write_bytes(mark + f'"sent0",sent1\r\n"a, ""b""\nc",d\r\n{"x" * 300_000},e{null}f\r\n'.encode())
    assert [(p.query.text, p.target.text) for p in NLIPairs(path)] == [('a, "b"\nc', "d"), ("x" * 300_000, f"e{null}f")]


PIECES = [b'"', b",", b"\n", b"\r", b"\0", b"a", b" ", b"\xc3\xa9", b"\xff", b"\\", b"NA", b"sent0", b"\xef\xbb\xbf"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join),
    header=st.sampled_from([b"", b"sent0,sent1,hard_neg\n", b"\xef\xbb\xbfsent1,sent0\r\n"]),
    use_hard_negatives=st.booleans(),
)
def test_any_csv_is_sentences_or_one_sentence(tmp_path, content, header, use_hard_negatives):
    path = tmp_path / "fuzz.csv"
    path.write_bytes(header + content)
    try:
        pairs = list(NLIPairs(path, use_hard_negatives))
    except ValueError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
        return
    assert pairs
    for pair in pairs:
        assert len(pair.negatives) == use_hard_negatives
        assert all(
            isinstance(item.text, str) and item.text.strip() for item in (pair.query, pair.target, *pair.negatives)
        )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model_id": "qwen9"}, "--model_id 'qwen9' is unknown: choose one of qwen2-vl-2b"),
        ({"model_id": "qwen2-vl-7b"}, "bash scripts/download.sh qwen2-vl-7b"),
        ({"model_local_path": "/nowhere"}, "--model_local_path /nowhere does not exist"),
        ({"learn_rate": 1}, "unknown flag --learn_rate 1"),
        ({"temperature": 0}, "--temperature 0.0: expected 0.0001 to 10000"),
        ({"lora_r": "x"}, "--lora_r/--lora-r: invalid int value: 'x'"),
        ({"lora_r": 0}, "--lora_r 0"),
        ({"grad_cache_chunk": -1}, "--grad_cache_chunk -1: expected 0 or more"),
        ({"position_ids": "odd"}, "--position_ids odd: expected sequential or mrope"),
        ({"warmup_ratio": 1.5}, "--warmup_ratio 1.5"),
        ({"deepspeed": "ds_configs/zero9.json"}, "--deepspeed ds_configs/zero9.json does not exist: expected a file"),
        ({"eval_strategy": "sometimes"}, "--eval_strategy/--eval-strategy: invalid choice: 'sometimes'"),
        ({"q_lora": True}, "--q_lora True needs a CUDA GPU"),
        ({"use_vision_lora": True, "train_vision_encoder": True}, "exclude each other"),
        ({"data_format": "nil"}, "--data_format nil: expected of nli, pairs, sharegpt4v, region_edit"),
        ({"data_format": "nli,pairs"}, "--data_format nli,pairs: expected one format, or one for each of"),
        ({"data_format": "pairs"}, "nli.csv line 1 is not json"),
        ({"data_format": "sharegpt4v"}, "nli.csv is not json"),
        ({"mixture_weights": "1,x"}, "--mixture_weights 1,x: expected numbers with commas, such as 1,1,2"),
        ({"mixture_weights": "1,2"}, "--mixture_weights 1,2: expected several sources, such as --data_path A,B,C"),
        ({"mixture_batches": "odd"}, "--mixture_batches odd: expected mixed or homogeneous"),
        ({"max_train_samples": 401}, "--max_train_samples 401: expected at most the 400 rows there are"),
        ({"max_train_samples": 1.5}, "--max_train_samples 1.5: expected a number of rows, or a share below 1"),
        ({"use_liger_kernel": True}, "--use_liger_kernel True: Liger 0.8.5 cannot patch"),
        ({"resume": "auto"}, "--resume auto: nothing complete to go on from (no checkpoint-N in"),
    ],
)
def test_training_flags(fails, world, tiny_model, tmp_path, flags, words):
    if torch.cuda.is_available() and "q_lora" in flags:
        pytest.skip("a GPU is here: that 4-bit weights are refused without one is not tried")
    defaults = dict(model_id="miniature", data_path=world / "nli.csv", output_dir=tmp_path / "o")
    if "model_id" not in flags:
        defaults["model_local_path"] = tiny_model
    assert words in fails(train_nli.main, **(defaults | dict(per_device_train_batch_size=8) | flags))


def test_weights_that_do_not_match_the_sources(fails, no_model, world, tiny_model, tmp_path):
    both = f"{world / 'nli.csv'},{world / 'nli_eval.csv'}"
    flags = dict(model_id="miniature", model_local_path=tiny_model, output_dir=tmp_path / "o", data_path=both)
    error = fails(train_nli.main, **flags, per_device_train_batch_size=8, mixture_weights="1,2,3")
    assert "--mixture_weights 1,2,3: expected 2 positive numbers, one for each of" in error


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # A T4 or V100: PyTorch emulates bf16 there, and says so unless it is told not to count that.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(ValueError, match="NUM_GPUS=8, but this machine has 2: set NUM_GPUS=2"):
        TrainingArguments(bf16=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--bf16 True: this GPU has no bf16"):
        TrainingArguments(bf16=True)


@pytest.fixture
def flickr(world):
    return dict(image_data_path=world / "test" / "images", text_data_path=world / "test" / "captions.json")


def test_evaluation_input(fails, no_model, flickr, tiny_model, world, tmp_path):
    def evaluate(**changes):
        return fails(lambda: zeroshot.evaluate_captions("Flickr30K"), **({"model_id": tiny_model} | flickr | changes))

    short = tmp_path / "short.json"
    short.write_text(json.dumps(json.loads((world / "test" / "captions.json").read_text())[:-1]))
    assert "has 54 captions" in evaluate(text_data_path=short)
    assert "--mode odd: expected pretrained or finetuned" in evaluate(mode="odd")
    assert "/nowhere does not exist" in evaluate(image_data_path="/nowhere")
    assert "no does not exist: expected a folder" in evaluate(model_id=tmp_path / "no")


def test_a_truncated_picture_is_named(fails, flickr, tiny_model, world, tmp_path):
    pictures = tmp_path / "images"
    shutil.copytree(world / "test" / "images", pictures)
    victim = pictures / "7.png"
    victim.write_bytes(victim.read_bytes()[:200])
    error = fails(
        lambda: zeroshot.evaluate_captions("Flickr30K"),
        **(flickr | dict(model_id=tiny_model, image_data_path=pictures, num_workers=1, output_dir=tmp_path)),
    )
    assert f"picture {victim} cannot be read" in error


def test_a_checkpoint_that_contradicts_a_flag(fails, no_model, flickr, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    Settings(str(tiny_model), "sequential").write(folder)
    error = fails(
        lambda: zeroshot.evaluate_captions("Flickr30K"), **(flickr | dict(model_id=folder, position_ids="mrope"))
    )
    assert f"--position_ids mrope contradicts the checkpoint {folder}, which was trained with sequential" in error
    (folder / "lamra.json").write_text("{")
    assert "lamra.json is not a checkpoint's settings" in fails(
        lambda: zeroshot.evaluate_captions("Flickr30K"), **(flickr | dict(model_id=folder))
    )


def test_a_model_without_all_its_weights(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    state = load_file(folder / "model.safetensors")
    state.pop(next(name for name in state if "q_proj.weight" in name))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights that its config.json asks for"):
        loading.load_model(folder, dtype=torch.float32)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="holds a 'llama' model"):
        loading.load_model(folder, dtype=torch.float32)


def test_embed_and_merge(fails, no_model, tiny_model, tmp_path):
    lines = tmp_path / "items.jsonl"
    out = tmp_path / "out.npz"
    for content, words in (
        ('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}', "line 2 repeats the id '1'"),
        ('{"id": 1}', "line 1 has neither text nor picture"),
        ("[1]", "line 1 is not an object but list"),
        ('{"id": 1, "text": "a"}\n{', "line 2 is not"),
        ('{"id": 1, "image": "no.png"}', "no.png does not exist"),
        ('{"id": 1, "image": "/etc/hostname"}', "line 1: the path /etc/hostname leaves"),
        ('{"id": 1, "image": "pictures/../../x.png"}', f"leaves {tmp_path}: give one inside that folder"),
        (json.dumps({"id": 1, "image": "a\0b"}), "line 1: picture"),
        (json.dumps({"id": 1, "image": "a" * 5000}), "line 1: "),
        ('{"text": "a"}', 'line 1 lacks "id": it has text'),
        ('{"id": 1, "content": []}', "line 1 has neither text nor picture"),
        ('{"id": 1, "content": "a"}', 'line 1: a is not {"text"}, {"image"} or {"video"}'),
        ('{"id": 1, "content": [{"text": "a", "image": "b"}]}', "is not {"),
        ('{"id": 1, "content": [{"text": "a"}], "text": "b"}', "give the one or the other"),
        ('{"id": 1, "content": [{"image": 7}]}', "line 1: {'image': 7} is not"),
        ("", "has no items"),
    ):
        lines.write_text(content)
        assert words in fails(embed.main, model_id=tiny_model, input=lines, output=out)
    assert "does not exist" in fails(embed.main, model_id=tiny_model, input=tmp_path / "no", output=out)
    assert "--output out.txt: expected a name that ends in .npz" in fails(
        embed.main, model_id=tiny_model, input=lines, output="out.txt"
    )
    assert "a folder with adapter_config.json" in fails(merge_lora.main, model_id=tiny_model, save_path=tmp_path / "m")


def test_paths_stay_in_their_folder(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    elsewhere.mkdir()
    root.symlink_to(elsewhere)  # a data folder may be a link, and hold links
    (elsewhere / "link").symlink_to("/etc")
    assert path_inside(root, "a/b.png") == path_inside(root, root / "a" / "b.png") == root / "a" / "b.png"
    assert path_inside(root, "./link/hostname") == root / "link" / "hostname"
    for name in (
        "",
        ".",
        "..",
        "../root",
        "a/../../x",
        "a/../b",
        "/",
        "/etc/passwd",
        tmp_path / "root2" / "a",
        elsewhere,
    ):
        with pytest.raises(ValueError, match=f"the path .* leaves {root}: give one inside that folder"):
            path_inside(root, name)


def test_nothing_executes_what_it_reads():
    """No code from a model folder, no pickle of a user's, no shell string, nowhere in the project."""
    forbidden = re.compile(
        r"trust_remote_code\s*=\s*True|torch\.load\((?!.*weights_only=True)|pickle\.load|shell=True|os\.system|(?<![.\w])(eval|exec)\(|yaml\.load\("
    )
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 30
    for path in [*sources, ROOT / "demo.py"]:
        assert not forbidden.search(path.read_text()), path


def test_flags_that_mean_nothing_here_are_noted(world, tiny_model, tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: that --tf32 and flash attention are ignored without one is not tried")
    flags = f"""--model_id miniature --model_local_path {tiny_model} --data_path {world}/nli.csv --output_dir {tmp_path}
        --per_device_train_batch_size 8 --tf32 True --attn_implementation flash_attention_2 --padding_free False
        --eval_strategy epoch --dry_run True"""
    monkeypatch.setattr(sys, "argv", ["train_nli.py", *flags.split()])
    run(train_nli.main)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 3
    assert "--tf32 True is ignored" in notes[0]
    assert "--eval_strategy epoch is ignored" in notes[1]
    assert "--attn_implementation flash_attention_2 is ignored, it needs CUDA and bf16" in notes[2]
