"""Embeddings of sets too large for memory: encoded part by part into files that a restarted run picks up.

A folder holds manifest.json, which says of what and by what its embeddings are, and 00000.npy, 00001.npy, ... Each file
is written beside its place and renamed, so that it is complete or not there. All processes must see the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from lamra.datasets.items import Item
from lamra.eval.retriever import Retriever, RetrieverArguments
from lamra.models.folders import is_adapter
from lamra.models.settings import Settings
from lamra.train.checkpoints import sha256

MANIFEST = "manifest.json"
# What the embeddings of a model folder are made by.
MODEL_FILES = ("*.safetensors", "config.json", "adapter_config.json", "tokenizer.json", "chat_template.*")
SETTINGS = ("position_ids", "min_pixels", "max_pixels")


class Shards:
    """(N, D) float32 embeddings in .npy files. A slice maps the files that it needs, copies, and lets go of them."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        shapes = [np.load(file, mmap_mode="r").shape for file in self.files]
        self._ends = np.cumsum([rows for rows, _ in shapes])
        self.shape = (int(self._ends[-1]), shapes[0][1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        out = np.empty((max(stop - start, 0), self.shape[1]), np.float32)
        filled = 0
        while start + filled < stop:
            number = int(np.searchsorted(self._ends, start + filled, side="right"))
            file = np.load(self.files[number], mmap_mode="r")
            first = start + filled - (self._ends[number] - len(file))
            part = file[first : first + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
        return out


def made_by(args: RetrieverArguments, settings: Settings, model: nn.Module) -> dict:
    """What decides the embeddings of an item, or a reranker's answers: weights, tokenizer, settings and precision."""
    folders = [Path(args.model_id)]
    if is_adapter(args.model_id):
        folders.append(Path(args.original_model_id or settings.base_model))
    digest = [_folder_digest(folders) if PartialState().is_main_process else None]
    return {
        "model": broadcast_object_list(digest)[0],
        **{name: getattr(settings, name) for name in SETTINGS},
        "dtype": str(next(model.parameters()).dtype),
    }


def _folder_digest(folders: list[Path]) -> str:
    files = [path for folder in folders for pattern in MODEL_FILES for path in sorted(folder.glob(pattern))]
    return hashlib.sha256("".join(sha256(path) for path in files).encode()).hexdigest()


def encode_to_shards(
    retriever: Retriever,
    items: Sequence[Item],
    folder: str | Path,
    manifest: dict,
    *,
    shard_size: int,
    description: str,
) -> Shards:
    """Encode what is not there yet, `shard_size` items at a time, on all processes together.

    Args:
        manifest: of what and by what; anything that can be json.

    Raises:
        ValueError: the folder holds embeddings with another manifest; says what differs.
    """
    folder = Path(folder)
    manifest = {**manifest, "items": len(items), "shard_size": shard_size}
    check_manifest(folder, manifest, "embeddings")
    parts = [range(start, min(start + shard_size, len(items))) for start in range(0, len(items), shard_size)]
    files = [folder / f"{number:05d}.npy" for number in range(len(parts))]
    # One process looks: on a network disk another may remember for a while that a file was not there.
    complete = [PartialState().is_main_process and _is_complete(file, len(rows)) for file, rows in zip(files, parts)]
    for number in [i for i, there in enumerate(broadcast_object_list(complete)) if not there]:
        rows, file = parts[number], files[number]
        place = f"{description} {number + 1}/{len(files)}" if len(files) > 1 else description
        embeddings = retriever.encode([items[row] for row in rows], place)  # (n, D), the same on every process
        if PartialState().is_main_process:
            unfinished = file.with_suffix(".tmp")
            with open(unfinished, "wb") as out:
                np.save(out, embeddings.numpy())
            os.replace(unfinished, file)
    PartialState().wait_for_everyone()
    return Shards(files)


def check_manifest(folder: Path, manifest: dict, content: str) -> None:
    """Write down what the folder's files are made of and by, or compare it with what an earlier run wrote.

    Raises:
        ValueError: the folder holds `content` with another manifest; says what differs.
    """
    path = folder / MANIFEST
    try:
        before = json.loads(path.read_text())
    except FileNotFoundError:
        before = None
    except (OSError, ValueError):
        before = {}
    if before is None:
        if PartialState().is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(manifest, indent=1) + "\n")
            os.replace(unfinished, path)
    elif before != manifest:
        other = ", ".join(name for name in manifest if before.get(name) != manifest[name])
        raise ValueError(
            f"{folder} holds {content} made otherwise (not the same: {other or 'its fields'}): "
            "choose another --output_dir, or delete that folder to compute them again"
        )


def _is_complete(file: Path, rows: int) -> bool:
    try:
        return len(np.load(file, mmap_mode="r")) == rows
    except (OSError, ValueError, EOFError):
        return False
