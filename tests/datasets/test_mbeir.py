"""M-BEIR: its files to items, and draws that repeat."""

from __future__ import annotations

import json
import pathlib
import posixpath
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mbeir_pairs import pairs_of
from torch.utils.data import DataLoader

from lamra.collators.messages import embedding_messages, instructed_texts
from lamra.collators.processing import Processor
from lamra.common.files import path_inside
from lamra.datasets.items import Item
from lamra.datasets.mbeir import rows as rows_module
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import INSTRUCTIONS, PAPER_AVERAGE, TRAIN_QUERIES
from lamra.datasets.mbeir.layout import TASKS as TASK_TABLE
from lamra.datasets.mbeir.qrels import read_qrels
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows, sentence
from lamra.datasets.mbeir.tasks import InstructedQueries
from lamra.eval import eval_mbeir
from lamra.eval.metrics import recall_at_k
from lamra.miniature.mbeir import TASKS

SCENES = 20  # of mbeir_20


@pytest.mark.parametrize(
    ("raw", "ruled"),
    [(" a dog ", "A dog."), ("Why?", "Why?"), ('"éa!"', "Éa!"), ("a.\r\n", "A."), ("", ""), (None, ""), (' "" ', "")],
)
def test_the_text_rule(raw, ruled):
    assert sentence(raw) == ruled


def write_rows(path, *rows) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_rows_and_prompts_by_hand(tmp_path):
    path = tmp_path / "queries.jsonl"
    write_rows(
        path,
        {"qid": "9:7", "query_txt": "a dog ", "query_img_path": None, "query_modality": "text"},
        {"qid": "8:3", "query_txt": "née", "query_img_path": "i/1.png", "query_modality": "image,text"},
        {"qid": "9:2", "query_txt": None, "query_img_path": "2.png", "query_modality": "image"},
    )
    rows = Rows(path, "root", QUERY)
    assert [item.id for item in rows] == [rows.id(i) for i in range(3)] == ["9:7", "8:3", "9:2"]
    assert [rows.modality(i) for i in range(3)] == ["text", "image,text", "image"]
    assert rows[0].text == "A dog." and rows[1].text == "Née." and rows[2].text is None
    assert str(rows[1].images[0]) == "root/i/1.png"
    # The rule is upstream's, applied to instruction and text as one: the text itself keeps its first letter.
    prompts = [embedding_messages(rows.item(i, "Find it."))[0]["content"][-1]["text"] for i in range(3)]
    assert prompts == [
        "Find it. a dog.\nSummarize above sentence in one word: ",
        "Find it. née.\nSummarize above image and sentence in one word: ",
        "Find it.\nSummarize above image and sentence in one word: ",
    ]
    keys = np.array([9 << 40 | 2, 9 << 40 | 7, 1, 8 << 40 | 3])
    assert rows.rows_of(keys).tolist() == [2, 0, -1, 1]


def test_the_index_is_built_once_for_each_state_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "pool.jsonl"
    row = {"did": "1:1", "txt": "a", "img_path": None, "modality": "text"}
    write_rows(path, row)
    Rows(path, tmp_path, CANDIDATE)
    built = []
    build = Rows._build_index
    monkeypatch.setattr(Rows, "_build_index", lambda self: built.append(1) or build(self))
    assert len(Rows(path, tmp_path, CANDIDATE)) == 1 and not built
    write_rows(path, row, row | {"did": "1:2"})
    assert len(Rows(path, tmp_path, CANDIDATE)) == 2 and len(built) == 1
    assert len(list(tmp_path.glob(".pool.jsonl*"))) == 1  # the old one is gone


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("{", "line 2 is no row of M-BEIR: Expecting"),
        ("[1]", "line 2 is no row of M-BEIR: it is not a json object"),
        ({"did": "1:2", "txt": "a"}, "line 2 is no row of M-BEIR: it lacks 'modality'"),
        ({"txt": "a", "modality": "text"}, "line 2 is no row of M-BEIR: it lacks 'did'"),
        ({"did": "1:2", "txt": "a", "img_path": None, "modality": "video"}, "modality is 'video', not 'text', 'image'"),
        ({"did": "1:2", "txt": 3, "img_path": None, "modality": "text"}, "txt and img_path must be strings or null"),
        ({"did": "two", "txt": "a", "img_path": None, "modality": "text"}, "the id 'two' is not \"dataset:number\""),
        ({"did": "1:1", "txt": "b", "img_path": None, "modality": "text"}, "line 2 repeats the id '1:1' of line 1"),
        ({"did": "1:2", "txt": None, "img_path": "../x.png", "modality": "image"}, "the path ../x.png leaves"),
        ({"did": "1:2", "txt": None, "img_path": "/x.png", "modality": "image"}, "the path /x.png leaves"),
    ],
)
def test_bad_rows(tmp_path, second, words):
    path = tmp_path / "pool.jsonl"
    write_rows(path, {"did": "1:1", "txt": "a", "img_path": None, "modality": "text"}, second)
    with pytest.raises(ValueError) as error:
        Rows(path, tmp_path, CANDIDATE)
    assert words in str(error.value) and str(path) in str(error.value)
    assert not list(tmp_path.glob(".pool*"))


def test_what_does_not_fit_together(mbeir_20, tmp_path):
    def broken(file: str, old: str, new: str):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(mbeir_20, root, ignore=shutil.ignore_patterns("*.png", "*.npy"))
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))
        return root

    def lost(field: str, rows: int):
        """Rows whose candidates are all of another pool."""
        text = (mbeir_20 / TRAIN_QUERIES).read_text().splitlines()
        for number in [number for number, line in enumerate(text) if json.loads(line)[field]][:rows]:
            text[number] = json.dumps(json.loads(text[number]) | {field: ["9:99999"]})
        root = broken(TRAIN_QUERIES, "", "")
        (root / TRAIN_QUERIES).write_text("\n".join(text))
        return root

    assert len(pairs_of(lost("pos_cand_list", 1))) == 5 * SCENES - 1  # 1 % of the rows
    for field, options in (("pos_cand_list", {}), ("neg_cand_list", {"hard_negatives": 1})):
        words = (
            f"up_train.jsonl: 2 of 100 rows have no candidate of their {field} in .*train_cand_pool.jsonl, first line"
        )
        with pytest.raises(ValueError, match=words + r" \d+, which has 9:99999: give the pool"):
            pairs_of(lost(field, 2), **options)
    with pytest.raises(ValueError, match="up_train.jsonl line 1 has no positive in pos_cand_list"):
        first = json.loads((mbeir_20 / TRAIN_QUERIES).read_text().splitlines()[0])["pos_cand_list"]
        pairs_of(broken(TRAIN_QUERIES, json.dumps(first), "[]"))
    with pytest.raises(ValueError, match="no instruction for queries of dataset 8 that are 'image,text' and look for"):
        pairs_of(broken(INSTRUCTIONS, "CIRR\t8", "CIRR\t7"))
    with pytest.raises(ValueError, match="--hard_negatives 9999: .* give fewer"):
        pairs_of(mbeir_20, hard_negatives=9999)


def test_qrels_by_hand_and_bad_ones(tmp_path):
    write_rows(
        tmp_path / "pool.jsonl",
        *({"did": f"1:{i}", "txt": "a", "img_path": None, "modality": "text"} for i in range(3)),
    )
    write_rows(
        tmp_path / "queries.jsonl",
        *({"qid": f"1:{i}", "query_txt": "a", "query_img_path": None, "query_modality": "text"} for i in range(2)),
    )
    pool = Rows(tmp_path / "pool.jsonl", tmp_path, CANDIDATE)
    queries = Rows(tmp_path / "queries.jsonl", tmp_path, QUERY)
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("1:1 0 1:2 1 0\n1:0 0 1:0 1 0\n1:0 0 1:1 0 0\n1:1 0 1:0 1 0\n")
    assert read_qrels(qrels, queries, pool) == [[0], [2, 0]]
    # Rankings: query 0 finds its answer second, query 1 first. R@1 1/2, R@5 (all 3) 2/2.
    ranking = [[2, 0, 1], [2, 1, 0]]
    assert [recall_at_k(ranking, read_qrels(qrels, queries, pool), k) for k in eval_mbeir.KS] == [0.5, 1, 1, 1, 1]
    for content, words in (
        ("1:0 0 1:9 1\n1:1 0 1:8 1\n", "qrels.txt: no query has an answer in .*pool.jsonl: give the pool that"),
        ("1:7 0 1:0 1\n", "qrels.txt line 1 names the query 1:7, not in .*queries.jsonl"),
        ("1:0 1:0\n", 'qrels.txt line 1 is not "qid 0 did relevance"'),
        ("1:0 0 1:0 1\n1:1 0 1:0 0\n", "no relevant candidate for 1 queries of .*queries.jsonl, first 1:1"),
    ):
        qrels.write_text(content)
        with pytest.raises(ValueError, match=words):
            read_qrels(qrels, queries, pool)


def test_draws_follow_from_seed_and_epoch_alone(mbeir_20):
    pairs = pairs_of(mbeir_20, seed=1, hard_negatives=2)

    def drawn(epoch: int, dataset=pairs, **options) -> list:
        dataset.set_epoch(epoch)
        return list(DataLoader(dataset, batch_size=None, **options))

    first = drawn(0)
    assert len(first) == 5 * SCENES and drawn(0, num_workers=2) == first == drawn(
        0, pairs_of(mbeir_20, seed=1, hard_negatives=2)
    )
    second = drawn(1)
    assert drawn(1, num_workers=1) == second != first != drawn(0, pairs_of(mbeir_20, seed=2, hard_negatives=2))
    workers = DataLoader(pairs, batch_size=None, num_workers=1, persistent_workers=True)
    pairs.set_epoch(0)
    assert list(workers) == first
    pairs.set_epoch(1)
    assert list(workers) == second  # the same workers learn of the epoch

    several = [i for i, pair in enumerate(first) if len(pairs.queries.record(i)["pos_cand_list"]) > 1]
    assert any(first[i].target != second[i].target for i in several)
    for i, pair in enumerate(first):
        record = pairs.queries.record(i)
        listed = set(record["neg_cand_list"])
        ids = [negative.id for negative in pair.negatives]
        assert pair.target.id in record["pos_cand_list"] and len(set(ids)) == 2
        assert not set(ids) & set(record["pos_cand_list"])
        assert len(listed & set(ids)) == min(2, len(listed))  # all of a short list, then any of the pool


def test_groups_are_the_tasks(mbeir_20):
    groups = pairs_of(mbeir_20).groups
    assert set(groups) == {
        "MSCOCO text to image",
        "MSCOCO image to text",
        "NIGHTS image to image",
        "CIRR image,text to image",
        "INFOSEEK image,text to text",
    }
    assert sorted(np.concatenate(list(groups.values())).tolist()) == list(range(5 * SCENES))
    assert groups["NIGHTS image to image"].tolist() == list(range(2, 5 * SCENES, 5))  # in the order that they are made


def test_a_pair_parses_two_rows_and_no_row_asks_pathlib(mbeir_20, monkeypatch):
    pairs = pairs_of(mbeir_20, hard_negatives=2)
    pictured = [row for row in range(len(pairs)) if pairs.queries[row].images and pairs[row].target.images]
    calls = Counter()
    monkeypatch.setattr(
        rows_module.json, "loads", lambda text: calls.update(["json"]) or json.JSONDecoder().decode(text.decode())
    )

    def count(frame, event, _) -> None:
        if event == "call" and frame.f_code.co_filename in (pathlib.__file__, posixpath.__file__):
            calls["paths"] += 1

    sys.setprofile(count)
    try:
        found = [pairs[row] for row in pictured]
    finally:
        sys.setprofile(None)
    assert len(found) > 20 and calls == {"json": 4 * len(found)}  # query, target and two negatives
    for root in (mbeir_20, Path(""), Path("/"), "data/M-BEIR/", "./a//b"):
        rows = Rows(mbeir_20 / TRAIN_QUERIES, root, QUERY)
        record = rows.record(pictured[0])
        for name in (record[QUERY.picture], "./a.png", "a//b.png", "a/./b.png", "a.png/"):
            item = rows.item_of({**record, QUERY.picture: name})
            assert item.images == (str(path_inside(root, name)),)
        for name in ("..", "a/../b", "../a", "/a" if str(root) != "/" else ".."):
            with pytest.raises(ValueError, match="leaves"):
                rows.item_of({**record, QUERY.picture: name})


def test_evaluation_draws_an_instruction_for_each_query(mbeir_20):
    instructions = Instructions(mbeir_20 / INSTRUCTIONS)
    with pytest.raises(
        ValueError, match="no instruction for queries of dataset 4 that are 'image' and look for 'text'"
    ):
        InstructedQueries(mbeir_20 / TRAIN_QUERIES, mbeir_20, instructions, "text")
    test = mbeir_20 / "query/test/mbeir_cirr_task7_test.jsonl"
    drawn = [list(InstructedQueries(test, mbeir_20, instructions, "image", seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len({item.instruction for item in drawn[0]}) > 1


def test_text_is_cut_by_tokens_with_its_instruction(tiny_model):
    item = Item("q", "A red circle at top left, naïve " * 20, instruction="Find the picture.")
    whole = Processor(tiny_model)
    ids = whole.tokenizer(instructed_texts(item)[0])["input_ids"]
    for limit in (9, 30, len(ids), 480):
        cut = Processor(tiny_model, text_max_tokens=limit)
        found = cut.encode(item)["input_ids"]
        assert len(found) == cut.length(item)
        assert whole.tokenizer.decode(ids[:limit]) in whole.tokenizer.decode(found)
        lost = len(whole.encode(item)["input_ids"]) - len(found)
        assert abs(lost - max(0, len(ids) - limit)) <= 2  # the last token may merge with the newline that follows


def test_the_table_of_tasks():
    assert len(TASK_TABLE) == 16 and set(TASKS) <= {task.name for task in TASK_TABLE}
    assert round(sum(task.reported.retrieved for task in TASK_TABLE) / 16, 1) == PAPER_AVERAGE["local"].retrieved
    coco, cirr = (
        next(task for task in TASK_TABLE if task.name == name) for name in ("mscoco_task0_test", "cirr_task7")
    )
    assert coco.files("d", "test", "local").pool == Path("d/cand_pool/local/mbeir_mscoco_task0_test_cand_pool.jsonl")
    assert coco.files("d", "val", "local").qrels == Path("d/qrels/val/mbeir_mscoco_task0_val_qrels.txt")
    assert cirr.files("d", "test", "local").pool == Path("d/cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl")
    assert cirr.files("d", "test", "global").pool == Path("d/cand_pool/global/mbeir_union_test_cand_pool.jsonl")
    assert cirr.files("d", "test", "local").queries == Path("d/query/test/mbeir_cirr_task7_test.jsonl")
