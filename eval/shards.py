"""Embeddings of sets too large for memory: encoded part by part into files that a restarted run picks up.

A folder holds manifest.json, which says of what and by what its embeddings are, and 00000.npy, 00001.npy, ... Each file
is complete or not there. All processes must see the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from lamra.collators.messages import (
    NO,
    RANK_STYLES,
    YES,
    embedding_messages,
    listwise_answer,
    listwise_messages,
    pointwise_messages,
)
from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.common.processes import on_first_process
from lamra.datasets.items import Item
from lamra.eval.inference import Retriever, RetrieverArguments
from lamra.models.digests import model_sha256
from lamra.models.folders import is_adapter
from lamra.models.settings import Settings

MANIFEST = "manifest.json"
VERSION = 2  # of the manifest; a cache of an earlier one does not know enough of what it was made of
SETTINGS = ("position_ids", "min_pixels", "max_pixels")
PICTURES_TOGETHER = 4096  # items whose pictures one process looks up at a time


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


def made_by(args: RetrieverArguments, settings: Settings, model: nn.Module, protocol: str | None = None) -> dict:
    """What decides embeddings, or a reranker's answers: weights, tokenizer, prompts, settings and precision.

    All processes must call this.

    Args:
        protocol: how items are shown, where an evaluation has a choice.
    """
    base = settings.base_model if is_adapter(args.model_id) else None
    return {
        "version": VERSION,
        "model": model_sha256(args.model_id),
        "base": base and model_sha256(base),
        "prompts": prompts_sha256(),
        "protocol": protocol,
        **{name: getattr(settings, name) for name in SETTINGS},
        "dtype": str(next(model.parameters()).dtype),
    }


def prompts_sha256() -> str:
    """Of the prompts of every kind of item, so that a changed word in collators.messages is another digest."""
    text, picture = Item("", "text", instruction="instruction"), Item("", None, ("picture",))
    both = Item("", "text", ("picture",), "instruction")
    prompts = [embedding_messages(item) for item in (replace(text, instruction=None), text, picture, both)]
    for style in RANK_STYLES:
        prompts += [pointwise_messages(style, both, picture), listwise_messages(style, both, [picture, text])]
    return _digest(json.dumps([*prompts, YES, NO, listwise_answer(1)]))


def pictures_sha256(items: Sequence[Item]) -> str:
    """Of path, size and time of change of all pictures, in order. All processes must call this: they share the work."""
    state = PartialState()
    starts = range(0, len(items), PICTURES_TOGETHER)[state.process_index :: state.num_processes]
    mine = [(start, _digest(json.dumps([*map(_pictures, _part(items, start))]))) for start in starts]
    return _digest(json.dumps(sorted(map(list, gather_object(mine)))))


def _part(items: Sequence[Item], start: int) -> Iterator[Item]:
    return (items[row] for row in range(start, min(start + PICTURES_TOGETHER, len(items))))


def _pictures(item: Item) -> list:
    found = []
    for path in map(os.path.abspath, item.images):
        try:
            status = os.stat(path)
            found.append((path, status.st_size, status.st_mtime_ns))
        except OSError:  # whoever opens it tells
            found.append((path, None, None))
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
        UserError: the folder holds embeddings with another manifest; says what differs.
    """
    folder = Path(folder)
    manifest = {**manifest, "items": len(items), "shard_size": shard_size, "pictures": pictures_sha256(items)}
    check_manifest(folder, manifest, "embeddings")
    parts = [range(start, min(start + shard_size, len(items))) for start in range(0, len(items), shard_size)]
    files = [folder / f"{number:05d}.npy" for number in range(len(parts))]
    # One process looks: on a network disk another may remember for a while that a file was not there.
    complete = on_first_process(lambda: [_is_complete(file, len(rows)) for file, rows in zip(files, parts)])
    for number in [i for i, there in enumerate(complete) if not there]:
        rows, file = parts[number], files[number]
        place = f"{description} {number + 1}/{len(files)}" if len(files) > 1 else description
        embeddings = retriever.encode([items[row] for row in rows], place)  # (n, D), the same on every process
        if PartialState().is_main_process:
            with whole_file(file, "wb") as out:
                np.save(out, embeddings.numpy())
    PartialState().wait_for_everyone()
    return Shards(files)


def check_manifest(folder: Path, manifest: dict, content: str) -> None:
    """Write down what the folder's files are made of and by, or compare it with what an earlier run wrote.

    What an earlier version of this project wrote is removed, with a note, to be made anew. The first process looks and
    decides for all: all must call this.

    Raises:
        UserError: the folder holds `content` with another manifest; says what differs.
    """
    on_first_process(lambda: _check_manifest(folder, manifest, content))


def _check_manifest(folder: Path, manifest: dict, content: str) -> None:
    path = folder / MANIFEST
    try:
        before = json.loads(path.read_text())
    except FileNotFoundError:
        before = None
    except (OSError, ValueError):
        before = {"version": None}
    if before is not None and "version" not in before:
        print(f"note: {folder} holds {content} of an earlier version, which are made anew", flush=True)
        for old in (*folder.glob("*.npy"), *folder.glob("*.jsonl")):
            old.unlink()
        before = None
    if before is None:
        with whole_file(path) as file:
            file.write(json.dumps(manifest, indent=1) + "\n")
    elif before != manifest:
        other = ", ".join(name for name in manifest if before.get(name) != manifest[name])
        raise UserError(
            f"{folder} holds {content} made otherwise (not the same: {other or 'its fields'}): "
            "choose another --output_dir, or delete that folder to compute them again"
        )


def _is_complete(file: Path, rows: int) -> bool:
    try:
        return len(np.load(file, mmap_mode="r")) == rows
    except (OSError, ValueError, EOFError):
        return False
