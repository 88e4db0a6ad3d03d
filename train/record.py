"""Where a run came from: run.json beside its result, and in each checkpoint what must not change when it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.common.machines import package_versions, require_alike
from lamra.common.secrets import without_secrets
from lamra.models.settings import RUN_FILE, Settings
from lamra.train.checkpoints import MANIFEST
from lamra.train.flags import CONTRASTIVE, TrainingFlags, deepspeed_config

# Flags that decide a run's result. Others (logging, saving, workers, padding, recomputing) do not.
DECISIVE = {
    "seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "adam_beta1",
    "lr_scheduler_kwargs", "optim_args", "dataloader_drop_last", "tf32", "image_root", "early_stopping_patience",
    "adam_beta2", "adam_epsilon", "bf16", "fp16", "deepspeed", "grad_cache_chunk", "mask_duplicates",
    "model_max_length", "data_format", "max_train_samples", "mixture_weights", "mixture_batches", "use_hard_negatives",
    "hard_negatives", "use_lora", "q_lora", "use_vision_lora", "lora_r", "lora_alpha", "lora_dropout",
    "train_vision_encoder", "train_vision_projector", "share_prefix", "distill_weight", "distill_temperature",
    *CONTRASTIVE,
}  # fmt: skip

# What the tensors of a checkpoint, or their division among processes, are made of.
CANNOT_CHANGE = {"world_size", "base_model", "base_sha256", "deepspeed", "use_lora", "lora_r", "use_vision_lora"}
CANNOT_CHANGE |= {"train_vision_encoder", "train_vision_projector", "learn_temperature"}


def run_record(settings: Settings, data: dict, *arguments: Any, checkpoint: str | None = None) -> dict:
    """What decides a run's result, for a checkpoint to remember: data, world size and the flags that matter.

    All processes must call this.

    Args:
        arguments: the dataclasses of the command line, TrainingArguments last.
        checkpoint: to go on from; raises as `check_unchanged`.

    Raises:
        UserError: as `check_unchanged`, or a machine has other data.
    """
    require_alike({f"--data_path {data['path']}": data["sha256"]})
    flags = {name: value for group in arguments for name, value in vars(group).items() if name in DECISIVE}
    deepspeed = flags.pop("deepspeed", None)
    record = {
        **asdict(settings),
        **flags,
        "deepspeed": Path(deepspeed).name if isinstance(deepspeed, str) else deepspeed,
        "deepspeed_config": deepspeed_config(deepspeed),
        "world_size": arguments[-1].world_size,
        "data_sha256": data["sha256"],
    }
    if checkpoint:
        check_unchanged(checkpoint, record, allow_changes=arguments[-1].allow_changes)
    return record


def check_unchanged(checkpoint: str | Path, record: dict, *, allow_changes: bool) -> None:
    """Compare what decides a run's result with what the checkpoint was trained with.

    Raises:
        UserError: something differs and may not; lists each difference.
    """
    before = json.loads((Path(checkpoint) / MANIFEST).read_text())
    now = json.loads(json.dumps(record, default=str))
    before.setdefault("train_position_ids", None)  # the first rerankers did not tell the two apart
    before.setdefault("special_tokens_in_text", "special")  # what all did before it was a setting
    before.setdefault("exif_rotation", False)
    before.setdefault("share_prefix", False)
    before.setdefault("attention", "causal")
    before.setdefault("pooling", "last_token")
    before.setdefault("prompt_style", "lamra")
    for name in CONTRASTIVE:  # before they were there, the loss was as it is without them
        before.setdefault(name, getattr(TrainingFlags, name))
    before.setdefault("matryoshka_dims", None)
    before.setdefault("distill_weight", 1.0)  # of no teacher
    before.setdefault("distill_temperature", 1.0)
    unknown = [name for name in now if name not in before]
    if unknown:
        note(f"{checkpoint} is of an older version and does not say its {', '.join(unknown)}: they are not compared")
    differences = {name: (before[name], now[name]) for name in now if name in before and before[name] != now[name]}
    forbidden = [name for name in differences if not allow_changes or name in CANNOT_CHANGE]
    for name, (old, new) in differences.items():
        if name not in forbidden:
            note(f"{name} changes from {old} to {new}, as --allow_changes says")
    if forbidden:
        listed = ", ".join(f"{name} was {differences[name][0]} and is {differences[name][1]}" for name in forbidden)
        way_out = "set them back" if allow_changes else "set them back, or pass --allow_changes True where that can be"
        raise UserError(f"{checkpoint} belongs to another run: {listed}; {way_out}")


def write_run_record(folder: str | Path, settings: Settings, arguments: dict, data: dict) -> None:
    """run.json: arguments, command, package versions, git commit, and the sha256 of base model and data; no secrets."""
    record = {
        "command": sys.argv,
        "arguments": arguments,
        "base_sha256": settings.base_sha256,
        "data": data,
        "versions": package_versions(),
        "git_commit": git_commit(),
    }
    with whole_file(Path(folder) / RUN_FILE) as file:
        file.write(json.dumps(without_secrets(record), indent=2, default=str) + "\n")


def git_commit() -> str:
    """The commit this code is at, marked where the working tree differs from it."""
    here = Path(__file__).parent

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"
