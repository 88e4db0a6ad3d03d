"""Stage 2 in this process: every epoch is drawn anew, and a resumed run ends alike."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.miniature.mbeir import build_mbeir
from lamra.models.settings import Settings
from lamra.train import train_mbeir

SCENES = 20


@pytest.fixture(scope="module")
def mbeir(tmp_path_factory):
    """The miniature M-BEIR with 20 scenes to train on and 6 to evaluate on."""
    folder = tmp_path_factory.mktemp("mbeir")
    build_mbeir(folder, seed=0, train=SCENES, gallery=6)
    return folder


@pytest.fixture(scope="module")
def stage1(tiny_model, tmp_path_factory):
    """A model as merge_lora.sh leaves it: it remembers settings that are not the defaults."""
    folder = tmp_path_factory.mktemp("stage1") / "merged"
    shutil.copytree(tiny_model, folder)
    Settings("elsewhere", "mrope", max_pixels=100 * 28 * 28).write(folder)
    return folder


def flags(mbeir, stage1, output) -> dict:
    """A short run on one process, in this one."""
    return dict(
        model_id="miniature",
        model_local_path=stage1,
        data_path=mbeir,
        output_dir=output,
        per_device_train_batch_size=40,
        num_train_epochs=3,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=9,
        learning_rate=1e-3,
        lora_r=4,
        dataloader_num_workers=0,
        report_to="none",
    )


def call(main, monkeypatch, **named) -> None:
    arguments = [str(part) for name, value in named.items() for part in (f"--{name}", value)]
    monkeypatch.setattr("sys.argv", ["entrypoint", *arguments])
    main()


def test_every_epoch_is_drawn_anew_and_a_resumed_run_ends_alike(mbeir, stage1, tmp_path, monkeypatch):
    """100 pairs make 2 steps an epoch; checkpoint-3 is in the middle of the second."""
    epochs = []
    set_epoch = MBEIRPairs.set_epoch
    monkeypatch.setattr(MBEIRPairs, "set_epoch", lambda self, epoch: epochs.append(epoch) or set_epoch(self, epoch))
    run = flags(mbeir, stage1, tmp_path)
    call(train_mbeir.main, monkeypatch, **run)
    assert sorted(set(epochs)) == [0, 1, 2]
    expected = load_file(tmp_path / "adapter_model.safetensors")
    for later in ("checkpoint-6", "adapter_model.safetensors", "lamra.json"):
        path = tmp_path / later
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    epochs.clear()
    call(train_mbeir.main, monkeypatch, **run, resume="auto")
    assert sorted(set(epochs)) == [1, 2]
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
