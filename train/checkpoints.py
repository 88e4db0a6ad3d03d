"""What a run leaves behind: the model, the settings it remembers, and where it came from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from peft import set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lamra.collators.processing import Processor
from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import appears, remove, sha256, whole_file
from lamra.common.processes import of_all_processes, on_first_process
from lamra.models.embedder import Embedder
from lamra.models.lora import todays_name
from lamra.models.saving import MODEL_MARKS, follow_umask, fsync, whole_model
from lamra.models.settings import FILE_NAME as SETTINGS_FILE
from lamra.models.settings import RUN_FILE, Settings
from lamra.train.arguments import deepspeed_config

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # folder where a checkpoint is written, beside its place, until it is complete
ASIDE = ".aside"  # end of the name of a checkpoint that a new one replaces
PREEMPTED = "preempted"  # an empty file in the output folder of a run that was asked to stop

# What a run writes into its folder, with its checkpoints.
OF_A_RUN = (
    SETTINGS_FILE, RUN_FILE, PREEMPTED, "skipped.jsonl", "runs", PARTIAL, ".*.unfinished", *MODEL_MARKS,
    "adapter_model.safetensors", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
    "merges.txt", "added_tokens.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip

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
CANNOT_CHANGE = {"world_size", "base_model", "base_sha256", "deepspeed", "use_lora", "lora_r", "use_vision_lora"}
CANNOT_CHANGE |= {"train_vision_encoder", "train_vision_projector"}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "flash-attn", "numpy", "pillow")


def save_model(
    embedder: Embedder,
    processor: Processor,
    settings: Settings,
    folder: str | Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write lamra.json, the adapter (or the whole model where there is none), tokenizer and image settings.

    Args:
        state_dict: the Embedder's tensors where they are sharded over processes (ZeRO-3); by default its own.
    """
    if state_dict is not None:
        state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
    is_peft = embedder.model is not embedder.stock
    with whole_model(folder) as unfinished:
        settings.write(unfinished)
        embedder.model.save_pretrained(
            unfinished, state_dict=state_dict, **({"save_embedding_layers": False} if is_peft else {})
        )
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's model card, an empty form
        processor.save_pretrained(unfinished)


def load_weights(embedder: Embedder, folder: str | Path) -> None:
    """Load what `save_model` wrote into an embedder of the same make.

    Raises:
        UserError: a trained tensor is missing in the folder, or has no place in the model.
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
        raise UserError(f"the weights in {folder} are not those of this model, for example {(lacking or ['none'])[0]}")


def commit_checkpoint(partial: Path, final: Path, *, record: dict, keep: int | None, best: Path | None = None) -> None:
    """Make a written folder a checkpoint: manifest, fsync, rename; then delete the oldest complete ones beyond `keep`.

    The `best` one is never deleted.

    Until the rename there is no checkpoint, afterwards it is complete, whenever the machine stops. What has its name
    already, a damaged one or the same state saved before, stands aside until then.

    Args:
        record: what `check_unchanged` compares when a run goes on from here.
        keep: so many complete ones; None or 0 keeps all.
    """
    follow_umask(partial)
    files = {str(path.relative_to(partial)): path for path in sorted(partial.rglob("*")) if path.is_file()}
    manifest = record | {
        "files": {name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, default=str) + "\n")
    for path in [*files.values(), partial / MANIFEST, *(p for p in partial.rglob("*") if p.is_dir()), partial]:
        fsync(path)
    aside = final.with_name(final.name + ASIDE)
    remove(aside)
    with suppress(FileNotFoundError):
        os.rename(final, aside)
    os.rename(partial, final)
    fsync(final.parent)
    remove(aside)
    if keep:
        complete = [folder for folder in checkpoints(final.parent) if (folder / MANIFEST).is_file()]
        for old in complete[keep:]:
            if old != best:
                shutil.rmtree(old)


def put_back(folder: Path) -> None:
    """Give a checkpoint its name again that stood aside when a commit was killed before the new one had it."""
    for aside in folder.glob(f"checkpoint-*{ASIDE}"):
        final = aside.with_name(aside.name.removesuffix(ASIDE))
        if os.path.lexists(final):
            remove(aside)
        else:
            os.rename(aside, final)


def require_shared(folder: Path) -> None:
    """Refuse a checkpoint that the first process does not see in full; all must call this, after a barrier.

    Raises:
        UserError: a process wrote a file where the first does not see it: machines without a common file system.
    """
    written = set(of_all_processes([str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]))

    if lacks := on_first_process(lambda: sorted(name for name in written if not appears(folder / name))):
        raise UserError(
            f"--output_dir {folder.parent.parent}: the first machine does not see {lacks[0]}, which another process "
            "wrote there: all machines must share the folder"
        )


def checkpoints(folder: Path) -> list[Path]:
    """checkpoint-N folders, newest first; no links, which lead out of the run."""
    named = [path for path in _named_as_checkpoints(folder) if path.is_dir() and not path.is_symlink()]
    return sorted(named, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def _named_as_checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]


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
        UserError: there is none; says what is wrong with each.
    """
    if resume != "auto":
        if reason := fault(Path(resume)):
            raise UserError(f"--resume {resume}: {reason}; give a complete checkpoint, or auto")
        return resume
    links = [path for path in _named_as_checkpoints(Path(folder)) if path.is_symlink()]
    reasons = [f"{path}: it is a link; --resume {path.resolve()} would follow it" for path in links]
    for checkpoint in checkpoints(Path(folder)):
        reason = fault(checkpoint)
        if reason is None:
            for skipped in reasons:
                note(f"skipped {skipped}")
            note(f"going on from {checkpoint}")
            return str(checkpoint)
        reasons.append(f"{checkpoint}: {reason}")
    found = "; ".join(reasons) or f"no checkpoint-N in {folder}"
    raise UserError(f"--resume auto: nothing complete to go on from ({found}); start again with --force True")


def check_unchanged(checkpoint: str | Path, record: dict, *, allow_changes: bool) -> None:
    """Compare what decides a run's result with what the checkpoint was trained with.

    Raises:
        UserError: something differs and may not; lists each difference.
    """
    before = json.loads((Path(checkpoint) / MANIFEST).read_text())
    now = json.loads(json.dumps(record, default=str))
    before.setdefault("train_position_ids", None)  # the first rerankers were trained as they are asked
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


def prepare_output(folder: str | Path, base: str | Path, *, force: bool, resume: str | None) -> None:
    """Refuse to write over a run or a model; nothing is deleted yet, see `clear_output`.

    Args:
        base: the folder of the model that is trained.

    Raises:
        UserError: the folder is `base`, or holds it, a model that no training wrote there, or a run where neither
            force nor resume is set.
    """
    folder, inside = Path(folder), Path(base).resolve()
    if folder.resolve() == inside or any(path.resolve() in (inside, *inside.parents) for path in _of_a_run(folder)):
        raise UserError(
            f"--output_dir {folder} holds the model that is trained, {base}: no run writes over that, choose another"
        )
    put_back(folder)
    has_model = any((folder / name).is_file() for name in (*MODEL_MARKS, SETTINGS_FILE))
    if not (folder / RUN_FILE).is_file() and not _named_as_checkpoints(folder):
        if has_model:
            raise UserError(f"--output_dir {folder} holds a model that no training wrote there: choose another folder")
        return
    if resume or force:
        return
    if has_model:
        state = "a finished run"
    elif checkpoints(folder):
        state = "an unfinished run"
    else:
        state = "a run that was stopped before its first checkpoint"
    go_on = "go on with --resume auto, " if checkpoints(folder) else ""
    raise UserError(
        f"--output_dir {folder} holds {state}: choose another folder, {go_on}or start again with --force True"
    )


def clear_output(folder: str | Path) -> None:
    """Delete what belongs to an earlier run, and nothing else; of links, the links."""
    # What marks a model goes first, the run's record last: a kill leaves nothing that would load with other settings.
    order = {name: place for place, name in enumerate((*MODEL_MARKS, None, SETTINGS_FILE, RUN_FILE))}
    for path in sorted(_of_a_run(Path(folder)), key=lambda path: order.get(path.name, order[None])):
        remove(path)


def _of_a_run(folder: Path) -> list[Path]:
    found = {path for pattern in OF_A_RUN for path in folder.glob(pattern)}
    return [*found, *_named_as_checkpoints(folder)]


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


def write_run_record(folder: str | Path, settings: Settings, arguments: dict, data: dict) -> None:
    """run.json: arguments, command, package versions, git commit, and the sha256 of base model and data."""
    record = {
        "command": sys.argv,
        "arguments": arguments,
        "base_sha256": settings.base_sha256,
        "data": data,
        "versions": package_versions(),
        "git_commit": git_commit(),
    }
    with whole_file(Path(folder) / RUN_FILE) as file:
        file.write(json.dumps(record, indent=2, default=str) + "\n")


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
