"""Nothing is lost: exact resume, preemption, damaged checkpoints, changed runs. Two gloo processes, the real script."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, script_environment
from training import STEPS, pretrain, same_end, settings

from lamra.train.checkpoints import checkpoint_to_resume, checkpoints, fault

EVERY_STEP = ("--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 3, "--lora_dropout", 0.1)
EVERY_STEP += ("--learn_temperature", "True", "--temperature_lr", 0.05)


@pytest.fixture(scope="module", params=["zero2", "none"])
def unbroken(request, world, tiny_model, tmp_path_factory):
    """An unbroken run with dropout, the gradient cache and a learnt temperature, and what it was started with."""
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
        env=script_environment(settings(world, tiny_model, output) | variables, real=True),
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


@pytest.mark.parametrize(
    ("unbroken", "how"),  # each way once, because each start costs seconds
    [("zero2", "kill -9"), ("zero2", "SIGTERM to the script"), ("none", "SIGTERM to a process")],
    indirect=["unbroken"],
)
def test_a_stopped_run_ends_like_an_unbroken_one(unbroken, world, tiny_model, tmp_path, how):
    """Stopped at a random moment."""
    reference, variables = unbroken
    output = tmp_path / "run"
    chance = random.Random(time.time_ns())
    step, pause = chance.randint(1, STEPS - 3), chance.uniform(0, 0.3)
    print(f"{how} {pause:.3f} s after checkpoint-{step}")
    process = start(world, tiny_model, output, **variables)
    wait_for(output / f"checkpoint-{step}" / "manifest.json", process)
    time.sleep(pause)
    trained = [child for child in psutil.Process(process.pid).children(recursive=True) if "RANK" in child.environ()]
    if how == "kill -9":
        os.killpg(process.pid, signal.SIGKILL)
        assert len(trained) >= 2 and not psutil.wait_procs(trained, timeout=10)[1]  # none goes on beside the next run
        process.communicate()
    else:
        victim = process if how == "SIGTERM to the script" else chance.choice(processes(trained))
        victim.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 75, text
        assert "asked to stop: checkpoint-" in text and "go on with --resume auto" in text
        assert not (output / "adapter_model.safetensors").exists()
    result = pretrain(world, tiny_model, output, *EVERY_STEP, "--resume", "auto", **variables)
    assert f"going on from {output}/checkpoint-" in result.stdout
    same_end(output, reference)


def processes(trained: list[psutil.Process]) -> list[psutil.Process]:
    """Without the data workers, which are children of one another's."""
    return [child for child in trained if child.parent() not in trained]


def test_a_full_disk_leaves_the_last_checkpoint_whole(unbroken, world, tiny_model, disk):
    reference, variables = unbroken
    folder, resize = disk
    output = folder / "run"
    one = sum(path.stat().st_size for path in (reference / f"checkpoint-{STEPS}").rglob("*"))
    resize(int(3.6 * one))  # three are kept, and a new one is written before the oldest is deleted
    result = pretrain(world, tiny_model, output, *EVERY_STEP, check=False, **variables)
    assert result.returncode == 2
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"step 4: --output_dir {output} cannot be written: " in error
    assert f" MiB free, a checkpoint needs {one / 2**20:.1f}; make room" in error
    assert error.endswith(f"go on from {output}/checkpoint-3 with --resume auto")
    assert [fault(checkpoint) for checkpoint in checkpoints(output)] == [None, None, None]
    assert not (output / ".partial").exists() and not (output / "adapter_model.safetensors").exists()
    resize("100m")
    pretrain(world, tiny_model, output, *EVERY_STEP, "--resume", "auto", **variables)
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


def test_a_changed_run_is_refused(unbroken, world, tiny_model):
    output, variables = unbroken
    flags = ("--resume", "auto", *EVERY_STEP)

    def refused(*more, **changes):
        result = pretrain(world, tiny_model, output, *flags, *more, check=False, **(variables | changes))
        assert result.returncode == 2
        return next(line for line in result.stderr.splitlines() if line.startswith("error: "))

    error = refused(NUM_GPUS=1, LR="1e-3")
    assert "world_size was 2 and is 1" in error and "learning_rate was 0.003 and is 0.001" in error
    assert "world_size was 2 and is 1" in refused("--allow_changes", "True", NUM_GPUS=1)
