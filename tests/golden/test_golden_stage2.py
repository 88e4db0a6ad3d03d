"""Upstream's own values of all stages, key by key, through tests/golden/compare.py, which notices changed values."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(GOLDEN))  # the program's own modules stand beside it
import compare as program


def run(monkeypatch, capsys, path: Path) -> tuple[int, dict, list[str]]:
    """The program's exit status, its last line, and the lines before."""
    monkeypatch.setattr(sys, "argv", ["compare.py", str(path)])
    with pytest.raises(SystemExit) as exit_:
        program.main()
    *lines, summary = capsys.readouterr().out.splitlines()
    return int(exit_.value.code), json.loads(summary), lines


def test_stage_1_without_shared(monkeypatch, capsys):
    status, summary, lines = run(monkeypatch, capsys, GOLDEN)
    assert (status, summary["failed"]) == (0, [])
    assert summary["compared"] > 90 and summary["worst"] < 1e-5
    assert len(lines) == summary["compared"] + len(summary["left_out"])
    assert all("made up, the input" in left_out for left_out in summary["left_out"])


def test_a_changed_value_fails(monkeypatch, capsys, tmp_path):
    shutil.copyfile(GOLDEN / "model.safetensors", tmp_path / "model.safetensors")
    values = load_file(GOLDEN / "values.safetensors")
    values["text.embeds"][3] *= 1 + 2e-5
    values["image.mrope_position_ids"][2, 1, 20] += 1
    values["surprise"] = torch.ones(1)
    del values["hardneg.loss"]
    save_file(values, tmp_path / "values.safetensors")
    status, summary, lines = run(monkeypatch, capsys, tmp_path)
    failed = [f"upstream_golden:{name}" for name in ("text.embeds", "image.mrope_position_ids", "surprise")]
    assert status == 1 and sorted(summary["failed"]) == sorted(failed)
    assert any("text.embeds: before <emb>" in line and line.endswith("FAIL (row 3)") for line in lines)

    (tmp_path / "values.safetensors").unlink()
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="has no reference values"):
        program.main()


def test_stage_1_of_shared(shared):
    assert program.compare(shared / "golden")["failed"] == []


def test_stage_2_and_lamra_rank(shared, monkeypatch, capsys):
    status, summary, _ = run(monkeypatch, capsys, shared / "golden" / "stage2_rank")
    assert (status, summary["failed"]) == (0, [])
    assert summary["compared"] > 300 and summary["worst"] < 1e-5


def test_every_changed_tensor_of_stage_2_fails(shared, tmp_path):
    """One entry of each tensor is changed, a float by more than rounding: a comparison that passes compares nothing."""
    changed = set()
    for path in (shared / "golden" / "stage2_rank").iterdir():
        if path.suffix != ".safetensors":
            os.symlink(path, tmp_path / path.name)
            continue
        tensors = load_file(path)
        masks = {name: tensor.long() for name, tensor in tensors.items() if name.endswith("attention_mask")}
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensor.mul_(1.01 if tensor.dtype == torch.float16 else 1.0001)
            elif name.endswith("image_grid_thw"):
                tensor[-1, -1] += 2
            else:  # (..., rows, tokens)
                mask = masks[name.rpartition(".")[0] + ".attention_mask"]
                row = int(mask.sum(dim=1).argmax())  # without padding
                tensor[..., row, mask.shape[1] // 2 if "mask" not in name else 0] ^= 1
            changed.add(f"{path.stem}:{name}")
        save_file(tensors, tmp_path / path.name)
    summary = program.compare(tmp_path)
    assert changed - set(summary["failed"]) == set()
