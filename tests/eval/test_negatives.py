"""Hard negatives: every rule against a plain reference, a killed run goes on, a reranker is judge and teacher."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from conftest import call
from mbeir_pairs import pairs_of

from lamra.datasets.mbeir.mined import MinedCandidates
from lamra.eval import mine_negatives, mining, teacher_scores
from lamra.eval.cache.shards import Shards
from lamra.eval.negatives import NO_ROW, Piece, Rules, drop_judged
from lamra.eval.rerank.judge import Judge
from lamra.models.settings import Settings


def plainly(scores: list[float], positive: float, rules: Rules) -> tuple[list[int], Counter]:
    """Positions of the candidates that are kept, and how many each rule left out."""
    kept, dropped = [], Counter()
    for rank, score in enumerate(scores):
        if rank < rules.first:
            dropped["rank"] += 1
        elif rules.below_share is not None and score >= (
            rules.below_share * positive if positive >= 0 else positive - (1 - rules.below_share) * -positive
        ):
            dropped["share"] += 1
        elif rules.margin is not None and score >= positive - rules.margin:
            dropped["margin"] += 1
        elif rules.below is not None and score >= rules.below:
            dropped["below"] += 1
        elif len(kept) == rules.keep:
            dropped["beyond"] += 1
        else:
            kept.append(rank)
    return kept, dropped


def test_rules_equal_a_plain_reference():
    """Random scores in eighths, which float32 holds exactly: most of them tie with one another and with a threshold."""
    rng = random.Random(0)
    told = {"rank": "among the first", "share": "of the positive's score", "margin": "below the positive's score"}
    told |= {"below": "not below", "beyond": "beyond the"}
    seen = Counter()
    for _ in range(300):
        top = rng.randint(1, 12)
        rows = [sorted((rng.randint(-8, 8) / 8 for _ in range(rng.randint(0, top))), reverse=True) for _ in range(6)]
        positive = [rng.randint(-8, 8) / 8 for _ in rows]
        first = rng.choice([0, 0, rng.randint(0, top)])
        thresholds = rng.randint(1, 8) / 8, rng.randint(0, 4) / 8, rng.randint(-7, 8) / 8
        rules = Rules(first, top, rng.randint(1, 6), *(rng.choice([None, value]) for value in thresholds))
        candidates, scores = np.full((6, top), NO_ROW), np.full((6, top), -np.inf, np.float32)
        for row, found in enumerate(rows):
            candidates[row, : len(found)], scores[row, : len(found)] = range(len(found)), found
        piece = Piece(np.arange(6), candidates, scores, np.array(positive, np.float32), np.array([3, 4]))
        kept, dropped = rules.apply(piece)
        expected = [plainly(found, of_query, rules) for found, of_query in zip(rows, positive)]
        assert [np.flatnonzero(row).tolist() for row in kept] == [of_query for of_query, _ in expected]
        assert (dropped.pop(mining.POSITIVE), dropped.pop(mining.ALIKE)) == (3, 4)
        total = sum((of_query for _, of_query in expected), Counter())
        assert sorted(filter(None, dropped.values())) == sorted(total.values())
        for name, words in told.items():
            counts = [count for reason, count in dropped.items() if words in reason and not (
                name == "below" and "positive" in reason)]  # fmt: skip
            assert sum(counts) == total[name]
        assert kept.sum() + sum(dropped.values()) == sum(map(len, rows))
        seen += total
        ranking = piece.ranking(kept)
        assert [ranked.candidates for ranked in ranking] == [of_query for of_query, _ in expected if of_query]
    assert min(seen[name] for name in told) > 100


def test_a_judge_takes_what_it_takes_for_right():
    kept = np.array([[True, False, True], [False, False, False], [False, True, True]])
    assert drop_judged(kept, [[0.5, 0.6], [0.9, 0.1]], 0.5) == 2
    assert kept.tolist() == [[True, False, False], [False, False, False], [False, False, True]]
    assert drop_judged(np.zeros((2, 3), bool), [], 0.5) == 0


@pytest.fixture(scope="module")
def reranker(tiny_model, tmp_path_factory):
    """The tiny model, which answers at random, as a reranker's checkpoint."""
    folder = tmp_path_factory.mktemp("reranker") / "model"
    shutil.copytree(tiny_model, folder)
    Settings(str(folder), "mrope", role="reranker", rank_style="released").write(folder)
    return folder


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rules_of(folder) -> Rules:
    made_by = json.loads((folder / "made_by.json").read_text())
    return Rules(**{field.name: made_by[field.name] for field in fields(Rules)})


def judged_pairs(folder, rules: Rules, pairs) -> dict[tuple[str, str], float]:
    """P(Yes) of each query and candidate that was judged."""
    said = {}
    for kept_in in sorted((folder / "answers").iterdir()):
        piece = Piece.read(folder / "mined" / f"{kept_in.name}.npz")
        ranking = piece.ranking(rules.apply(piece)[0])
        for line in (line for file in kept_in.glob("*.jsonl") for line in file.read_text().splitlines() if line):
            found = json.loads(line)
            query, candidates, _ = ranking[found["row"]]
            for candidate, yes in zip(candidates, found["answer"], strict=True):
                said[pairs.queries.id(query), pairs.pool.id(candidate)] = yes
    return said


class Stop:
    """Stands before a function: counts what it is called with, and at its `limit`-th call the run is killed."""

    def __init__(self, function):
        self.function, self.limit, self.calls = function, None, []

    def __call__(self, *args):
        if len(self.calls) == self.limit:
            raise KeyboardInterrupt
        self.calls.append(args)
        return self.function(*args)


def test_negatives_judge_and_teacher(mbeir, mined, tiny_model, reranker, tmp_path, monkeypatch, capsys, fails):
    """Killed in the search and in the judging, it goes on, asks nothing twice, and finds what an unbroken run finds."""
    monkeypatch.setattr(mining, "QUERIES_TOGETHER", 8)
    searches, answers = Stop(mining.search), Stop(Judge.answer)
    monkeypatch.setattr(mining, "search", searches)
    monkeypatch.setattr(Judge, "answer", lambda *args: answers(*args))
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    for folder in (plain, broken):
        shutil.copytree(mined / "embeddings", folder / "embeddings")
    run = dict(model_id=tiny_model, data_path=mbeir, ranks="1:12", keep=4, margin=0.002, num_workers=0)
    call(mine_negatives.main, **run, output_dir=plain)
    table = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]

    # By hand: of the wrong candidates in order the first is left out, then what is no 0.002 below the best positive.
    pairs, lines, rules = pairs_of(mbeir), lines_of(plain / "negatives.jsonl"), rules_of(plain)
    assert rules == Rules(1, 12, 4, margin=0.002)
    of_query: dict[str, list[str]] = {}
    for line in lines:
        of_query.setdefault(line["qid"], []).append(line["did"])
        assert line["rank"] == len(of_query[line["qid"]])
    pieces = [Piece.read(path) for path in sorted((plain / "mined").glob("*.npz"))]
    assert sum(len(piece.queries) for piece in pieces) == len(pairs) and len(pieces) == len(searches.calls) == 5
    dropped, counts = Counter(), Counter()
    gallery, queries = (
        Shards(sorted((plain / "embeddings" / name).glob("*.npy")))[:].numpy()
        for name in (pairs.pool.name, pairs.queries.name)
    )
    for piece in pieces:
        for query, candidates, scores, positive in zip(*piece[:4]):
            right, there = pairs.answers(int(query)), candidates != NO_ROW
            assert (scores[~there] == -np.inf).all()
            candidates, scores = candidates[there], scores[there]
            assert not set(right) & set(candidates.tolist())
            assert positive == pytest.approx((gallery[right] @ queries[query]).max(), abs=1e-6)
            assert scores == pytest.approx(gallery[candidates] @ queries[query], abs=1e-6)
            kept, why = plainly(scores.tolist(), float(positive), rules)
            dropped += why
            counts[min(len(kept), 4)] += 1
            assert of_query.get(pairs.queries.id(int(query)), []) == [pairs.pool.id(candidates[i]) for i in kept]
    assert min(dropped["margin"], dropped["beyond"]) > 5 and 0 < counts[0] < len(pairs)  # each has something to do
    for row in (
        ["among the first 1", str(len(pairs))],
        ["not 0.002 below the positive's score", str(dropped["margin"])],
        ["beyond the 4 that are kept", str(dropped["beyond"])],
        ["kept", str(len(lines))],
        ["with 4", str(counts[4])],
        ["with none", str(counts[0])],
    ):
        assert row in table

    searches.calls, searches.limit = [], 2
    judging = run | dict(output_dir=broken, judge=reranker, judge_above=0.9)
    with pytest.raises(KeyboardInterrupt):
        call(mine_negatives.main, **judging)
    assert len(list((broken / "mined").glob("*.npz"))) == 2
    searches.limit, answers.limit = None, 11
    with pytest.raises(KeyboardInterrupt):
        call(mine_negatives.main, **judging)
    assert len(searches.calls) == 5 and not (broken / "negatives.jsonl").exists()
    searches.limit, answers.limit = 5, None
    call(mine_negatives.main, **judging)
    asked = [query.item.id for _, style, query, _ in answers.calls if style == "pointwise"]
    assert sorted(asked) == sorted(of_query)  # nothing twice
    for ours, theirs in zip(pieces, sorted((broken / "mined").glob("*.npz")), strict=True):
        assert all(map(np.array_equal, ours, Piece.read(theirs)))
    said = judged_pairs(broken, rules, pairs)
    assert set(said) == {(line["qid"], line["did"]) for line in lines}
    middle, answers.limit = sorted(said.values())[len(said) // 2], 0
    call(mine_negatives.main, **judging | dict(judge_above=middle))  # another threshold asks nothing
    left = lines_of(broken / "negatives.jsonl")
    assert {(line["qid"], line["did"]) for line in left} == {pair for pair, yes in said.items() if yes <= middle}
    assert len(lines) > len(left) > 0

    # Other rules need no other search; what a reranker said is about the candidates that were kept.
    call(mine_negatives.main, **run | dict(output_dir=plain, ranks="3:12", margin=0))
    assert lines_of(plain / "negatives.jsonl") != lines
    for flags, words in (
        (judging | dict(ranks="3:12"), "holds answers made otherwise (not the same: ranking)"),
        (run | dict(output_dir=plain, ranks="1:13"), "holds mined candidates made otherwise (not the same: top)"),
    ):
        assert words in fails(mine_negatives.main, **flags)

    # The teacher: of each query with a negative its positives and these, in log-odds, best first.
    answers.calls, answers.limit = [], 4
    asking = dict(model_id=reranker, data_path=mbeir, mined=broken / "negatives.jsonl", num_workers=0)
    asking["output_dir"] = tmp_path / "teacher"
    with pytest.raises(KeyboardInterrupt):
        call(teacher_scores.main, **asking)
    answers.limit = None
    call(teacher_scores.main, **asking)
    assert {style for _, style, *_ in answers.calls} == {"log_odds"}
    scores: dict[str, dict[str, float]] = {}
    for line in lines_of(tmp_path / "teacher/teacher.jsonl"):
        known = scores.setdefault(line["qid"], {})
        known[line["did"]] = line["score"]
        assert line["rank"] == len(known)
    assert sorted(query.item.id for _, _, query, _ in answers.calls) == sorted(scores)
    candidates = MinedCandidates(pairs, [broken / "negatives.jsonl"])
    assert set(scores) == {line["qid"] for line in left}
    for qid, known in scores.items():
        (row,) = pairs.queries.find([qid])
        assert set(known) == {pairs.pool.id(place) for place in pairs.answers(row) + candidates.of(row)}
        assert list(known.values()) == sorted(known.values(), reverse=True)
        for did, score in known.items():
            if (qid, did) in said:
                assert 1 / (1 + math.exp(-score)) == pytest.approx(said[qid, did], abs=1e-6)


def test_what_is_refused(fails, mbeir, tiny_model, reranker, mined, tmp_path, no_model, monkeypatch):
    run = dict(model_id=tiny_model, data_path=mbeir, output_dir=tmp_path / "o")
    retriever = shutil.copytree(tiny_model, tmp_path / "retriever")
    Settings(str(tiny_model), "sequential").write(retriever)
    for change, words in (
        ({"margin": -0.1}, "--margin -0.1: expected 0 to 2"),
        ({"below_share": -0.95}, "--below_share -0.95: expected more than 0"),
        ({"below_share": 1.5}, "--below_share 1.5: expected "),
        ({"below": -1}, "--below -1"),
        ({"ranks": "60:10"}, "--ranks 60:10: expected A:B with 0 <= A < B <= 10000, such as 10:60"),
        ({"ranks": "10"}, "--ranks 10: expected A:B"),
        ({"keep": 11, "ranks": "5:15"}, "--keep 11: expected at most the 10 of --ranks 5:15"),
        ({"search_depth": 60}, "--search_depth 60: expected 100 (--ranks) or more"),
        ({"judge_above": 0.9}, "--judge_above 0.9: expected --judge beside it"),
        ({"judge": retriever}, f"{retriever} is a retriever, and a reranker is needed"),
        ({"judge": tmp_path / "nowhere"}, "--judge"),
    ):
        assert words in fails(mine_negatives.main, **run | change)
    teacher = dict(model_id=reranker, data_path=mbeir, output_dir=tmp_path / "t")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"qid": "9:99999", "did": "9:1", "score": 0.5, "rank": 1}) + "\n")
    for change, words in (
        ({}, "--mined : expected a file"),
        ({"mined": other}, "names the query 9:99999, which is not in"),
        ({"mined": mined / "mined.jsonl", "model_id": retriever}, "is a retriever, and a reranker is needed"),
    ):
        assert words in fails(teacher_scores.main, **teacher | change)
