"""LamRA-Rank through its scripts, on two processes: training, reranking, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest
from conftest import call, run_script

from lamra.datasets.mbeir.layout import local_pool
from lamra.datasets.mbeir.qrels import read_qrels
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows
from lamra.datasets.rankings import RankedQuery, write_ranking
from lamra.eval import compare_rerank, eval_mbeir, eval_rerank
from lamra.eval.rerank.judge import Judge
from lamra.models.settings import Settings
from lamra.train import train_rerank

TASKS = "mscoco_task0_test,infoseek_task6"  # text to picture, picture and text to text


@pytest.fixture(scope="module")
def trained(mbeir, mined, tiny_model, tmp_path_factory):
    """train_rerank.sh under ZeRO-2 on two processes, 2 queries each, 2 accumulated: 5 steps of 40 queries."""
    output = tmp_path_factory.mktemp("runs") / "rank"
    run_script(
        *("bash", "scripts/lamra_rank/train_rerank.sh", "--model_local_path", tiny_model, "--lora_dropout", 0),
        **dict(MODEL_ID="miniature", DATA_PATH=mbeir, MINED=mined / "mined.jsonl", OUTPUT_DIR=output, NUM_GPUS=2),
        **dict(DS_STAGE="zero2", BF16="False", LORA_R=4, LORA_ALPHA=8, LR="5e-3", GRAD_ACCUM=2, NUM_EPOCHS=1),
    )
    return output


def test_training(trained, mbeir, mined, tiny_model, tmp_path):
    settings = Settings.read(trained)
    assert (settings.role, settings.rank_style) == ("reranker", "released")
    assert (settings.position_ids, settings.text_max_tokens) == ("mrope", 256)
    checkpoint = max(trained.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert all(0 <= entry["accuracy"] <= 1 for entry in history if "accuracy" in entry)

    # One process, padded rectangles, nothing accumulated: the same losses.
    call(
        train_rerank.main,
        **dict(model_id="miniature", model_local_path=tiny_model, data_path=mbeir, mined=mined / "mined.json"),
        **dict(output_dir=tmp_path / "one", per_device_train_batch_size=8, gradient_accumulation_steps=1, lora_r=4),
        **dict(lora_alpha=8, lora_dropout=0, learning_rate=5e-3, num_train_epochs=1, padding_free=False),
        **dict(report_to="none", warmup_ratio=0.03, dataloader_num_workers=0),
    )
    state = json.loads((tmp_path / "one" / checkpoint.name / "trainer_state.json").read_text())["log_history"]
    assert [entry["loss"] for entry in state if "loss" in entry] == pytest.approx(losses, rel=1e-4)


@pytest.fixture(scope="module")
def rankings(mbeir, tmp_path_factory):
    """Rankings of 6 candidates with an answer among them; the last query has 3."""
    folder = tmp_path_factory.mktemp("rankings")
    for task, queries, pool in (
        ("mscoco_task0_test", "mscoco_task0_test", "mscoco_task0_test"),
        ("infoseek_task6", "infoseek_task6_test", "infoseek_task6"),
    ):
        queries = Rows(mbeir / f"query/test/mbeir_{queries}.jsonl", mbeir, QUERY)
        pool = Rows(mbeir / local_pool(pool), mbeir, CANDIDATE)
        answers = read_qrels(mbeir / f"qrels/test/mbeir_{queries.path.stem[6:]}_qrels.txt", queries, pool)
        rows = []
        for row, right in enumerate(answers):
            wrong = [place for place in range(len(pool)) if place not in right][:5]
            found = [*wrong[:row], right[0], *wrong[row:]][: 3 if row == len(answers) - 1 else 6]
            rows.append(RankedQuery(row, found, [0.5 - i / 50 for i in range(len(found))]))
        write_ranking(folder / f"ranking_{task}.jsonl", queries, pool, rows)
    return folder


def rerank_flags(mbeir, model, rankings, output) -> dict:
    named = dict(model_id=model, rankings=rankings, data_path=mbeir, tasks=TASKS, depth=4, output_dir=output)
    return named | dict(num_workers=0, data_name="miniature")


def test_two_processes_one_and_a_killed_one_agree(trained, mbeir, rankings, tmp_path, monkeypatch, capsys):
    variables = dict(MODEL_ID=trained, RANKINGS=rankings, DATA_PATH=mbeir, TASKS=TASKS, DEPTH=4, NUM_GPUS=2)
    variables["OUTPUT_DIR"] = tmp_path / "two"
    printed = run_script("bash", "scripts/eval/rerank_mbeir.sh", "--data_name", "miniature", **variables).stdout
    assert "miniature, pointwise, top 4: recall in percent, retrieved -> reranked" in printed
    assert "average of 2" in printed and "the paper's" not in printed

    asked, answer = [], Judge.answer

    def counting(self, style, query, candidates):
        if len(asked) == 8:
            raise KeyboardInterrupt
        asked.append(query.item.id)
        return answer(self, style, query, candidates)

    run = rerank_flags(mbeir, trained, rankings, tmp_path / "one")
    monkeypatch.setattr(Judge, "answer", counting)
    with pytest.raises(KeyboardInterrupt):
        call(eval_rerank.main, **run)
    part = tmp_path / "one/pointwise/answers/infoseek_task6/0.jsonl"
    part.write_text(part.read_text() + '{"row": 2, "ans')  # what a kill while writing leaves
    monkeypatch.setattr(Judge, "answer", lambda *args: asked.append(args[2].item.id) or answer(*args))
    call(eval_rerank.main, **run)
    assert len(asked) == len(set(asked)) == 12  # nothing twice
    for name in ("metrics.json", "ranking_mscoco_task0_test.jsonl", "ranking_infoseek_task6.jsonl"):
        assert (tmp_path / "one/pointwise" / name).read_bytes() == (tmp_path / "two/pointwise" / name).read_bytes()

    # The written ranking reads back as input; candidates beyond the depth keep their places.
    lines = [json.loads(line) for line in (rankings / "ranking_mscoco_task0_test.jsonl").read_text().splitlines()]
    after = [
        json.loads(line)
        for line in (tmp_path / "one/pointwise/ranking_mscoco_task0_test.jsonl").read_text().splitlines()
    ]
    assert len(after) == len(lines) == 5 * 6 + 3
    for i in range(0, 30, 6):
        assert {line["did"] for line in after[i : i + 4]} == {line["did"] for line in lines[i : i + 4]}
        assert after[i + 4 : i + 6] == lines[i + 4 : i + 6]
        assert all(one["score"] >= next_["score"] for one, next_ in zip(after[i : i + 5], after[i + 1 : i + 6]))

    # Another weight asks nothing; weight 0 is the retriever.
    asked.clear()
    call(eval_rerank.main, **{name: value for name, value in run.items() if name != "data_name"}, weight=0)
    metrics = json.loads((tmp_path / "one/pointwise/metrics.json").read_text())
    assert not asked and all(metrics[task]["before"] == metrics[task]["after"] for task in TASKS.split(","))
    printed = capsys.readouterr().out  # under M-BEIR's own name the paper's rows stand beside
    assert "the paper's 7B" in printed and "   81.5 -> 85.2\n" in printed and "   52.1 -> 64.1\n" in printed

    # A weight chosen on validation rankings is at least as good there as none.
    stock = eval_rerank.open_rankings
    monkeypatch.setattr(eval_rerank, "open_rankings", lambda args: stock(replace(args, split="test")))
    call(eval_rerank.main, **run, tune_weight=rankings)
    metrics = json.loads((tmp_path / "one/pointwise/metrics.json").read_text())
    for task in TASKS.split(","):
        assert metrics[task]["weight"] in eval_rerank.WEIGHTS_TO_TRY
        assert metrics[task]["after"]["recall@5"] >= metrics[task]["before"]["recall@5"]


def test_listwise_through_the_entrypoint(trained, mbeir, rankings, tmp_path, capsys, monkeypatch):
    run = rerank_flags(mbeir, trained, rankings, tmp_path) | dict(style="listwise")
    call(eval_rerank.main, **run)
    first = (tmp_path / "listwise/ranking_infoseek_task6.jsonl").read_bytes()
    run["output_dir"] = tmp_path / "again"
    call(eval_rerank.main, **run, max_tokens_per_batch=1500)
    assert (tmp_path / "again/listwise/ranking_infoseek_task6.jsonl").read_bytes() == first
    assert "listwise, top 4" in capsys.readouterr().out
    lines = list(map(json.loads, first.decode().splitlines()))
    before = list(map(json.loads, (rankings / "ranking_infoseek_task6.jsonl").read_text().splitlines()))
    assert [line["score"] for line in lines] == [line["score"] for line in before]
    assert {line["did"] for line in lines[:4]} == {line["did"] for line in before[:4]} and lines[4:6] == before[4:6]

    # Side by side with itself: recall@1 worked by hand, cost, picture; other rankings are refused.
    def compare(**folders) -> str:
        runs = [f"{name}={folder}" for name, folder in folders.items()]
        monkeypatch.setattr(sys, "argv", ["compare", "--output_dir", str(tmp_path), *runs])
        compare_rerank.main()
        return capsys.readouterr().out

    metrics = {
        task: {when: {"recall@1": value} for when, value in (("before", 0.25), ("after", 0.75))}
        for task in TASKS.split(",")
    }
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        metrics["infoseek_task6"]["before"]["recall@1"] = 0.75
    (tmp_path / "mine/cost.json").write_text(json.dumps({"seconds_per_query": 0.01234, "tokens_per_query": 99.6}))
    table = [line.split() for line in compare(pointwise=tmp_path / "mine").splitlines()]
    assert table[1] == ["mscoco_task0_test", "25.0", "75.0"] and ["average", "25.0", "75.0"] in table
    assert ["tokens", "a", "query", "100"] in table and ["seconds", "a", "query", "0.0123"] in table
    assert (tmp_path / "rerank.png").stat().st_size > 1000
    assert "seconds a query" in compare(listwise=tmp_path / "listwise")  # what the entrypoint wrote
    with pytest.raises(ValueError, match="nowhere/metrics.json does not exist: name a folder"):
        compare(a=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a, b reranked different rankings: their recall before differs"):
        compare(a=tmp_path / "mine", b=tmp_path / "other")


def test_what_is_refused(fails, trained, mbeir, rankings, mined, tiny_model, tmp_path, monkeypatch, no_model):
    evaluation = dict(model_id=trained, data_path=mbeir, tasks=TASKS, output_dir=tmp_path / "o", num_workers=0)
    assert f"{trained} is a reranker, and a retriever is needed" in fails(eval_mbeir.main, **evaluation)
    retriever = shutil.copytree(tiny_model, tmp_path / "retriever")
    Settings(str(tiny_model), "sequential").write(retriever)
    run = rerank_flags(mbeir, trained, rankings, tmp_path / "out")
    assert f"{retriever} is a retriever, and a reranker is needed" in fails(
        eval_rerank.main, **run | {"model_id": retriever}
    )

    other = shutil.copytree(rankings, tmp_path / "other")
    path = other / "ranking_infoseek_task6.jsonl"

    first, *lines = (rankings / "ranking_infoseek_task6.jsonl").read_text().splitlines()

    def ranking_with(first: str, lines=lines) -> dict:
        path.write_text("\n".join([first, *lines]) + "\n")
        return {"rankings": other}

    good = json.loads(first)
    whole = json.dumps(good | {"qid": "6:99999"}) + "\n" + first
    monkeypatch.setattr("lamra.eval.rerank.judge.load_judge", lambda *_: pytest.fail("a model was loaded"))
    for change, words in (
        ({"depth": 8}, "have at most 6 candidates a query; give 6 or less"),
        ({"style": "setwise"}, "--style setwise: expected pointwise or listwise"),
        ({"rankings": tmp_path}, "ranking_mscoco_task0_test.jsonl does not exist: an evaluation writes it"),
        ({"tune_weight": rankings, "style": "listwise"}, "expected --style pointwise, and no --weight"),
    ):
        assert words in fails(eval_rerank.main, **run | change)
    for line, words in (
        (json.dumps(good | {"did": "6:99999"}), "names the candidate 6:99999, which is not in"),
        (whole, "names the query 6:99999, which is not in"),
        ("{}", "ranking_infoseek_task6.jsonl line 1 is not {qid, did, score, rank}: '{}'"),
        ("\n".join(2 * [json.dumps(good)]), f"has a candidate of the query {good['qid']} twice"),
        (
            json.dumps(good | {"rank": 2}),
            f"the 6 candidates of the query {good['qid']} do not have the ranks 1 to 6, 2 is",
        ),
        (
            json.dumps(good | {"rank": 0}),
            f"the 6 candidates of the query {good['qid']} do not have the ranks 1 to 6, 0 is",
        ),
    ):
        assert words in fails(eval_rerank.main, **run | ranking_with(line))
    fewer = ranking_with(lines[5], lines[6:])  # without the first query
    assert f"lacks 1 of the task's 6 queries, first {good['qid']}: evaluate" in fails(eval_rerank.main, **run | fewer)

    bad = tmp_path / "bad.json"
    bad.write_text("[]")
    training = dict(model_id="miniature", model_local_path=tiny_model, data_path=mbeir, output_dir=tmp_path / "run")
    for change, words in (
        ({}, "--mined : expected a file"),
        ({"mined": tmp_path / "no.jsonl"}, "no.jsonl does not exist"),
        ({"mined": bad}, "bad.json is not {qid: {gt_docs, top100_docs}}"),
        ({"mined": path}, "names the"),
        ({"mined": bad, "rank_style": "short"}, "--rank_style short: expected released or clean"),
        ({"mined": bad, "grad_cache_chunk": 2}, "--grad_cache_chunk 2: expected no value"),
        ({"mined": bad, "init": "/nowhere"}, "--init /nowhere does not exist"),
    ):
        assert words in fails(train_rerank.main, **training | change)
