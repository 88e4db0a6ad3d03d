"""The base model under an adapter: which folder holds it, and that it is the model that the adapter was trained on."""

from __future__ import annotations

from pathlib import Path

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.models.digests import model_sha256
from lamra.models.folders import is_adapter, is_model, local_folder, read_object
from lamra.models.settings import FILE_NAME as SETTINGS_FILE
from lamra.models.settings import Settings


def base_under(adapter: str | Path, original_model: str | Path | None) -> str:
    """The folder of an adapter's base model: the model it was trained on, or where that is gone `original_model`.

    Upstream's commands name Qwen2-VL for every model and read the tokenizer from it; the adapter of stage 2 belongs on
    the merged model of stage 1 all the same.

    Raises:
        UserError: `original_model` has an adapter merged into it that `adapter` was not trained on top of.
    """
    settings = Settings.read(adapter)
    remembered = (settings.base_model if settings else adapter_base_model(adapter)) or ""
    if not original_model:
        return local_folder(remembered, "original_model_id")
    original_model = local_folder(str(original_model), "original_model_id")
    _require_base(Path(adapter), Path(original_model), Path(remembered))
    if not is_model(remembered):
        return original_model
    if Path(original_model).resolve() != Path(remembered).resolve():
        note(f"{adapter} was trained on {remembered}, which is used, not --original_model_id {original_model}")
    return remembered


def require_model(folder: Path) -> None:
    """Refuse a folder that holds no model.

    Raises:
        UserError: it has neither file that marks one.
    """
    if not is_model(folder):
        hint = "has the training finished?" if folder.is_dir() else "it does not exist"
        raise UserError(f"--model_id {folder}: no adapter_config.json and no config.json there ({hint})")


def require_base_there(adapter: Path, base: Path) -> None:
    """Refuse an adapter without its base model.

    Raises:
        UserError: `base` is no model's folder.
    """
    if not (base / "config.json").is_file():
        raise UserError(
            f"{adapter} is an adapter and its base model is not in {base}: name it with --original_model_id, "
            "or download it with bash scripts/download.sh"
        )


def check_base(folder: Path, base: Path, settings: Settings) -> None:
    """Refuse a base model other than the model that an adapter was trained on, whatever its folder is called.

    Raises:
        UserError: its files have another digest than the adapter remembers.
    """
    if settings.base_sha256 is None:
        note(f"{folder} does not say what its base model held when it was trained; {base} is used as it is")
        return
    found = model_sha256(base)
    if found != settings.base_sha256:
        raise UserError(
            f"{folder} was trained on a base model with the digest {settings.base_sha256[:16]}, and {base} has "
            f"{found[:16]}: its weights, config or tokenizer are others; name the right one with --original_model_id, "
            f"or remove base_sha256 from {folder / SETTINGS_FILE} if this one is meant"
        )


def _require_base(adapter: Path, base: Path, own_base: Path) -> None:
    """Refuse a base model that an adapter was merged into, unless `adapter` was trained on top of that one.

    Raises:
        UserError: the adapter would be added to this or to another adapter.
    """
    if is_adapter(base):
        raise UserError(f"--original_model_id {base} holds an adapter itself: give the base model of {adapter}")
    merged = Settings.read(base)
    if merged is None or not own_base.name or base.resolve() == own_base.resolve():
        return
    if own_base.is_dir():
        refused = Settings.read(own_base) != merged  # a copy says the same
    else:  # moved away, or named as on the hub: at least no model that was merged from it
        refused = Path(merged.base_model).name == own_base.name
    if refused:
        raise UserError(
            f"--original_model_id {base} has an adapter merged into it already, and {adapter} was trained on "
            f"{own_base}: give that model, or leave the flag out"
        )


def adapter_base_model(folder: str | Path) -> str | None:
    """The base model's path that an adapter folder names, or None."""
    path = Path(folder) / "adapter_config.json"
    name = read_object(path).get("base_model_name_or_path")
    if not isinstance(name, str | None):
        raise UserError(f"{path} has base_model_name_or_path {name!r}: expected the folder of its base model")
    return name
