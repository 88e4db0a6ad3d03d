"""Pairs that training leaves out because a picture cannot be read: logged once, counted over all processes, limited."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.processes import is_first_process, of_all_processes, on_first_process

FILE_NAME = "skipped.jsonl"


class SkippedPairs:
    """The different pairs of the data set that could not be used so far, in all epochs and on all processes.

    `most` of them may be, max_skipped_share of the data set rounded up: one pair of a small data set never stops a run,
    unless the share is 0. Fewer where the smallest source has fewer, because one of its rows must be left to stand in.
    Each is a line {"step", "row", "reason"} of skipped.jsonl in the output folder.
    """

    def __init__(self, folder: str | Path, pairs: int, share: float, *, resume: bool, smallest: int | None = None):
        self.file, self.pairs, self.share = Path(folder, FILE_NAME), pairs, share
        self.most = min(math.ceil(share * pairs), (smallest or pairs) - 1)
        self.why = f" in a mixture with a source of {smallest}" if smallest == self.most + 1 else ""
        self.rows = on_first_process(self._logged) if resume else set()

    def _logged(self) -> set[int]:
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        return {json.loads(line)["row"] for line in lines if line.endswith("}")}  # a full disk cuts the last

    def add(self, faults: list[tuple[int, str]], step: int) -> None:
        """Log what is new among all processes' (row, reason). All must call this, and hold the same rows afterwards.

        Raises:
            UserError: more than `most` pairs cannot be used; names the last.
        """
        for row, reason in of_all_processes(faults):
            if row in self.rows:
                continue
            self.rows.add(row)
            note(f"row {row} is left out: {reason}")
            if is_first_process():
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with open(self.file, "a") as file:
                    file.write(json.dumps({"step": step, "row": row, "reason": reason}) + "\n")
            if len(self.rows) > self.most:
                raise UserError(
                    f"step {step}: {len(self.rows)} of {self.pairs} pairs cannot be used, --max_skipped_share "
                    f"{self.share} allows {self.most}{self.why}: repair what {self.file} lists, or allow more; the "
                    f"last: {reason}"
                )
