"""M-BEIR in its own files (Wei et al., arXiv 2311.17136): queries, candidate pools, qrels, instructions.

A pool has up to 5.6 million rows. Its json is never held in memory: `Rows` keeps an index of 32 bytes a row in a file
beside it, and decodes a row when it is asked for.
"""

from __future__ import annotations

import json
import os
import random
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from lamra.datasets.items import Item, Pair, path_inside

MODALITIES = ("text", "image", "image,text")
NUMBER_BITS = 40  # an id "dataset:number" is one int64


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

    The index is built once, which reads and checks every row, and again when the file changes.

    Args:
        path: a jsonl file of M-BEIR.
        root: the folder that picture paths start from.
        fields: QUERY or CANDIDATE.

    Raises:
        ValueError: the file is missing or empty; a row is malformed or repeats an id: names file and line.
    """

    def __init__(self, path: str | Path, root: str | Path, fields: Fields):
        self.path, self.root, self.fields = Path(path), Path(root), fields
        if not self.path.is_file():
            raise ValueError(f"{self.path} does not exist: data/README.md shows where M-BEIR's files go")
        index = self._index_path()
        if not index.is_file():
            self._build_index(index)
        self.offsets, self.keys, self.modalities, self._by_key = np.load(index, mmap_mode="r")  # (N,) each
        self._size = self.path.stat().st_size
        self._file = os.open(self.path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> Item:
        return self.item(row)

    def __del__(self):
        if hasattr(self, "_file"):
            os.close(self._file)

    def record(self, row: int) -> dict:
        """The row's json. pread, because data workers share the open file and its position."""
        end = self.offsets[row + 1] if row + 1 < len(self) else self._size
        return json.loads(os.pread(self._file, int(end - self.offsets[row]), int(self.offsets[row])))

    def item(self, row: int, instruction: str | None = None) -> Item:
        """What the row shows. With an instruction the text rule is applied to both as one, as upstream does."""
        record = self.record(row)
        text = sentence(record[self.fields.text])
        if instruction:
            text = sentence(f"{instruction} {record[self.fields.text] or ''}")[len(instruction) + 1 :]
        picture = record[self.fields.picture]
        pictures = (path_inside(self.root, picture),) if picture else ()
        return Item(record[self.fields.id], text or None, pictures, instruction)

    def modality(self, row: int) -> str:
        return MODALITIES[self.modalities[row]]

    def id(self, row: int) -> str:
        return key_id(self.keys[row])

    def name_of(self, key: int) -> str:
        """What to call an integer key in a sentence: "the query 9:7"."""
        return f"the {'query' if self.fields is QUERY else 'candidate'} {key_id(key)}"

    def rows_of(self, keys: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,) rows of integer keys; -1 where there is none."""
        keys = np.asarray(keys, dtype=np.int64)
        place = np.searchsorted(self.keys, keys, sorter=self._by_key)
        rows = self._by_key[np.minimum(place, len(self) - 1)]
        return np.where(self.keys[rows] == keys, rows, -1)

    def _index_path(self) -> Path:
        # Named after the file's state: the index of another state is simply not found.
        state = self.path.stat()
        return self.path.with_name(f".{self.path.name}.{state.st_size}-{state.st_mtime_ns}.npy")

    def _build_index(self, index: Path) -> None:
        columns = offsets, keys, modalities = array("q"), array("q"), array("q")
        with (
            open(self.path, "rb") as file,
            tqdm(total=self.path.stat().st_size, desc=f"index {self.path.name}", unit="B", unit_scale=True) as progress,
        ):
            position = 0
            for line in file:
                try:
                    key, modality = self._checked(line)
                except (ValueError, TypeError, KeyError) as error:
                    reason = f"it lacks {error}" if isinstance(error, KeyError) else error
                    raise ValueError(f"{self.path} line {len(keys) + 1} is no row of M-BEIR: {reason}") from None
                for column, value in zip(columns, (position, key, modality)):
                    column.append(value)
                position += len(line)
                progress.update(len(line))
        if not keys:
            raise ValueError(f"{self.path} has no rows")
        table = np.array([*columns, np.argsort(np.array(keys), kind="stable")], dtype=np.int64)  # (4, N)
        in_order = table[1, table[3]]
        (repeated,) = np.nonzero(in_order[1:] == in_order[:-1])
        if len(repeated):
            first, second = sorted(table[3, repeated[0] : repeated[0] + 2])
            raise ValueError(
                f"{self.path} line {second + 1} repeats the id {key_id(table[1, first])!r} of line {first + 1}: "
                "ids must be unique"
            )
        self._write_index(index, table)

    def _checked(self, line: bytes) -> tuple[int, int]:
        """Integer key and modality number of a line."""
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("it is not a json object")
        identifier, text, picture, modality = (record[name] for name in self.fields)
        if modality not in MODALITIES:
            raise ValueError(f"{self.fields.modality} is {modality!r}, not {', '.join(map(repr, MODALITIES))}")
        if not isinstance(text, str | None) or not isinstance(picture, str | None):
            raise ValueError(f"{self.fields.text} and {self.fields.picture} must be strings or null")
        if not sentence(text) and not picture:
            raise ValueError("it has neither text nor picture")
        if picture:
            path_inside(self.root, picture)
        return id_key(identifier), MODALITIES.index(modality)

    def _write_index(self, index: Path, table: np.ndarray) -> None:
        unfinished = index.with_name(f"{index.name}.{os.getpid()}")
        try:
            with open(unfinished, "wb") as file:
                np.save(file, table)
            for old in self.path.parent.glob(f".{self.path.name}.*-*.npy"):
                old.unlink(missing_ok=True)
            os.replace(unfinished, index)
        except OSError as error:
            raise ValueError(
                f"the index of {self.path} cannot be written beside it ({error.strerror}): "
                "link the file into a folder that can be written"
            ) from None


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
        header, *lines = self.path.read_text(encoding="utf-8").splitlines() or [""]
        names = header.split("\t")
        missing = [column for column in self.COLUMNS if column not in names]
        if missing:
            raise ValueError(f"{self.path} lacks the column {', '.join(missing)}: its header is {header!r}")
        self._prompts: dict[tuple[int, str, str], list[str]] = {}
        self._names: dict[int, str] = {}
        for number, line in enumerate(lines, start=2):
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

    Raises:
        ValueError: a query has no instruction.
    """

    def __init__(self, queries: Rows, instructions: Instructions, candidate_modality: str, seed: int = 0):
        self.queries, self.instructions, self.seed = queries, instructions, seed
        self.candidate_modality = candidate_modality
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

    What is drawn for a row follows from seed, epoch and row alone, so that a run repeats and goes on exactly.

    Args:
        hard_negatives: so many for each query, because all ranks gather equal numbers; drawn from its neg_cand_list.
            Where the list is shorter, the rest are random candidates of the pool.

    Attributes:
        groups: name of a dataset and its two modalities -> the rows that belong to it, by the first positive.

    Raises:
        ValueError: a query without positive, a candidate that is not in the pool, or a modality without instruction.
    """

    def __init__(
        self, queries: Rows, pool: Rows, instructions: Instructions, *, seed: int = 0, hard_negatives: int = 0
    ):
        self.queries, self.pool, self.instructions = queries, pool, instructions
        self.seed, self.hard_negatives = seed, hard_negatives
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # also where data workers outlive an epoch
        counts, rows = self._candidates("pos_cand_list")
        if not counts.all():
            raise ValueError(f"{queries.path} line {counts.argmin() + 1} has no positive in pos_cand_list: remove it")
        if hard_negatives:
            self._candidates("neg_cand_list")
            if len(pool) < hard_negatives + counts.max():
                raise ValueError(
                    f"--hard_negatives {hard_negatives}: {pool.path} has {len(pool)} candidates; give fewer"
                )
        self.groups = self._groups(counts, rows)

    def _candidates(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        """How many candidates each query lists (N,), and the pool's rows of all of them."""
        counts, keys = array("q"), array("q")
        for row in tqdm(range(len(self.queries)), desc=f"{self.queries.path.name} {field}"):
            try:
                listed = self.queries.record(row).get(field) or []
                keys.extend(map(id_key, listed))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self.queries.path} line {row + 1}: {field}: {error}") from None
            counts.append(len(listed))
        counts, rows = np.array(counts), self.pool.rows_of(keys)
        if (rows < 0).any():
            place = int((rows < 0).argmax())
            query = int(np.searchsorted(counts.cumsum(), place, side="right"))
            did = self.queries.record(query)[field][place - int(counts[:query].sum())]
            raise ValueError(
                f"{self.queries.path} line {query + 1}: {field} has {did}, which is not in {self.pool.path}"
            )
        return counts, rows

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
        """The pool's rows of all positives of a query."""
        return self.pool.rows_of([id_key(did) for did in self.queries.record(row)["pos_cand_list"]]).tolist()

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
        listed = self.pool.rows_of([id_key(did) for did in record.get("neg_cand_list") or []]).tolist()
        listed = [row for row in dict.fromkeys(listed) if row not in positives]
        drawn = rng.sample(listed, min(len(listed), self.hard_negatives))
        while len(drawn) < self.hard_negatives:
            row = rng.randrange(len(self.pool))
            if row not in positives and row not in drawn:
                drawn.append(row)
        return drawn


def read_qrels(path: str | Path, queries: Rows, pool: Rows) -> list[list[int]]:
    """For each query the pool's rows that answer it, from lines "qid 0 did relevance ...".

    Raises:
        ValueError: the file is missing, a line is malformed or names a query or candidate that is not there, or a
            query has no answer.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: data/README.md shows where M-BEIR's files go")
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    keys = []
    for number, line in enumerate(lines, start=1):
        try:
            keys.append((id_key(line[0]), id_key(line[2]), int(line[3])))
        except (ValueError, IndexError):
            raise ValueError(f'{path} line {number} is not "qid 0 did relevance": {" ".join(line)!r}') from None
    columns = np.array(keys, dtype=np.int64).reshape(-1, 3)
    found = {}
    for name, rows, column in (("query", queries, 0), ("candidate", pool, 1)):
        found[name] = rows.rows_of(columns[:, column])
        if (found[name] < 0).any():
            place = int((found[name] < 0).argmax())
            raise ValueError(f"{path} line {place + 1} names the {name} {lines[place][2 * column]}, not in {rows.path}")
    answers: list[list[int]] = [[] for _ in range(len(queries))]
    for query, candidate, relevance in zip(found["query"], found["candidate"], columns[:, 2]):
        if relevance > 0:
            answers[query].append(int(candidate))
    empty = [row for row, relevant in enumerate(answers) if not relevant]
    if empty:
        raise ValueError(
            f"{path} has no relevant candidate for {len(empty)} queries of {queries.path}, first {queries.id(empty[0])}"
        )
    return answers
