"""Mined batches through the scripts: two processes train as one does, and a broken run ends like an unbroken one."""

from __future__ import annotations

import json
import shutil

import numpy as np
from conftest import call, run_script
from mbeir_pairs import pairs_of, rank_at_random
from safetensors.torch import load_file

from lamra.train import train_mbeir

STEPS = 7


def losses_of(output):
    history = json.loads((output / f"checkpoint-{STEPS}/trainer_state.json").read_text())["log_history"]
    return np.array([entry["loss"] for entry in history if "loss" in entry])


def test_two_processes_train_as_one_and_a_broken_run_ends_alike(mbeir, stage1, tmp_path):
    """40 rows in communities of 4; 5 steps of two communities an epoch, with the gradient cache."""
    ranking, batches, output = tmp_path / "mined.jsonl", tmp_path / "batches.jsonl", tmp_path / "two"
    rank_at_random(pairs_of(mbeir), ranking, depth=100)
    variables = dict(DATA_PATH=mbeir, MINED=ranking, COMMUNITY_SIZE=4, SKIP=0, OUTPUT=batches)
    text = run_script("bash", "scripts/lamra_ret/mine_batches.sh", **variables).stdout
    assert f"10 communities of 4 rows in {batches}" in text

    flags = dict(max_steps=STEPS, lora_dropout=0, save_strategy="steps", save_steps=STEPS - 1)
    flags |= dict(dataloader_num_workers=0, report_to="none", gradient_checkpointing=False)
    variables = dict(MODEL_ID="miniature", MODEL_LOCAL_PATH=stage1, DATA_PATH=mbeir, BATCHES=batches)
    variables |= dict(OUTPUT_DIR=output, NUM_GPUS=2, PER_DEVICE_BATCH_SIZE=4, DS_STAGE="none", GRAD_CACHE_CHUNK=3)
    variables |= dict(BF16=False, LORA_R=4, LORA_ALPHA=8, LR="3e-3", TEXT_MAX_TOKENS=99)
    given = [part for name, value in flags.items() for part in (f"--{name}", value)]
    command = ("bash", "scripts/lamra_ret/finetune.sh", *given)
    run_script(*command, **variables)
    losses, weights = losses_of(output), load_file(output / "adapter_model.safetensors")
    assert len(losses) == STEPS
    assert len(json.loads((output / "run.json").read_text())["data"]["sha256"]) == 4

    # As a kill in the second epoch leaves it.
    (output / "adapter_model.safetensors").unlink()
    shutil.rmtree(output / f"checkpoint-{STEPS}")
    run_script(*command, "--resume", "auto", **variables)
    found = load_file(output / "adapter_model.safetensors")
    assert (losses_of(output) == losses).all() and all((found[name] == w).all() for name, w in weights.items())

    alone = dict(
        model_id="miniature", model_local_path=stage1, data_path=mbeir, batches=batches, lora_r=4, lora_alpha=8
    )
    alone |= dict(output_dir=tmp_path / "one", per_device_train_batch_size=8, grad_cache_chunk=3)
    call(train_mbeir.main, **alone, **flags, learning_rate=3e-3, text_max_tokens=99, warmup_ratio=0.03)
    assert np.allclose(losses, losses_of(tmp_path / "one"), rtol=0, atol=2e-4)
