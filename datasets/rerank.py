"""What LamRA-Rank is trained and evaluated on: rankings of candidates, and examples drawn from them."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from lamra.common.errors import UserError
from lamra.datasets.items import Item
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.rows import id_key

QUERY_NAMES = "_query_names.json"
UPSTREAM_RANKING = (QUERY_NAMES, "_cand_names.json", "_scores.json")
MOST_OTHERS = 4  # LamRA-Rank's lists hold the positive and 1 to 4 negatives


class RankedCandidate(NamedTuple):
    """A line of a ranking."""

    qid: str
    did: str
    score: float
    rank: int


def ranking_of(folder: str | Path, name: str, upstream: str) -> Path:
    """The ranking of a task in a folder: ranking_<name>.jsonl, or where there is none, upstream's *_query_names.json.

    Args:
        upstream: what upstream calls the task, "cirr_task7" for example. Its names are
            mbeir_cirr_task7_test_<model>_query_names.json, cirr_task7_query_names.json for the global pool, and
            flickr_t2i_query_names.json.

    Raises:
        UserError: upstream wrote several for this task, with different models; names them.
    """
    own = Path(folder, f"ranking_{name}.jsonl")
    if own.is_file():
        return own
    patterns = f"{upstream}{QUERY_NAMES}", f"mbeir_{upstream}_*{QUERY_NAMES}"
    found = sorted(path for pattern in patterns for path in Path(folder).glob(pattern))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{folder} has several rankings of {upstream} ({names}): leave one there")
    return found[0] if found else own


def ranking_files(path: str | Path) -> tuple[Path, ...]:
    """All files that a ranking is read from: itself, or upstream's three."""
    path = Path(path)
    if not path.name.endswith(QUERY_NAMES):
        return (path,)
    return tuple(path.with_name(path.name.removesuffix(QUERY_NAMES) + end) for end in UPSTREAM_RANKING)


def ranked_candidates(path: str | Path) -> Iterator[RankedCandidate]:
    """The lines {qid, did, score, rank} of a jsonl file, or the same from the three files that upstream writes.

    Upstream's are named by the first, *_query_names.json, and stand beside one another:
        *_query_names.json  [qid, ...]; M-BEIR's ids, or for Flickr30K positions of captions or pictures, from 0
        *_cand_names.json   [[did, ...], ...], for each query its candidates, best first: ranks 1, 2, ...
        *_scores.json       [[score, ...], ...], nested once more ([[[score, ...]], ...]) but for the global pool.
    Scores are cosines and fall. Those of the global pool (eval_mbeir_global.py) are squared distances and rise: with
    unit vectors, cosine = 1 - distance / 2.

    Raises:
        UserError: a file is missing or empty, or is malformed; names file and line.
    """
    path, empty = Path(path), True
    if path.name.endswith(QUERY_NAMES):
        yield from _upstream_ranking(path)
        return
    if not path.is_file():
        raise UserError(f"the ranking {path} does not exist: an evaluation writes it, see eval_mbeir.sh")
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            empty = False
            try:
                row = json.loads(line)
                yield RankedCandidate(str(row["qid"]), str(row["did"]), float(row["score"]), int(row["rank"]))
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path} line {number} is not {{qid, did, score, rank}}: {line.strip()!r}") from None
    if empty:
        raise UserError(f"the ranking {path} is empty")


def _upstream_ranking(path: Path) -> Iterator[RankedCandidate]:
    queries, candidates, scores = (_read_list(file) for file in ranking_files(path))
    scores = [row[0] if isinstance(row, list) and len(row) == 1 and isinstance(row[0], list) else row for row in scores]
    try:
        sizes = [len(row) for row in candidates]
        fits = len(queries) == len(candidates) and sizes == [len(row) for row in scores]
        table = [[float(score) for score in row] for row in scores]
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise UserError(
            f"{', '.join(file.name for file in ranking_files(path))} in {path.parent} do not fit together: each query "
            "needs a list of candidates and a list of as many scores"
        )
    steps = [after - before for row in table for before, after in zip(row, row[1:])]
    if min(steps, default=0) < 0 < max(steps, default=0):
        raise UserError(f"{ranking_files(path)[2]} has scores that neither only fall nor only rise within the queries")
    distances = max(steps, default=0) > 0
    for qid, dids, row in zip(queries, candidates, table):
        for rank, (did, score) in enumerate(zip(dids, row), start=1):
            yield RankedCandidate(str(qid), str(did), 1 - score / 2 if distances else score, rank)


def _read_list(path: Path) -> list:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, list) or not content:
            raise UserError("it is no list")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: upstream writes three files for a ranking, copy all") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not upstream's list: {error}") from None
    return content


def mined_candidates(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Each query's mined candidates, from a ranking (.jsonl) or from upstream's {qid: {gt_docs, top100_docs}} (.json).

    Upstream's top100_docs hold what the retriever found, right ones among it: those of gt_docs are left out, as its
    training does. Its rerank_data_all.json is several such files in one.

    Raises:
        UserError: the file is missing or is neither; names it.
    """
    path = Path(path)
    if path.suffix != ".json":
        yield from ((line.qid, [line.did]) for line in ranked_candidates(path))
        return
    try:
        mined = json.loads(path.read_text(encoding="utf-8-sig"))
        for qid, docs in mined.items():
            right = set(docs["gt_docs"])
            yield qid, [did for did in docs["top100_docs"] if did not in right]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not {{qid: {{gt_docs, top100_docs}}}}: {error!r}") from None


class RerankExample(NamedTuple):
    """A query with what LamRA-Rank learns from it; `others` and, before others[position], the positive are its list."""

    query: Item
    positive: Item
    negative: Item
    others: tuple[Item, ...]
    position: int


class RerankExamples(Dataset):
    """The rows of queries that mined candidates were found for, each with a negative and a list.

    Candidates are mined once for a query; each of its repetitions draws from them, and no positive of a repetition is a
    negative of another. What is drawn for a row follows from seed, epoch and row alone, as the query's instruction and
    positive do.

    Args:
        mined: files that mined_candidates reads.

    Attributes:
        rows: the row of `pairs` of each example.

    Raises:
        UserError: a file names a query or candidate that is not there, or no query has a negative.
    """

    def __init__(self, pairs: MBEIRPairs, mined: Iterable[str | Path]):
        self.pairs = pairs
        query, candidate = self._read(mined)  # (M,) each
        wrong = np.ones(len(query), dtype=bool)
        order = np.argsort(query, kind="stable")
        query, candidate = query[order], candidate[order]
        queries, starts = np.unique(query, return_index=True)
        for row, group in zip(queries, np.split(np.arange(len(query)), starts[1:])):
            wrong[group] = ~np.isin(candidate[group], pairs.answers(row))
        queries, starts = np.unique(query[wrong], return_index=True)  # queries with a negative, and where it begins
        self._candidates, self._starts = candidate[wrong], np.append(starts, wrong.sum())
        if not len(queries):
            raise UserError(f"--mined {','.join(map(str, mined))}: no query has a candidate but its positives")
        first = pairs.queries.rows_of(pairs.queries.keys)  # (N,) row that stands for all of a query
        (self.rows,) = np.nonzero(np.isin(first, queries))
        self._query = np.searchsorted(queries, first[self.rows])  # of each row, its index in `queries`

    def _read(self, mined: Iterable[str | Path]) -> tuple[np.ndarray, np.ndarray]:
        """First rows of queries and rows of their candidates, in the order of the files."""
        query, candidate = [], []
        for path in mined:
            columns = array("q"), array("q")
            for qid, dids in mined_candidates(path):
                try:
                    columns[0].extend([id_key(qid)] * len(dids))
                    columns[1].extend(map(id_key, dids))
                except ValueError as error:
                    raise UserError(f"{path}: {error}") from None
            keys = np.array(columns, dtype=np.int64)  # (2, candidates)
            keys = keys[:, ~np.isin(keys[0], self.pairs.left_out)]
            for column, rows, found in zip(keys, (self.pairs.queries, self.pairs.pool), (query, candidate)):
                found.append(rows.rows_of(column))
                if (found[-1] < 0).any():
                    key = column[int((found[-1] < 0).argmax())]
                    raise UserError(
                        f"{path} names {rows.name_of(key)}, which is not in {rows.path}: give the --queries and "
                        "--pool that it was mined from, or mine again with these"
                    )
        return np.concatenate(query), np.concatenate(candidate)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, as this epoch's draws are."""
        self.pairs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> RerankExample:
        row = int(self.rows[i])
        pair, rng = self.pairs[row], random.Random(f"rerank/{self.pairs.seed}/{self.pairs.epoch}/{row}")
        mined = slice(*self._starts[self._query[i] : self._query[i] + 2])
        negatives = list(dict.fromkeys(self._candidates[mined].tolist()))
        others = rng.sample(negatives, min(rng.randint(1, MOST_OTHERS), len(negatives)))
        position = rng.randint(0, len(others))
        pool = self.pairs.pool
        return RerankExample(
            pair.query, pair.target, pool[rng.choice(negatives)], tuple(pool[other] for other in others), position
        )
