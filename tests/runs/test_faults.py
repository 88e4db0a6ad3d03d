"""What clusters, disks and data do to a run: each fault on purpose, what the user reads, and how the run ends."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from test_resume import same_end
from test_stage1 import STEPS, pretrain, settings
from torch.utils.data import DataLoader

from lamra.collators.processing import Processor, open_image
from lamra.collators.retrieval import TrainingCollator
from lamra.common.cli import run
from lamra.datasets.items import Item, Pair
from lamra.train import train_nli
from lamra.train.arguments import TrainingArguments
from lamra.train.checkpoints import fault
from lamra.train.limits import DiskGuard, memory_sentence
from lamra.train.skipped import SkippedPairs

# Pictures.


def png(width: int, height: int, content: bytes = b"") -> bytes:
    """A PNG that claims a size, whatever its content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


FAULTY = {
    "empty": b"",
    "text": b"hello",
    "bomb": png(50_000, 50_000),
    "zero_size": png(0, 0),
    "truncated": png(60, 40),
    "thin": png(3000, 1, b"\0" + b"\1" * 9000),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """40 pictures; files 5, 6 and 17 are faulty."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (28, 56, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    for i, name in ((5, "bomb"), (6, "truncated"), (17, "empty")):
        (folder / f"{i:02}.png").write_bytes(FAULTY[name])
    return folder


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_picture_is_named(tiny_model, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FAULTY[name])
    item, processor = Item("x", images=(path,)), Processor(tiny_model)
    with pytest.raises(ValueError, match=f"picture {path} cannot be read"):
        processor.encode(item)
    if name != "truncated":  # its header is sound
        with pytest.raises(ValueError, match=f"picture {path} cannot be read"):
            processor.length(item)


def test_a_picture_of_any_mode_is_shown_as_it_is(tmp_path):
    grey = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
    colours = Image.fromarray(np.dstack([grey >> 8] * 3).astype(np.uint8))
    expected = np.asarray(colours)
    for image, name, tolerance in (
        (Image.fromarray(grey), "grey16.png", 0),
        (Image.fromarray(grey), "grey16.tiff", 0),
        (Image.fromarray(grey.astype(np.int32)), "grey32.tiff", 0),
        (colours.convert("L"), "grey.png", 0),
        (colours.quantize(256), "palette.png", 2),
        (colours.convert("CMYK"), "cmyk.tiff", 1),
        (colours.convert("RGBA"), "rgba.png", 0),
        (colours.convert("LA"), "la.png", 0),
        (colours.convert("1"), "bits.png", 255),
    ):
        image.save(tmp_path / name)
        shown = np.asarray(open_image(tmp_path / name)).astype(int)
        assert shown.shape == (40, 30, 3) and abs(shown - expected).max() <= tolerance, name
        assert abs(shown.mean() - expected.mean()) < 10, name


def test_a_faulty_pair_is_replaced_alike_by_any_number_of_workers(tiny_model, pictures):
    files = sorted(pictures.iterdir())
    pairs = [Pair(Item(f"q{i}", "A picture."), Item(f.name, images=(f,))) for i, f in enumerate(files)]
    collator = TrainingCollator(Processor(tiny_model), pairs, most_faults=3)
    rows = [[4, 5, 7], [16, 17, 18], [0, 1, 2]]
    for workers in (0, 2):
        batches = list(DataLoader(range(40), batch_sampler=rows, collate_fn=collator, num_workers=workers))
        # 6 is faulty too, 7 is in the batch already: 8 stands for 5.
        assert [batch["ids"] for batch in batches] == [["q4", "q8", "q7"], ["q16", "q19", "q18"], ["q0", "q1", "q2"]]
        assert [[row for row, _ in batch["faults"]] for batch in batches] == [[5, 6], [17], []]
        assert batches[0]["item_ids"].tolist() == [8, 16, 14, 9, 17, 15]
        sound = collator([4, 8, 7])
        assert sound.pop("faults") == [] and all(
            torch.equal(value, batches[0][name]) for name, value in sound.items() if isinstance(value, torch.Tensor)
        )
    # Nothing else is left: a row of the batch stands twice, and "item_ids" say so.
    whole = TrainingCollator(Processor(tiny_model), pairs[4:8], most_faults=3)([0, 1, 2, 3])
    assert whole["ids"] == ["q4", "q7", "q7", "q7"] and whole["item_ids"].tolist() == [0, 6, 6, 6, 1, 7, 7, 7]
    assert TrainingCollator(Processor(tiny_model), pairs, most_faults=1)([5]).keys() == {"faults"}


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


def test_training_leaves_faulty_pictures_out(world, tiny_model, pictures, tmp_path):
    data = pictures.parent / "pairs.jsonl"
    rows = [{"query": {"text": f"picture {i}"}, "target": {"image": f"{i:02}.png"}} for i in range(40)]
    data.write_text("\n".join(map(json.dumps, rows)))

    def train(output: Path, *flags, check: bool = True) -> subprocess.CompletedProcess:
        """5 epochs of 2 steps, a checkpoint after each."""
        fixed = ("--data_format", "pairs", "--image_root", pictures, "--save_strategy", "steps", "--save_steps", 1)
        variables = dict(TRAIN_DATA_PATH=data, DS_STAGE="none")
        return pretrain(world, tiny_model, output, *fixed, "--save_total_limit", 20, *flags, check=check, **variables)

    whole, broken, strict = (tmp_path / name for name in ("whole", "broken", "strict"))
    result = train(whole, "--max_skipped_share", 0.1)
    lines = [json.loads(line) for line in (whole / "skipped.jsonl").read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == [5, 6, 17]
    for line in lines:
        assert f"picture {pictures}/{line['row']:02}.png cannot be read (" in line["reason"]
        assert result.stdout.count(f"note: row {line['row']} is left out: {line['reason']}") == 1

    shutil.copytree(whole, broken)
    for step in range(4, STEPS + 1):
        shutil.rmtree(broken / f"checkpoint-{step}")
    train(broken, "--max_skipped_share", 0.1, "--dataloader_num_workers", 0, "--resume", "auto")
    same_end(broken, whole)
    assert (broken / "skipped.jsonl").read_text() == (whole / "skipped.jsonl").read_text()

    result = train(strict, check=False)
    assert result.returncode == 1 and result.stderr.count("error: ") == 1
    assert "of 40 pairs cannot be used, --max_skipped_share 0.001 allows 1: repair what" in result.stderr
    assert not (strict / "adapter_model.safetensors").exists()


# Losses.


def adapter(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "adapter_model.safetensors")


def torchrun(world, tiny_model, output: Path, *flags, deepspeed: str | None) -> subprocess.CompletedProcess:
    """Two processes of faulty_training.py, STEPS steps, a checkpoint after each."""
    variables = settings(world, tiny_model, output)
    command = ["torchrun", "--nnodes", 1, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    command += ["--nproc_per_node", 2, "tests/support/faulty_training.py", "--max_steps", STEPS, "--report_to", "none"]
    for name in ("model_id", "model_local_path", "output_dir", "lora_r", "lora_alpha"):
        command += [f"--{name}", variables[name.upper()]]
    command += ["--data_path", world / "nli.csv", "--per_device_train_batch_size", 8, "--learning_rate", 3e-3]
    command += ["--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 20]
    command += ["--deepspeed", f"ds_configs/{deepspeed}.json"] if deepspeed else []
    return run_script(*map(str, command), *map(str, flags), check=False)


@pytest.mark.parametrize("deepspeed", ["zero2", None])
def test_a_loss_that_is_not_finite_stops_the_run_or_is_skipped(world, tiny_model, tmp_path, deepspeed):
    """The second process's embeddings are NaN in steps 4 and 6."""
    stopped, skipping = tmp_path / "stop", tmp_path / "skip"
    result = torchrun(world, tiny_model, stopped, deepspeed=deepspeed)
    assert result.returncode == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: step 4: loss is not finite, with rows ") and error.count(".sent0") == 8
    assert error.endswith(f"nothing was updated. The last checkpoint is {stopped}/checkpoint-3")
    assert fault(stopped / "checkpoint-3") is None and not (stopped / "checkpoint-4").exists()

    flags = ("--on_nonfinite", "skip", "--max_nonfinite", 1)
    result = torchrun(world, tiny_model, skipping, *flags, deepspeed=deepspeed)
    assert result.returncode == 1 and result.stdout.count("the update is skipped") == 1
    assert re.search(r"note: step 4: gradient norm \S+, the update is skipped \(1\)", result.stdout)
    assert "step 6: more than --max_nonfinite 1 updates were not finite and skipped" in result.stderr
    before, after, later = (adapter(skipping / f"checkpoint-{step}") for step in (3, 4, 5))
    assert all((before[name] == adapter(stopped / "checkpoint-3")[name]).all() for name in before)
    assert all((before[name] == after[name]).all() for name in before)
    assert any((later[name] != after[name]).any() for name in before)
    assert not (skipping / "checkpoint-6").exists()


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
    assert exit_.value.code == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: step 1: CUDA is out of memory on rank 0: the device has ")
    assert "with PER_DEVICE_BATCH_SIZE=8, GRAD_CACHE_CHUNK=6, GRADIENT_CHECKPOINTING=False; the batch can stay" in error
    assert error.endswith(
        "set GRADIENT_CHECKPOINTING=True, then GRAD_CACHE_CHUNK=3 (halve it again if that is too much)"
    )
    eight = TrainingArguments(output_dir=str(tmp_path), gradient_checkpointing=True, use_cpu=True)
    monkeypatch.setattr(TrainingArguments, "world_size", 8)
    sentence = memory_sentence(eight, 5, total=80 * 2**30, allocated=78.5 * 2**30)
    assert "the device has 80.0 GiB, 78.5 GiB were allocated" in sentence
    assert sentence.endswith("set GRAD_CACHE_CHUNK=72 (halve it again if that is too much), then DS_STAGE=zero3")
