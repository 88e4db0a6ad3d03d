"""M-BEIR's files of queries and of candidates (Wei et al., arXiv 2311.17136): an item for each row.

A pool has up to 5.6 million rows. Its json is never held in memory: `Rows` keeps an index of 32 bytes a row in a file
beside it, and decodes a row when it is taken.

The files are read as they are published: with or without a byte-order mark, blank lines anywhere, fields that nothing
reads, and null or absent texts and pictures. Training queries may stand several times: M-BEIR samples its small data
sets up by repeating their rows.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, SupportsIndex, TypeVar
from weakref import finalize

import numpy as np
from tqdm import tqdm

from lamra.common.errors import UserError
from lamra.common.files import GZIP, is_plainly_inside, path_inside, require_whole_letters, whole_file
from lamra.datasets.items import Item

MODALITIES = ("text", "image", "image,text")
Key = TypeVar("Key", int, np.ndarray)
ROWS_TOGETHER = 4096  # that are read at once
NUMBER_BITS = 40  # an id "dataset:number" is one int64


class Fields(NamedTuple):
    """The names of a row's fields."""

    id: str
    text: str
    picture: str
    modality: str


CANDIDATE = Fields("did", "txt", "img_path", "modality")
QUERY = Fields("qid", "query_txt", "query_img_path", "query_modality")


def sentence(text: str | None) -> str:
    """M-BEIR's text rule: no carriage returns, outer blanks or quotes; a capital first, a full stop last."""
    text = (text or "").replace("\r", "").strip().strip('"')
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def id_key(identifier: str) -> int:
    """An id "dataset:number" as one integer.

    Raises:
        UserError: it is no such id.
    """
    match = re.fullmatch(r"(0|[1-9]\d{0,5}):(0|[1-9]\d{0,11})", identifier) if isinstance(identifier, str) else None
    if match is None:
        raise UserError(f'the id {identifier!r} is not "dataset:number"')
    return int(match[1]) << NUMBER_BITS | int(match[2])


def key_id(key: int) -> str:
    """The id of an integer key."""
    return f"{dataset_of(int(key))}:{int(key) & (1 << NUMBER_BITS) - 1}"


def dataset_of(key: Key) -> Key:
    """The dataset number of an integer key, or of an array of them."""
    return key >> NUMBER_BITS


def dataset_and_modality(kind: int) -> tuple[int, str]:
    """What a number of Rows.kinds stands for."""
    dataset, modality = divmod(kind, len(MODALITIES))
    return dataset, MODALITIES[modality]


class Rows:
    """A file of queries or of candidates: an Item for each row, and the row of an id.

    The index is built once, which reads and checks every row, and again when the file changes. Jobs that find none at
    the same time each build it; all write the same. A blank line is no row. A row without text and picture is an Item
    with an empty text, as upstream embeds it. Candidates have different ids; a query may be repeated.

    Args:
        path: a jsonl file of M-BEIR.
        root: the folder that picture paths start from.
        fields: QUERY or CANDIDATE.

    Raises:
        UserError: the file is missing or empty, a row is malformed, or a candidate repeats an id: names file and line.
    """

    _left_out = 0  # rows, see `without`

    def __init__(self, path: str | Path, root: str | Path, fields: Fields):
        self.path, self.root, self.fields = Path(path), Path(root), fields
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist: data/README.md shows where M-BEIR's files go")
        self._file = os.open(self.path, os.O_RDONLY)
        finalize(self, os.close, self._file)
        self._state = os.fstat(self._file)
        # Named after the file's state: the index of another state is simply not found.
        self._index = self.path.with_name(f".{self.path.name}.{self._state.st_size}-{self._state.st_mtime_ns}.npy")
        table = self._stored_index()
        if table is None:
            built = self._build_index()
            table = self._stored_index()  # which all processes of this machine share in memory
            table = built if table is None else table
        self.offsets, self.keys, self.modalities, self._by_key = table  # (N,) each

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> Item:
        return self.item(row)

    @property
    def kinds(self) -> np.ndarray:
        """(N,) a number for the dataset and the modality of each row, see dataset_and_modality."""
        return dataset_of(self.keys) * len(MODALITIES) + self.modalities

    def without(self, rows: np.ndarray) -> Rows:
        """The same file as if it lacked some rows; `rows` (N,) is true for these."""
        fewer = copy(self)
        fewer._file = os.dup(self._file)
        finalize(fewer, os.close, fewer._file)
        fewer.offsets, fewer.keys, fewer.modalities = (
            column[~rows] for column in (self.offsets, self.keys, self.modalities)
        )
        fewer._by_key = np.argsort(fewer.keys, kind="stable")
        fewer._left_out = self._left_out + int(rows.sum())
        return fewer

    def record(self, row: int) -> dict:
        """The row's json."""
        start = int(self.offsets[row])
        end = int(self.offsets[row + 1]) if row + 1 < len(self) else self._state.st_size
        # pread, because data workers share the open file and its position. Blank lines and rows left out may follow.
        return json.loads(os.pread(self._file, end - start, start).split(b"\n", 1)[0])

    def records(self, start: int, stop: int) -> Iterator[dict]:
        """The json of neighbouring rows; ROWS_TOGETHER cost one system call."""
        for first in range(start, stop, ROWS_TOGETHER):
            last = min(first + ROWS_TOGETHER, stop)
            offsets = self.offsets[first:last].tolist()
            end = int(self.offsets[last]) if last < len(self) else self._state.st_size
            block, begin = os.pread(self._file, end - offsets[0], offsets[0]), offsets[0]
            for offset in offsets:
                line_end = block.find(b"\n", offset - begin)
                yield json.loads(block[offset - begin : line_end if line_end >= 0 else None])

    def item(self, row: int, instruction: str | None = None) -> Item:
        """The item of a row; see `item_of`."""
        return self.item_of(self.record(row), instruction)

    def item_of(self, record: dict, instruction: str | None = None) -> Item:
        """The item of a row's json. With an instruction the text rule is applied to both as one, as upstream does."""
        raw, picture = record.get(self.fields.text) or "", record.get(self.fields.picture)
        text = sentence(raw)
        if instruction:
            text = sentence(f"{instruction} {raw}")[len(instruction) + 1 :]
        pictures = (self._path_of(picture),) if picture else ()
        return Item(record[self.fields.id], text or (None if pictures else ""), pictures, instruction)

    def _path_of(self, picture: str) -> str:
        """Raises ItemError: the picture lies outside of the root."""
        if is_plainly_inside(picture):
            return self._folder + picture
        return str(path_inside(self.root, picture))

    @cached_property
    def _folder(self) -> str:
        """What stands before a picture's name in its path: "data/M-BEIR/", or nothing for this folder."""
        return str(Path(self.root, "name")).removesuffix("name")

    def modality(self, row: int) -> str:
        return MODALITIES[self.modalities[row]]

    def id(self, row: int) -> str:
        return key_id(self.keys[row])

    @property
    def name(self) -> str:
        return self.path.stem + (f"_without_{self._left_out}" if self._left_out else "")

    def find(self, ids: Sequence[str]) -> list[int]:
        """The row of each id, the first where a query is repeated; -1 where there is none.

        Raises:
            UserError: an id is none of M-BEIR's.
        """
        return self.rows_of([id_key(identifier) for identifier in ids]).tolist()

    def line(self, row: SupportsIndex) -> str:
        """Where a row stands, for a sentence: its file and line."""
        with open(self.path, "rb") as file:
            ends = np.cumsum([len(line) for line in file])  # of all lines, blank ones too
        return f"{self.path} line {np.searchsorted(ends, self.offsets[row], side='right') + 1}"

    def name_of(self, key: int) -> str:
        """What to call an integer key in a sentence: "the query 9:7"."""
        return f"the {'query' if self.fields is QUERY else 'candidate'} {key_id(key)}"

    def rows_of(self, keys: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,) rows of integer keys, the first where a query is repeated; -1 where there is none."""
        keys = np.asarray(keys, dtype=np.int64)
        position = np.searchsorted(self.keys, keys, sorter=self._by_key)
        rows = self._by_key[np.minimum(position, len(self) - 1)]
        return np.where(self.keys[rows] == keys, rows, -1)

    def repetitions(self, row: int) -> np.ndarray:
        """All rows with the id of `row`, in order, itself among them."""
        start, stop = (
            np.searchsorted(self.keys, self.keys[row], side=side, sorter=self._by_key) for side in ("left", "right")
        )
        return self._by_key[start:stop]

    def listed(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        """How many candidates each row lists (N,), and their integer keys, row by row; of the whole file.

        Kept beside the index, so that the rows are read once.

        Raises:
            UserError: a row has no list of ids; names file and line.
        """
        path = self._index.with_suffix(f".{field}.npy")
        try:
            table = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            table = None
        if table is None or table.ndim != 1 or len(table) != len(self) + table[: len(self)].sum():
            counts, keys = array("q"), array("q")
            rows = tqdm(self.records(0, len(self)), desc=f"{self.path.name} {field}", total=len(self))
            for row, record in enumerate(rows):
                listed = record.get(field) or []
                try:
                    if not isinstance(listed, list):
                        raise UserError(f"{str(listed)[:80]!r} is no list")
                    keys.extend(map(id_key, listed))
                except UserError as error:
                    raise UserError(f"{self.line(row)}: {field}: {error}") from None
                counts.append(len(listed))
            table = np.array(counts + keys, dtype=np.int64)
            self._write_index(table, path)
        return table[: len(self)], table[len(self) :]

    def _stored_index(self) -> np.ndarray | None:
        """(4, N) what _build_index wrote; None where there is none for this state of the file, or it is no array."""
        try:
            table = np.load(self._index, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        return table if table.ndim == 2 and len(table) == 4 and table.dtype == np.int64 else None

    def _build_index(self) -> np.ndarray:
        """(4, N) offset, integer key and modality number of each row, and the rows sorted by key."""
        if (begin := os.pread(self._file, 2, 0)) in (GZIP, BOM_UTF16_BE, BOM_UTF16_LE):
            way_out = "unpack it with gunzip" if begin == GZIP else "save it as UTF-8"
            raise UserError(f"{self.path} is no plain UTF-8, and its rows are read by their place: {way_out}")
        columns = _offsets, keys, _modalities = array("q"), array("q"), array("q")
        with (
            os.fdopen(os.dup(self._file), "rb") as file,
            tqdm(total=self._state.st_size, desc=f"index {self.path.name}", unit="B", unit_scale=True) as progress,
        ):
            position = 0
            for number, line in enumerate(file, start=1):
                mark = len(BOM_UTF8) if number == 1 and line.startswith(BOM_UTF8) else 0
                if line[mark:].strip():
                    try:
                        key, modality = self._checked(line[mark:])
                    except UserError as error:
                        raise UserError(f"{self.path} line {number} is no row of M-BEIR: {error}") from None
                    for column, value in zip(columns, (position + mark, key, modality)):
                        column.append(value)
                position += len(line)
                progress.update(len(line))
        if not keys:
            raise UserError(f"{self.path} has no rows")
        table = np.array([*columns, np.argsort(np.array(keys), kind="stable")], dtype=np.int64)  # (4, N)
        in_order = table[1, table[3]]
        (repeated,) = np.nonzero(in_order[1:] == in_order[:-1])
        if len(repeated) and self.fields is CANDIDATE:
            self.offsets, (first, second) = table[0], sorted(table[3, repeated[0] : repeated[0] + 2])
            raise UserError(
                f"{self.line(second)} repeats the id {key_id(table[1, first])!r} of "
                f"{self.line(first).removeprefix(f'{self.path} ')}: ids of candidates must be unique"
            )
        state = os.fstat(self._file)
        if (state.st_size, state.st_mtime_ns) != (self._state.st_size, self._state.st_mtime_ns):
            raise UserError(f"{self.path} changed while it was read: start again when it is complete")
        self._write_index(table, self._index)
        return table

    def _checked(self, line: bytes) -> tuple[int, int]:
        """Integer key and modality number of a line."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # of the json or of its encoding
            raise UserError(str(error)) from None
        if not isinstance(record, dict):
            raise UserError("it is not a json object")
        for name in (self.fields.id, self.fields.modality):
            if name not in record:
                raise UserError(f"it lacks {name!r}")
        identifier, modality = record[self.fields.id], record[self.fields.modality]
        text, picture = record.get(self.fields.text), record.get(self.fields.picture)
        if modality not in MODALITIES:
            raise UserError(f"{self.fields.modality} is {modality!r}, not {', '.join(map(repr, MODALITIES))}")
        if not isinstance(text, str | None) or not isinstance(picture, str | None):
            raise UserError(f"{self.fields.text} and {self.fields.picture} must be strings or null")
        require_whole_letters(f"{text}{picture}", f"{self.fields.text} or {self.fields.picture}")
        if picture:
            self._path_of(picture)
        return id_key(identifier), MODALITIES.index(modality)

    def _write_index(self, table: np.ndarray, path: Path) -> None:
        try:
            with whole_file(path, "wb") as file:
                np.save(file, table)
        except OSError as error:
            raise UserError(
                f"the index of {self.path} cannot be written beside it ({error.strerror}): "
                "link the file into a folder that can be written"
            ) from None
        for old in self.path.parent.glob(f".{self.path.name}.*-*.npy"):
            # Of earlier states only: another job may have indexed the file after it changed once more.
            if int(old.stem.rpartition("-")[2].split(".")[0]) < self._state.st_mtime_ns:
                old.unlink(missing_ok=True)
