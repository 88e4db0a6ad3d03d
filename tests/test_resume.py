"""Nothing is lost: exact resume, preemption, damaged checkpoints, changed runs. Two gloo processes, the real script."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT, script_environment
from safetensors.torch import load_file
from test_stage1 import STEPS, curve, pretrain, settings

from lamra.train.checkpoints import checkpoint_to_resume, checkpoints, commit_checkpoint, fault

EVERY_STEP = ("--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 3, "--lora_dropout", 0.1)


@pytest.fixture(scope="module", params=["zero2", "none"])
def unbroken(request, world, tiny_model, tmp_path_factory):
    """An unbroken run with dropout and the gradient cache, and the variables it was started with."""
    variables = dict(DS_STAGE=request.param, GRAD_CACHE_CHUNK=4)
    output = tmp_path_factory.mktemp("unbroken") / request.param
    pretrain(world, tiny_model, output, *EVERY_STEP, **variables)
    return output, variables


def start(world, tiny_model, output: Path, **variables) -> subprocess.Popen:
    """As `pretrain`, in the background and in a process group of its own."""
    flags = ["--max_steps", STEPS, "--dataloader_num_workers", 1, *EVERY_STEP]
    return subprocess.Popen(
        ["bash", "scripts/lamra_ret/pretrain.sh", *map(str, flags)],
        cwd=ROOT,
        env=script_environment(settings(world, tiny_model, output) | variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if path.exists():
            return
        if process.poll() is not None:
            pytest.fail(f"ended before {path}:\n{process.stdout.read()}")
        time.sleep(0.05)
    pytest.fail(f"{path} did not appear")


def same_end(output: Path, unbroken: Path) -> None:
    assert (curve(output) == curve(unbroken)).all()
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (output, unbroken))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize("how", ["kill -9", "SIGTERM"])
def test_a_stopped_run_ends_like_an_unbroken_one(unbroken, world, tiny_model, tmp_path, how):
    reference, variables = unbroken
    output = tmp_path / "run"
    process = start(world, tiny_model, output, **variables)
    wait_for(output / "checkpoint-3" / "manifest.json", process)
    if how == "kill -9":
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    else:
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 75, text
        assert "asked to stop: checkpoint-" in text and "go on with --resume auto" in text
        assert not (output / "adapter_model.safetensors").exists()
    result = pretrain(world, tiny_model, output, *EVERY_STEP, "--resume", "auto", **variables)
    assert "going on from" in result.stdout
    same_end(output, reference)


def test_every_damage_is_noticed_and_the_one_before_is_taken(unbroken, tmp_path):
    reference, _ = unbroken
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    newest, before = checkpoints(run)[:2]
    assert fault(newest) is None and checkpoint_to_resume(run, "auto") == str(newest)
    for name in [*json.loads((newest / "manifest.json").read_text())["files"], "manifest.json"]:
        content = (newest / name).read_bytes()
        for damaged in (content[: len(content) // 2], b"x" + content[1:], None):
            if damaged is None:
                (newest / name).unlink()
            elif damaged == content:
                continue
            else:
                (newest / name).write_bytes(damaged)
            assert fault(newest) is not None, name
            assert checkpoint_to_resume(run, "auto") == str(before)
            (newest / name).write_bytes(content)
    with pytest.raises(ValueError, match="it has no manifest.json"):
        (newest / "manifest.json").unlink()
        checkpoint_to_resume(run, str(newest))


def test_retention_counts_complete_checkpoints_only(tmp_path):
    for step in (1, 2, 3, 4):
        partial = tmp_path / ".partial"
        partial.mkdir()
        (partial / "weights").write_text(str(step))
        commit_checkpoint(partial, tmp_path / f"checkpoint-{step}", record={}, keep=2)
        if step == 3:
            (tmp_path / "checkpoint-3" / "manifest.json").unlink()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-3", "checkpoint-2"]
    assert checkpoint_to_resume(tmp_path, "auto").endswith("checkpoint-4")


def test_a_changed_run_is_refused(unbroken, world, tiny_model):
    output, variables = unbroken
    flags = ("--resume", "auto", *EVERY_STEP)

    def refused(*more, **changes):
        result = pretrain(world, tiny_model, output, *flags, *more, check=False, **(variables | changes))
        assert result.returncode == 1
        return next(line for line in result.stderr.splitlines() if line.startswith("error: "))

    error = refused(NUM_GPUS=1, LR="1e-3")
    assert "world_size was 2 and is 1" in error and "learning_rate was 0.003 and is 0.001" in error
    assert "world_size was 2 and is 1" in refused("--allow_changes", "True", NUM_GPUS=1)


def test_a_loss_that_is_not_finite_stops_the_run(unbroken, world, tiny_model, tmp_path):
    _, variables = unbroken
    output = tmp_path / "run"
    broken = dict(LR="1e30", **variables)
    result = pretrain(world, tiny_model, output, *EVERY_STEP, check=False, **broken)
    assert result.returncode != 0
    error = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "is nan" in error and "nothing was updated. The last checkpoint is" in error
    skip = ("--on_nonfinite", "skip", "--max_nonfinite", 2)
    result = pretrain(world, tiny_model, tmp_path / "skip", *EVERY_STEP, *skip, check=False, **broken)
    assert "more than --max_nonfinite 2 updates were not finite and skipped" in result.stderr
    assert result.stdout.count("the update is skipped") == 2
