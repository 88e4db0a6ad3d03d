"""M-BEIR's qrels: which candidates answer which query."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import read_lines
from lamra.datasets.mbeir.rows import CANDIDATE, Rows, id_key, key_id

NAMED = 10  # ids in a sentence


def read_qrels(path: str | Path, queries: Rows, pool: Rows, union: str | Path | None = None) -> list[list[int]]:
    """For each query the pool's rows that answer it, from lines "qid 0 did relevance ...".

    The qrels of OVEN and InfoSeek also name candidates of one another's pools. In a task's own pool nobody can find
    these: they are no answers here, and a query that has no other counts as a miss (upstream's recall does the same).
    A note says how many they are.

    Args:
        union: the pool of all tasks together, which is searched for candidates that `pool` lacks. Where this file is
            not there, such candidates cannot be told from mistakes, and are taken for another pool's.

    Raises:
        UserError: the file is missing, a line is malformed or names a query that is not there or a candidate that is
            in no pool, a query has no answer, or none has one in the pool.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: data/README.md shows where M-BEIR's files go")
    numbers, keys = array("q"), array("q")
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            qid, _, did, relevance = line.split()[:4]
            keys.extend((id_key(qid), id_key(did), int(relevance)))
        except (ValueError, OverflowError):
            raise UserError(f'{path} line {number} is not "qid 0 did relevance": {line.strip()!r}') from None
        numbers.append(number)
    query_keys, candidate_keys, relevances = np.array(keys, dtype=np.int64).reshape(-1, 3).T  # (lines,) each
    query, candidate = queries.rows_of(query_keys), pool.rows_of(candidate_keys)
    if (query < 0).any():
        first = int((query < 0).argmax())
        raise UserError(
            f"{path} line {numbers[first]} names the query {key_id(query_keys[first])}, not in {queries.path}: "
            "give the queries that belong to it"
        )
    right = relevances > 0
    lacking = sorted(set(range(len(queries))) - set(query[right].tolist()))
    if lacking:
        raise UserError(
            f"{path} has no relevant candidate for {len(lacking)} queries of {queries.path}, first "
            f"{queries.id(lacking[0])}"
        )
    answers: list[list[int]] = [[] for _ in range(len(queries))]
    for row, found in zip(query[right].tolist(), candidate[right].tolist()):
        if found >= 0:
            answers[row].append(found)

    foreign = candidate_keys[candidate < 0]
    if not len(foreign):
        return answers
    elsewhere = "in another pool, which is not at hand"
    if union is not None and Path(union).is_file():
        elsewhere = f"in {union}"
        unknown = foreign[Rows(union, pool.root, CANDIDATE).rows_of(foreign) < 0]
        if len(unknown):
            raise UserError(
                f"{path} names candidates that are in no pool, neither in {pool.path} nor in {union}, "
                f"{_several(unknown)}: remove these lines, or get qrels and pools that belong together"
            )
    misses = sum(not relevant for relevant in answers)
    if misses == len(answers):
        raise UserError(f"{path}: no query has an answer in {pool.path}: give the pool that belongs to it")
    note(
        f"{path} names candidates that are not in {pool.path} but {elsewhere}, {_several(foreign)}; "
        f"{misses} of {len(answers)} queries have no other answer and count as misses"
    )
    return answers


def _several(keys: np.ndarray) -> str:
    """How many different candidates these integer keys are, and the first ids."""
    different = list(dict.fromkeys(keys.tolist()))
    more = ", ..." if len(different) > NAMED else ""
    return f"{len(different)} of them ({', '.join(map(key_id, different[:NAMED]))}{more})"
