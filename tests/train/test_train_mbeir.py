"""Stage 2 in this process: every epoch is drawn anew, and a resumed run ends alike."""

from __future__ import annotations

import shutil

import torch
from conftest import call
from safetensors.torch import load_file
from training import stage2_flags

from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.train import train_mbeir


def test_every_epoch_is_drawn_anew_and_a_resumed_run_ends_alike(mbeir_20, stage1, tmp_path, monkeypatch):
    """100 pairs make 2 steps an epoch; checkpoint-3 is in the middle of the second."""
    epochs = []
    set_epoch = MBEIRPairs.set_epoch
    monkeypatch.setattr(MBEIRPairs, "set_epoch", lambda self, epoch: epochs.append(epoch) or set_epoch(self, epoch))
    run = stage2_flags(mbeir_20, stage1, tmp_path)
    call(train_mbeir.main, **run)
    assert sorted(set(epochs)) == [0, 1, 2]
    expected = load_file(tmp_path / "adapter_model.safetensors")
    for later in ("checkpoint-6", "adapter_model.safetensors", "lamra.json"):
        path = tmp_path / later
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    epochs.clear()
    call(train_mbeir.main, **run, resume="auto")
    assert sorted(set(epochs)) == [1, 2]
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
