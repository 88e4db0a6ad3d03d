"""Stage 1 through its script, in a size of ten steps on two processes, and how its end is compared; stage 2's flags."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
from conftest import run_script
from safetensors.torch import load_file

from lamra.collators.processing import Processor
from lamra.collators.retrieval import RetrievalCollator
from lamra.datasets.usable import UsablePairs

STEPS = 10
PRETRAIN = "scripts/lamra_ret/pretrain.sh"


def settings(world, tiny_model, output: Path) -> dict:
    """Shell variables of a run on two processes with a global batch of 16."""
    return dict(
        MODEL_ID="miniature",
        MODEL_LOCAL_PATH=tiny_model,
        TRAIN_DATA_PATH=world / "nli.csv",
        OUTPUT_DIR=output,
        NUM_GPUS=2,
        PER_DEVICE_BATCH_SIZE=8,
        BF16=False,
        LR="3e-3",
        LORA_R=8,
        LORA_ALPHA=16,
    )


def pretrain(world, tiny_model, output: Path, *flags, check: bool = True, script: str = PRETRAIN, **variables):
    """scripts/lamra_ret/pretrain.sh, STEPS steps, without dropout unless a flag sets it."""
    fixed = ["--max_steps", STEPS, "--lora_dropout", 0, "--dataloader_num_workers", 1]
    command = ["bash", script, *fixed, *flags]
    return run_script(*command, check=check, **(settings(world, tiny_model, output) | variables))


def curve(output: Path) -> np.ndarray:
    history = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    return np.array([entry["loss"] for entry in history if "loss" in entry])


def same_end(output: Path, unbroken: Path) -> None:
    assert (curve(output) == curve(unbroken)).all()
    assert (output / "lamra.json").read_bytes() == (unbroken / "lamra.json").read_bytes()
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (output, unbroken))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


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


def batch_of(model: Path, pairs, rows: list[int], most_faults: int = 0) -> dict:
    """What training makes of these rows."""
    collator = RetrievalCollator(Processor(model))
    return collator(UsablePairs(pairs, collator.encode, most_faults).__getitems__(rows))


def stage2_flags(mbeir: Path, stage1: Path, output: Path) -> dict:
    """A short stage 2 on one process, in this one."""
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
