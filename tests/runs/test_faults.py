"""What data and losses do to a run of two processes: each fault on purpose, what the user reads, how it ends."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training import STEPS, pretrain, same_end, torchrun

from lamra.train.checkpoints import checkpoints, fault


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
    assert result.returncode == 2 and result.stderr.count("error: ") == 1
    assert "of 40 pairs cannot be used, --max_skipped_share 0.001 allows 1: repair what" in result.stderr
    assert not (strict / "adapter_model.safetensors").exists()


def adapter(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "adapter_model.safetensors")


@pytest.mark.parametrize("deepspeed", ["zero2", None])
def test_a_loss_that_is_not_finite_stops_the_run_or_is_skipped(world, tiny_model, tmp_path, deepspeed):
    """The second process's embeddings are NaN in steps 4 and 6."""
    stopped, skipping = tmp_path / "stop", tmp_path / "skip"
    result = torchrun(world, tiny_model, stopped, deepspeed=deepspeed)
    assert result.returncode == 2
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: step 4: loss is not finite, with rows ") and error.count(".sent0") == 8
    assert error.endswith(f"nothing was updated. The last checkpoint is {stopped}/checkpoint-3")
    assert fault(stopped / "checkpoint-3") is None and not (stopped / "checkpoint-4").exists()

    flags = ("--on_nonfinite", "skip", "--max_nonfinite", 1)
    result = torchrun(world, tiny_model, skipping, *flags, deepspeed=deepspeed)
    assert result.returncode == 2 and result.stdout.count("the update is skipped") == 1
    assert re.search(r"note: step 4: gradient norm \S+, the update is skipped \(1\)", result.stdout)
    assert "step 6: more than --max_nonfinite 1 updates were not finite and skipped" in result.stderr
    before, after, later = (adapter(skipping / f"checkpoint-{step}") for step in (3, 4, 5))
    assert all((before[name] == adapter(stopped / "checkpoint-3")[name]).all() for name in before)
    assert all((before[name] == after[name]).all() for name in before)
    assert any((later[name] != after[name]).any() for name in before)
    assert not (skipping / "checkpoint-6").exists()


def weights(folder: Path, name: str = "adapter_model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_bf16_under_zero2_writes_no_gradient_that_is_not_finite(world, tiny_model, tmp_path):
    """The second process's embeddings are NaN in steps 4 and 6; the best checkpoint is the result."""
    output = tmp_path / "run"
    flags = f"""--max_steps 7 --bf16 True --on_nonfinite skip --max_nonfinite 2 --eval_strategy steps --eval_steps 1
        --eval_data_path {world}/nli_eval.csv --load_best_model_at_end True""".split()
    result = torchrun(world, tiny_model, output, *flags, deepspeed="zero2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the update is skipped") == 2
    saved = {int(path.name.removeprefix("checkpoint-")): weights(path) for path in checkpoints(output)}
    assert len(saved) == 7 and all(tensor.isfinite().all() for state in saved.values() for tensor in state.values())
    assert equal(saved[3], saved[4]) and equal(saved[5], saved[6]) and not equal(saved[4], saved[5])
    state = json.loads((output / "checkpoint-7" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert np.flatnonzero(~np.isfinite(losses)).tolist() == [3, 5]
    best = state["best_global_step"]
    assert f"note: the weights are those of step {best}: recall@1 " in result.stdout
    assert equal(weights(output), saved[best])
