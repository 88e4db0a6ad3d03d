"""What a model folder really holds: sha256 of its files, computed once and kept beside them."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from functools import lru_cache
from pathlib import Path

import torch.distributed as dist

KEPT = ".sha256.json"
LARGE = 2**30  # bytes; to read more takes long enough for a word about it

# Everything that decides what a model computes and what it is shown. What lamra.json says is compared by itself.
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json"),
    *("preprocessor_config.json", "processor_config.json", "chat_template.*"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)


def model_sha256(folder: str | Path) -> str:
    """One digest of all MODEL_FILES in a folder, names and contents.

    The first process reads and tells the others: all processes must call this.
    """
    digest = [_model_sha256(Path(folder)) if not dist.is_initialized() or dist.get_rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(digest)
    return digest[0]


def _model_sha256(folder: Path) -> str:
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    try:
        kept = json.loads((folder / KEPT).read_text())
    except (OSError, ValueError):
        kept = {}
    found = {}
    for path in files:
        status = path.stat()
        # The time of the inode too: archives may give the files of two models of one shape the same time and size.
        state = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
        before = kept.get(path.name)
        known = isinstance(before, dict) and {**before, "sha256": None} == {**state, "sha256": None}
        found[path.name] = before if known else state | {"sha256": _sha256_at(path, *state.values())}
    if found != kept:
        _keep(folder, found)
    return hashlib.sha256("".join(f"{name} {of['sha256']}\n" for name, of in found.items()).encode()).hexdigest()


def _keep(folder: Path, found: dict) -> None:
    unfinished = folder / f"{KEPT}.{uuid.uuid4().hex}"
    try:
        unfinished.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(unfinished, folder / KEPT)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        if sum(of["size"] for of in found.values()) > LARGE:
            print(f"note: {folder} cannot be written ({error.strerror}): its files are read for their digest each time")


@lru_cache(maxsize=1000)
def _sha256_at(path: Path, size: int, *_times: int) -> str:
    """Within one process a file is read once, also where nothing can be kept beside it."""
    if size > LARGE:
        print(f"note: reading {path} ({size / 2**30:.1f} GiB) for its digest", flush=True)
    return sha256(path)


def sha256(path: str | Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
