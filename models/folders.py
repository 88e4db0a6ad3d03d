"""From the name of a model to its folder on disk. Imports nothing slow and reaches for no hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lamra.common.errors import UserError
from lamra.common.files import parse_json

CHECKPOINTS = Path("checkpoints")
BASE_MODELS = CHECKPOINTS / "hf_models"  # where scripts/download.sh puts what is published

MODEL_MARKS = ("adapter_config.json", "config.json")  # a folder with either file is a model

# What scripts/download.sh calls it -> its name on the hub; the last part of that is its folder.
PUBLISHED = {
    "qwen2-vl-2b": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2-vl-7b": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl-2b": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3-vl-4b": "Qwen/Qwen3-VL-4B-Instruct",
    "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
    "lamra-ret-pretrained": "code-kunkun/LamRA-Ret-Pretrained",
    "lamra-ret": "code-kunkun/LamRA-Ret",
    "lamra-rank": "code-kunkun/LamRA-Rank",
}
# --model_id of a training -> folder below checkpoints/hf_models/.
MODELS = {name: hub.split("/")[1] for name, hub in PUBLISHED.items() if hub.startswith("Qwen/")}
MODELS |= {name: name for name in ("miniature", "miniature_qwen2_5_vl", "miniature_qwen3_vl")}


# The chat template in an export, where chat_template.jinja is for sentence-transformers (export/templates.py).
LAMRA_TEMPLATE = "lamra_chat_template.jinja"
AGAIN = "download or copy it again"
LFS_POINTER = b"version https://git-lfs"


def read_object(path: str | Path) -> dict[str, Any]:
    """The object of a model's json file.

    Raises:
        UserError: it is not there, a pointer of git-lfs, or no json object in UTF-8; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing: {AGAIN}")
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        raise UserError(f"{path} is a pointer of git-lfs, not the file: run git lfs pull, or {AGAIN}")
    try:
        value = parse_json(content.decode(), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error.reason}): {AGAIN}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no json object: {AGAIN}")
    return value


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def is_model(folder: str | Path) -> bool:
    return any((Path(folder) / mark).is_file() for mark in MODEL_MARKS)


def local_folder(name: str, flag: str) -> str:
    """The folder that `name` means: itself, or for a hub's owner/name the folder of that name below checkpoints/.

    A path that exists wins, and what does not look like owner/name is a path.

    Raises:
        UserError: a hub's name whose model is not here; says how to get it.
    """
    owner, _, last = name.partition("/")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or Path(name).exists() or Path(owner).is_dir():
        return name
    for folder in (CHECKPOINTS / last, BASE_MODELS / last):
        if is_model(folder):
            return str(folder)
    for short, published in PUBLISHED.items():
        if published == name:
            raise UserError(f"--{flag} {name} is not in {BASE_MODELS / last}: bash scripts/download.sh {short}")
    raise UserError(
        f"--{flag} {name} is no folder here and no published model that this project knows: give a folder, put the "
        f"model into {BASE_MODELS / last}, or name one of {', '.join(PUBLISHED.values())}"
    )


def model_folder(model_id: str, model_local_path: str | None = None) -> Path:
    """The folder of a base model.

    Args:
        model_id: one of MODELS, or a hub's name.

    Raises:
        UserError: unknown id, or the folder is not there; says how to get it.
    """
    if model_id not in MODELS and "/" not in model_id:
        raise UserError(f"--model_id {model_id!r} is unknown: choose one of {', '.join(MODELS)}")
    if model_local_path:
        folder = Path(local_folder(model_local_path, "model_local_path"))
    elif model_id in MODELS:
        folder = BASE_MODELS / MODELS[model_id]
    else:
        folder = Path(local_folder(model_id, "model_id"))
    if is_adapter(folder):
        raise UserError(f"{folder} is an adapter, not a whole model: MODEL_ID={folder} bash scripts/merge_lora.sh")
    if not (folder / "config.json").is_file():
        short = next((short for short, published in PUBLISHED.items() if published == model_id), model_id)
        how = f"bash scripts/download.sh {short}"
        if short.startswith("miniature"):
            family = f"FAMILY={short.removeprefix('miniature_')} " * (short != "miniature")
            how = f"{family}bash scripts/quickstart.sh makes it"
        raise UserError(f"no model in {folder} (config.json is missing): {how}, or set --model_local_path")
    return folder
