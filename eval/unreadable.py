"""Items that an evaluation goes on without: what is left is measured as if they were not there.

--missing skip: their pictures or videos are not there, which is found before a model is loaded.
--skip_unreadable N: they cannot be read. Every picture is decoded once more for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lamra.collators.pictures import open_image
from lamra.collators.videos import clip_of
from lamra.common.cli import note
from lamra.common.errors import PictureError, UserError
from lamra.common.files import as_on_disk
from lamra.common.processes import of_all_processes, on_first_process, process_rank, world_size
from lamra.datasets.items import Indexed, Item, Video
from lamra.datasets.tasks import Items, RetrievalTask
from lamra.eval.encode import prepared
from lamra.eval.inference import Retriever
from lamra.eval.rerank.judge import Judge


@dataclass
class Unreadable:
    """The items that a run goes on without.

    Args:
        most: so many are left out; 0 looks for none, and whoever opens a picture stops.

    Attributes:
        found: of each its id, what it is an item of, and the reason.
    """

    most: int
    retriever: Retriever | Judge
    found: list[dict[str, str]] = field(default_factory=list)

    def rows(self, items: Indexed[Item], name: str) -> np.ndarray:
        """(N,), true for items with a picture that cannot be read; the same on every process, and all must call this.

        Args:
            name: what they are the items of.

        Raises:
            UserError: there are more than `most`, those of earlier calls counted.
        """
        lost = np.zeros(len(items), dtype=bool)
        if not self.most:
            return lost
        mine = range(len(items))[process_rank() :: world_size()]
        turned = self.retriever.exif_rotation

        def fault(i: int) -> tuple[int, str, str]:
            item = items[mine[i]]
            try:
                for part in item.visuals:
                    if isinstance(part, Video):
                        clip_of(part, f"video {part.path}")
                    else:
                        open_image(part.image, f"picture of item {item.id!r}", exif_rotation=turned)
            except PictureError as error:
                return mine[i], item.id, str(error)
            return mine[i], item.id, ""

        looked_at = prepared(fault, len(mine), self.retriever.num_workers if len(mine) > 1 else 0)
        faults = sorted(of_all_processes([found for found in looked_at if found[2]]))
        self.add([(identifier, reason) for _, identifier, reason in faults], name)
        if faults:
            which = f"{len(faults)} of the {len(items)} items of {name}"
            note(f"{which} are left out, because a picture cannot be read; the first: {faults[0][2]}")
        if len(faults) == len(items):
            raise UserError(f"none of the {len(items)} items of {name} can be read: --skip_unreadable leaves nothing")
        lost[[row for row, _, _ in faults]] = True
        return lost

    def add(self, faults: Sequence[tuple[str, str]], name: str) -> None:
        """Count items of `name` that cannot be read, each with the reason; raises as `rows`."""
        self.found += [{"id": identifier, "of": name, "reason": reason} for identifier, reason in faults]
        if len(self.found) > self.most:
            raise UserError(
                f"{len(self.found)} items have a picture that cannot be read, more than --skip_unreadable {self.most}; "
                f"the first: {self.found[0]['reason']}"
            )

    def left_out_of(self, tasks: Sequence[RetrievalTask]) -> list[RetrievalTask]:
        """The tasks as if their items with such pictures were not there; raises as `rows`. All must call this."""
        return left_out_of(tasks, lambda items: self.rows(items, items.name)) if self.most else list(tasks)

    @property
    def for_npz(self) -> dict[str, Any]:
        """What an npz says of it: the ids (n,) of the items that are not there; nothing unless it was asked for."""
        return {"skipped": np.array([of["id"] for of in self.found], dtype=np.str_)} if self.most else {}

    def for_metrics(self, earlier: dict[str, Any] | None = None) -> dict[str, object]:
        """What metrics.json says of it and of the items that are listed in an earlier one; nothing without either."""
        items = (earlier or {}).get("skipped_unreadable", {}).get("items", [])
        items += [item for item in self.found if item not in items]
        return {"skipped_unreadable": {"count": len(items), "items": items}} if self.most or items else {}


def without_missing(title: str, tasks: Sequence[RetrievalTask], missing: str) -> list[RetrievalTask]:
    """The tasks, if all their pictures and videos are there, or with "skip" as if the items of others were not.

    All processes must call this, with tasks of the same files.

    Args:
        title: of the data set.
        missing: "stop" or "skip".

    Raises:
        UserError: a file is not there and `missing` is "stop", or too few are there to measure anything; names the set,
            the first item and its file, and how many there are.
    """
    place_of: dict[Path, str] = {}
    for items in parts_of(tasks):
        for item in (items[row] for row in range(len(items))):
            for file in item.files:
                place_of.setdefault(Path(file), f"item {item.id} of {items.path}")
    gone = set(on_first_process(lambda: [file for file in place_of if not as_on_disk(file).is_file()]))
    if not gone:
        return list(tasks)
    first = next(file for file in place_of if file in gone)
    told = f"{title}: {len(gone)} of {len(place_of)} pictures or videos are missing, first {first} ({place_of[first]})"
    if missing == "stop" or len(gone) == len(place_of):
        raise UserError(f"{told}: extract them again, or go on without the items of some with --missing skip")
    note(f"{told}: their items are left out")
    return left_out_of(
        tasks, lambda items: np.array([not gone.isdisjoint(map(Path, items[row].files)) for row in range(len(items))])
    )


def parts_of(tasks: Sequence[RetrievalTask]) -> list[Items]:
    """The different galleries and queries; of queries those that a reranker is shown, which have all the pictures."""
    parts = [items for task in tasks for items in (task.gallery, task.rerank_queries or task.queries)]
    return list({id(items): items for items in parts}.values())


def left_out_of(tasks: Sequence[RetrievalTask], lost_of: Callable[[Items], np.ndarray]) -> list[RetrievalTask]:
    """The tasks as if some items were not there.

    Args:
        lost_of: to (N,), true for these.

    Raises:
        UserError: no query of a task is left.
    """
    lost = {id(items): lost_of(items) for items in parts_of(tasks)}
    galleries = {id(task.gallery): task.gallery.without(lost[id(task.gallery)]) for task in tasks}
    left = []
    for task in tasks:
        of_queries, of_gallery = lost[id(task.rerank_queries or task.queries)], lost[id(task.gallery)]
        left.append(task.without(of_queries, of_gallery, galleries[id(task.gallery)]))
        if not left[-1].queries:
            raise UserError(f"{task.name}: of {len(task.queries)} queries none is left with its pictures and an answer")
    return left
