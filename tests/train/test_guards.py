"""What clusters, disks and data do to a run: each fault on purpose, what the user reads, and how the run ends."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors import SafetensorError

from lamra.common.cli import run
from lamra.train import train_nli
from lamra.train.arguments import TrainingArguments
from lamra.train.guards.full import DiskGuard, memory_sentence
from lamra.train.guards.skipped import SkippedPairs

# Pictures.


def test_what_a_pair_must_not_be_stops_after_a_share_of_the_data(tmp_path, capsys):
    faults = [(row, f"picture {row}.png cannot be read") for row in range(3)]
    for pairs, share, most in ((40, 0.001, 1), (1000, 0.002, 2), (1001, 0.002, 3), (40, 0, 0), (1, 0.5, 0)):
        assert SkippedPairs(tmp_path, pairs, share, resume=False).most == most
    skipped = SkippedPairs(tmp_path, 1000, 0.002, resume=False)
    skipped.add(faults[:2], step=1)
    skipped.add(faults[:2], step=2)  # the next epoch meets them again
    resumed = SkippedPairs(tmp_path, 1000, 0.002, resume=True)
    resumed.add(faults[:2], step=2)
    with pytest.raises(ValueError, match="step 3: 3 of 1000 pairs cannot be used, --max_skipped_share 0.002 allows 2"):
        resumed.add(faults, step=3)
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["row"]) for line in lines] == [(1, 0), (1, 1), (3, 2)]
    assert "note: row 1 is left out: picture 1.png cannot be read" in capsys.readouterr().out


# Losses.


# Disk and memory.


def test_every_way_of_saying_that_the_disk_is_full(tmp_path):
    for error in (
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        OSError(27, "File too large"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ):
        guard = DiskGuard()
        with guard():
            raise error
        assert guard.full
        with pytest.raises(OSError, match="the disk is full"):
            guard.stop_if_full(torch.device("cpu"))
    for error in (OSError(13, "Permission denied"), RuntimeError("size mismatch"), OSError("no number")):
        with pytest.raises(type(error)), DiskGuard()():
            raise error


def test_cuda_out_of_memory_is_told_with_the_settings_that_need_less(monkeypatch, capsys, world, tiny_model, tmp_path):
    def out_of_memory(*_args, **_kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("lamra.models.embedder.Embedder.forward", out_of_memory)
    flags = f"""--model_id miniature --model_local_path {tiny_model} --data_path {world}/nli.csv --output_dir {tmp_path}
        --per_device_train_batch_size 8 --grad_cache_chunk 6"""
    monkeypatch.setattr(sys, "argv", ["train_nli.py", *flags.split()])
    with pytest.raises(SystemExit) as exit_:
        run(train_nli.main)
    assert exit_.value.code == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: step 1: CUDA is out of memory on rank 0: the device has ")
    assert "with PER_DEVICE_BATCH_SIZE=8, GRAD_CACHE_CHUNK=6, GRADIENT_CHECKPOINTING=False; the batch can stay" in error
    assert error.endswith(
        "set GRADIENT_CHECKPOINTING=True, then GRAD_CACHE_CHUNK=3 (halve it again if that is too much)"
    )
    eight = TrainingArguments(output_dir=str(tmp_path), gradient_checkpointing=True, use_cpu=True)
    monkeypatch.setattr(TrainingArguments, "world_size", 8)
    sentence = memory_sentence(eight, 5, total=80 * 2**30, allocated=78.5 * 2**30, in_batch_negatives=True)
    assert "the device has 80.0 GiB, 78.5 GiB were allocated" in sentence
    assert sentence.endswith("set GRAD_CACHE_CHUNK=72 (halve it again if that is too much), then DS_STAGE=zero3")
