"""What LamRA-Rank is trained and asked on: rankings of candidates, and examples drawn from them."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from lamra.datasets.items import Item
from lamra.datasets.mbeir import MBEIRPairs, id_key

MOST_OTHERS = 4  # LamRA-Rank's lists hold the positive and 1 to 4 negatives


class RankedCandidate(NamedTuple):
    """A line of a ranking."""

    qid: str
    did: str
    score: float
    rank: int


def ranked_candidates(path: str | Path) -> Iterator[RankedCandidate]:
    """The lines {qid, did, score, rank} of a jsonl file.

    Raises:
        ValueError: the file is missing or empty, or a line is malformed; names file and line.
    """
    path, number = Path(path), 0
    if not path.is_file():
        raise ValueError(f"the ranking {path} does not exist: an evaluation writes it, see eval_mbeir.sh")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                yield RankedCandidate(str(row["qid"]), str(row["did"]), float(row["score"]), int(row["rank"]))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} line {number} is not {{qid, did, score, rank}}: {line.strip()!r}") from None
    if not number:
        raise ValueError(f"the ranking {path} is empty")


def mined_candidates(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Each query's mined candidates, from a ranking (.jsonl) or from upstream's {qid: {gt_docs, top100_docs}} (.json).

    Raises:
        ValueError: the file is missing or is neither; names it.
    """
    path = Path(path)
    if path.suffix != ".json":
        yield from ((line.qid, [line.did]) for line in ranked_candidates(path))
        return
    try:
        mined = json.loads(path.read_text(encoding="utf-8"))
        yield from ((qid, docs["top100_docs"]) for qid, docs in mined.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not {{qid: {{gt_docs, top100_docs}}}}: {error!r}") from None


class RerankExample(NamedTuple):
    """A query with what LamRA-Rank learns from it; `others` and, before others[place], the positive are its list."""

    query: Item
    positive: Item
    negative: Item
    others: tuple[Item, ...]
    place: int


class RerankExamples(Dataset):
    """The queries that mined candidates were found for, each with a negative and a list.

    What is drawn for a row follows from seed, epoch and row alone, as the query's instruction and positive do.

    Args:
        mined: files that mined_candidates reads.

    Raises:
        ValueError: a file names a query or candidate that is not there, or no query has a negative.
    """

    def __init__(self, pairs: MBEIRPairs, mined: Iterable[str | Path]):
        self.pairs = pairs
        query, candidate = self._read(mined)  # (M,) each
        answer = np.zeros(len(query), dtype=bool)
        order = np.argsort(query, kind="stable")
        query, candidate = query[order], candidate[order]
        self.rows, starts = np.unique(query, return_index=True)
        for row, group in zip(self.rows, np.split(np.arange(len(query)), starts[1:])):
            answer[group] = np.isin(candidate[group], pairs.positives(row))
        self.rows, starts = np.unique(query[~answer], return_index=True)  # queries with a negative, their first one
        self._candidates, self._starts = candidate[~answer], np.append(starts, (~answer).sum())
        if not len(self.rows):
            raise ValueError(f"--mined {','.join(map(str, mined))}: no query has a candidate but its positives")

    def _read(self, mined: Iterable[str | Path]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of queries and of their candidates, in the order of the files."""
        query, candidate = [], []
        for path in mined:
            columns = array("q"), array("q")
            for qid, dids in mined_candidates(path):
                try:
                    columns[0].extend([id_key(qid)] * len(dids))
                    columns[1].extend(map(id_key, dids))
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from None
            for keys, rows, found in zip(columns, (self.pairs.queries, self.pairs.pool), (query, candidate)):
                found.append(rows.rows_of(keys))
                if (found[-1] < 0).any():
                    key = keys[int((found[-1] < 0).argmax())]
                    raise ValueError(f"{path} names {rows.name_of(key)}, which is not in {rows.path}")
        return np.concatenate(query), np.concatenate(candidate)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, as this epoch's draws are."""
        self.pairs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> RerankExample:
        row = int(self.rows[i])
        pair, rng = self.pairs[row], random.Random(f"rerank/{self.pairs.seed}/{self.pairs.epoch}/{row}")
        negatives = list(dict.fromkeys(self._candidates[self._starts[i] : self._starts[i + 1]].tolist()))
        others = rng.sample(negatives, min(rng.randint(1, MOST_OTHERS), len(negatives)))
        place = rng.randint(0, len(others))
        pool = self.pairs.pool
        return RerankExample(
            pair.query, pair.target, pool[rng.choice(negatives)], tuple(pool[other] for other in others), place
        )
