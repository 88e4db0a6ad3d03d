"""A ranking as columns of numbers, in a file of Apache Arrow that is mapped: all processes of a machine share it.

A row of the table is a query: its number, and the numbers and scores of its candidates, best first: the rank is the
place in the list. A line of a ranking takes 8 bytes, and opening the file reads none. The numbers are rows of the
queries and of the gallery; the file says which these were, and is refused beside others.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np

from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.datasets.tasks import FileItems

SUFFIX = ".arrow"
ABOUT = b"ranking"  # in the schema's metadata


class RankedQuery(NamedTuple):
    """A query and what was found for it, as rows of a task's queries and gallery.

    Attributes:
        candidates: best first.
        scores: of the candidates.
    """

    query: int
    candidates: list[int]
    scores: list[float]


Ranking = Sequence[RankedQuery]


class Piece(NamedTuple):
    """The ranking of q queries with L candidates in all.

    Attributes:
        queries: (q,) rows of the queries.
        starts: (q + 1,) where the candidates of each begin, and where the last one's end.
        candidates: (L,) rows of the gallery, best first within a query.
        scores: (L,) float32 or float64; None: they are not known.
        positive: (q,) float32 similarity of the best of each query's positives, or None.
    """

    queries: np.ndarray
    starts: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray | None = None
    positive: np.ndarray | None = None

    @classmethod
    def of(cls, ranking: Iterable[RankedQuery]) -> Piece:
        """A ranking that is made query by query, its scores as float64."""
        queries, ends = [], [0]
        candidates, scores = bytearray(), bytearray()  # 12 bytes a line, where lists take 70
        for query, rows, of_rows in ranking:
            queries.append(query)
            candidates += np.array(rows, dtype=np.int32).tobytes()
            scores += np.array(of_rows, dtype=np.float64).tobytes()
            ends.append(len(candidates) // 4)
        columns = np.frombuffer(candidates, np.int32), np.frombuffer(scores, np.float64)
        return cls(np.array(queries, np.int32), np.array(ends), *columns)

    @classmethod
    def joined(cls, pieces: Sequence[Piece]) -> Piece:
        """One after the other; there is one at least."""
        columns: list[Any] = [None if column[0] is None else np.concatenate(column) for column in zip(*pieces)]
        queries, _, candidates, scores, positive = columns
        counts = np.concatenate([piece.counts for piece in pieces])
        return cls(queries, np.append(0, np.cumsum(counts)), candidates, scores, positive)

    @property
    def counts(self) -> np.ndarray:
        """(q,) how many candidates each query has."""
        return np.diff(self.starts)

    @property
    def owners(self) -> np.ndarray:
        """(L,) of each candidate the position of its query."""
        return np.repeat(np.arange(len(self.queries)), self.counts)

    @property
    def ranks(self) -> np.ndarray:
        """(L,) places in the lists, from 0."""
        return np.arange(len(self.candidates)) - np.repeat(self.starts[:-1], self.counts)

    def take(self, positions: np.ndarray) -> Piece:
        """Some queries, in any order."""
        counts = self.counts[positions]
        starts = np.append(0, np.cumsum(counts))
        lines = np.arange(starts[-1]) + np.repeat(self.starts[positions] - starts[:-1], counts)
        return Piece(self.queries[positions], starts, *self._columns(lines, positions))

    def only(self, kept: np.ndarray) -> Piece:
        """The candidates of which `kept` (L,) is true, without the queries that have none."""
        counts = np.bincount(self.owners[kept], minlength=len(self.queries))
        there = counts > 0
        starts = np.append(0, np.cumsum(counts[there]))
        return Piece(self.queries[there], starts, *self._columns(kept, there))

    def _columns(self, lines: np.ndarray, queries: np.ndarray) -> list[Any]:
        columns = (self.candidates, lines), (self.scores, lines), (self.positive, queries)
        return [None if column is None else column[chosen] for column, chosen in columns]


class Columns(Sequence[RankedQuery]):
    """A ranking in pieces, in memory or mapped; lists are made of a query when it is taken.

    Attributes:
        queries: (Q,) rows of the queries, in order.
        about: what the file's metadata says.
    """

    def __init__(self, pieces: Sequence[Piece], path: Path | None = None, about: Mapping[str, Any] | None = None):
        self.pieces, self.path, self.about = pieces, path, about or {}
        self.queries = np.concatenate([np.empty(0, np.int32), *(piece.queries for piece in pieces)])
        self._ends = np.cumsum([len(piece.queries) for piece in pieces]).tolist()

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def lines(self) -> int:
        return sum(len(piece.candidates) for piece in self.pieces)

    @property
    def counts(self) -> np.ndarray:
        """(Q,) how many candidates each query has."""
        return np.concatenate([np.empty(0, np.int64), *(piece.counts for piece in self.pieces)])

    @overload
    def __getitem__(self, i: SupportsIndex) -> RankedQuery: ...
    @overload
    def __getitem__(self, i: slice) -> list[RankedQuery]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> RankedQuery | list[RankedQuery]:
        if isinstance(i, slice):
            return [self[position] for position in range(*i.indices(len(self)))]
        position = range(len(self))[i]
        number = bisect_right(self._ends, position)
        piece = self.pieces[number]
        at = position - (self._ends[number] - len(piece.queries))
        lines = slice(int(piece.starts[at]), int(piece.starts[at + 1]))
        scores = [] if piece.scores is None else piece.scores[lines].tolist()
        return RankedQuery(int(piece.queries[at]), piece.candidates[lines].tolist(), scores)

    def of_queries(self, order: np.ndarray) -> Iterator[RankedQuery]:
        """Some queries by their places here, in another order."""
        return (self[place] for place in order.tolist())

    def require(self, queries: FileItems, gallery: FileItems) -> Columns:
        """Itself.

        Raises:
            UserError: its numbers are rows of other queries or of another gallery, or of the same in another order.
        """
        for (kind, ours), items in zip(rows_of(queries, gallery).items(), (queries, gallery)):
            if (theirs := self.about.get(kind)) != ours:
                count = theirs["count"] if isinstance(theirs, dict) else "unknown"
                raise UserError(
                    f"{self.path} is of other {kind} than {items.path} ({count}, here {ours['count']}), or of the same "
                    "in another order: give the files that it was made from, make it again with these, or give its "
                    "jsonl (--jsonl True), which goes by ids"
                )
        return self


def as_columns(ranking: Ranking) -> Columns:
    """A ranking as columns, if it is not."""
    return ranking if isinstance(ranking, Columns) else Columns([Piece.of(ranking)])


def rows_of(queries: FileItems, gallery: FileItems) -> dict[str, dict[str, Any]]:
    """What the rows of queries and candidates are: how many of each, and the digest of their ids in order."""
    found = {}
    for kind, items in (("queries", queries), ("candidates", gallery)):
        keys = getattr(items, "keys", None)  # M-BEIR's ids as integers
        ids = keys.tobytes() if isinstance(keys, np.ndarray) else "\n".join(map(items.id, range(len(items)))).encode()
        found[kind] = {"count": len(items), "ids": hashlib.sha256(ids).hexdigest()}
    return found


@contextmanager
def columns_file(path: str | Path, about: Mapping[str, Any]) -> Iterator[Callable[[Piece], None]]:
    """Open a new ranking, which takes its name at the end of the block: a broken one leaves nothing.

    Args:
        about: what its metadata says: what rows_of says, and anything else that can be json.

    Returns:
        What writes a piece. All have the same columns and types.
    """
    import pyarrow as pa  # a third of a second, which --help does not wait for

    with whole_file(path, "wb") as file:
        writers: list[pa.RecordBatchFileWriter] = []

        def write(piece: Piece) -> None:
            batch = _batch(piece).replace_schema_metadata({ABOUT: json.dumps(about)})
            if not writers:
                writers.append(pa.ipc.new_file(file, batch.schema))
            writers[0].write_batch(batch)

        yield write
        if not writers:
            write(Piece.of(()))
        writers[0].close()


def write_columns(path: str | Path, queries: FileItems, gallery: FileItems, ranking: Ranking) -> None:
    """Write a ranking whole."""
    with columns_file(path, rows_of(queries, gallery)) as write:
        for piece in as_columns(ranking).pieces:
            write(piece)


def _batch(piece: Piece) -> Any:
    import pyarrow as pa

    def lists(values: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(piece.starts, pa.int32()), pa.array(values))

    columns = {
        "query": pa.array(piece.queries, pa.int32()),
        "candidates": lists(piece.candidates.astype(np.int32, copy=False)),
    }
    if piece.scores is not None:
        columns["scores"] = lists(piece.scores)
    if piece.positive is not None:
        columns["positive"] = pa.array(piece.positive)
    return pa.record_batch(columns)


def is_columns(path: str | Path) -> bool:
    """Whether a ranking is in columns, by its name."""
    return Path(path).suffix == SUFFIX


def read_columns(path: str | Path) -> Columns:
    """A ranking, mapped.

    Raises:
        UserError: there is none, or it is cut short or damaged.
    """
    import pyarrow as pa

    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        about = json.loads((file.schema.metadata or {})[ABOUT])
        pieces = [_piece(file.get_batch(number)) for number in range(file.num_record_batches)]
    except FileNotFoundError:
        raise UserError(f"the ranking {path} does not exist: let it be written again") from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is no ranking in columns, or it is cut short ({' '.join(str(error).split())[:200]}): copy it "
            "again, or delete it and let it be made again"
        ) from None
    return Columns(pieces, Path(path), about)


def _piece(batch: Any) -> Piece:
    def numbers(name: str) -> np.ndarray | None:
        if name not in batch.schema.names:
            return None
        column = batch.column(name)
        return getattr(column, "values", column).to_numpy()  # of lists what they hold, one after the other

    starts = batch.column("candidates").offsets.to_numpy()
    candidates = batch.column("candidates").values.to_numpy()
    return Piece(batch.column("query").to_numpy(), starts, candidates, numbers("scores"), numbers("positive"))
