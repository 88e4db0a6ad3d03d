"""Files of rankings: lines {qid, did, score, rank}, beside columns, or the three files that upstream writes."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import read_json, read_jsonl, whole_file
from lamra.datasets.columns import (
    SUFFIX,
    Columns,
    Piece,
    RankedQuery,
    Ranking,
    is_columns,
    read_columns,
    rows_of,
    write_columns,
)
from lamra.datasets.tasks import FileItems, Items

QUERY_NAMES = "_query_names.json"
LINE = {"qid": (str, int), "did": (str, int), "score": (int, float), "rank": (int,)}
LARGEST = sys.float_info.max
LARGEST_RANK = 2**32
LONG = 10  # seconds of writing, from which a progress bar is worth its line
LINES_TOGETHER = 2**16  # whose ids are looked for at a time
UPSTREAM_RANKING = (QUERY_NAMES, "_cand_names.json", "_scores.json")


def write_ranking(path: str | Path, queries: FileItems, gallery: FileItems, ranking: Ranking) -> None:
    """Write a ranking as lines, and beside them as columns."""
    write_lines(path, queries, gallery, ranking)
    write_columns(Path(path).with_suffix(SUFFIX), queries, gallery, ranking)  # last: see ranking_of


def write_lines(path: str | Path, queries: FileItems, gallery: FileItems, ranking: Iterable[RankedQuery]) -> None:
    """Write one line {qid, did, score, rank} for each candidate of each query, rank 1 first."""
    encode = json.JSONEncoder(allow_nan=False).encode  # json.dumps would make one for each line
    with whole_file(path) as file:
        for query, candidates, scores in tqdm(ranking, desc=Path(path).name, unit="query", delay=LONG):
            qid = queries.id(query)
            for rank, (row, score) in enumerate(zip(candidates, scores), start=1):
                line = {"qid": qid, "did": gallery.id(row), "score": score, "rank": rank}
                file.write(encode(line) + "\n")


def write_by_query(path: str | Path, queries: FileItems, ranking: Ranking, found: Sequence[Mapping]) -> None:
    """Write one line {qid, ...} of what was found for each query, in the order of `ranking`."""
    with whole_file(path) as file:
        for ranked, of_query in zip(ranking, found, strict=True):
            file.write(json.dumps({"qid": queries.id(ranked.query), **of_query}, allow_nan=False) + "\n")


def read_ranking(path: str | Path, queries: Items, gallery: Items, *, by_position: bool = False) -> Ranking:
    """A ranking of all queries, in the order of the file. Columns are mapped; a line takes 80 bytes while it is read.

    Args:
        by_position: upstream's files name queries and candidates by their rows, not by their ids.

    Raises:
        UserError: as read_columns and _read_lines; or a query is lacking: recall over fewer of them would be another
            number.
    """
    path = Path(path)
    if is_columns(path):
        columns = read_columns(path)
        fits = rows_of(queries, gallery).items() <= columns.about.items()
        if not fits and (lines := path.with_suffix(".jsonl")).exists():
            # As where the pools of all tasks, joined, are the same candidates as M-BEIR's file of all.
            note(f"{path} goes by the rows of other files; {lines.name} beside it goes by ids and is read")
            return read_ranking(lines, queries, gallery)
        _require_all(path, columns.require(queries, gallery).queries, queries)
        return columns
    columns = _read_lines(path, queries, gallery, by_position and path.suffix != ".jsonl")
    _require_all(path, columns.queries, queries)
    return columns


def _read_lines(path: Path, queries: Items, gallery: Items, by_position: bool) -> Columns:
    """The lines of a ranking in any order, the queries in that of their first lines.

    Raises:
        UserError: as ranking_lines and _rows_of; or a query has a candidate twice, or ranks other than 1, 2, ..., n.
    """
    columns = array("i"), array("i"), array("d"), array("q")  # 24 bytes a line
    lines = ranking_lines(path)
    while some := list(islice(lines, LINES_TOGETHER)):
        qids, dids, scores, ranks = zip(*some)
        columns[0].extend(_rows_of(path, "query", qids, queries, by_position))
        columns[1].extend(_rows_of(path, "candidate", dids, gallery, by_position))
        columns[2].extend(scores)
        columns[3].extend(max(0, min(rank, LARGEST_RANK)) for rank in ranks)
    query, candidate, score, rank = (np.frombuffer(column, column.typecode) for column in columns)  # (L,) each
    first = np.zeros(len(queries), np.int32)
    first[query[::-1]] = np.arange(len(query), dtype=np.int32)[::-1]  # of each query its first line
    order = np.lexsort((rank, first[query]))
    query, candidate, rank = query[order], candidate[order], rank[order]
    starts = np.append(np.flatnonzero(np.diff(query, prepend=-1)), len(query))
    piece = Piece(query[starts[:-1]], starts, candidate, score[order])

    keys = np.sort(query.astype(np.int64) * len(gallery) + candidate)
    if (again := keys[1:] == keys[:-1]).any():
        qid = queries.id(int(keys[again.argmax()]) // len(gallery))
        raise UserError(f"{path} has a candidate of the query {qid} twice: a ranking names each once")
    if (wrong := rank != piece.ranks + 1).any():
        line = int(wrong.argmax())
        qid, count = queries.id(int(query[line])), (query == query[line]).sum()
        raise UserError(
            f"{path}: the {count} candidates of the query {qid} do not have the ranks 1 to {count}, {rank[line]} is "
            "repeated or follows a gap: evaluate the retriever again"
        )
    return Columns([piece])


def _require_all(path: Path, rows: Sequence[int] | np.ndarray, queries: Items) -> None:
    lacking = np.setdiff1d(np.arange(len(queries)), rows)
    if len(lacking):
        raise UserError(
            f"{path} lacks {len(lacking)} of the task's {len(queries)} queries, first {queries.id(int(lacking[0]))}: "
            "evaluate the retriever on all of them"
        )


def _rows_of(path: Path, kind: str, ids: Sequence[str], items: Items, by_position: bool) -> list[int]:
    """Raises UserError where one is unknown."""
    try:
        if by_position:
            rows = [int(row) if row.isdecimal() and int(row) < len(items) else -1 for row in ids]
        else:
            rows = items.find(ids)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if min(rows, default=0) < 0:
        raise UserError(f"{path} names the {kind} {ids[rows.index(-1)]}, which is not in {items.path}")
    return rows


def ranking_of(folder: str | Path, name: str, upstream: str) -> Path:
    """The ranking of a task in a folder: ranking_<name>.arrow, ranking_<name>.jsonl or upstream's *_query_names.json.

    The columns are read unless the lines are newer, as where somebody changed them.

    Args:
        upstream: what upstream calls the task, "cirr_task7" for example. Its names are
            mbeir_cirr_task7_test_<model>_query_names.json, cirr_task7_query_names.json for the global pool, and
            flickr_t2i_query_names.json.

    Raises:
        UserError: upstream wrote several for this task, with different models; names them.
    """
    own = Path(folder, f"ranking_{name}.jsonl")
    if (columns := own.with_suffix(SUFFIX)).is_file():
        older = not own.is_file() or own.stat().st_mtime_ns <= columns.stat().st_mtime_ns
        return columns if older else own
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


def ranking_lines(path: str | Path) -> Iterator[tuple[str, str, float, int]]:
    """(qid, did, score, rank) of each line of a jsonl file, or the same from the three files that upstream writes.

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
        yield from _upstream_lines(path)
        return
    if not path.is_file():
        raise UserError(f"the ranking {path} does not exist: an evaluation writes it, see eval_mbeir.sh")
    for row in read_jsonl(path):
        empty = False
        if any(type(row.get(name)) not in kinds for name, kinds in LINE.items()) or abs(row["score"]) > LARGEST:
            raise UserError(f"{row.location} is not {{qid, did, score, rank}}: {json.dumps(row)[:200]!r}")
        yield str(row["qid"]), str(row["did"]), float(row["score"]), row["rank"]
    if empty:
        raise UserError(f"the ranking {path} is empty")


def _upstream_lines(path: Path) -> Iterator[tuple[str, str, float, int]]:
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
    steps = [after - before for row in table for before, after in pairwise(row)]
    if min(steps, default=0) < 0 < max(steps, default=0):
        raise UserError(f"{ranking_files(path)[2]} has scores that neither only fall nor only rise within the queries")
    distances = max(steps, default=0) > 0
    for qid, dids, row in zip(queries, candidates, table):
        for rank, (did, score) in enumerate(zip(dids, row), start=1):
            yield str(qid), str(did), 1 - score / 2 if distances else score, rank


def _read_list(path: Path) -> list:
    if not path.exists():
        raise UserError(f"{path} does not exist: upstream writes three files for a ranking, copy all")
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} is not upstream's list: it is no list")
    return content


def mined_candidates(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Each query's mined candidates, from a ranking (.jsonl) or from upstream's {qid: {gt_docs, top100_docs}} (.json).

    Upstream's top100_docs hold what the retriever found, right ones among it: those of gt_docs are left out, as its
    training does. Its rerank_data_all.json is several such files in one.

    Raises:
        UserError: the file is missing or is neither; names it.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give what mine.sh wrote, or upstream's json")
    if path.suffix != ".json":
        yield from ((qid, [did]) for qid, did, _, _ in ranking_lines(path))
        return
    try:
        for qid, docs in read_json(path).items():
            right = set(docs["gt_docs"])
            yield qid, [did for did in docs["top100_docs"] if did not in right]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not {{qid: {{gt_docs, top100_docs}}}}: {error!r}") from None
