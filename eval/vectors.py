"""Recall against bytes: vectors whole and cut, in float32, int8 and bits. Started from scripts/eval/vectors.sh.

On pictures with captions, or on M-BEIR's tasks in their own pools. Everything is encoded once, into the embeddings of
the evaluation's own folder, and searched in each form. Writes vectors.csv, vectors.md and vectors.png there.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lamra.common.cli import note, parse, run
from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.common.flags import FILE_OR_FOLDER, FOLDER, OUT_FOLDER, flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import first_process_first, is_first_process
from lamra.datasets.caption import captioned_tasks, load_captioned_images
from lamra.datasets.mbeir.layout import DATA_NAME, GET_MBEIR, INSTRUCTIONS, choose_tasks
from lamra.datasets.mbeir.tasks import open_tasks
from lamra.datasets.tasks import KS, Items, RetrievalTask
from lamra.eval.eval_mbeir import MBEIRArguments
from lamra.eval.flags import VECTORS, GuestArguments, output_folder
from lamra.eval.reporting.results import print_table
from lamra.eval.zeroshot import GET_CAPTIONS

if TYPE_CHECKING:
    import torch

    from lamra.eval.inference import Retriever
    from lamra.eval.search import Embeddings

PARTS = (1, 2, 4, 8)  # of the dimensions, where no flag says more


@dataclass
class VectorsArguments(GuestArguments):
    image_data_path: str | None = flag(None, "folder of pictures", path=FOLDER, source=GET_CAPTIONS)
    text_data_path: str | None = flag(None, "their captions", path=FILE_OR_FOLDER, source=GET_CAPTIONS)
    data_path: str | None = flag(None, "M-BEIR's folder, instead of these", path=FOLDER, source=GET_MBEIR)
    tasks: str = flag("all", "of M-BEIR: all, or names separated by commas")
    dims: str | None = flag(None, "sizes with commas between; default: all dimensions, a half, a quarter and an eighth")
    rescore: int = flag(40, "candidates of each query that are scored again, where they are", low=max(KS))
    search_memory: float = flag(4.0, "GiB that a process's search may use", above=0)
    data_name: str | None = flag(None, "what to call the data; default: Flickr30K, or M-BEIR")
    output_dir: str | None = flag(None, "default: results/<model>/<data>", path=OUT_FOLDER)

    def __post_init__(self):
        super().__post_init__()
        captions = bool(self.image_data_path) + bool(self.text_data_path)
        if captions != (0 if self.data_path else 2):
            raise UserError("give --image_data_path and --text_data_path, or --data_path with M-BEIR")
        if self.data_path:
            choose_tasks(self.tasks)
        self.data_name = self.data_name or (DATA_NAME if self.data_path else "Flickr30K")
        if self.dims is not None:
            sizes = self.dims.split(",")
            are_sizes = all(re.fullmatch(r"[1-9]\d{0,8}", size) for size in sizes) and len(set(sizes)) == len(sizes)
            require(are_sizes, "dims", self.dims, "different numbers of dimensions with commas, such as 3584,1792")
            if self.dimensions is not None:
                self.sizes_of(self.dimensions)

    def sizes_of(self, dimensions: int) -> list[int]:
        """The sizes to measure of vectors that have so many dimensions, each once.

        Raises:
            UserError: --dims names a larger size.
        """
        if self.dims is None:
            return list(dict.fromkeys(max(dimensions // part, 1) for part in PARTS))
        sizes = [int(size) for size in self.dims.split(",")]
        require(max(sizes) <= dimensions, "dims", self.dims, f"at most {dimensions}, the size of this model's vectors")
        return sizes


class Row(NamedTuple):
    """A way to store a gallery, and what it finds.

    Attributes:
        rescored: candidates of each query that were scored again with the whole float32 vectors; 0: none.
        bytes: that are searched of each item.
        second_look: further bytes of each item, of which a query reads `rescored` items'.
        recalls: of each task at each of KS, and their mean.
    """

    dimensions: int
    vectors: str
    rescored: int
    bytes: int
    second_look: int
    recalls: dict[str, dict[int, float]]


MEAN = "mean"


def main() -> None:
    (args,) = parse(VectorsArguments)
    from lamra.eval.inference import load_retriever, start  # torch and transformers, which --help does not wait for
    from lamra.eval.reporting.figures import plot_recall_by_bytes

    assert args.data_name
    state, folder = start(args), output_folder(args, "mbeir" if args.data_path else args.data_name.lower())
    with folder_lock(folder):
        with first_process_first("the first process reads M-BEIR's files or unpacks shards"):
            tasks = tasks_of(args)
        retriever = load_retriever(args)
        embed = embeddings_of(args, folder / "embeddings", retriever)
        sizes = args.sizes_of(embed(tasks[0].gallery).shape[1])
        rows = list(measured(tasks, embed, sizes, args.rescore, args.search_memory, state.device))
        if not is_first_process():
            return
        trained = ",".join(map(str, args.matryoshka_dims))
        how = f"trained with --matryoshka_dims {trained}" if trained else "trained without --matryoshka_dims"
        title = f"{args.data_name}, {', '.join(task.name for task in tasks)}; {args.model_id}, {how}"
        print(f"\n{title}: recall in percent, mean over the tasks")
        heads, lines = table_of(rows)
        print_table(heads, lines)
        write_csv(folder / "vectors.csv", rows)
        with whole_file(folder / "vectors.md") as file:
            marked = [heads, ["---", *(len(heads) - 1) * ["---:"]], *lines]
            file.write(f"{title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in marked))
        plot_recall_by_bytes(folder / "vectors.png", [(*row[1:4], row.recalls[MEAN]) for row in rows])
        for name in ("csv", "md", "png"):
            print(folder / f"vectors.{name}")


def tasks_of(args: VectorsArguments) -> list[RetrievalTask]:
    assert args.data_name
    if args.data_path:
        files = [task.files(args.data_path, "test", "local") for task in choose_tasks(args.tasks)]
        return open_tasks(files, args.data_path, Path(args.data_path, INSTRUCTIONS))
    assert args.image_data_path and args.text_data_path
    data = load_captioned_images(args.image_data_path, args.text_data_path)
    note(f"{args.text_data_path}: {data.layout}, {len(data.images)} pictures, {len(data.texts)} captions")
    return captioned_tasks(data, args.data_name, args.text_data_path)


def embeddings_of(args: VectorsArguments, folder: Path, retriever: Retriever) -> Callable[[Items], Embeddings]:
    """What embeds items once, into files below a folder; those of M-BEIR are eval_mbeir.py's."""
    from lamra.eval.cache.embeddings import EmbeddingsCache, encode_to_shards
    from lamra.eval.cache.manifest import content_sha256

    provenance, shard_size = retriever.provenance(args), MBEIRArguments.shard_size
    cache = EmbeddingsCache(folder, retriever, provenance, shard_size)
    known: dict[int, Embeddings] = {}

    def embed(items: Items) -> Embeddings:
        if id(items) not in known:
            if args.data_path:
                known[id(items)] = cache.embed(items)
            else:  # captions may be a folder, and several sets come from the same file
                made_of = {**provenance, "content": content_sha256(items)}
                known[id(items)] = encode_to_shards(retriever, items, folder / items.name, made_of, shard_size)
        return known[id(items)]

    return embed


def measured(
    tasks: Sequence[RetrievalTask],
    embed: Callable[[Items], Embeddings],
    sizes: Sequence[int],
    rescore: int,
    search_memory: float,
    device: torch.device,
) -> Iterator[Row]:
    """Every size in every kind of VECTORS, alone and scored again; all processes must iterate."""
    from lamra.eval.evaluate import evaluate
    from lamra.eval.stored import bytes_of

    whole = embed(tasks[0].gallery).shape[1]
    for size in sizes:
        for vectors in VECTORS:
            for again in (0, rescore):
                if again and size == whole and vectors == "float32":  # the second look would be the first
                    continue
                recalls: dict[str, dict[int, float]] = {}
                for task, _, found in evaluate(
                    tasks,
                    embed,
                    depth=max(KS),
                    search_memory=search_memory,
                    device=device,
                    truncate_dim=None if size == whole else size,
                    vectors=vectors,
                    rescore=again,
                ):
                    recalls[task.name] = {k: found[f"recall@{k}"] for k in KS}
                recalls[MEAN] = {k: sum(of[k] for of in recalls.values()) / max(len(recalls), 1) for k in KS}
                second_look = bytes_of(whole, "float32") if again else 0
                yield Row(size, vectors, again, bytes_of(size, vectors), second_look, recalls)


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["dimensions", "vectors", "rescored", "bytes", "second look", *(f"R@{k}" for k in KS)]
    return heads, [
        [
            *(str(row.dimensions), row.vectors, str(row.rescored or "-"), str(row.bytes), str(row.second_look or "-")),
            *(f"{100 * row.recalls[MEAN][k]:.1f}" for k in KS),
        ]
        for row in rows
    ]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A line a row and task, and one of their mean; recalls in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Row._fields[:-1], "task", *(f"recall@{k}" for k in KS)])
    for *stored, recalls in rows:
        writer.writerows([*stored, task, *of_task.values()] for task, of_task in recalls.items())
    with whole_file(path) as file:
        file.write(text.getvalue())


if __name__ == "__main__":
    run(main)
