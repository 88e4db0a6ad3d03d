"""The evaluation on hand-worked tasks: own candidates, exclusions, shared galleries; in memory and in files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranked import ranked_ids

from lamra.datasets.columns import RankedQuery, read_columns, write_columns
from lamra.datasets.items import Item
from lamra.datasets.rankings import ranking_of, read_ranking, write_ranking
from lamra.datasets.tasks import ItemList, RetrievalTask
from lamra.eval.cache.shards import Shards
from lamra.eval.evaluate import evaluate
from lamra.eval.rerank.fusion import rerank


def items(name: str, count: int) -> ItemList:
    return ItemList([Item(f"{name}{row}", "a") for row in range(count)], name, f"{name}.jsonl")


QUERIES, GALLERY = items("q", 3), items("g", 5)
# Scores, a query a row:  g0  g1  g2  g3  g4
#   q0                     1   0   0   1  -1
#   q1                     0   1   0   0   0
#   q2                     1   1   0   1  -1
EMBEDDINGS = {
    id(QUERIES): torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
    id(GALLERY): torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]),
}


@pytest.fixture(params=["tensors", "files"])
def embed(request, tmp_path):
    """The embeddings above, also in files of two rows."""

    def in_files(found: ItemList) -> Shards:
        files = []
        for number, part in enumerate(EMBEDDINGS[id(found)].split(2)):
            files.append(tmp_path / f"{found.name}{number}.npy")
            np.save(files[-1], part.numpy())
        return Shards(files)

    return in_files if request.param == "files" else lambda found: EMBEDDINGS[id(found)]


def found_by(embed, depth=5, **options) -> tuple[list, dict[str, float]]:
    task = RetrievalTask("task", QUERIES, GALLERY, [[3], [0], [2]], ks=(1, 2, 3), **options)
    ((_, ranking, found),) = evaluate([task], embed, depth=depth)
    assert found.keys() - {"ndcg@10", "mrr@10"} == {f"recall@{k}" for k in task.ks}
    recalls = {name: value for name, value in found.items() if name.startswith("recall")}
    assert [ranked.query for ranked in ranking] == [0, 1, 2]
    return [ranked.candidates for ranked in ranking], recalls


def test_the_whole_gallery(embed):
    found, recalls = found_by(embed)
    assert found == [[0, 3, 1, 2, 4], [1, 0, 2, 3, 4], [0, 1, 3, 2, 4]]
    assert recalls == {"recall@1": 0.0, "recall@2": 2 / 3, "recall@3": 2 / 3}
    assert found_by(embed, depth=3) == ([row[:3] for row in found], recalls)


def test_a_gallery_for_each_query(embed):
    own = [[4, 3, 0], [2, 0], [1, 2]]  # in any order: ties go to the lower row of the gallery
    found, recalls = found_by(embed, candidates=own, depth=1)  # all of them are ranked
    assert found == [[0, 3, 4], [0, 2], [1, 2]]
    assert recalls == {"recall@1": 1 / 3, "recall@2": 1.0, "recall@3": 1.0}
    found, recalls = found_by(embed, candidates=own, tie_is_miss=True)
    assert recalls == {"recall@1": 0.0, "recall@2": 1.0, "recall@3": 1.0}


def test_what_a_query_may_not_find(embed):
    found, recalls = found_by(embed, excluded=[[0], [1, 0], []])
    assert found == [[3, 1, 2, 4], [2, 3, 4], [0, 1, 3, 2, 4]]  # q1's answer is excluded: it cannot be answered
    assert recalls == {"recall@1": 1 / 3, "recall@2": 1 / 3, "recall@3": 1 / 3}
    assert found_by(embed, excluded=[[0], [1, 0], []], depth=3)[0] == [[3, 1, 2], [2, 3, 4], [0, 1, 3]]


def test_tasks_that_share_a_gallery_embed_it_once(embed):
    calls, others = [], items("other", 2)
    EMBEDDINGS[id(others)] = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    tasks = [
        RetrievalTask("all", QUERIES, GALLERY, [[3], [0], [2]]),
        RetrievalTask("own", others, GALLERY, [[4], [1]], candidates=[[0, 4], [0, 1]]),
        RetrievalTask("others", others, GALLERY, [[4], [0]]),
        RetrievalTask("back", GALLERY, QUERIES, [[0]] * 5),
    ]
    found = list(evaluate(tasks, lambda of: calls.append(of.name) or embed(of), depth=10))
    assert calls == ["g", "q", "other"]
    assert [task.name for task, _, _ in found] == ["all", "own", "others", "back"]
    assert [recalls["recall@1"] for _, _, recalls in found] == [0.0, 1.0, 0.5, 3 / 5]  # back: g0, g2 and g3 find q0
    assert [ranked.candidates[0] for ranked in found[2][1]] == [4, 1]


def test_equal_embeddings_of_a_querys_own_gallery_tie_for_sure():
    """A matrix product may round them differently by their positions; then the tie would be a hit or a miss by luck."""
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(50, 3584, generator=generator), dim=1)
    queries, gallery = items("q", 50), items("g", 50 * 15)
    of = {id(queries): F.normalize(torch.randn(50, 3584, generator=generator), dim=1)}
    of[id(gallery)] = rows.repeat_interleave(15, dim=0)
    own = [list(range(15 * row, 15 * row + 15)) for row in range(50)]
    task = RetrievalTask("task", queries, gallery, [[rows[0]] for rows in own], candidates=own, tie_is_miss=True)
    ((_, ranking, recalls),) = evaluate([task], lambda found: of[id(found)], depth=1)
    assert all(len(set(ranked.scores)) == 1 and ranked.candidates == own[ranked.query] for ranked in ranking)
    assert recalls == {"recall@1": 0.0, "recall@5": 0.0, "recall@10": 0.0, "ndcg@10": 0.0, "mrr@10": 0.0}


def test_a_ranking_is_written_reranked_and_read(embed, tmp_path):
    task = RetrievalTask("task", QUERIES, GALLERY, [[3], [0], [2]])
    ((_, ranking, _),) = evaluate([task], embed, depth=3)
    after = rerank(ranking, [[0.1, 0.9], [0.0, 0.0], [0.2, 0.7]], "pointwise", 1.0)
    assert [ranked.candidates for ranked in after] == [[3, 0, 1], [1, 0, 2], [1, 0, 3]]
    assert after[0].scores == [1.9, 1.1, 0.0]
    path = tmp_path / "ranking_task.jsonl"
    write_ranking(path, QUERIES, GALLERY, after)
    assert list(read_ranking(path, QUERIES, GALLERY)) == list(after)
    assert ranked_ids(path)["q2"][0] == ["g1", "g0", "g3"]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[6:], *lines[:6]]))  # a ranking keeps the order of its file
    assert [ranked.query for ranked in read_ranking(path, QUERIES, GALLERY)] == [2, 0, 1]
    path.write_text("\n".join(lines[3:]))
    with pytest.raises(ValueError, match="lacks 1 of the task's 3 queries, first q0: evaluate"):
        read_ranking(path, QUERIES, GALLERY)
    with pytest.raises(ValueError, match="names the candidate g3, which is not in fewer.jsonl"):
        write_ranking(path, QUERIES, GALLERY, after)
        read_ranking(path, QUERIES, ItemList(GALLERY[:3], "fewer", "fewer.jsonl"))


def test_columns_are_read_unless_the_lines_are_newer_or_fit_better(tmp_path, capsys):
    ranking = [RankedQuery(1, [3, 0], [0.5, 0.25]), RankedQuery(0, [4], [1 / 3]), RankedQuery(2, [], [])]
    lines = tmp_path / "ranking_task.jsonl"
    write_ranking(lines, QUERIES, GALLERY, ranking)
    columns = ranking_of(tmp_path, "task", "none")
    assert columns == lines.with_suffix(".arrow")
    found = read_ranking(columns, QUERIES, GALLERY)
    assert list(found) == ranking == found[:] and found[-1] == ranking[2] and found.lines == 3
    # The same in another order, as of joined pools: rows are others, ids are not.
    ranking = [*ranking[:2], RankedQuery(2, [1], [0.0])]
    write_ranking(lines, QUERIES, GALLERY, ranking)
    turned = ItemList(GALLERY[::-1], "turned", "turned.jsonl")
    for items in (GALLERY, turned):
        found = read_ranking(columns, QUERIES, items)
        assert [[items.id(row) for row in ranked.candidates] for ranked in found] == [["g3", "g0"], ["g4"], ["g1"]]
    assert "ranking_task.jsonl beside it goes by ids and is read" in capsys.readouterr().out
    for change, words in (
        ((QUERIES, turned), r"is of other candidates than turned.jsonl \(5, here 5\), or of the same in another order"),
        ((ItemList(QUERIES[:2], "q", "two.jsonl"), GALLERY), r"is of other queries than two.jsonl \(3, here 2\), or"),
    ):
        lines.rename(tmp_path / "away")
        with pytest.raises(ValueError, match=words):
            read_ranking(columns, *change)
        (tmp_path / "away").rename(lines)
    write_columns(columns, QUERIES, GALLERY, ranking[:2])
    with pytest.raises(ValueError, match="ranking_task.arrow lacks 1 of the task's 3 queries, first q2"):
        read_ranking(columns, QUERIES, GALLERY)
    state = columns.stat()
    os.utime(lines, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert ranking_of(tmp_path, "task", "none") == lines
    whole = columns.read_bytes()
    for content in (b"", whole[:-1], whole[: len(whole) // 2], whole[:8], b"x" * 4000):
        columns.write_bytes(content)
        with pytest.raises(ValueError, match="is no ranking in columns, or it is cut short"):
            read_columns(columns)


def test_upstreams_positions_are_rows(tmp_path):
    stem = Path(tmp_path, "flickr_t2i")
    parts = {"query_names": "[0, 1, 2]", "cand_names": "[[4, 0], [1, 2], [3, 2]]", "scores": "[[2, 1], [2, 1], [2, 1]]"}
    for name, content in parts.items():
        stem.with_name(f"flickr_t2i_{name}.json").write_text(content)
    path = stem.with_name("flickr_t2i_query_names.json")
    found = read_ranking(path, QUERIES, GALLERY, by_position=True)
    assert [(ranked.query, ranked.candidates) for ranked in found] == [(0, [4, 0]), (1, [1, 2]), (2, [3, 2])]
    with pytest.raises(ValueError, match="names the candidate 4, which is not in"):
        read_ranking(path, QUERIES, ItemList(GALLERY[:4], "g", "g.jsonl"), by_position=True)
    with pytest.raises(ValueError, match="names the query 0, which is not in q.jsonl"):
        read_ranking(path, QUERIES, GALLERY)
