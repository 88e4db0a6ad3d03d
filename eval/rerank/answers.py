"""A pass of a reranker over a ranking, on any number of processes, its answers kept in files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lamra.collators.rerank import PreparedItem, RankPrompts
from lamra.common.processes import is_first_process, on_first_process, process_rank, world_size
from lamra.datasets.items import Item
from lamra.datasets.rankings import Ranking
from lamra.datasets.tasks import RetrievalTask
from lamra.eval.cache.manifest import check_manifest, pictures_sha256
from lamra.eval.encode import single_thread
from lamra.eval.rerank.judge import Judge
from lamra.eval.rerank.pictures import DecodedPictures

PIXELS_KEPT = 256 * 2**20  # bytes of each data worker: a thousand pictures of M-BEIR, whose short side is 256


class _Prepared(Dataset):
    """A query and its first candidates with their pictures decoded, ahead of the model."""

    def __init__(self, task: RetrievalTask, ranking: Ranking, prompts: RankPrompts, rows: list[int], depth: int):
        self.task, self.ranking, self.prompts, self.rows, self.depth = task, ranking, prompts, rows, depth
        self.pictures = DecodedPictures(PIXELS_KEPT)  # each worker has a copy

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        row, task = self.rows[i], self.task
        query, candidates, _ = self.ranking[row]
        try:
            items = (task.queries[query], *(task.gallery[candidate] for candidate in candidates[: self.depth]))
            return row, joined([self._prepared(item) for item in items])
        except ValueError as error:  # a worker would wrap it in its own traceback
            return row, error

    def _prepared(self, item: Item) -> PreparedItem:
        return replace(self.prompts.prepare(self.pictures.decoded(item)), item=item)


def joined(shown: Sequence[PreparedItem]) -> tuple[list[Item], torch.Tensor | None, torch.Tensor | None]:
    """Items, and all their pixels and grids in one tensor each.

    A tensor that comes from a worker process holds a file handle open, and 1,024 of them is many a machine's limit.
    """
    tensors = (
        [tensor for tensor in column if tensor is not None]
        for column in zip(*((item.pixel_values, item.image_grid_thw) for item in shown))
    )
    pixels, grids = (torch.cat(column) if column else None for column in tensors)
    return [part.item for part in shown], pixels, grids


def divided(prepared: tuple[list[Item], torch.Tensor | None, torch.Tensor | None]) -> list[PreparedItem]:
    """The inverse of `joined`."""
    items, pixels, grids = prepared
    if pixels is None:
        return [PreparedItem(item, None, None) for item in items]
    pictures = [len(item.images) for item in items]
    grids = grids.split(pictures)  # (pictures of the item, 3) each
    pixels = pixels.split([int(grid.prod(dim=1).sum()) for grid in grids])
    parts = zip(items, pixels, grids)
    return [PreparedItem(item, *(part if item.images else (None, None))) for item, *part in parts]


class _QueriesThenCandidates:
    """Some queries of a task and some rows of its gallery as one."""

    def __init__(self, task: RetrievalTask, queries: list[int], candidates: list[int]):
        self.task, self.queries, self.candidates = task, queries, candidates

    def __len__(self) -> int:
        return len(self.queries) + len(self.candidates)

    def __getitem__(self, row: int) -> Item:
        if row < len(self.queries):
            return self.task.queries[self.queries[row]]
        return self.task.gallery[self.candidates[row - len(self.queries)]]


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
    items = _QueriesThenCandidates(task, [ranked.query for ranked in ranking], candidates)
    manifest = {**manifest, "style": style, "depth": depth, "pictures": pictures_sha256(items)}
    check_manifest(folder, manifest, "answers")
    done = on_first_process(lambda: _read_answers(folder))
    missing = [row for row in range(len(ranking)) if row not in done]
    mine = missing[process_rank() :: world_size()]
    loader = DataLoader(
        _Prepared(task, ranking, judge.prompts, mine, depth),
        batch_size=None,
        num_workers=judge.num_workers if mine else 0,
        worker_init_fn=single_thread,
        generator=torch.Generator(),  # draws nothing from the global generator
    )
    began = time.perf_counter()
    with open(folder / f"{process_rank()}.jsonl", "a") as file:
        file.write("\n")  # ends a line that a killed run left half written
        for row, prepared in tqdm(loader, desc=description, unit="query", disable=not is_first_process()):
            if isinstance(prepared, ValueError):
                raise prepared
            query, *shown = divided(prepared)
            file.write(json.dumps({"row": row, "answer": judge.answer(style, query, shown)}) + "\n")
            file.flush()
    judge.queries += len(mine)
    judge.seconds += time.perf_counter() - began
    PartialState().wait_for_everyone()
    done = on_first_process(lambda: _read_answers(folder))
    return [done[row] for row in range(len(ranking))]


def _read_answers(folder: Path) -> dict[int, list]:
    """Row of the ranking -> its answer. A line that a killed run left half written is passed over."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            if line.endswith("}"):  # whole
                answer = json.loads(line)
                found[answer["row"]] = answer["answer"]
    return found
