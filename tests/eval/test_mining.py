"""Mining finds wrong candidates of a query's own kind, as deep as it takes, also where a pool holds all kinds."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from full_disk import largest_file
from mining_files import TOP, mined_in, open_files, write_files
from plain_mining import usable

from lamra.datasets.columns import Columns, read_columns
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows, dataset_of
from lamra.eval import mining
from lamra.eval.alike import Contents
from lamra.eval.cache.manifest import VERSION
from lamra.eval.mining import Embedded, TrainingQueries, mined_pieces

COPIES, WRONG = 40, 5


@pytest.fixture
def queries(tmp_path) -> TrainingQueries:
    """A global pool: 40 copies of the answer's text, 100 candidates of another data set, 5 wrong ones of its own."""
    rows = [("9:1", "right")] + [(f"9:{i}", "right") for i in range(2, COPIES + 1)]
    rows += [(f"8:{i}", f"other {i}") for i in range(1, 101)] + [(f"9:{100 + i}", f"wrong {i}") for i in range(WRONG)]
    pool = [{"did": did, "txt": text, "modality": "text"} for did, text in rows]
    query = {"qid": "9:1", "query_txt": "a", "query_modality": "text", "pos_cand_list": ["9:1"]}
    for name, lines in (("pool", pool), ("queries", [query])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "table.tsv").write_text("\t".join(Instructions.COLUMNS) + "\ntext\ttext\tA\t9\tShow it.\n")
    files = (
        Rows(tmp_path / f"{name}.jsonl", tmp_path, kind) for name, kind in (("queries", QUERY), ("pool", CANDIDATE))
    )
    return TrainingQueries(MBEIRPairs(*files, Instructions(tmp_path / "table.tsv")))


def mined(queries: TrainingQueries, folder, monkeypatch, **options) -> tuple[list[str], list[int]]:
    """The ids of what is found where a candidate scores the higher the earlier its row; the depths of the searches."""
    pool, depths = queries.pairs.pool, []
    angles = torch.linspace(0, 1, len(pool))
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
    stock = mining.search
    monkeypatch.setattr(mining, "search", lambda q, g, k, *rest: depths.append(k) or stock(q, g, k, *rest))
    named = dict(top=3, own_kind=True, search_depth=None, search_memory=1.0, device="cpu") | options
    of = Embedded(queries, torch.tensor([[1.0, 0.0]]), gallery, {"version": VERSION})
    (file,) = mined_pieces(of, folder / "-".join(map(str, named.values())), **named)
    monkeypatch.undo()
    (found,) = read_columns(file)
    assert np.allclose(found.scores, [gallery[row, 0] for row in found.candidates])
    return [pool.id(row) for row in found.candidates], depths


def test_the_search_goes_on_until_enough_is_found(queries, tmp_path, monkeypatch):
    def found(**options):
        return mined(queries, tmp_path, monkeypatch, **options)

    # Of its own kind: the answer and its 39 copies come first, then the 5 wrong ones: 45 candidates.
    assert found() == (["9:100", "9:101", "9:102"], [6, 12, 24, 48])
    assert found(top=5) == ([f"9:{100 + i}" for i in range(5)], [10, 20, 40, 80])
    assert found(top=6) == ([f"9:{100 + i}" for i in range(5)], [12, 24, 48])  # there are no more
    # Of all kinds, the other data set's come before the wrong ones of its own.
    assert found(own_kind=False) == (["8:1", "8:2", "8:3"], [6, 12, 24, 48])
    # A depth that is given is not exceeded.
    assert found(search_depth=40) == ([], [40])
    assert found(search_depth=42) == (["9:100", "9:101"], [42])


def plainly(of: Embedded, own_kind: bool) -> tuple[dict[int, tuple[list[int], list[float], float]], Counter]:
    """Query -> its first wrong candidates, their scores and its best positive's; what was passed over. Item by item."""
    pairs, pool, found, passed = of.queries.pairs, of.queries.pairs.pool, {}, Counter()
    kinds = [(int(dataset_of(pool.keys[row])), pool.modality(row)) for row in range(len(pool))]
    for query, row in enumerate(of.queries.rows.tolist()):
        answers = pairs.answers(row)
        wanted = {kinds[answer] for answer in answers}
        scores = of.gallery @ of.embeddings[query]
        order = [
            place for place in np.argsort(-scores, kind="stable").tolist() if not own_kind or kinds[place] in wanted
        ]
        rows = list(islice(usable(pairs, answers, order, passed), TOP))
        found[query] = rows, scores[rows].tolist(), float(scores[answers].max())
    return found, passed


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_mining_by_hand(tmp_path, seed):
    write_files(tmp_path, seed)
    of = open_files(tmp_path)
    for own_kind in (False, True):
        pieces = mined_in(tmp_path, tmp_path / f"one {own_kind}", own_kind=own_kind, positives=True)
        found, passed = plainly(of, own_kind)
        if own_kind:
            assert min(passed.values()) > 10 and any(len(rows) < TOP for rows, *_ in found.values())
        assert {query: (rows, scores) for query, rows, scores in Columns(pieces)} == {
            query: (rows, scores) for query, (rows, scores, _) in found.items()
        }
        for piece in pieces:
            assert piece.positive.tolist() == [found[query][2] for query in piece.queries.tolist()]
        told = [read_columns(file).about["passed"] for file in (tmp_path / f"one {own_kind}").glob("*.arrow")]
        assert np.sum(told, axis=0).tolist() == [passed["positive"], passed["alike"]]


def test_a_killed_run_goes_on_and_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, fails):
    write_files(tmp_path)
    whole = mined_in(tmp_path, tmp_path / "whole")
    stock, calls = mining.search, []

    def broken(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return stock(*args)

    monkeypatch.setattr(mining, "search", broken)
    with pytest.raises(KeyboardInterrupt):
        mined_in(tmp_path, tmp_path / "broken")
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "broken").glob("*.arrow")}
    monkeypatch.setattr(mining, "search", stock)
    with largest_file(500):
        assert "00001.arrow cannot be written, the disk, a quota or a limit is full" in fails(
            lambda: mined_in(tmp_path, tmp_path / "broken")
        )
    assert {file.name for file in (tmp_path / "broken").iterdir()} == {"manifest.json", *(file.name for file in done)}
    again = mined_in(tmp_path, tmp_path / "broken")
    assert list(Columns(again)) == list(Columns(whole)) and 0 < len(done) < len(whole)
    assert all(file.stat().st_mtime_ns == before for file, before in done.items())
    with pytest.raises(ValueError, match=r"holds mined candidates made otherwise \(not the same: search_depth\)"):
        mined_in(tmp_path, tmp_path / "broken", search_depth=2 * TOP)
    mined_in(tmp_path, tmp_path / "broken", search_depth=2 * TOP, anew=True)
    assert list(Columns(mined_in(tmp_path, tmp_path / "broken", anew=True))) == list(Columns(whole))
    damaged = next(iter(done))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{damaged} is no ranking in columns, or it is cut short"):
        mined_in(tmp_path, tmp_path / "broken")


def test_the_pool_is_read_once_and_no_path_is_made(tmp_path, monkeypatch):
    """Counters rather than seconds: a candidate costs no system call and no pathlib, whatever the number of queries."""
    write_files(tmp_path)
    of, reads = open_files(tmp_path), []
    pread = os.pread
    monkeypatch.setattr("os.pread", lambda *args: reads.append(args) or pread(*args))
    monkeypatch.setattr("lamra.datasets.mbeir.rows.path_inside", lambda *_: pytest.fail("a path was resolved"))
    Contents(of.queries.pairs.pool)
    assert len(reads) == 1
