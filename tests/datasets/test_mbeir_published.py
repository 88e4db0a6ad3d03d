"""M-BEIR as it is published and upstream's files: what no file of our own writing has, from training to reranking."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ranked import ranked_ids

from lamra.collators.messages import embedding_messages
from lamra.common.cli import run
from lamra.datasets.jsonl import load_items
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import INSTRUCTIONS, TRAIN_QUERIES, global_pool, local_pool
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.qrels import read_qrels
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows, id_key, key_id
from lamra.datasets.mbeir.tasks import InstructedQueries
from lamra.datasets.rankings import mined_candidates, ranking_of
from lamra.datasets.rerank import RerankExamples
from lamra.eval import eval_mbeir, eval_rerank, mine_rerank
from lamra.eval.metrics import recall_at_k
from lamra.eval.rerank.fusion import reranked
from lamra.miniature.mbeir import build_mbeir
from lamra.train import train_mbeir, train_rerank

SCENES, GALLERY, REPEATED = 8, 6, 4  # CIRR's and NIGHTS's rows stand 1 + REPEATED times
ROWS = 5 * SCENES + 2 * REPEATED * SCENES
BOM = "\ufeff"
TASKS = "cirr_task7", "infoseek_task6"
QRELS = "qrels/test/mbeir_infoseek_task6_test_qrels.txt"


def rewrite(path: Path, change) -> None:
    """A jsonl file with `change` of its rows: a mark at the beginning, blank lines in between and at the end."""
    rows = change([json.loads(line) for line in path.read_text().splitlines()])
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text(BOM + "\n".join([*lines[:3], "", "  ", *lines[3:]]) + "\n\n\n", encoding="utf-8")


def as_published(row: dict, text: str, picture: str, source: str) -> dict:
    """Null fields absent in every second row, and fields that nobody asks for."""
    number = int(row.get("qid", row.get("did")).split(":")[1])
    kept = {
        name: value for name, value in row.items() if value is not None or name not in (text, picture) or number % 2
    }
    return kept | {source: None if number % 3 else "from somewhere"}


def published_queries(rows: list[dict]) -> list[dict]:
    for row in rows:
        if not row["neg_cand_list"]:
            row["neg_cand_list"] = None
        if row["qid"].startswith("9:"):
            del row["neg_cand_list"]
    return [as_published(row, "query_txt", "query_img_path", "query_src_content") | {"task_id": None} for row in rows]


def published_train(rows: list[dict]) -> list[dict]:
    task0 = [row for row in rows if row["qid"].startswith("9:") and row["query_modality"] == "text"]
    task3 = [row for row in rows if row["qid"].startswith("9:") and row["query_modality"] == "image"]
    task0[0]["pos_cand_list"] = ["9:77777", "9:77778"]  # of no pool: left out
    task0[1]["query_txt"] = None  # an instruction alone
    task3[0]["pos_cand_list"].insert(0, "9:77779")
    rows = published_queries(rows)
    return rows + REPEATED * [row for row in rows if row["qid"].startswith(("4:", "8:"))]  # sampled up


def published_pool(rows: list[dict], *more: dict) -> list[dict]:
    number = 90_000 + len(rows)
    empty = [
        {"did": f"6:{number + i}", "txt": text, "img_path": None, "modality": "text"}
        for i, text in enumerate(("", None))
    ]
    return [as_published(row, "txt", "img_path", "src_content") for row in [*rows, *empty, *more]]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A miniature M-BEIR with the quirks of the published one."""
    root = tmp_path_factory.mktemp("published")
    build_mbeir(root, seed=0, train=SCENES, gallery=GALLERY)
    foreign = [{"did": f"5:{i}", "txt": "the other's", "img_path": None, "modality": "text"} for i in (1, 2)]
    rewrite(root / TRAIN_QUERIES, published_train)
    rewrite(root / global_pool("train"), published_pool)
    rewrite(root / global_pool("test"), lambda rows: published_pool(rows, *foreign))
    rewrite(root / local_pool("infoseek_task6"), published_pool)
    for path in (root / "query/test").glob("*.jsonl"):
        rewrite(path, published_queries)
    # InfoSeek's qrels name OVEN's candidates: beside the first query's own, and in place of the last one's.
    lines = (root / QRELS).read_text().splitlines()
    first, last = lines[0].split()[0], lines[-1].split()[0]
    lines = [line for line in lines if line.split()[0] != last]
    lines += ["", f"{first} 0 5:1 1 6", f"{last} 0 5:2 1 6", ""]
    (root / QRELS).write_text(BOM + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    table = (root / INSTRUCTIONS).read_text().rstrip("\n").replace("\tAnswer the question.", "\t")  # an empty cell
    (root / INSTRUCTIONS).write_bytes((BOM + table.replace("\n", "\r\n") + "\r\n\r\n").encode())
    return root


def pairs_of(root: Path, **options) -> MBEIRPairs:
    pool, queries = Rows(root / global_pool("train"), root, CANDIDATE), Rows(root / TRAIN_QUERIES, root, QUERY)
    return MBEIRPairs(queries, pool, Instructions(root / INSTRUCTIONS), **options)


def call(main, **named) -> None:
    """An entrypoint in this process."""
    with pytest.MonkeyPatch.context() as patch:
        flags = [str(part) for name, value in named.items() for part in (f"--{name}", value)]
        patch.setattr(sys, "argv", ["entrypoint", *flags])
        run(main)


def test_every_repetition_is_a_row_and_what_is_missing_is_counted(published):
    whole, pairs = Rows(published / TRAIN_QUERIES, published, QUERY), pairs_of(published, hard_negatives=1)
    assert len(whole) == ROWS and len(pairs) == ROWS - 1 and len(pairs.left_out) == 1
    assert [sentence.split(": ", 1)[1].split(f" {published}")[0] for sentence in pairs.notes] == [
        f"pos_cand_list of 1 of {ROWS} rows has candidates that are not in",
        f"1 of {ROWS} rows are left out, because none of their positives is in",
    ]
    # Offsets are right in spite of mark and blank lines, also of the last row and behind a row that is left out.
    lines = [line for line in (published / TRAIN_QUERIES).read_text("utf-8-sig").split("\n") if line.strip()]
    records = [json.loads(line) for line in lines]
    assert [whole.record(row) for row in range(ROWS)] == records
    kept = [record for record in records if record["pos_cand_list"][0] != "9:77777"]
    assert [pairs.queries.record(row) for row in range(len(pairs))] == kept
    assert whole.line(0).endswith("line 1") and whole.line(3).endswith("line 6")
    assert sorted(np.concatenate(list(pairs.groups.values())).tolist()) == list(range(ROWS - 1))
    assert len(pairs.groups["CIRR image,text to image"]) == (1 + REPEATED) * SCENES

    times = Counter(record["qid"] for record in kept)
    for row, record in enumerate(kept):
        pair = pairs[row]
        assert pair.query.id == record["qid"] and pair.target.id in record["pos_cand_list"] and len(pair.negatives) == 1
        same = pairs.queries.repetitions(row)
        assert row in same and len(same) == times[record["qid"]] == (1 + REPEATED if record["qid"][0] in "48" else 1)
        assert pairs.queries.rows_of([id_key(record["qid"])])[0] == same[0] == min(same)
    repeated = pairs.queries.repetitions(len(pairs) - 1)
    assert len({pairs[int(row)].query.instruction for row in repeated}) > 1  # each row draws for itself
    assert repr(pairs_of(published)[5]) == repr(pairs_of(published)[5])


def test_nothing_to_show_but_an_instruction(published, tmp_path):
    """Upstream's prompts: an item without text and picture is an empty text."""
    pool = Rows(published / local_pool("infoseek_task6"), published, CANDIDATE)
    empty = [pool[row] for row in range(len(pool)) if not pool[row].text and not pool[row].images]
    assert [item.text for item in empty] == ["", ""]
    prompt = "\nSummarize above sentence in one word: "
    assert embedding_messages(empty[0]) == [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    queries = Rows(published / TRAIN_QUERIES, published, QUERY)
    row = next(row for row in range(ROWS) if not (queries.record(row).get("query_txt") or queries[row].images))
    bare = queries.item(row, "Show the picture.")
    assert (bare.text, embedding_messages(bare)[0]["content"][0]["text"]) == ("", "Show the picture." + prompt)
    items = tmp_path / "items.jsonl"  # your own file is still told
    items.write_text('{"id": "a", "text": ""}\n')
    with pytest.raises(ValueError, match="line 1 has neither text nor picture"):
        load_items(items)


def test_qrels_of_another_pool(published, tmp_path, capsys):
    queries = Rows(published / "query/test/mbeir_infoseek_task6_test.jsonl", published, QUERY)
    pool = Rows(published / local_pool("infoseek_task6"), published, CANDIDATE)
    union = published / global_pool("test")
    answers = read_qrels(published / QRELS, queries, pool, union)
    assert [len(relevant) for relevant in answers] == [2, 2, 2, 2, 2, 0]
    assert capsys.readouterr().out == (
        f"note: {published / QRELS} names candidates that are not in {pool.path} but in {union}, 2 of them (5:1, 5:2); "
        "1 of 6 queries have no other answer and count as misses\n"
    )
    # In the pool of all they are answers.
    everywhere = Rows(union, published, CANDIDATE)
    assert [len(found) for found in read_qrels(published / QRELS, queries, everywhere, union)] == [3, 2, 2, 2, 2, 1]
    # Without it nobody knows.
    assert read_qrels(published / QRELS, queries, pool, published / "no.jsonl") == answers
    assert "but in another pool, which is not at hand, 2 of them (5:1, 5:2)" in capsys.readouterr().out
    wrong = tmp_path / "qrels.txt"
    wrong.write_text((published / QRELS).read_text("utf-8-sig") + "".join(f"6:7 0 6:8{i:04} 1 6\n" for i in range(12)))
    first = ", ".join(f"6:8{i:04}" for i in range(10))
    with pytest.raises(ValueError, match=rf"that are in no pool, neither in .*, 12 of them \({first}, ...\): remove"):
        read_qrels(wrong, queries, pool, union)
    # One line a query as upstream's recall: an answer first, an answer second, none at all.
    ranking = [[4, 0], [0, 3], [0, 1]]
    assert [recall_at_k(ranking, [[3, 4], [3], []], k) for k in (1, 2)] == [1 / 3, 2 / 3]


def test_an_evaluation_asks_each_query_once(published, tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text(2 * '{"qid": "6:1", "query_txt": "a", "query_modality": "text"}\n')
    with pytest.raises(ValueError, match="line 2 repeats the query 6:1: each is asked once; remove 1 such lines"):
        InstructedQueries(path, tmp_path, Instructions(published / INSTRUCTIONS), "text")


def test_jobs_that_index_one_file_do_not_disturb_one_another(tmp_path, monkeypatch):
    path = tmp_path / "pool.jsonl"
    row = '{"did": "1:%d", "txt": "a", "modality": "text"}\n'
    path.write_text(row % 1)
    slow = Rows._write_index

    def overtaken(self, table, index):
        """Before this job has written, another found the file changed, and wrote its index."""
        monkeypatch.setattr(Rows, "_write_index", slow)
        before = path.stat().st_mtime_ns
        path.write_text(row % 1 + row % 2)
        os.utime(path, ns=(before + 10**9, before + 10**9))
        assert len(Rows(path, tmp_path, CANDIDATE)) == 2
        slow(self, table, index)

    monkeypatch.setattr(Rows, "_write_index", overtaken)
    assert len(Rows(path, tmp_path, CANDIDATE)) == 1  # of the file that it opened
    monkeypatch.setattr(Rows, "_build_index", lambda _: pytest.fail("the newer index is gone"))
    assert len(Rows(path, tmp_path, CANDIDATE)) == 2
    monkeypatch.undo()

    names = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (names.append(Path(a).name), replace(a, b)))
    for content in (b"", b"no index", b"\x93NUMPY"):  # what a full disk or a broken copy leaves
        for index in tmp_path.glob(".pool*.npy"):
            index.write_bytes(content)
        assert [item.id for item in Rows(path, tmp_path, CANDIDATE)] == ["1:1", "1:2"]
    assert len(set(names)) == 3  # no two jobs write to one file, on any host
    assert len(list(tmp_path.glob(".pool*"))) <= 2  # nothing unfinished is left


@pytest.fixture(scope="module")
def runs(published, tiny_model, tmp_path_factory):
    """Two steps of stage 2 on the published files, and what its model mines."""
    folder = tmp_path_factory.mktemp("runs")
    learn = dict(model_id="miniature", model_local_path=tiny_model, data_path=published, max_steps=2, lora_r=4)
    learn |= dict(report_to="none", dataloader_num_workers=0)
    call(train_mbeir.main, **learn, output_dir=folder / "ret", per_device_train_batch_size=8, hard_negatives=1)
    call(
        mine_rerank.main,
        model_id=folder / "ret",
        data_path=published,
        output_dir=folder / "mined",
        top=6,
        num_workers=0,
        jsonl=True,
    )
    return folder, learn


def test_mining_asks_each_query_once_and_finds_its_kind_in_a_crowded_pool(published, runs):
    pairs, mined = pairs_of(published), json.loads((runs[0] / "mined/mined.json").read_text())
    assert len(mined) == 5 * SCENES - 1 and set(mined) == {pairs.queries.id(row) for row in range(len(pairs))}
    for docs in mined.values():
        assert len(docs["top100_docs"]) == 6 and not set(docs["top100_docs"]) & set(docs["gt_docs"])
        assert {did.split(":")[0] for did in docs["top100_docs"]} == {docs["gt_docs"][0].split(":")[0]}
    examples = RerankExamples(pairs, [runs[0] / "mined/mined.jsonl"])
    assert len(examples) == len(pairs) and examples.rows.tolist() == list(range(len(pairs)))
    for row, example in enumerate(examples[i] for i in range(len(examples))):
        wrong = {example.negative.id, *(item.id for item in example.others)}
        assert example.query.id == pairs.queries.id(row) and wrong <= set(mined[example.query.id]["top100_docs"])
    last = [examples[int(row)] for row in pairs.queries.repetitions(len(pairs) - 1)]
    assert len({(example.negative.id, example.others) for example in last}) > 1


def test_from_training_to_reranking(published, runs, tmp_path, capsys):
    folder, learn = runs
    call(train_rerank.main, **learn, output_dir=tmp_path / "rank", mined=folder / "mined/mined.json")
    named = dict(data_path=published, tasks=",".join(TASKS), data_name="miniature", num_workers=0)
    call(eval_mbeir.main, **named, model_id=folder / "ret", output_dir=tmp_path / "eval")
    printed = capsys.readouterr().out
    assert printed.count("note: ") == printed.count("rows are left out") + printed.count("has candidates that") + 2
    assert "count as misses" in printed and "the reranker is done" in printed
    rankings = tmp_path / "eval/test_local"
    call(eval_rerank.main, **named, model_id=tmp_path / "rank", rankings=rankings, output_dir=tmp_path / "out", depth=4)
    before = json.loads((rankings / "metrics.json").read_text())
    after = json.loads((tmp_path / "out/pointwise/metrics.json").read_text())
    for task in TASKS:
        assert after[task]["before"]["recall@10"] == before[task]["recall@10"]
    assert before["infoseek_task6"]["recall@50"] <= 5 / 6  # one of six queries cannot be answered

    # The same ranking in upstream's three files gives the same answers, and the cache knows it.
    ranking = ranked_ids(rankings / "ranking_infoseek_task6.jsonl")
    upstream = tmp_path / "upstream"
    upstream.mkdir()
    write_upstream(upstream / "mbeir_infoseek_task6_test_7b_LamRA-Ret", ranking)
    named |= dict(tasks="infoseek_task6", model_id=tmp_path / "rank", rankings=upstream, depth=4)
    call(eval_rerank.main, **named, output_dir=tmp_path / "again")
    same = json.loads((tmp_path / "again/pointwise/metrics.json").read_text())
    assert same["infoseek_task6"] == after["infoseek_task6"]


def write_upstream(stem: Path, ranking: dict, nested=True) -> None:
    parts = list(ranking), [dids for dids, _ in ranking.values()], [scores for _, scores in ranking.values()]
    parts[2][:] = [[scores] if nested else scores for scores in parts[2]]
    for end, part in zip(("query_names", "cand_names", "scores"), parts):
        stem.with_name(f"{stem.name}_{end}.json").write_text(json.dumps(part, indent=2))


def test_rankings_of_upstream(tmp_path):
    ranking = {"6:1": (["6:5", "6:7"], [0.75, 0.5]), "6:2": (["6:7", "6:9"], [0.5, 0.25])}
    for folder, name, cosines in (("local", "mbeir_cirr_task7_test_m", True), ("global", "cirr_task7", False)):
        (tmp_path / folder).mkdir()
        # The global pool's scores are faiss's squared distances: |q - c|^2 = 2 - 2 cos.
        theirs = {qid: (dids, s if cosines else [2 - 2 * x for x in s]) for qid, (dids, s) in ranking.items()}
        write_upstream(tmp_path / folder / name, theirs, nested=cosines)
        path = ranking_of(tmp_path / folder, "cirr_task7", "cirr_task7")
        assert path.name == f"{name}_query_names.json" and ranked_ids(path) == ranking
        assert ranking_of(tmp_path / folder, "nights_task4", "nights_task4").name == "ranking_nights_task4.jsonl"
    write_upstream(tmp_path / "local/mbeir_cirr_task7_test_other", ranking)
    with pytest.raises(ValueError, match=r"several rankings of cirr_task7 \(.*_m_query.*, .*other_query_names.json\)"):
        ranking_of(tmp_path / "local", "cirr_task7", "cirr_task7")
    scores = path.with_name("cirr_task7_scores.json")
    for content, words in (
        (
            "[[0.1, 0.2, 0.3], [0.1, 0.2]]",
            "cirr_task7_cand_names.json, .* do not fit together: each query needs a list",
        ),
        ("[[0.1, 0.2], [0.2, 0.1]]", "has scores that neither only fall nor only rise"),
        ("{}", "cirr_task7_scores.json is not upstream's list"),
        (None, "cirr_task7_scores.json does not exist: upstream writes three files"),
    ):
        scores.unlink() if content is None else scores.write_text(content)
        with pytest.raises(ValueError, match=words):
            ranked_ids(path)


def test_mined_files_of_other_pools_and_of_upstream(published, tmp_path):
    pairs, mined = pairs_of(published), tmp_path / "mined.json"
    qid, wrong = pairs.queries.id(0), [pairs.pool.id(row) for row in (0, 1, 2)]
    gone, elsewhere = key_id(pairs.left_out[0]), {"gt_docs": [], "top100_docs": ["6:44444"]}
    # What upstream's retriever found holds right ones too, and queries that are left out here are no error.
    docs = {"gt_docs": [wrong[1], "5:12345"], "top100_docs": wrong}
    mined.write_text(json.dumps({qid: docs, gone: {"gt_docs": [], "top100_docs": wrong}}))
    assert dict(mined_candidates(mined)) == {qid: [wrong[0], wrong[2]], gone: wrong}
    examples = RerankExamples(pairs, [mined])
    assert len(examples) == 1 and {examples[0].negative.id} < set(wrong) - {wrong[1]}
    for content, words in (
        (
            {qid: elsewhere},
            "names the candidate 6:44444, which is not in .*: give the --queries and --pool that it was",
        ),
        ({"9:44444": docs}, "names the query 9:44444, which is not in .*, or make it again with these"),
    ):
        mined.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=words):
            RerankExamples(pairs, [mined])


def test_repetitions_with_other_positives(tmp_path):
    """A positive of one row is no negative of another, and a row that is left out leaves its repetitions there."""
    (tmp_path / "pool.jsonl").write_text(
        "".join(f'{{"did": "9:{i}", "txt": "a", "modality": "text"}}\n' for i in range(5))
    )
    positives = [[0], [99], [1, 2]] + 200 * [[4]]
    rows = [
        {
            "qid": f"9:{max(i, 3)}",
            "query_txt": "b",
            "query_modality": "text",
            "pos_cand_list": [f"9:{n}" for n in numbers],
        }
        for i, numbers in enumerate(positives, start=1)
    ]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "table.tsv").write_text("\t".join(Instructions.COLUMNS) + "\ntext\ttext\tA\t9\tShow it.\n")
    queries, pool = (
        Rows(tmp_path / "queries.jsonl", tmp_path, QUERY),
        Rows(tmp_path / "pool.jsonl", tmp_path, CANDIDATE),
    )
    pairs = MBEIRPairs(queries, pool, Instructions(tmp_path / "table.tsv"))
    assert len(pairs) == 202 and not len(pairs.left_out) and pairs.answers(0) == pairs.answers(1) == [0, 1, 2]
    assert [pairs.positives(row) for row in (0, 1, 2)] == [[0], [1, 2], [4]]
    (tmp_path / "mined.json").write_text(
        json.dumps({"9:3": {"gt_docs": [], "top100_docs": [f"9:{i}" for i in range(5)]}})
    )
    examples = RerankExamples(pairs, [tmp_path / "mined.json"])
    assert examples.rows.tolist() == [0, 1]
    for i in (0, 1):
        assert {item.id for item in (examples[i].negative, *examples[i].others)} <= {"9:3", "9:4"}


def test_an_instruction_table_without_what_a_query_needs(published, tmp_path):
    table = Instructions(published / INSTRUCTIONS)
    assert len(table.prompts(6, "image,text", "text")) == 2 and len(table.prompts(8, "image,text", "image")) == 3
    path = tmp_path / "table.tsv"
    path.write_bytes(b"\r\n".join((published / INSTRUCTIONS).read_bytes().split(b"\r\n")[:4]))
    queries = Rows(published / TRAIN_QUERIES, published, QUERY)
    with pytest.raises(
        ValueError, match=f"{path} has no instruction for queries of dataset 6 that are 'image,text' and"
    ):
        MBEIRPairs(queries, pairs_of(published).pool, Instructions(path))


def test_upstreams_own_files(shared, tmp_path):
    """The files that upstream's code was run on, its mined file, and its rankings, fused as it fused them."""
    golden = shared / "golden/stage2_rank"
    if not golden.is_dir():
        pytest.skip(f"{golden} is absent: upstream's own M-BEIR files are not tried")
    for source in golden.glob("mbeir/**/*.*l"):  # indexes are written beside them
        target = tmp_path / source.relative_to(golden / "mbeir")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    Instructions(golden / "mbeir/instructions/one_prompt.tsv")
    table = Instructions(shared / "data/mbeir/query_instructions.tsv")
    assert len(table.prompts(6, "image,text", "image,text")) == 3  # one of its prompts is "I", and one cell is empty
    queries, pool = (
        Rows(tmp_path / f, tmp_path, kind) for f, kind in ((TRAIN_QUERIES, QUERY), (global_pool("test"), CANDIDATE))
    )
    pairs = MBEIRPairs(queries, pool, table)
    assert len(pairs) == 32 and not pairs.notes and len(pairs.groups) == 16
    test = Rows(tmp_path / "query/test/mbeir_all_test.jsonl", tmp_path, QUERY)
    answers = read_qrels(golden / "mbeir/qrels/test/mbeir_all_test_qrels.txt", test, pool)
    assert sum(map(len, answers)) == 38
    edge = Rows(tmp_path / "edge/cand_pool.jsonl", tmp_path, CANDIDATE)
    assert embedding_messages(edge[2])[0]["content"][0]["text"] == "\nSummarize above sentence in one word: "

    ranked = json.loads((golden / "upstream_rank.json").read_text())
    mined = tmp_path / "rerank_data_all.json"
    mined.write_text(json.dumps(ranked["mined"]))
    examples = RerankExamples(pairs, [mined])
    assert len(examples) == 32
    for row in range(32):
        docs = ranked["mined"][pairs.queries.id(row)]
        allowed = set(docs["top100_docs"]) - set(docs["gt_docs"])
        assert {examples[row].negative.id, *(item.id for item in examples[row].others)} <= allowed
    for task in ("cirr_task7", "mscoco_task0", "mscoco_task3", "flickr_t2i", "flickr_i2t"):
        fusion = ranked["fusion"][task]
        ranking = {str(q): (d, s) for q, d, s in zip(fusion["query_names"], fusion["cand_names"], fusion["scores"])}
        write_upstream(tmp_path / f"mbeir_{task}_test_m", ranking)
        read = ranked_ids(ranking_of(tmp_path, task, task))
        for qid, yes, wanted in zip(ranking, fusion["p_yes"], fusion["reranked"]):
            dids, scores = read[qid]
            order, _ = reranked(scores, yes, "pointwise", fusion["weight"])
            assert [dids[i] for i in order][: len(wanted)] == list(map(str, wanted))
