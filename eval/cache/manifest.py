"""What a cache was made of and by: digests of weights, prompts, settings and pictures, in its manifest.json.

A restarted run takes what is there if its own manifest is equal.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from lamra.collators import messages
from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.common.processes import of_all_processes, process_rank, world_size
from lamra.datasets.items import Indexed, Item
from lamra.eval.flags import RetrieverArguments
from lamra.models.digests import model_sha256
from lamra.models.folders import is_adapter
from lamra.models.settings import Settings

MANIFEST = "manifest.json"
VERSION = 2  # of the manifest; a cache of an earlier version does not know enough of what it was made of
SETTINGS = ("position_ids", "min_pixels", "max_pixels")
PICTURES_TOGETHER = 4096  # items whose pictures one process looks up at a time


def provenance_of(args: RetrieverArguments, settings: Settings, model: nn.Module, protocol: str | None = None) -> dict:
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
        "prompts": prompts_sha256(settings.prompt_style, settings.rank_style),
        "protocol": protocol,
        **{name: getattr(settings, name) for name in SETTINGS},
        # Not where it is as it always was: caches of before it was a setting go on.
        **({"special_tokens_in_text": "plain"} if settings.special_tokens_in_text == "plain" else {}),
        **({"exif_rotation": True} if settings.exif_rotation else {}),
        **({"attention": settings.attention} if settings.attention != "causal" else {}),
        **({"pooling": settings.pooling} if settings.pooling != "last_token" else {}),
        "dtype": str(next(model.parameters()).dtype),
    }


def prompts_sha256(prompt_style: str = "lamra", rank_style: str | None = None) -> str:
    """Of the prompts of every kind of item, so that a changed word in collators.messages is another digest."""
    text, picture = Item("", "text", instruction="instruction"), Item("", None, ("picture",))
    both = Item("", "text", ("picture",), "instruction")
    items = (replace(text, instruction=None), text, picture, both)
    prompts = [messages.embedding_messages(item, prompt_style) for item in items]
    for style in dict.fromkeys(("released", "clean", rank_style or "clean")):
        prompts.append(messages.pointwise_messages(style, both, picture))
        prompts.append(messages.listwise_messages(style, both, [picture, text]))
    return digest(json.dumps([*prompts, messages.YES, messages.NO, messages.listwise_answer(1)]))


def pictures_sha256(items: Indexed[Item]) -> str:
    """Of path, size and time of change of all pictures, in order. All processes must call this: they share the work."""
    mine = []
    for start in range(0, len(items), PICTURES_TOGETHER)[process_rank() :: world_size()]:
        rows = range(start, min(start + PICTURES_TOGETHER, len(items)))
        mine.append([start, digest(json.dumps([_pictures(items[row]) for row in rows]))])
    return digest(json.dumps(sorted(of_all_processes(mine))))


def content_sha256(items: Indexed[Item]) -> str:
    """Of ids, instructions, texts and paths of all items, in order."""
    found = hashlib.sha256()
    for row in range(len(items)):
        found.update(f"{items[row].id!r} {items[row].content!r}\n".encode())
    return found.hexdigest()


def _pictures(item: Item) -> list[tuple[str, int | None, int | None]]:
    found: list[tuple[str, int | None, int | None]] = []
    assert len(item.files) == len(item.visuals)  # caches are of files
    for file in item.files:
        path = os.path.abspath(str(file))  # and the box of a crop
        try:
            status = os.stat(file)
            found.append((path, status.st_size, status.st_mtime_ns))
        except OSError:  # whoever opens it tells
            found.append((path, None, None))
    return found


def digest(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_manifest(folder: Path, manifest: Mapping[str, object], content: str) -> None:
    """Write down what the folder's files are made of and by, or compare it with what an earlier run wrote.

    What an earlier version of this project wrote is removed, with a note, to be made anew. For the first process.

    Raises:
        UserError: the folder holds `content` with another manifest; says what differs.
    """
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
