"""Every benchmark runs to its end in a small size on any machine, makes its own input, and ends with one JSON line."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from conftest import ROOT, run_script
from support.families import random_model
from torch.utils.flop_counter import FlopCounterMode

from lamra.models.families import FAMILIES

SMALL = {
    "train_flops": ("--size", "tiny", "--steps", 1),
    "backbones": ("--pairs", 2, "--only", "Qwen3-VL-2B"),
    "train_step": ("--pairs", 1, "--sentences", 4, "--loss-batch", 64, "--cached", 16),
    "eval_encode": ("--pictures", 2, "--rounds", 1),
    "encode_memory": ("--items", 400, "--hidden_size", 64, "--store", "float16"),
    "suite_memory": ("--pairs", 4000, "--shard_size", 512),
    "peers": ("--tiny",),
    "hard_negatives": ("--queries", 150, 300, "--dimension", 8),
    "search": ("--rows", 2000, "--dimension", 8, "--queries", 20),
}
NEEDS = {"peers": ("sentence_transformers", "torchvision", "faiss")}  # what it is compared with
# What several use, what gpu.sh starts, and what tests/eval/test_mteb.py runs.
SHARED = {"shapes", "gpu", "mteb_agreement"}


def test_none_is_forgotten():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == set(SMALL) | SHARED
    assert [path.name for path in (ROOT / "benchmarks").glob("*.sh")] == ["gpu.sh"]


@pytest.mark.parametrize("name", SMALL)
def test_on_this_machine(name, monkeypatch, capsys):
    for library in NEEDS.get(name, ()):
        pytest.importorskip(library, reason=f"{library} is absent: {name} cannot run")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [name, *map(str, SMALL[name])])
    importlib.import_module(name).main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.get("grad_rel_error", 0) < 1e-5 and found.get("max_abs_difference", 0) < 1e-5
    assert found.get("flops_ratio_mean", 2) > 1 and found.get("right_answer_first", 1) == 1
    assert found.get("peak_to_embeddings", 0) < 0.8 and found.get("accuracy", 0.75) == 0.75


def test_the_shapes_of_published_models(monkeypatch):
    """Their parameters in all, as transformers makes them, are those in their names; FLOPs are those of the linears."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    backbones = importlib.import_module("backbones")
    shape = backbones.PUBLISHED["Qwen3-VL-2B"]
    found = backbones.cost(shape, [40, 60], ranks=1, r=64)
    assert 2.1e9 < found["parameters"] - found["trained"] < 2.2e9  # 2.13 B
    hidden, inner, layers, heads, kv, _ = shape.text
    products = hidden * 128 * (2 * heads + 2 * kv) + 3 * hidden * inner
    lora = 64 * (4 * hidden + 128 * (2 * heads + 2 * kv) + 3 * (hidden + inner))
    assert found["trained"] == layers * lora
    last = 2 * hidden * 128 * kv + 64 * 2 * (hidden + 128 * kv)  # of the last layer keys and values alone, about
    whole = 100 * ((layers - 1) * (4 * products + 6 * lora) + 4 * last)
    assert found["flops"] == pytest.approx(whole, rel=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_picture_costs(family, monkeypatch):
    """The count without weights is PyTorch's of a real forward pass: 8 x 8 tokens, whole windows."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    model, patch = random_model(family), FAMILIES[family].token_side // 2
    model.set_attn_implementation("eager")  # PyTorch does not count the fused one on CPUs
    pixels = torch.zeros(256, 3 * 2 * patch**2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.visual(pixels, grid_thw=torch.tensor([[1, 16, 16]]))
    found = importlib.import_module("backbones").picture_flops(model, FAMILIES[family], 64)
    assert found == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_what_is_for_a_gpu_runs_in_a_small_size(tmp_path):
    result = run_script("bash", "benchmarks/gpu.sh", "--tiny", OUTPUT_DIR=tmp_path, SECONDS_IN_ALL=3000, timeout=900)
    found = json.loads(result.stdout.splitlines()[-1])
    assert {line["part"] for line in found["results"]} == set("abcdefgh")
    assert not [line for line in found["results"] if line.get("note", "").startswith(("failed", "its time", "skipped"))]
    if found["device"] == "CPU":
        notes = {line["part"]: line["note"] for line in found["results"] if "note" in line}
        assert notes == {"c": "kernels for packed rows need CUDA", "h": "4-bit weights need CUDA and bitsandbytes"}
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == found["results"]
    assert (tmp_path / "results.md").read_text().startswith(f"# {found['device']}\n")
    assert (
        "largest gaps" in (tmp_path / "profile.txt").read_text()
        or "gaps between" in (tmp_path / "profile.txt").read_text()
    )


def test_a_part_that_fails_hangs_or_comes_too_late_does_not_stop_the_next(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")

    def fails(_machine):
        yield "first", {"seconds": 1.0}
        raise RuntimeError("out of\nmemory")

    def dies(_machine):
        import os

        yield "before", {}
        os._exit(7)

    def hangs(_machine):
        import time

        time.sleep(60)
        yield "never", {}

    def works(_machine):
        yield "all", {"value": 0.123456}

    parts = {
        "a": ("first", 30, fails),
        "b": ("second", 30, dies),
        "c": ("third", 0.1, hangs),
        "d": ("fourth", 30, works),
    }
    monkeypatch.setattr(gpu, "PARTS", parts | {"e": ("fifth", 10_000, works)})
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--parts", "abcde", "--output_dir", str(tmp_path)])
    gpu.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"] == [
        {"part": "a", "case": "first", "seconds": 1.0},
        {"part": "a", "note": "failed: RuntimeError: out of"},
        {"part": "b", "case": "before"},
        {"part": "b", "note": "failed: the process ended with status 7"},
        {"part": "c", "note": "its time of 1 s is over"},
        {"part": "d", "case": "all", "value": 0.123456},
        {"part": "e", "note": "skipped: the time is used up"},
    ]
    assert "| d fourth | all | value 0.1235 |" in (tmp_path / "results.md").read_text()
