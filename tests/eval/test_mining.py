"""Mining finds wrong candidates of a query's own kind, as deep as it takes, also where a pool holds all kinds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows
from lamra.eval.mining import TrainingQueries, mine

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


def mined(queries: TrainingQueries, monkeypatch, **options) -> tuple[list[str], list[int]]:
    """The ids of what is found where a candidate scores the higher the earlier its row; the depths of the searches."""
    pool, depths = queries.pairs.pool, []
    angles = torch.linspace(0, 1, len(pool))
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
    from lamra.eval import mining

    stock = mining.search
    monkeypatch.setattr(mining, "search", lambda q, g, k, *rest: depths.append(k) or stock(q, g, k, *rest))
    named = dict(top=3, own_kind=True, search_depth=None, search_memory=1.0, device="cpu") | options
    (found,) = mine(queries, torch.tensor([[1.0, 0.0]]), gallery, **named)
    monkeypatch.undo()
    assert np.allclose(found.scores, [gallery[row, 0] for row in found.candidates])
    return [pool.id(row) for row in found.candidates], depths


def test_the_search_goes_on_until_enough_is_found(queries, monkeypatch):
    # Of its own kind: the answer and its 39 copies come first, then the 5 wrong ones: 45 candidates.
    assert mined(queries, monkeypatch) == (["9:100", "9:101", "9:102"], [6, 12, 24, 48])
    assert mined(queries, monkeypatch, top=5) == ([f"9:{100 + i}" for i in range(5)], [10, 20, 40, 80])
    assert mined(queries, monkeypatch, top=6) == ([f"9:{100 + i}" for i in range(5)], [12, 24, 48])  # there are no more
    # Of all kinds, the other data set's come before the wrong ones of its own.
    assert mined(queries, monkeypatch, own_kind=False) == (["8:1", "8:2", "8:3"], [6, 12, 24, 48])
    # A depth that is given is not exceeded.
    assert mined(queries, monkeypatch, search_depth=40) == ([], [40])
    assert mined(queries, monkeypatch, search_depth=42) == (["9:100", "9:101"], [42])
