"""An index of one's own pictures, texts and videos in LanceDB: made once, kept up to date, searched by words and more.

A row is written with its vector at once and replaced by its key: a run that was killed has lost nothing that it had
written, and the next one goes on.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lamra.collators.texts import ToldTexts
from lamra.common.cli import note
from lamra.common.errors import PictureError, UserError
from lamra.common.flags import require
from lamra.common.processes import is_first_process, of_all_processes, on_first_process, process_rank, world_size
from lamra.datasets.items import Item
from lamra.eval.encode import FEW, prepared
from lamra.eval.index.extra import TABLE, require_index, require_lancedb
from lamra.eval.index.held import Held
from lamra.eval.index.hits import Hit
from lamra.eval.index.ivf_pq import REFINE, partitions_of
from lamra.eval.index.rows import KINDS, Row, item_of
from lamra.eval.index.thumbnails import thumbnail_of
from lamra.eval.inference import Entry, Retriever
from lamra.eval.unreadable import Unreadable

if TYPE_CHECKING:
    from lancedb.table import Table

METADATA = b"lamra"  # key in the schema of the table
VERSION = 1  # of the metadata
TOGETHER = 256  # items that are embedded and written at a time
KEPT = timedelta(minutes=10)  # older states of the table are deleted; a reader may still read one of these
OF_HIT = [field.name for field in fields(Hit) if field.name != "score"]


class Changes(NamedTuple):
    """Items of the source that are new, changed, gone from it, as they were, and left out as unreadable."""

    new: int
    changed: int
    gone: int
    same: int
    unreadable: int


class Index:
    """A table on disk, and the model whose vectors it holds.

    Attributes:
        folder: of the database.
        about: source, root, model_id, flags, and "made_by": what decides the vectors; empty before the first row.
    """

    def __init__(self, folder: str | Path, retriever: Retriever | None = None, flag: str = "index"):
        """
        Args:
            retriever: its model; None reads rows and vectors, and embeds nothing.
            flag: how the user chose the folder, for a sentence.

        Raises:
            UserError: LanceDB is not installed, the folder holds something else, or vectors of another model.
        """
        self.folder, self.retriever, self.flag = Path(folder), retriever, flag
        self.database = _connect(self.folder)
        self.table: Table | None = None
        self._vectors: Held | None = None
        self._reading = threading.Lock()
        self.about: dict[str, Any] = {}
        try:
            self.table = self.database.open_table(TABLE)
        except ValueError as error:  # also where a run was killed before its first row
            if "not found" not in str(error):
                raise
        else:
            self.about = _about(self.table, self.folder, flag)
        if retriever is not None and self.about:
            self.require_made_by(made_by(retriever, self.about["made_by"].get("truncate_dim")))

    @classmethod
    def open(cls, folder: str | Path, retriever: Retriever | None = None, flag: str = "index") -> Index:
        """An index that is there; raises as the constructor, or UserError where there is none."""
        require_index(folder, flag)
        index = cls(folder, retriever, flag)
        if index.table is None:
            raise UserError(f"--{flag} {folder} holds an index that was never finished: make it again")
        return index

    def require_made_by(self, expected: dict[str, Any]) -> None:
        """Refuse an index whose vectors another model or other settings made."""
        there = self.about["made_by"]
        other = [name for name in sorted(there.keys() | expected.keys()) if there.get(name) != expected.get(name)]
        if other:
            raise UserError(
                f"--{self.flag} {self.folder} was made by another model or with other settings (not the same: "
                f"{', '.join(other)}; its model: {self.about['model_id']}): give that model and its settings, or "
                "index again into another folder"
            )

    def __len__(self) -> int:
        return self.table.count_rows() if self.table is not None else 0

    @property
    def root(self) -> Path:
        """The folder that the rows' paths start from."""
        return Path(self.about["root"])

    @property
    def is_approximate(self) -> bool:
        """Whether it is searched by IVF-PQ."""
        return self.table is not None and bool(self.table.list_indices())

    def folders(self) -> list[str]:
        """All folders that its files lie in, and those above them, below the source."""
        found = set(self._column("folder"))
        found |= {str(above) for folder in list(found) for above in Path(folder).parents}
        return sorted(found - {"", "."})

    def kinds(self) -> list[str]:
        """Those of KINDS that it holds."""
        found = set(self._column("kind"))
        return [kind for kind in KINDS if kind in found]

    def _column(self, name: str) -> list[str]:
        return self.table.search().select([name]).to_arrow()[name].to_pylist()

    def search(
        self,
        query: Entry,
        k: int = 10,
        kind: str | None = None,
        folder: str | None = None,
        *,
        instruction: str | None = None,
    ) -> list[Hit]:
        """The rows that are nearest to a query, best first; ties by key.

        Args:
            query: a text, a picture, a video or several of them; see Retriever.encode.
            kind: only rows of this one of KINDS.
            folder: only rows in this folder, or below it.
            instruction: what to retrieve, of a query that has none.

        Raises:
            UserError, TypeError: as Retriever.encode; or there is no such kind.
        """
        if self.retriever is None:
            raise TypeError("this index was opened without its model: Index.open(folder, load(model))")
        size = self.about["made_by"].get("truncate_dim")
        vector = self.retriever.encode([query], None, instruction=instruction, truncate_dim=size)[0]
        return self.nearest(vector.numpy(), k, kind, folder)

    def like(self, key: str, k: int = 10, kind: str | None = None, folder: str | None = None) -> list[Hit]:
        """The rows nearest to a row of this index, without it; raises UserError where no row has this key."""
        found = self.table.search().where(f"key = {_quoted(key)}").select(["vector"]).to_arrow()["vector"].to_pylist()
        if not found:
            raise UserError(f"--{self.flag} {self.folder} has no item {key!r}: search again")
        hits = self.nearest(np.array(found[0], np.float32), k + 1, kind, folder)
        return [hit for hit in hits if hit.key != key][:k]

    def nearest(
        self,
        vector: np.ndarray,
        k: int,
        kind: str | None = None,
        folder: str | None = None,
        partitions: int | None = None,
    ) -> list[Hit]:
        """As `search`, for a (D,) float32 vector of unit norm.

        Args:
            partitions: that IVF-PQ looks through; default: as many as it was found to need.
        """
        require(k >= 1, "top", k, "1 or more")
        require(kind is None or kind in KINDS, "kind", kind, " or ".join(KINDS))
        folder = folder.rstrip("/") if folder else None
        count, approximate = len(self), self.is_approximate
        if not approximate and Held.fits(self.table, count):
            scores = self._held().best(vector, k, kind, folder)
            found = self.table.search().where(_one_of(scores)).select(OF_HIT).to_arrow().to_pylist() if scores else []
            hits = [Hit(score=scores[row["key"]], **row) for row in found]
        else:
            looking = self.table.search(vector, vector_column_name="vector").distance_type("dot").limit(k)
            if approximate:
                looking = looking.nprobes(partitions or partitions_of(self)).refine_factor(REFINE)
            if where := _where(kind, folder):
                # Of IVF-PQ more partitions, up to all, where so many hold fewer than k rows that pass.
                looking = looking.where(where, prefilter=True).maximum_nprobes(0)
            found = looking.select([*OF_HIT, "_distance"]).to_arrow().to_pylist()
            hits = [Hit(score=1 - row.pop("_distance"), **row) for row in found]
        return sorted(hits, key=lambda hit: (-hit.score, hit.key))

    def _held(self) -> Held:
        """The vectors in memory, as the table is now."""
        with self._reading:
            version = self.table.version
            if self._vectors is None or self._vectors.version != version:
                self._vectors = None  # not both at a time
                as_it_is = self.database.open_table(TABLE)  # and stays, whoever writes meanwhile
                as_it_is.checkout(version)
                self._vectors = Held.of(as_it_is)
            return self._vectors

    def first(self, count: int) -> list[Hit]:
        """Some rows, without a search."""
        found = self.table.search().select(OF_HIT).limit(count).to_arrow().to_pylist()
        return [Hit(score=None, **row) for row in found]

    def item_at(self, key: str) -> Item | None:
        """The item of a key, with the paths of its files; None without such a row."""
        found = self.table.search().where(f"key = {_quoted(key)}").select(["line"]).to_arrow()["line"].to_pylist()
        return item_of(found[0], self.root) if found else None

    def item(self, hit: Hit) -> Item:
        """What was embedded, with the paths of its files."""
        return item_of(hit.line, self.root)

    def update(self, rows: Sequence[Row], root: Path, about: dict[str, Any], unreadable: Unreadable) -> Changes:
        """Embed what is new or has changed, and forget what is gone. All processes must call this.

        Raises:
            UserError: a picture cannot be read, or more than `unreadable` allows.
        """
        known = on_first_process(self._known)
        todo = [row for row in rows if known.get(row.key) != (row.line, row.state)]
        gone = sorted(known.keys() - {row.key for row in rows})
        on_first_process(lambda: self._delete(gone))
        told, before = ToldTexts(), len(unreadable.found)
        size = about["made_by"].get("truncate_dim")
        hidden = not is_first_process() or len(todo) <= FEW
        with tqdm(total=len(todo), desc="index", unit="item", disable=hidden) as progress:
            for start in range(0, len(todo), TOGETHER):
                some = todo[start : start + TOGETHER]
                items = [row.item(root) for row in some]
                thumbnails = self._thumbnails(items, unreadable)
                kept = [i for i, thumbnail in enumerate(thumbnails) if thumbnail is not None]
                lost = [row.key for row, thumbnail in zip(some, thumbnails) if thumbnail is None]
                on_first_process(partial(self._delete, lost))
                if kept:
                    readable = [items[i] for i in kept]
                    vectors = self.retriever.encode(readable, None, texts=told, truncate_dim=size).numpy()  # (n, D)
                    rows_of_it = [some[i] for i in kept], [thumbnails[i] for i in kept]
                    on_first_process(partial(self.write, *rows_of_it, vectors, about))
                progress.update(len(some))
        told.tell("index")
        left_out = len(unreadable.found) - before
        if left_out:
            first = unreadable.found[before]["reason"]
            note(f"{left_out} of {len(rows)} items are left out, because a picture cannot be read; the first: {first}")
        unread = {of["id"] for of in unreadable.found[before:]}
        done = [row.key in known for row in todo if row.key not in unread]
        on_first_process(self.tidy)
        return Changes(done.count(False), done.count(True), len(gone), len(rows) - len(todo), left_out)

    def tidy(self, keep: timedelta = KEPT) -> None:
        """Join what was written piece by piece, and delete older states of the table; for the first process."""
        if self.table is not None:
            self.table.optimize(cleanup_older_than=keep)

    def _known(self) -> dict[str, tuple[str, str]]:
        if self.table is None:
            return {}
        found = self.table.search().select(["key", "line", "state"]).to_arrow().to_pydict()
        return {key: (line, state) for key, line, state in zip(found["key"], found["line"], found["state"])}

    def _thumbnails(self, items: Sequence[Item], unreadable: Unreadable) -> list[bytes | None]:
        """A thumbnail for each item, None where it cannot be read; the same on every process."""
        mine = range(len(items))[process_rank() :: world_size()]

        def look(i: int) -> tuple[int, bytes | None, str]:
            try:
                return mine[i], thumbnail_of(items[mine[i]]), ""
            except PictureError as error:
                if not unreadable.most:
                    raise
                return mine[i], None, str(error)

        workers = self.retriever.num_workers if len(mine) > FEW else 0
        found = sorted(of_all_processes(list(prepared(look, len(mine), workers))))
        unreadable.add([(items[i].id, reason) for i, _, reason in found if reason], "the index")
        return [thumbnail for _, thumbnail, _ in found]

    def _delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys) if self.table is not None else 0, TOGETHER):
            self.table.delete(_one_of(keys[start : start + TOGETHER]))

    def write(
        self, rows: Sequence[Row], thumbnails: Sequence[bytes | None], vectors: np.ndarray, about: dict[str, Any]
    ) -> None:
        """Rows with their (n, D) vectors, in the place of those with the same keys; for the first process."""
        import pyarrow

        if self.table is None:
            schema = _schema(vectors.shape[1], about)
            self.table = self.database.create_table(TABLE, schema=schema)
            self.about = about
        columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in Row.__dataclass_fields__}
        flat = pyarrow.array(np.ascontiguousarray(vectors, np.float32).ravel())
        columns |= {"thumbnail": thumbnails, "vector": pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
        batch = pyarrow.table(columns, schema=self.table.schema)
        self.table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(batch)


def made_by(retriever: Retriever, truncate_dim: int | None) -> dict[str, Any]:
    """What decides the vectors. All processes must call this."""
    of_model = retriever.provenance(retriever.args)
    return of_model if truncate_dim is None else of_model | {"truncate_dim": truncate_dim}


def _connect(folder: Path) -> Any:
    # Its warnings are for its developers.
    os.environ.setdefault("LANCEDB_LOG", "error")
    os.environ.setdefault("LANCE_LOG", "error")
    require_lancedb()
    import lancedb

    # Workers that read pictures are forks of this process; none of them touches LanceDB, and at a fork it is idle.
    warnings.filterwarnings("ignore", "lancedb fork support is experimental", RuntimeWarning)
    return lancedb.connect(str(folder), read_consistency_interval=timedelta(0))


def _schema(size: int, about: dict[str, Any]) -> Any:
    import pyarrow

    columns = [pyarrow.field(name, pyarrow.string(), False) for name in Row.__dataclass_fields__]
    columns += [pyarrow.field("thumbnail", pyarrow.binary(), False)]
    columns += [pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), size), False)]
    return pyarrow.schema(columns, metadata={METADATA: json.dumps(about)})


def _about(table: Table, folder: Path, flag: str) -> dict[str, Any]:
    try:
        about = json.loads(table.schema.metadata[METADATA])
        if about["version"] != VERSION:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"--{flag} {folder} was made by another program, or by another version of this one: index again into "
            "another folder"
        ) from None
    return about


def _where(kind: str | None, folder: str | None) -> str:
    conditions = [f"kind = {_quoted(kind)}"] if kind else []
    if folder:
        conditions.append(f"(folder = {_quoted(folder)} OR starts_with(folder, {_quoted(folder + '/')}))")
    return " AND ".join(conditions)


def _one_of(keys: Iterable[str]) -> str:
    return f"key IN ({', '.join(map(_quoted, keys))})"


def _quoted(text: str) -> str:
    """A text in a condition of SQL."""
    return "'" + text.replace("'", "''") + "'"
