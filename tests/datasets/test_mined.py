"""Hard negatives of stage 2 that are drawn from mined files, and a teacher's scores beside them."""

from __future__ import annotations

import errno
import json
import os
import re
from zlib import crc32

import numpy as np
import pytest
import torch
from mbeir_pairs import pairs_of
from torch.utils.data import DataLoader

from lamra.collators.processing import Processor
from lamra.collators.retrieval import RetrievalCollator
from lamra.datasets.columns import columns_file, rows_of
from lamra.datasets.mbeir.rows import Rows
from lamra.datasets.usable import UsablePairs


def write_ranking(path, found: dict[str, list[str]], score=lambda _qid, _did: 0.5):
    """A ranking of candidates by query."""
    lines = [{"qid": qid, "did": did, "score": score(qid, did), "rank": rank}
             for qid, dids in found.items() for rank, did in enumerate(dids, start=1)]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def listed(mbeir_20) -> dict[str, dict[str, list[str]]]:
    """Of each query its positives, and 0 to 4 wrong candidates."""
    pairs = pairs_of(mbeir_20)
    found: dict[str, dict[str, list[str]]] = {"right": {}, "wrong": {}}
    for row in range(len(pairs)):
        qid, right = pairs.queries.id(row), pairs.answers(row)
        wrong = [place for place in range(7 * row, 7 * row + 9) if place % len(pairs.pool) not in right]
        found["right"][qid] = [pairs.pool.id(place) for place in right]
        found["wrong"][qid] = [pairs.pool.id(place % len(pairs.pool)) for place in wrong[: row % 5]]
    return found


def score(qid: str, did: str) -> float:
    return crc32(f"{qid} {did}".encode()) % 1000 / 100 - 5


def test_negatives_are_drawn_from_mined_files_and_bring_their_scores(mbeir_20, listed, tmp_path):
    both = {qid: [*dids, listed["right"][qid][0]] for qid, dids in listed["wrong"].items()}
    mined = write_ranking(tmp_path / "mined.jsonl", both)
    more = write_ranking(tmp_path / "more.jsonl", listed["wrong"])  # every candidate a second time
    scored = {qid: listed["right"][qid] + dids for qid, dids in listed["wrong"].items() if dids}
    teacher = write_ranking(tmp_path / "teacher.jsonl", scored, score)
    pairs = pairs_of(mbeir_20, seed=1, hard_negatives=2, mined=[mined, more], teacher=teacher)
    right, few = pairs.notes
    assert right == f"{mined}, {more}: 100 of 500 candidates are positives of their query and are left out"
    assert few.startswith(f"{mined}, {more}: 40 of 100 queries have fewer than --hard_negatives 2 candidates; the rest")
    without = pairs_of(mbeir_20, seed=1, hard_negatives=2)
    assert without.mined is without.teacher is None

    def drawn(epoch: int, **options) -> list:
        pairs.set_epoch(epoch)
        return list(DataLoader(pairs, batch_size=None, **options))

    first, second = drawn(0), drawn(1)
    assert first == drawn(0, num_workers=1) != second
    assert first == [
        pairs_of(mbeir_20, seed=1, hard_negatives=2, mined=[mined], teacher=teacher)[i] for i in range(100)
    ]
    for pair, plain in zip(first, without, strict=True):
        qid, ids = pair.query.id, [negative.id for negative in pair.negatives]
        wrong = listed["wrong"][qid]
        assert (pair.query, pair.target) == (plain.query, plain.target) and not plain.teacher
        assert len(set(ids)) == 2 and not set(ids) & set(listed["right"][qid])
        assert len(set(ids) & set(wrong)) == min(2, len(wrong))
        known = [did in scored.get(qid, ()) for did in (pair.target.id, *ids)]
        expected = [score(qid, did) if there else None for did, there in zip((pair.target.id, *ids), known)]
        assert [one and round(one, 2) for one in pair.teacher] == [one and round(one, 2) for one in expected]
    assert {pair.teacher.count(None) for pair in first} == {0, 1, 3}


def test_the_collator_hands_scores_over(mbeir_20, listed, tiny_model, tmp_path):
    mined = write_ranking(tmp_path / "mined.jsonl", listed["wrong"])
    scored = {qid: listed["right"][qid] + dids for qid, dids in listed["wrong"].items() if dids}
    teacher = write_ranking(tmp_path / "teacher.jsonl", scored, score)
    collator = RetrievalCollator(Processor(tiny_model))

    def batch(**options) -> dict:
        pairs = pairs_of(mbeir_20, hard_negatives=2, **options)
        return collator(UsablePairs(pairs, collator.encode, most_faults=0).__getitems__([0, 1, 4]))

    taught, mined_only, plain = batch(mined=[mined], teacher=teacher), batch(mined=[mined]), batch()
    scores = torch.tensor(taught.pop("teacher"))
    assert scores.shape == (3, 3) and scores.isinf().sum(dim=1).tolist() == [3, 1, 0] and not scores.isnan().any()
    assert taught.keys() == mined_only.keys() == plain.keys()
    assert torch.equal(taught["input_ids"], mined_only["input_ids"])


def test_what_does_not_fit(mbeir_20, listed, tmp_path):
    wrong = {qid: dids for qid, dids in listed["wrong"].items() if dids}
    mined = write_ranking(tmp_path / "mined.jsonl", wrong)
    (qid, dids), *_ = wrong.items()
    scored = {query: listed["right"][query] + few for query, few in wrong.items()}

    right = listed["right"][qid]
    unknown = "9:99999, which is not in .*: give the --queries and --pool that it was made from, or make it again"
    lacking = r", for the query {} \(1 such\): give what teacher_scores.sh wrote with the same --mined, --queries and"
    for name, found, words in (
        ("mined", {qid: ["9:99999"]}, f"jsonl names the candidate {unknown}"),
        ("mined", {"9:99999": dids}, f"jsonl names the query {unknown}"),
        ("mined", listed["right"], "jsonl: no query has a candidate but its positives"),
        ("mined", {qid: ["x"]}, "jsonl: the id 'x' is not"),
        ("teacher", {qid: right}, f"does not score the candidate {dids[0]}, mined in .*mined.jsonl{lacking}"),
        ("teacher", {qid: dids + right[1:]}, f"does not score the candidate {right[0]}, a positive of it{lacking}"),
        ("teacher", {qid: scored[qid] + dids[:1]}, f"scores the candidate {dids[0]} twice{lacking}"),
        ("teacher", {qid: [*scored[qid], "9:99999"]}, f"jsonl names the candidate {unknown}"),
    ):
        rest = scored if name == "teacher" else {}
        path = write_ranking(tmp_path / f"other_{name}.jsonl", rest | found, score)
        options = dict(mined=[path]) if name == "mined" else dict(mined=[mined], teacher=path)
        words = words.format(qid)
        with pytest.raises(ValueError) as error:
            pairs_of(mbeir_20, hard_negatives=1, **options)
        assert re.search(words, str(error.value)), str(error.value)
    write_ranking(path, scored, score)
    pairs_of(mbeir_20, hard_negatives=1, mined=[mined], teacher=path)


def test_columns_are_read_as_they_are_and_lines_once(mbeir_20, listed, tmp_path, monkeypatch):
    wrong = {qid: dids for qid, dids in listed["wrong"].items() if dids}
    lines = write_ranking(
        tmp_path / "mined.jsonl", {**wrong, **{qid: listed["right"][qid] + wrong[qid] for qid in wrong}}
    )
    more = write_ranking(tmp_path / "more.jsonl", wrong)
    options = dict(seed=1, hard_negatives=2)
    first, both = (pairs_of(mbeir_20, **options, mined=files) for files in ([lines], [more, lines]))
    pool, queries = first.pool, first.queries
    (piece,) = first.mined.found.pieces
    scores = np.zeros(len(piece.candidates), np.float32)
    columns = tmp_path / "mined.arrow"
    about = {**rows_of(queries, pool), "answers": first.answers_sha256}
    order = np.random.default_rng(0).permutation(len(piece.queries))  # as blocks of mixed kinds are written
    with columns_file(columns, about) as write:
        for some in np.array_split(order, 3):
            write(piece._replace(scores=scores).take(some))

    def drawn(**more) -> list:
        pairs = pairs_of(mbeir_20, **options, **more)
        return [pairs[row] for row in range(len(pairs))]

    expected = [first[row] for row in range(len(first))]
    monkeypatch.setattr("lamra.datasets.mbeir.mined._read", lambda *_: pytest.fail("lines were read again"))
    monkeypatch.setattr(Rows, "records", lambda *_: pytest.fail("rows were read again"))
    for files in ([lines], [columns]):
        assert drawn(mined=files) == expected
    right = sum(len(listed["right"][qid]) for qid in wrong)
    assert (first.mined.right, first.mined.candidates) == (right, right + first.mined.found.lines)
    monkeypatch.undo()
    assert drawn(mined=[more, lines]) == [both[row] for row in range(len(both))]
    # Other states of the lines, of the positives: made anew.
    write_ranking(lines, {qid: dids[:1] for qid, dids in wrong.items()})
    assert pairs_of(mbeir_20, **options, mined=[lines]).mined.candidates == len(wrong)
    with columns_file(columns, rows_of(queries, pool)) as write:  # a ranking of positives and others
        write(piece._replace(scores=scores))
    again = pairs_of(mbeir_20, **options, mined=[columns])
    assert (
        again.mined.found.path.name == ".mined.arrow.arrow" and again.mined.keys.tolist() == first.mined.keys.tolist()
    )


def test_a_folder_that_cannot_be_written_is_noted_and_gives_the_same(mbeir_20, listed, tmp_path, monkeypatch, capsys):
    files = [write_ranking(tmp_path / "mined.jsonl", {qid: dids for qid, dids in listed["wrong"].items() if dids})]
    expected = pairs_of(mbeir_20, hard_negatives=2, mined=files)
    (tmp_path / ".mined.jsonl.arrow").unlink()

    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("lamra.datasets.mbeir.mined.columns_file", read_only)
    found = pairs_of(mbeir_20, hard_negatives=2, mined=files)
    assert "cannot be kept beside it (Read-only file system): every start reads it anew" in capsys.readouterr().out
    assert [found[row] for row in range(len(found))] == [expected[row] for row in range(len(expected))]
    assert (found.mined.candidates, found.mined.right) == (expected.mined.candidates, expected.mined.right)


def test_columns_that_do_not_fit(mbeir_20, listed, tmp_path):
    mined = write_ranking(tmp_path / "mined.jsonl", {qid: dids for qid, dids in listed["wrong"].items() if dids})
    pairs = pairs_of(mbeir_20, hard_negatives=1, mined=[mined])
    (piece,), columns = pairs.mined.found.pieces, tmp_path / "mined.arrow"
    about = {**rows_of(pairs.queries, pairs.pool), "answers": pairs.answers_sha256}
    for kind, change, words in (
        ("candidates", {"count": 7}, "is of other candidates than .*pool.jsonl \\(7, here "),
        ("candidates", {"ids": "0"}, "is of other candidates than .*, or of the same in another order: give the files"),
        ("queries", {"ids": "0"}, "is of other queries than .*train.jsonl "),
    ):
        with columns_file(columns, about | {kind: about[kind] | change}) as write:
            write(piece)
        for options in (dict(mined=[columns]), dict(mined=[mined], teacher=columns)):
            with pytest.raises(ValueError, match=words):
                pairs_of(mbeir_20, hard_negatives=1, **options)
    columns.write_bytes(columns.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{columns} is no ranking in columns, or it is cut short"):
        pairs_of(mbeir_20, hard_negatives=1, mined=[columns])
