"""Embed your own texts, pictures and videos: jsonl lines to an npz of ids and embeddings, in order.

A line is {"id", "text"?, "image"?, "video"?}, or {"id", "content": [{"text"}, {"image"}, {"video"}, ...]} with any
number in any order, and may have an "instruction", which says what to retrieve.

python eval/embed.py --model_id DIR --input items.jsonl --output out.npz
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamra.common.cli import parse, run
from lamra.common.files import whole_file
from lamra.common.flags import FILE, FOLDER, OUT_FILE, flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process
from lamra.datasets.jsonl import load_items
from lamra.eval.flags import VECTORS, SkippingArguments

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class EmbedArguments(SkippingArguments):
    input: str = flag("", "items.jsonl", path=FILE)
    image_root: str | None = flag(
        None, "folder of all pictures and videos; paths are relative to it; default: that of --input", path=FOLDER
    )
    output: str = flag("", "out.npz: ids (N,), embeddings (N, D) of unit norm", path=OUT_FILE)
    vectors: str = flag(
        "float32",
        "of the embeddings; int8: with scales (N,) float32 beside them; binary: a bit a dimension, as numpy.packbits",
        one_of=VECTORS,
    )

    def __post_init__(self):
        super().__post_init__()
        require(Path(self.output).suffix == ".npz", "output", self.output, "a name that ends in .npz")


def main() -> None:
    (args,) = parse(EmbedArguments)
    items = load_items(args.input, args.image_root, pictures_there=not args.skip_unreadable)
    from lamra.eval.inference import load_retriever, start  # torch and transformers, which --help does not wait for
    from lamra.eval.unreadable import Unreadable

    start(args)
    output = Path(args.output)
    with folder_lock(output.parent, "output", f".{output.name}.lock"):
        retriever = load_retriever(args)
        unreadable = Unreadable(args.skip_unreadable, retriever)
        lost = unreadable.rows(items, args.input)
        items = [item for item, is_lost in zip(items, lost) if not is_lost]
        embeddings = retriever.encode(items, "embed", truncate_dim=args.truncate_dim)  # (N, D)
        if is_first_process():
            with whole_file(output, "wb") as file:
                ids = np.array([item.id for item in items])
                np.savez(file, ids=ids, **stored(embeddings, args.vectors), **unreadable.for_npz)
            print(f"{len(items)} embeddings of size {embeddings.shape[1]}: {args.output}")


def stored(embeddings: Tensor, vectors: str) -> dict[str, Any]:
    """The arrays of (N, D) embeddings in a kind of VECTORS."""
    from lamra.models.vectors import to_bits, to_int8

    if vectors == "int8":
        values, scales = to_int8(embeddings)
        return {"embeddings": values.numpy(), "scales": scales.numpy()}
    return {"embeddings": (to_bits(embeddings) if vectors == "binary" else embeddings).numpy()}


if __name__ == "__main__":
    run(main)
