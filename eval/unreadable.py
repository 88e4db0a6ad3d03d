"""--skip_unreadable N: pictures that cannot be read are looked for beforehand, and the run goes on without their items.

What is left is measured as if these items were not there. Every picture is decoded once more for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lamra.collators.pictures import open_image
from lamra.collators.videos import clip_of
from lamra.common.cli import note
from lamra.common.errors import PictureError, UserError
from lamra.common.processes import of_all_processes, process_rank, world_size
from lamra.datasets.items import Indexed, Item, Video
from lamra.datasets.tasks import RetrievalTask
from lamra.eval.encode import prepared
from lamra.eval.inference import Retriever


@dataclass
class Unreadable:
    """The items that a run goes on without.

    Args:
        most: so many are left out; 0 looks for none, and whoever opens a picture stops.

    Attributes:
        found: of each its id, what it is an item of, and the reason.
    """

    most: int
    retriever: Retriever
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
        self.found += [{"id": identifier, "of": name, "reason": reason} for _, identifier, reason in faults]
        if len(self.found) > self.most:
            raise UserError(
                f"{len(self.found)} items have a picture that cannot be read, more than --skip_unreadable {self.most}; "
                f"the first: {self.found[0]['reason']}"
            )
        if faults:
            which = f"{len(faults)} of the {len(items)} items of {name}"
            note(f"{which} are left out, because a picture cannot be read; the first: {faults[0][2]}")
        if len(faults) == len(items):
            raise UserError(f"none of the {len(items)} items of {name} can be read: --skip_unreadable leaves nothing")
        lost[[row for row, _, _ in faults]] = True
        return lost

    def left_out_of(self, tasks: Sequence[RetrievalTask]) -> list[RetrievalTask]:
        """The tasks as if their items with such pictures were not there; raises as `rows`. All must call this."""
        if not self.most:
            return list(tasks)
        parts = {id(items): items for task in tasks for items in (task.gallery, task.queries)}
        lost = {key: self.rows(items, items.name) for key, items in parts.items()}
        galleries = {id(task.gallery): task.gallery.without(lost[id(task.gallery)]) for task in tasks}
        return [
            task.without(lost[id(task.queries)], lost[id(task.gallery)], galleries[id(task.gallery)]) for task in tasks
        ]

    @property
    def for_npz(self) -> dict[str, Any]:
        """What an npz says of it: the ids (n,) of the items that are not there; nothing unless it was asked for."""
        return {"skipped": np.array([of["id"] for of in self.found], dtype=np.str_)} if self.most else {}

    def for_metrics(self, earlier: dict[str, Any] | None = None) -> dict[str, object]:
        """What metrics.json says of it and of the items that are listed in an earlier one; nothing without either."""
        items = (earlier or {}).get("skipped_unreadable", {}).get("items", [])
        items += [item for item in self.found if item not in items]
        return {"skipped_unreadable": {"count": len(items), "items": items}} if self.most or items else {}
