"""A pass of a reranker over a ranking, on any number of processes, its answers kept in files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from tqdm import tqdm

from lamra.collators.rerank import PreparedItem
from lamra.collators.visuals import in_order
from lamra.common.arrays import distinct
from lamra.common.processes import is_first_process, on_first_process, process_rank, world_size
from lamra.datasets.columns import Ranking, as_columns
from lamra.datasets.items import Item
from lamra.datasets.tasks import RetrievalTask
from lamra.eval.cache.manifest import check_manifest, pictures_sha256
from lamra.eval.encode import prepared
from lamra.eval.rerank.judge import Judge
from lamra.eval.rerank.pictures import DecodedPictures

PIXELS_KEPT = 256 * 2**20  # bytes of each data worker: a thousand pictures of M-BEIR, whose short side is 256

Joined = tuple[list[Item], list[int], Tensor | None, Tensor | None]  # items, rows of the grid of each, pixels and grids


def joined(shown: Sequence[PreparedItem]) -> Joined:
    """Items, and all their pixels and grids in one tensor each.

    A tensor that comes from a worker process holds a file handle open, and 1,024 of them is many a machine's limit.
    """
    rows = [0 if item.image_grid_thw is None else len(item.image_grid_thw) for item in shown]
    return (
        [part.item for part in shown],
        rows,
        in_order([item.pixel_values for item in shown]),
        in_order([item.image_grid_thw for item in shown]),
    )


def divided(parts: Joined) -> list[PreparedItem]:
    """The inverse of `joined`."""
    items, rows, pixels, grids = parts
    if pixels is None or grids is None:
        return [PreparedItem(item, None, None) for item in items]
    grid_of = grids.split(rows)  # (rows of the item, 3) each
    pixels_of = pixels.split([int(grid.prod(dim=1).sum()) for grid in grid_of])
    return [
        PreparedItem(item, pixel_values, grid) if len(grid) else PreparedItem(item, None, None)
        for item, pixel_values, grid in zip(items, pixels_of, grid_of)
    ]


class Answers(Sequence[list]):
    """The answers about the queries of a ranking as one array; a list is made of one when it is taken.

    Attributes:
        rows: (Q,) of the ranking, ascending: all of them where the pass is complete.
        starts: (Q + 1,) where each answer begins, and where the last one ends.
        values: (L,) float64, or int64 positions.
    """

    def __init__(self, rows: np.ndarray, starts: np.ndarray, values: np.ndarray):
        self.rows, self.starts, self.values = rows, starts, values

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: SupportsIndex) -> list: ...
    @overload
    def __getitem__(self, i: slice) -> list[list]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> list | list[list]:
        if isinstance(i, slice):
            return [self[row] for row in range(*i.indices(len(self)))]
        row = range(len(self))[i]
        return self.values[self.starts[row] : self.starts[row + 1]].tolist()

    @classmethod
    def read(cls, folder: Path) -> Answers:
        """What this run and earlier ones wrote; a line that a killed run left half written is passed over."""
        found: dict[int, np.ndarray] = {}
        no_answer = np.empty(0, dtype=int)
        for path in sorted(folder.glob("*.jsonl")):
            with open(path) as file:
                for line in file:
                    if line.rstrip().endswith("}"):
                        answer = json.loads(line)
                        found[answer["row"]] = np.array(answer["answer"] or no_answer)
        rows = sorted(found)
        answers = [found.pop(row) for row in rows]
        starts = np.cumsum([0, *map(len, answers)])
        return cls(np.array(rows, dtype=np.int64), starts, np.concatenate([no_answer, *answers]))


def answers_of(
    judge: Judge,
    task: RetrievalTask,
    ranking: Ranking,
    style: str,
    depth: int,
    folder: str | Path,
    manifest: dict,
    description: str,
) -> Answers:
    """Judge.answer for every query's first `depth` candidates, on all processes together.

    Each process appends what it finished to a file in `folder`; a restarted run, also on another number of processes,
    takes it from there.

    Args:
        manifest: of what and by what; anything that can be json.

    Returns:
        For each query of the ranking its answer, the same on every process.

    Raises:
        UserError: the folder holds answers with another manifest, or a picture cannot be read; names it.
    """
    folder, columns = Path(folder), as_columns(ranking)
    first = [distinct(piece.candidates[piece.ranks < depth]) for piece in columns.pieces]
    candidates = distinct(np.concatenate([np.empty(0, np.int32), *first]))
    queries = task.queries if task.rerank_queries is None else task.rerank_queries
    gallery = task.gallery if task.rerank_gallery is None else task.rerank_gallery
    shown = (queries, columns.queries), (gallery, candidates)
    # torch's annotation wants its own base class; it indexes whatever has rows.
    items: ConcatDataset[Item] = ConcatDataset([Subset(of, rows) for of, rows in shown])  # type: ignore[arg-type]
    manifest = {**manifest, "style": style, "depth": depth, "pictures": pictures_sha256(items)}
    on_first_process(lambda: check_manifest(folder, manifest, "answers"))
    done = on_first_process(lambda: Answers.read(folder).rows)
    missing = np.setdiff1d(np.arange(len(ranking)), done).tolist()
    mine = missing[process_rank() :: world_size()]
    pictures = DecodedPictures(PIXELS_KEPT, judge.prompts.processor.visuals.exif_rotation)  # each worker has a copy

    def prepare(i: int) -> tuple[int, Joined]:
        query, found, _ = columns[mine[i]]
        items = [queries[query], *(gallery[row] for row in found[:depth])]
        return mine[i], joined([replace(judge.prompts.prepare(pictures.decoded(item)), item=item) for item in items])

    inputs = prepared(prepare, len(mine), judge.num_workers if mine else 0)
    began = time.perf_counter()
    with open(folder / f"{process_rank()}.jsonl", "a") as file:
        file.write("\n")  # ends a line that a killed run left half written
        for row, parts in tqdm(inputs, description, len(mine), unit="query", disable=not is_first_process()):
            query, *others = divided(parts)
            file.write(json.dumps({"row": row, "answer": judge.answer(style, query, others)}) + "\n")
            file.flush()
    judge.queries += len(mine)
    judge.seconds += time.perf_counter() - began
    judge.texts.tell(description)
    PartialState().wait_for_everyone()
    return on_first_process(lambda: Answers.read(folder))
