"""What a run leaves behind: the model, the settings it remembers, and where it came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from peft import set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lamra.collators.processing import Processor
from lamra.models.embedder import Embedder
from lamra.models.lora import todays_name
from lamra.models.settings import FILE_NAME as SETTINGS_FILE
from lamra.models.settings import Settings
from lamra.train.arguments import deepspeed_config, note

RUN_FILE = "run.json"
MANIFEST = "manifest.json"
PREEMPTED = "preempted"  # an empty file in the output folder of a run that was asked to stop

# Flags that decide a run's result. Others (logging, saving, workers, padding, recomputing) do not.
DECISIVE = {
    "seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "adam_beta1",
    "lr_scheduler_kwargs", "optim_args", "dataloader_drop_last", "tf32", "image_root", "early_stopping_patience",
    "adam_beta2", "adam_epsilon", "bf16", "fp16", "deepspeed", "grad_cache_chunk", "mask_duplicates",
    "model_max_length", "data_format", "max_train_samples", "mixture_weights", "mixture_batches", "use_hard_negatives",
    "hard_negatives", "use_lora", "q_lora", "use_vision_lora", "lora_r", "lora_alpha", "lora_dropout",
    "train_vision_encoder", "train_vision_projector",
}  # fmt: skip

# What the tensors of a checkpoint, or their division among processes, are made of.
CANNOT_CHANGE = {"world_size", "base_model", "deepspeed", "use_lora", "lora_r", "use_vision_lora"}
CANNOT_CHANGE |= {"train_vision_encoder", "train_vision_projector"}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "flash-attn", "numpy", "pillow")


def save_model(
    embedder: Embedder,
    processor: Processor,
    settings: Settings,
    folder: str | Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write the adapter (or the whole model where there is none), tokenizer, image settings and lamra.json.

    Args:
        state_dict: the Embedder's tensors where they are sharded over processes (ZeRO-3); by default its own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if state_dict is not None:
        state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
    is_peft = embedder.model is not embedder.stock
    embedder.model.save_pretrained(
        folder, state_dict=state_dict, **({"save_embedding_layers": False} if is_peft else {})
    )
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card, an empty form
    processor.save_pretrained(folder)
    settings.write(folder)


def load_weights(embedder: Embedder, folder: str | Path) -> None:
    """Load what `save_model` wrote into an embedder of the same make.

    Raises:
        ValueError: a trained tensor is missing in the folder, or has no place in the model.
    """
    state = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        state.update(load_file(file))
    if embedder.model is embedder.stock:
        state = {todays_name(name): tensor for name, tensor in state.items()}  # written as published models are
        result = embedder.stock.load_state_dict(state, strict=False)
    else:
        result = set_peft_model_state_dict(embedder.model, state)
    trained = {name for name, parameter in embedder.model.named_parameters() if parameter.requires_grad}
    lacking = sorted(trained & set(result.missing_keys)) + sorted(result.unexpected_keys)
    if lacking or not state:
        raise ValueError(f"the weights in {folder} are not those of this model, for example {(lacking or ['none'])[0]}")


def commit_checkpoint(partial: Path, final: Path, *, record: dict, keep: int | None, best: Path | None = None) -> None:
    """Make a written folder a checkpoint: manifest, fsync, rename; then delete the oldest complete ones beyond `keep`.

    The `best` one is never deleted.

    Until the rename there is no checkpoint, afterwards it is complete, whenever the machine stops.

    Args:
        record: what `check_unchanged` compares when a run goes on from here.
    """
    files = {str(path.relative_to(partial)): path for path in sorted(partial.rglob("*")) if path.is_file()}
    manifest = record | {
        "files": {name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, default=str) + "\n")
    for path in [*files.values(), partial / MANIFEST, *(p for p in partial.rglob("*") if p.is_dir()), partial]:
        _fsync(path)
    shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step, or the same state saved twice
    os.rename(partial, final)
    _fsync(final.parent)
    if keep:
        complete = [folder for folder in checkpoints(final.parent) if (folder / MANIFEST).is_file()]
        for old in complete[keep:]:
            if old != best:
                shutil.rmtree(old)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """checkpoint-N folders, newest first."""
    named = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(named, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None when all are as its manifest says."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = manifest["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is damaged"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
        if sha256(path) != expected["sha256"]:
            return f"{name} has other content than was written"
    if manifest.get("save_only_model"):
        return "it was saved with --save_only_model True: no run can go on from it"
    return not_finite(checkpoint)


def not_finite(folder: Path) -> str | None:
    """Which weights of a folder are not finite, or None."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if not tensors.get_tensor(name).isfinite().all():
                    return f"{file.name}: the weights {name} are not finite"
    return None


def checkpoint_to_resume(folder: str | Path, resume: str) -> str:
    """The folder to go on from: the newest complete checkpoint for "auto", else `resume` itself if it is complete.

    Raises:
        ValueError: there is none; says what is wrong with each.
    """
    if resume != "auto":
        if reason := fault(Path(resume)):
            raise ValueError(f"--resume {resume}: {reason}; give a complete checkpoint, or auto")
        return resume
    reasons = []
    for checkpoint in checkpoints(Path(folder)):
        reason = fault(checkpoint)
        if reason is None:
            for skipped in reasons:
                note(f"skipped {skipped}")
            note(f"going on from {checkpoint}")
            return str(checkpoint)
        reasons.append(f"{checkpoint}: {reason}")
    found = "; ".join(reasons) or f"no checkpoint-N in {folder}"
    raise ValueError(f"--resume auto: nothing complete to go on from ({found}); start again with --force True")


def check_unchanged(checkpoint: str | Path, record: dict, *, allow_changes: bool) -> None:
    """Compare what decides a run's result with what the checkpoint was trained with.

    Raises:
        ValueError: something differs and may not; lists each difference.
    """
    before = json.loads((Path(checkpoint) / MANIFEST).read_text())
    now = json.loads(json.dumps(record, default=str))
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
        raise ValueError(f"{checkpoint} belongs to another run: {listed}; {way_out}")


def prepare_output(folder: str | Path, *, force: bool, resume: str | None) -> None:
    """Refuse to write over a run, or with `force` clear it away.

    Raises:
        ValueError: the folder holds a run and neither force nor resume is set.
    """
    folder = Path(folder)
    found = checkpoints(folder)
    finished = (folder / SETTINGS_FILE).is_file()
    if resume or not (finished or found):
        return
    if not force:
        state = "a finished run" if finished else "an unfinished run"
        raise ValueError(
            f"--output_dir {folder} holds {state}: choose another folder, "
            "go on with --resume auto, or start again with --force True"
        )
    for checkpoint in found:
        shutil.rmtree(checkpoint)
    (folder / SETTINGS_FILE).unlink(missing_ok=True)


def run_record(settings: Settings, data: dict, *arguments) -> dict:
    """What decides a run's result, for a checkpoint to remember: data, world size and the flags that matter."""
    flags = {name: value for group in arguments for name, value in vars(group).items() if name in DECISIVE}
    deepspeed = flags.pop("deepspeed", None)
    return {
        **asdict(settings),
        **flags,
        "deepspeed": Path(deepspeed).name if isinstance(deepspeed, str) else deepspeed,
        "deepspeed_config": deepspeed_config(deepspeed),
        "world_size": arguments[-1].world_size,
        "data_sha256": data["sha256"],
    }


def write_run_record(folder: str | Path, arguments: dict, data: dict) -> None:
    """run.json: arguments, command, package versions, git commit and the sha256 of the data."""
    record = {
        "command": sys.argv,
        "arguments": arguments,
        "data": data,
        "versions": package_versions(),
        "git_commit": git_commit(),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / RUN_FILE).write_text(json.dumps(record, indent=2, default=str) + "\n")


def package_versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def git_commit() -> str:
    """The commit this code is at, marked where the working tree differs from it."""
    here = Path(__file__).parent

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
