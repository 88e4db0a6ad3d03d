"""A pass of a reranker over a ranking, on any number of processes, its answers kept in files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from tqdm import tqdm

from lamra.collators.rerank import PreparedItem
from lamra.collators.visuals import in_order
from lamra.common.processes import is_first_process, on_first_process, process_rank, world_size
from lamra.datasets.items import Item
from lamra.datasets.rankings import Ranking
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


def answers_of(
    judge: Judge,
    task: RetrievalTask,
    ranking: Ranking,
    style: str,
    depth: int,
    folder: str | Path,
    manifest: dict,
    description: str,
) -> list[list]:
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
    folder = Path(folder)
    candidates = sorted({row for ranked in ranking for row in ranked.candidates[:depth]})
    queries = task.queries if task.rerank_queries is None else task.rerank_queries
    gallery = task.gallery if task.rerank_gallery is None else task.rerank_gallery
    shown = (queries, [ranked.query for ranked in ranking]), (gallery, candidates)
    # torch's annotation wants its own base class; it indexes whatever has rows.
    items: ConcatDataset[Item] = ConcatDataset([Subset(of, rows) for of, rows in shown])  # type: ignore[arg-type]
    manifest = {**manifest, "style": style, "depth": depth, "pictures": pictures_sha256(items)}
    on_first_process(lambda: check_manifest(folder, manifest, "answers"))
    done = on_first_process(lambda: _read_answers(folder))
    missing = [row for row in range(len(ranking)) if row not in done]
    mine = missing[process_rank() :: world_size()]
    pictures = DecodedPictures(PIXELS_KEPT, judge.prompts.processor.visuals.exif_rotation)  # each worker has a copy

    def prepare(i: int) -> tuple[int, Joined]:
        query, found, _ = ranking[mine[i]]
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
    done = on_first_process(lambda: _read_answers(folder))
    return [done[row] for row in range(len(ranking))]


def _read_answers(folder: Path) -> dict[int, list]:
    """Row of the ranking -> its answer. A line that a killed run left half written is passed over."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return {found["row"]: found["answer"] for found in (json.loads(line) for line in lines if line.endswith("}"))}
