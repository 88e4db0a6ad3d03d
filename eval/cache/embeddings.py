"""Embeddings of sets too large for memory: encoded part by part into files that a restarted run picks up.

A folder holds manifest.json, which says of what and by what its embeddings are, and 00000.npy, 00001.npy, ... Each file
is complete or not there. All processes must see the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from lamra.collators.texts import ToldTexts
from lamra.common.files import whole_file
from lamra.common.processes import is_first_process, on_first_process
from lamra.datasets.items import Indexed, Item
from lamra.datasets.mbeir.tasks import JoinedPools
from lamra.datasets.tasks import FileItems
from lamra.eval.cache.manifest import check_manifest, pictures_sha256
from lamra.eval.cache.shards import Shards
from lamra.eval.inference import Retriever
from lamra.models.digests import file_sha256


class EmbeddingsCache:
    """The embeddings of files of items, from this run or an earlier one, in a folder for each file.

    Args:
        provenance: by what they are made, see manifest.provenance_of; `store` as in encode_to_shards.

    Attributes:
        files: name of each file that was embedded -> its sha256.
    """

    def __init__(self, folder: Path, retriever: Retriever, provenance: Mapping[str, object], shard_size: int):
        self.folder, self.retriever = folder, retriever
        self.provenance, self.shard_size = provenance, shard_size
        self.files: dict[str, str] = {}

    def embed(self, items: FileItems) -> Shards:
        """(N, D) embeddings; see encode_to_shards. All processes must call this."""
        if isinstance(items, JoinedPools):
            return Shards([file for part in items.parts for file in self.embed(part).files])
        path = Path(items.path)
        self.files[path.name] = file_sha256(path)
        manifest = dict(self.provenance)
        for name, value in getattr(items, "drawn_by", {}).items():
            manifest[name] = file_sha256(value) if isinstance(value, Path) else value
        manifest["file"] = self.files[path.name]
        return encode_to_shards(self.retriever, items, self.folder / items.name, manifest, self.shard_size)


def encode_to_shards(
    retriever: Retriever, items: Indexed[Item], folder: Path, manifest: Mapping[str, object], shard_size: int
) -> Shards:
    """Encode what is not there yet, `shard_size` items at a time, on all processes together.

    The first process writes, and holds the embeddings of `shard_size` items; the others hold a batch.

    Args:
        folder: its name stands at the progress bar.
        manifest: of what and by what; anything that can be json. `store` is how: float16, or without it float32.

    Raises:
        UserError: the folder holds embeddings with another manifest; says what differs.
    """
    manifest = {**manifest, "items": len(items), "shard_size": shard_size, "pictures": pictures_sha256(items)}
    on_first_process(lambda: check_manifest(folder, manifest, "embeddings"))
    parts = [range(start, min(start + shard_size, len(items))) for start in range(0, len(items), shard_size)]
    files = [folder / f"{number:05d}.npy" for number in range(len(parts))]
    # One process looks: on a network disk another may remember for a while that a file was not there.
    complete = on_first_process(lambda: [_is_complete(file, len(rows)) for file, rows in zip(files, parts)])
    texts, dtype = ToldTexts(), getattr(torch, str(manifest.get("store", "float32")))
    for number in [i for i, there in enumerate(complete) if not there]:
        part = f"{folder.name} {number + 1}/{len(files)}" if len(files) > 1 else folder.name
        shown = [items[row] for row in parts[number]]
        embeddings = retriever.encode(shown, part, texts=texts, everywhere=False, dtype=dtype)  # (n, D)
        if is_first_process():
            with whole_file(files[number], "wb") as out:
                np.save(out, embeddings.numpy())
    texts.tell(folder.name)
    PartialState().wait_for_everyone()
    return Shards(files)


def _is_complete(file: Path, rows: int) -> bool:
    try:
        return len(np.load(file, mmap_mode="r")) == rows
    except (OSError, ValueError, EOFError):
        return False
