"""Whatever folder of a model a user brings: one sentence that names the file, or embeddings; no code of it is run."""

from __future__ import annotations

import gc
import shutil
import sys

import pytest
from cases import count, faults, run_forked
from cases.models import Folders, cases

from lamra.train import train_nli


@pytest.fixture
def folders(world, tiny_model, tmp_path, monkeypatch) -> Folders:
    """The miniature's base model, an adapter of one step of stage 1 on it, and its checkpoint."""
    run = tmp_path / "run"
    named = dict(model_id="miniature", model_local_path=tiny_model, data_path=world / "nli.csv", output_dir=run)
    named |= dict(per_device_train_batch_size=8, max_steps=1, lora_r=8, dataloader_num_workers=0, report_to="none")
    named |= dict(save_strategy="steps", save_steps=1)
    monkeypatch.setattr(
        sys, "argv", ["train_nli", *(str(part) for name in named for part in (f"--{name}", named[name]))]
    )
    train_nli.main()
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / ".sha256.json").unlink(missing_ok=True)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "lamra.json"):
        shutil.copy(run / name, adapter)
    return Folders(base, adapter, run / "checkpoint-1")


def test_every_folder_of_a_model(folders, tmp_path):
    gc.freeze()
    outcomes = run_forked(cases(folders), tmp_path / "cases")
    gc.unfreeze()
    print(count(outcomes))
    assert not (wrong := faults(outcomes)), "\n\n".join([f"{len(wrong)} of {len(outcomes)}", *wrong])
