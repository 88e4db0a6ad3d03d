"""A temperature that is trained, through the script of stage 1: ZeRO-2 on two processes equals one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from training import pretrain

FLAGS = ["--max_steps", 4, "--learn_temperature", "True", "--temperature_lr", 0.3, "--temperature_min", 0.04]
FLAGS += ["--symmetric_loss", "True", "--hardness_weight", 2]


def logged(output: Path) -> np.ndarray:
    """(steps, 2): loss and temperature."""
    history = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    return np.array([[entry["loss"], entry["temperature"]] for entry in history if "loss" in entry])


def test_zero_on_two_processes_equals_one(world, tiny_model, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    pretrain(world, tiny_model, two, *FLAGS, DS_STAGE="zero2", GRAD_CACHE_CHUNK=5)
    pretrain(world, tiny_model, one, *FLAGS, NUM_GPUS=1, PER_DEVICE_BATCH_SIZE=16, DS_STAGE="none")
    np.testing.assert_allclose(logged(two), logged(one), rtol=1e-5)
    np.testing.assert_allclose(logged(two)[[0, -1], 1], [0.05, 0.04], rtol=1e-6)  # from the start to the bound
    learnt = (json.loads((output / "lamra.json").read_text())["temperature"] for output in (two, one))
    np.testing.assert_allclose(*learnt, rtol=1e-5)
