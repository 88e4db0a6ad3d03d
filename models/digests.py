"""What a model folder, or a large file of data, really holds: sha256, computed once and kept beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lamra.common.cli import note
from lamra.common.files import sha256, whole_file
from lamra.common.machines import is_first_of_machine, require_alike, several_machines
from lamra.common.processes import is_first_process, on_first_process
from lamra.models.folders import LAMRA_TEMPLATE

KEPT = ".sha256.json"
LARGE = 2**30  # bytes; to read more takes long enough for a note about it
KEPT_FROM = 2**24  # bytes of a file of data; a smaller one is read in no time

# Everything that decides what a model computes and what its inputs are. lamra.json is compared by itself.
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json"),
    *("preprocessor_config.json", "processor_config.json", "chat_template.*", LAMRA_TEMPLATE),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)


def model_sha256(folder: str | Path, patterns: Sequence[str] = MODEL_FILES) -> str:
    """The digest of the files of a folder, their names and their bytes.

    The first process reads and tells the others: all processes must call this. The first of each other machine reads
    too, of a shared folder only what is kept beside the files.

    Args:
        patterns: of the files; hidden ones are none.

    Raises:
        UserError: a machine has other files.
    """
    doing = f"the first process reads {folder} for its digest"
    found = on_first_process(lambda: _model_sha256(Path(folder), patterns), doing)
    reads = several_machines() and is_first_of_machine() and not is_first_process()
    require_alike({f"the model {folder}": _model_sha256(Path(folder), patterns) if reads else found})
    return found


def file_sha256(path: str | Path) -> str:
    """The digest of a file; that of one of KEPT_FROM bytes is kept beside it, and it is read again when it changed."""
    path = Path(path)
    if path.stat().st_size < KEPT_FROM:
        return sha256(path)
    return _digests(path.parent, [path])[path.name]


def _model_sha256(folder: Path, patterns: Sequence[str]) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    found = _digests(folder, files)
    return hashlib.sha256("".join(f"{name} {of}\n" for name, of in found.items()).encode()).hexdigest()


def _digests(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """Names in the folder -> sha256, of files as they are now."""
    try:
        kept = json.loads((folder / KEPT).read_text())
    except (OSError, ValueError):
        kept = {}
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        status = path.stat()
        # The time of the inode too: archives may give the files of two models of the same shape the same time and size.
        state = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
        name = path.relative_to(folder).as_posix()
        before = kept.get(name)
        known = isinstance(before, dict) and {**before, "sha256": None} == {**state, "sha256": None}
        found[name] = before if known else state | {"sha256": _sha256_at(path, *state.values())}
    if any(kept.get(name) != of for name, of in found.items()):
        _keep(folder, kept | found)
    return {name: of["sha256"] for name, of in found.items()}


def _keep(folder: Path, found: dict[str, dict]) -> None:
    try:
        with whole_file(folder / KEPT) as file:
            file.write(json.dumps(found, indent=1) + "\n")
    except OSError as error:
        if sum(of["size"] for of in found.values()) > LARGE:
            note(f"{folder} cannot be written ({error.strerror}): its files are read for their digest each time")


@lru_cache(maxsize=1000)
def _sha256_at(path: Path, size: int, *_times: int) -> str:
    """Within one process a file is read once, also where nothing can be kept beside it."""
    if size > LARGE:
        note(f"reading {path} ({size / 2**30:.1f} GiB) for its digest")
    return sha256(path)
