"""Training pairs that can be used: another pair of the same source replaces each that cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from lamra.common.errors import ItemError
from lamra.datasets.items import Indexed

Example = TypeVar("Example")


class UsableBatch(NamedTuple):
    """The pairs of a batch, as `UsablePairs` hands them to the collator.

    Attributes:
        rows: (B,) the row of each pair in the data set.
        pairs: (B,) the pairs, or LamRA-Rank's examples.
        encoded: (B,) what `encode` made of each.
        faults: (row, reason) of each pair that cannot be used, each row once. Where they are more than `most_faults`,
            the batch holds nothing else.
    """

    rows: list[int]
    pairs: list
    encoded: list[list[dict]]
    faults: list[tuple[int, str]]


class UsablePairs(Generic[Example]):
    """A data set whose batches hold no pair that cannot be used. DataLoader fetches a whole batch by `__getitems__`.

    A pair that cannot be read or encoded (ItemError: a broken picture, a prompt that is too long) is replaced by the
    next row of its source that can be used and is not in this process's batch. That depends on the data and the batch
    alone, not on workers or on what was met before, so a resumed run replaces alike. Another process may hold the same
    row in the same step: the collator's "item_ids" let the loss tell, and neither copy is the other's negative.

    Args:
        pairs: where they have `groups`, these are the sources; each must have more rows than `most_faults`.
        encode: a pair to the model inputs of its items, which is done once, in the data worker.
        most_faults: after more faulty rows in one batch it gives up.
    """

    def __init__(self, pairs: Indexed[Example], encode: Callable[[Example], list[dict[str, Any]]], most_faults: int):
        self.pairs, self.encode, self.most_faults = pairs, encode, most_faults

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, rows: Sequence[int]) -> UsableBatch:
        """The pairs of these rows, or the pairs that replace them.

        Raises:
            Exception: whatever `pairs` or `encode` raise but ItemError; it is a bug and skips nothing.
        """
        used = set(rows)
        batch, faults = UsableBatch([], [], [], []), {}
        for row in rows:
            for candidate in self._candidates(row, used):
                if candidate in faults:  # it stood in the batch before
                    continue
                try:
                    pair = self.pairs[candidate]
                    encoded = self.encode(pair)
                except ItemError as error:
                    faults[candidate] = str(error)
                else:
                    batch.rows.append(candidate)
                    batch.pairs.append(pair)
                    batch.encoded.append(encoded)
                    break
                if len(faults) > self.most_faults:
                    return UsableBatch([], [], [], list(faults.items()))
        return batch._replace(faults=list(faults.items()))

    def _candidates(self, row: int, used: set[int]) -> Iterator[int]:
        """`row` and the rows after it in its source, first those that are not in this batch."""
        yield row
        groups = getattr(self.pairs, "groups", {}).values()
        source = next((group for group in groups if row in group), range(len(self.pairs)))
        start = int(np.searchsorted(source, row))
        enough = min(len(source), len(used) + self.most_faults + 1)
        later = [int(source[(start + step) % len(source)]) for step in range(1, enough)]
        for candidate in sorted(later, key=used.__contains__):
            used.add(candidate)
            yield candidate
