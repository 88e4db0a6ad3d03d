"""What a run leaves behind: the model, the settings it remembers, and where it came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from lamra.collators.processing import Processor
from lamra.models.embedder import Embedder
from lamra.models.settings import FILE_NAME as SETTINGS_FILE
from lamra.models.settings import Settings

RUN_FILE = "run.json"
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
        result = embedder.stock.load_state_dict(state, strict=False)
    else:
        result = set_peft_model_state_dict(embedder.model, state)
    trained = {name for name, parameter in embedder.model.named_parameters() if parameter.requires_grad}
    lacking = sorted(trained & set(result.missing_keys)) + sorted(result.unexpected_keys)
    if lacking or not state:
        raise ValueError(f"the weights in {folder} are not those of this model, for example {(lacking or ['none'])[0]}")


def newest_checkpoint(folder: str | Path) -> str:
    """The checkpoint-N folder of the highest step.

    Raises:
        ValueError: there is none.
    """
    steps = [int(path.parent.name.split("-")[1]) for path in Path(folder).glob("checkpoint-*/trainer_state.json")]
    if not steps:
        raise ValueError(f"--resume auto: no checkpoint-N in {folder} to go on from; start without --resume")
    return str(Path(folder) / f"checkpoint-{max(steps)}")


def prepare_output(folder: str | Path, *, force: bool, resume: str | None) -> None:
    """Refuse to write over a run, or with `force` clear it away.

    Raises:
        ValueError: the folder holds a run and neither force nor resume is set.
    """
    folder = Path(folder)
    checkpoints = list(folder.glob("checkpoint-*"))
    finished = (folder / SETTINGS_FILE).is_file()
    if resume or not (finished or checkpoints):
        return
    if not force:
        state = "a finished run" if finished else "an unfinished run"
        raise ValueError(
            f"--output_dir {folder} holds {state}: choose another folder, "
            "go on with --resume auto, or start again with --force True"
        )
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint)
    (folder / SETTINGS_FILE).unlink(missing_ok=True)


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
