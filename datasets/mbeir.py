"""M-BEIR in its own files (Wei et al., arXiv 2311.17136): queries, candidate pools, qrels, instructions.

A pool has up to 5.6 million rows. Its json is never held in memory: `Rows` keeps an index of 32 bytes a row in a file
beside it, and decodes a row when it is asked for.

The files are read as they are published: with or without a byte-order mark, blank lines anywhere, fields that nobody
asks for, and null or absent texts and pictures. Training queries may stand several times: M-BEIR samples its small data
sets up by repeating their rows.
"""

from __future__ import annotations

import json
import os
import random
import re
import uuid
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from lamra.datasets.items import Item, Pair, path_inside

MODALITIES = ("text", "image", "image,text")
NUMBER_BITS = 40  # an id "dataset:number" is one int64
MOST_INCOMPLETE = 0.01  # share of the training rows; beyond it the pool is another one, not a little short
NAMED = 10  # ids in a sentence


class Fields(NamedTuple):
    """How a kind of row calls its parts."""

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
        ValueError: it is no such id.
    """
    match = re.fullmatch(r"(0|[1-9]\d{0,5}):(0|[1-9]\d{0,11})", identifier) if isinstance(identifier, str) else None
    if match is None:
        raise ValueError(f'the id {identifier!r} is not "dataset:number"')
    return int(match[1]) << NUMBER_BITS | int(match[2])


def key_id(key: int) -> str:
    """The id of an integer key."""
    return f"{dataset_of(int(key))}:{int(key) & (1 << NUMBER_BITS) - 1}"


def dataset_of(key):
    """The dataset number of an integer key, or of an array of them."""
    return key >> NUMBER_BITS


class Rows(Sequence[Item]):
    """A file of queries or of candidates: an Item for each row, and the row of an id.

    The index is built once, which reads and checks every row, and again when the file changes. Jobs that find none at
    the same time each build it; all write the same. A blank line is no row. A row without text and picture is an Item
    with an empty text, as upstream embeds it. Candidates have different ids; a query may be repeated.

    Args:
        path: a jsonl file of M-BEIR.
        root: the folder that picture paths start from.
        fields: QUERY or CANDIDATE.

    Raises:
        ValueError: the file is missing or empty, a row is malformed, or a candidate repeats an id: names file and line.
    """

    def __init__(self, path: str | Path, root: str | Path, fields: Fields):
        self.path, self.root, self.fields = Path(path), Path(root), fields
        if not self.path.is_file():
            raise ValueError(f"{self.path} does not exist: data/README.md shows where M-BEIR's files go")
        self._file = os.open(self.path, os.O_RDONLY)
        self._state = os.fstat(self._file)
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

    def __del__(self):
        if hasattr(self, "_file"):
            os.close(self._file)

    def without(self, rows: np.ndarray) -> Rows:
        """The same file as if it lacked some rows; `rows` (N,) is true for these."""
        fewer = copy(self)
        fewer._file = os.dup(self._file)
        fewer.offsets, fewer.keys, fewer.modalities = (
            column[~rows] for column in (self.offsets, self.keys, self.modalities)
        )
        fewer._by_key = np.argsort(fewer.keys, kind="stable")
        return fewer

    def record(self, row: int) -> dict:
        """The row's json."""
        start = int(self.offsets[row])
        end = int(self.offsets[row + 1]) if row + 1 < len(self) else self._state.st_size
        # pread, because data workers share the open file and its position. Blank lines and rows left out may follow.
        return json.loads(os.pread(self._file, end - start, start).split(b"\n", 1)[0])

    def item(self, row: int, instruction: str | None = None) -> Item:
        """What the row shows. With an instruction the text rule is applied to both as one, as upstream does."""
        record = self.record(row)
        raw, picture = record.get(self.fields.text) or "", record.get(self.fields.picture)
        text = sentence(raw)
        if instruction:
            text = sentence(f"{instruction} {raw}")[len(instruction) + 1 :]
        pictures = (path_inside(self.root, picture),) if picture else ()
        return Item(record[self.fields.id], text or (None if pictures else ""), pictures, instruction)

    def modality(self, row: int) -> str:
        return MODALITIES[self.modalities[row]]

    def id(self, row: int) -> str:
        return key_id(self.keys[row])

    def line(self, row: int) -> str:
        """Where a row stands, for a sentence: its file and line."""
        with open(self.path, "rb") as file:
            before = sum(block.count(b"\n") for block in _blocks(file, int(self.offsets[row])))
        return f"{self.path} line {before + 1}"

    def name_of(self, key: int) -> str:
        """What to call an integer key in a sentence: "the query 9:7"."""
        return f"the {'query' if self.fields is QUERY else 'candidate'} {key_id(key)}"

    def rows_of(self, keys: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,) rows of integer keys, the first where a query is repeated; -1 where there is none."""
        keys = np.asarray(keys, dtype=np.int64)
        place = np.searchsorted(self.keys, keys, sorter=self._by_key)
        rows = self._by_key[np.minimum(place, len(self) - 1)]
        return np.where(self.keys[rows] == keys, rows, -1)

    def repetitions(self, row: int) -> np.ndarray:
        """All rows with the id of `row`, in order, itself among them."""
        start, stop = (
            np.searchsorted(self.keys, self.keys[row], side=side, sorter=self._by_key) for side in ("left", "right")
        )
        return self._by_key[start:stop]

    def _stored_index(self) -> np.ndarray | None:
        """(4, N) what _build_index wrote; None where there is none for this state of the file, or it is no array."""
        try:
            table = np.load(self._index_path(), mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        return table if table.ndim == 2 and len(table) == 4 and table.dtype == np.int64 else None

    def _index_path(self) -> Path:
        # Named after the file's state: the index of another state is simply not found.
        return self.path.with_name(f".{self.path.name}.{self._state.st_size}-{self._state.st_mtime_ns}.npy")

    def _build_index(self) -> np.ndarray:
        """(4, N) offset, integer key and modality number of each row, and the rows sorted by key."""
        columns = offsets, keys, modalities = array("q"), array("q"), array("q")
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
                    except (ValueError, TypeError, KeyError) as error:
                        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
                        raise ValueError(f"{self.path} line {number} is no row of M-BEIR: {reason}") from None
                    for column, value in zip(columns, (position + mark, key, modality)):
                        column.append(value)
                position += len(line)
                progress.update(len(line))
        if not keys:
            raise ValueError(f"{self.path} has no rows")
        table = np.array([*columns, np.argsort(np.array(keys), kind="stable")], dtype=np.int64)  # (4, N)
        in_order = table[1, table[3]]
        (repeated,) = np.nonzero(in_order[1:] == in_order[:-1])
        if len(repeated) and self.fields is CANDIDATE:
            self.offsets, (first, second) = table[0], sorted(table[3, repeated[0] : repeated[0] + 2])
            raise ValueError(
                f"{self.line(second)} repeats the id {key_id(table[1, first])!r} of "
                f"{self.line(first).removeprefix(f'{self.path} ')}: ids of candidates must be unique"
            )
        state = os.fstat(self._file)
        if (state.st_size, state.st_mtime_ns) != (self._state.st_size, self._state.st_mtime_ns):
            raise ValueError(f"{self.path} changed while it was read: start again when it is complete")
        self._write_index(table)
        return table

    def _checked(self, line: bytes) -> tuple[int, int]:
        """Integer key and modality number of a line."""
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("it is not a json object")
        identifier, modality = record[self.fields.id], record[self.fields.modality]
        text, picture = record.get(self.fields.text), record.get(self.fields.picture)
        if modality not in MODALITIES:
            raise ValueError(f"{self.fields.modality} is {modality!r}, not {', '.join(map(repr, MODALITIES))}")
        if not isinstance(text, str | None) or not isinstance(picture, str | None):
            raise ValueError(f"{self.fields.text} and {self.fields.picture} must be strings or null")
        if picture:
            path_inside(self.root, picture)
        return id_key(identifier), MODALITIES.index(modality)

    def _write_index(self, table: np.ndarray) -> None:
        index = self._index_path()
        unfinished = index.with_name(f"{index.name}.{uuid.uuid4().hex}")  # another job, on any host, has another name
        try:
            try:
                with open(unfinished, "wb") as file:
                    np.save(file, table)
                os.replace(unfinished, index)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"the index of {self.path} cannot be written beside it ({error.strerror}): "
                "link the file into a folder that can be written"
            ) from None
        for old in self.path.parent.glob(f".{self.path.name}.*-*.npy"):
            # Of earlier states only: another job may have indexed the file after it changed once more.
            if int(old.stem.rpartition("-")[2]) < self._state.st_mtime_ns:
                old.unlink(missing_ok=True)


def _blocks(file, size: int, block: int = 1 << 20):
    """The first `size` bytes of an open file, block by block."""
    while size > 0:
        data = file.read(min(size, block))
        if not data:
            return
        yield data
        size -= len(data)


class Instructions:
    """query_instructions.tsv: what a query of one dataset and modality may be told about what to find.

    Raises:
        ValueError: the file is missing, lacks a column, or a line is short; names it.
    """

    COLUMNS = ("query_modality", "cand_modality", "dataset_name", "dataset_id", "prompt_1")

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path} does not exist: data/README.md shows where M-BEIR's files go")
        header, *lines = self.path.read_text(encoding="utf-8-sig").split("\n")
        names = header.split("\t")
        missing = [column for column in self.COLUMNS if column not in names]
        if missing:
            raise ValueError(f"{self.path} lacks the column {', '.join(missing)}: its header is {header!r}")
        self._prompts: dict[tuple[int, str, str], list[str]] = {}
        self._names: dict[int, str] = {}
        for number, line in enumerate(lines, start=2):
            if not line.strip():
                continue
            row = dict(zip(names, line.split("\t")))
            prompts = [sentence(row[name]) for name in row if name.startswith("prompt_") and sentence(row[name])]
            if not prompts or not row["dataset_id"].isdecimal():
                raise ValueError(f"{self.path} line {number} has no dataset_id or no prompt: complete or remove it")
            dataset = int(row["dataset_id"])
            self._names[dataset] = row["dataset_name"]
            self._prompts[dataset, row["query_modality"], row["cand_modality"]] = prompts

    def prompts(self, dataset: int, query_modality: str, candidate_modality: str) -> list[str]:
        """The instructions of a kind of query, at least one.

        Raises:
            ValueError: the file has none.
        """
        found = self._prompts.get((dataset, query_modality, candidate_modality))
        if found is None:
            raise ValueError(
                f"{self.path} has no instruction for queries of dataset {dataset} that are {query_modality!r} and look "
                f"for {candidate_modality!r}: add a line"
            )
        return found

    def name(self, dataset: int, query_modality: str, candidate_modality: str) -> str:
        """What to call such queries, "MSCOCO text to image" for example."""
        return f"{self._names[dataset]} {query_modality} to {candidate_modality}"


class InstructedQueries(Sequence[Item]):
    """The queries of an evaluation, each with one of its instructions, drawn from the seed and its id.

    Upstream would count a repeated query as often as it stands there. Here it is refused: it would weigh more than the
    others in the recall, and rankings and a reranker's answers belong to a query by its id.

    Raises:
        ValueError: a query has no instruction, or is repeated.
    """

    def __init__(self, queries: Rows, instructions: Instructions, candidate_modality: str, seed: int = 0):
        self.queries, self.instructions, self.seed = queries, instructions, seed
        self.candidate_modality = candidate_modality
        first = queries.rows_of(queries.keys)  # (N,)
        (repeated,) = np.nonzero(first != np.arange(len(queries)))
        if len(repeated):
            raise ValueError(
                f"{queries.line(repeated[0])} repeats the query {queries.id(repeated[0])}: each is asked once; "
                f"remove {len(repeated)} such lines"
            )
        kinds = np.stack([dataset_of(queries.keys), queries.modalities])  # (2, N)
        for dataset, modality in np.unique(kinds, axis=1).T:
            instructions.prompts(int(dataset), MODALITIES[modality], candidate_modality)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, row: int) -> Item:
        dataset = dataset_of(int(self.queries.keys[row]))
        prompts = self.instructions.prompts(dataset, self.queries.modality(row), self.candidate_modality)
        return self.queries.item(row, random.Random(f"{self.seed}/{self.queries.id(row)}").choice(prompts))


class MBEIRPairs(Dataset):
    """Training pairs: a query with an instruction, one of its positives, and hard negatives.

    A repeated query is as many pairs. What is drawn for a row follows from seed, epoch and row alone, so that a run
    repeats and goes on exactly. Candidates that a query lists and the pool lacks are never drawn.

    Args:
        hard_negatives: so many for each query, because all ranks gather equal numbers; drawn from its neg_cand_list.
            Where the list is shorter, the rest are random candidates of the pool.

    Attributes:
        queries: the rows that are trained on: all whose positives are not all missing in the pool.
        left_out: integer keys of the others' queries.
        notes: what is missing, a sentence each.
        groups: name of a dataset and its two modalities -> the rows that belong to it, by the first positive.

    Raises:
        ValueError: a query without positive, more than MOST_INCOMPLETE of the rows have no candidate in the pool of
            those they list, or a modality without instruction.
    """

    def __init__(
        self, queries: Rows, pool: Rows, instructions: Instructions, *, seed: int = 0, hard_negatives: int = 0
    ):
        self.queries, self.pool, self.instructions = queries, pool, instructions
        self.seed, self.hard_negatives = seed, hard_negatives
        self.notes: list[str] = []
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # also where data workers outlive an epoch
        listed, counts, rows = self._candidates("pos_cand_list")
        if not listed.all():
            raise ValueError(f"{queries.line(listed.argmin())} has no positive in pos_cand_list: remove it")
        lost = counts == 0
        self.left_out = queries.keys[lost]
        if lost.any():
            self.notes.append(
                f"{queries.path}: {lost.sum()} of {len(queries)} rows are left out, because none of their positives is "
                f"in {pool.path}"
            )
            self.queries, counts = queries.without(lost), counts[~lost]
        if hard_negatives:
            self._candidates("neg_cand_list")
            if len(pool) < hard_negatives + counts.max():
                raise ValueError(
                    f"--hard_negatives {hard_negatives}: {pool.path} has {len(pool)} candidates; give fewer"
                )
        self.groups = self._groups(counts, rows)

    def _candidates(self, field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How many candidates each query lists and has in the pool (N,) each, and the pool's rows of the latter."""
        counts, keys = array("q"), array("q")
        for row in tqdm(range(len(self.queries)), desc=f"{self.queries.path.name} {field}"):
            try:
                listed = self.queries.record(row).get(field) or []
                keys.extend(map(id_key, listed))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self.queries.line(row)}: {field}: {error}") from None
            counts.append(len(listed))
        listed, rows = np.array(counts), self.pool.rows_of(keys)
        query = np.repeat(np.arange(len(listed)), listed)  # the query of each candidate
        found = np.bincount(query[rows >= 0], minlength=len(listed))
        (empty,) = np.nonzero((found == 0) & (listed > 0))
        if len(empty) > MOST_INCOMPLETE * len(listed):
            raise ValueError(
                f"{self.queries.path}: {len(empty)} of {len(listed)} rows have no candidate of their {field} in "
                f"{self.pool.path}, first line {self.queries.line(empty[0]).rpartition(' ')[2]}, which has "
                f"{key_id(keys[int(listed[: empty[0]].sum())])}: give the pool that belongs to these queries"
            )
        short = ((found > 0) & (found < listed)).sum()
        if short:
            self.notes.append(
                f"{self.queries.path}: {field} of {short} of {len(listed)} rows has candidates that are not in "
                f"{self.pool.path}; the others are used"
            )
        return listed, found, rows[rows >= 0]

    def _groups(self, counts: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        query = np.repeat(np.arange(len(counts)), counts)  # the query of each positive
        datasets, modalities = dataset_of(self.queries.keys)[query], self.queries.modalities[query]
        kinds = np.stack([datasets, modalities, self.pool.modalities[rows]])  # (3, positives)
        first = np.cumsum(counts) - counts
        groups = {}
        for kind in np.unique(kinds, axis=1).T:
            dataset, query_modality, candidate_modality = int(kind[0]), MODALITIES[kind[1]], MODALITIES[kind[2]]
            self.instructions.prompts(dataset, query_modality, candidate_modality)
            (members,) = np.nonzero((kinds[:, first] == kind[:, None]).all(axis=0))
            if len(members):
                groups[self.instructions.name(dataset, query_modality, candidate_modality)] = members
        return groups

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, as this epoch's draws are."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def positives(self, row: int) -> list[int]:
        """The pool's rows of all positives of a row."""
        return self._pool_rows(self.queries.record(row)["pos_cand_list"])

    def answers(self, row: int) -> list[int]:
        """The pool's rows of all positives of a query: of this row and of its repetitions."""
        return list(dict.fromkeys(right for same in self.queries.repetitions(row) for right in self.positives(same)))

    def _pool_rows(self, dids: Sequence[str]) -> list[int]:
        rows = self.pool.rows_of([id_key(did) for did in dids])
        return rows[rows >= 0].tolist()

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, row: int) -> Pair:
        rng = random.Random(f"{self.seed}/{self.epoch}/{row}")
        record, positives = self.queries.record(row), self.positives(row)
        positive = rng.choice(positives)
        dataset = dataset_of(int(self.queries.keys[row]))
        prompts = self.instructions.prompts(dataset, self.queries.modality(row), self.pool.modality(positive))
        query = self.queries.item(row, rng.choice(prompts))
        negatives = self._draw_negatives(rng, record, positives) if self.hard_negatives else []
        return Pair(query, self.pool[positive], tuple(self.pool[negative] for negative in negatives))

    def _draw_negatives(self, rng: random.Random, record: dict, positives: list[int]) -> list[int]:
        listed = self._pool_rows(record.get("neg_cand_list") or [])
        listed = [row for row in dict.fromkeys(listed) if row not in positives]
        drawn = rng.sample(listed, min(len(listed), self.hard_negatives))
        while len(drawn) < self.hard_negatives:
            row = rng.randrange(len(self.pool))
            if row not in positives and row not in drawn:
                drawn.append(row)
        return drawn


def read_qrels(
    path: str | Path,
    queries: Rows,
    pool: Rows,
    union: str | Path | None = None,
    tell: Callable[[str], None] = print,
) -> list[list[int]]:
    """For each query the pool's rows that answer it, from lines "qid 0 did relevance ...".

    The qrels of OVEN and InfoSeek also name candidates of one another's pools. In a task's own pool nobody can find
    these: they are no answers here, and a query that has no other counts as a miss (upstream's recall does the same).

    Args:
        union: the pool of all tasks together, which is asked about candidates that `pool` lacks. Where this file is
            not there, such candidates cannot be told from mistakes, and are taken for another pool's.
        tell: called with a sentence where candidates are in another pool.

    Raises:
        ValueError: the file is missing, a line is malformed or names a query that is not there or a candidate that is
            in no pool, a query has no answer, or none has one in the pool.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: data/README.md shows where M-BEIR's files go")
    numbers, keys = array("q"), array("q")
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            qid, _, did, relevance = line.split()[:4]
            keys.extend((id_key(qid), id_key(did), int(relevance)))
        except ValueError:
            raise ValueError(f'{path} line {number} is not "qid 0 did relevance": {line.strip()!r}') from None
        numbers.append(number)
    query_keys, candidate_keys, relevance = np.array(keys, dtype=np.int64).reshape(-1, 3).T
    query, candidate = queries.rows_of(query_keys), pool.rows_of(candidate_keys)
    if (query < 0).any():
        first = int((query < 0).argmax())
        raise ValueError(
            f"{path} line {numbers[first]} names the query {key_id(query_keys[first])}, not in {queries.path}: "
            "give the queries that belong to it"
        )
    right = relevance > 0
    lacking = sorted(set(range(len(queries))) - set(query[right].tolist()))
    if lacking:
        raise ValueError(
            f"{path} has no relevant candidate for {len(lacking)} queries of {queries.path}, first "
            f"{queries.id(lacking[0])}"
        )
    answers: list[list[int]] = [[] for _ in range(len(queries))]
    for row, found in zip(query[right], candidate[right]):
        if found >= 0:
            answers[row].append(int(found))
    _tell_foreign(path, candidate_keys[candidate < 0], answers, pool, union, tell)
    return answers


def _tell_foreign(
    path: Path,
    keys: np.ndarray,
    answers: list[list[int]],
    pool: Rows,
    union: str | Path | None,
    tell: Callable[[str], None],
) -> None:
    """Say how many of the qrels' candidates, integer `keys` that `pool` lacks, are in another pool; see read_qrels."""
    if not len(keys):
        return
    asked = union is not None and Path(union).is_file()
    if asked:
        known = Rows(union, pool.root, CANDIDATE).rows_of(keys) >= 0  # (lines,)
        if not known.all():
            raise ValueError(
                f"{path} names candidates that are in no pool, neither in {pool.path} nor in {union}, "
                f"{_several(keys[~known])}: remove these lines, or get qrels and pools that belong together"
            )
    if not any(answers):
        raise ValueError(f"{path}: no query has an answer in {pool.path}: give the pool that belongs to it")
    misses = sum(not relevant for relevant in answers)
    tell(
        f"{path} names candidates that are not in {pool.path} but "
        f"{f'in {union}' if asked else 'in another pool, which is not at hand'}, {_several(keys)}; "
        f"{misses} of {len(answers)} queries have no other answer and count as misses"
    )


def _several(keys: np.ndarray) -> str:
    """How many different candidates these integer keys are, and the first ids."""
    different = list(dict.fromkeys(keys.tolist()))
    more = ", ..." if len(different) > NAMED else ""
    return f"{len(different)} of them ({', '.join(map(key_id, different[:NAMED]))}{more})"
