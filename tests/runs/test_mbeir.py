"""M-BEIR: its files to items, draws that repeat, stage 2 and its evaluation through the real scripts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import run_script
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from lamra.collators.messages import embedding_messages, instructed_texts
from lamra.collators.processing import Processor
from lamra.datasets.items import Item
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import INSTRUCTIONS, PAPER_AVERAGE, TRAIN_QUERIES, global_pool
from lamra.datasets.mbeir.layout import TASKS as TASK_TABLE
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.qrels import read_qrels
from lamra.datasets.mbeir.queries import InstructedQueries
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows, sentence
from lamra.eval import eval_mbeir
from lamra.eval.inference import Retriever
from lamra.eval.metrics import recall_at_k
from lamra.miniature.build_mbeir import TASKS, build_mbeir
from lamra.models.digests import model_sha256
from lamra.models.settings import Settings
from lamra.train import train_mbeir

SCENES = 20


@pytest.fixture(scope="module")
def mbeir(tmp_path_factory):
    """The miniature M-BEIR with 20 scenes to train on and 6 to evaluate on."""
    folder = tmp_path_factory.mktemp("mbeir")
    build_mbeir(folder, seed=0, train=SCENES, gallery=6)
    return folder


def pairs_of(mbeir, **options) -> MBEIRPairs:
    pool, queries = Rows(mbeir / global_pool("train"), mbeir, CANDIDATE), Rows(mbeir / TRAIN_QUERIES, mbeir, QUERY)
    return MBEIRPairs(queries, pool, Instructions(mbeir / INSTRUCTIONS), **options)


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


def test_what_does_not_fit_together(mbeir, tmp_path):
    def broken(file: str, old: str, new: str):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(mbeir, root, ignore=shutil.ignore_patterns("*.png", "*.npy"))
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))
        return root

    def lost(field: str, rows: int):
        """Rows whose candidates are all of another pool."""
        text = (mbeir / TRAIN_QUERIES).read_text().splitlines()
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
        first = json.loads((mbeir / TRAIN_QUERIES).read_text().splitlines()[0])["pos_cand_list"]
        pairs_of(broken(TRAIN_QUERIES, json.dumps(first), "[]"))
    with pytest.raises(ValueError, match="no instruction for queries of dataset 8 that are 'image,text' and look for"):
        pairs_of(broken(INSTRUCTIONS, "CIRR\t8", "CIRR\t7"))
    with pytest.raises(ValueError, match="--hard_negatives 9999: .* give fewer"):
        pairs_of(mbeir, hard_negatives=9999)


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


def test_draws_follow_from_seed_and_epoch_alone(mbeir):
    pairs = pairs_of(mbeir, seed=1, hard_negatives=2)

    def drawn(epoch: int, dataset=pairs, **options) -> list:
        dataset.set_epoch(epoch)
        return list(DataLoader(dataset, batch_size=None, **options))

    first = drawn(0)
    assert len(first) == 5 * SCENES and drawn(0, num_workers=2) == first == drawn(
        0, pairs_of(mbeir, seed=1, hard_negatives=2)
    )
    second = drawn(1)
    assert drawn(1, num_workers=1) == second != first != drawn(0, pairs_of(mbeir, seed=2, hard_negatives=2))
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


def test_groups_are_the_tasks(mbeir):
    groups = pairs_of(mbeir).groups
    assert set(groups) == {
        "MSCOCO text to image",
        "MSCOCO image to text",
        "NIGHTS image to image",
        "CIRR image,text to image",
        "INFOSEEK image,text to text",
    }
    assert sorted(np.concatenate(list(groups.values())).tolist()) == list(range(5 * SCENES))
    assert groups["NIGHTS image to image"].tolist() == list(range(2, 5 * SCENES, 5))  # in the order that they are made


def test_evaluation_draws_an_instruction_for_each_query(mbeir):
    queries, instructions = Rows(mbeir / TRAIN_QUERIES, mbeir, QUERY), Instructions(mbeir / INSTRUCTIONS)
    with pytest.raises(
        ValueError, match="no instruction for queries of dataset 4 that are 'image' and look for 'text'"
    ):
        InstructedQueries(queries, instructions, "text")
    test = Rows(mbeir / "query/test/mbeir_cirr_task7_test.jsonl", mbeir, QUERY)
    drawn = [list(InstructedQueries(test, instructions, "image", seed)) for seed in (0, 0, 1)]
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
    assert round(sum(task.paper for task in TASK_TABLE) / 16, 1) == PAPER_AVERAGE["local"]
    coco, cirr = (
        next(task for task in TASK_TABLE if task.name == name) for name in ("mscoco_task0_test", "cirr_task7")
    )
    assert str(coco.pool("test", "local")) == "cand_pool/local/mbeir_mscoco_task0_test_cand_pool.jsonl"
    assert str(coco.qrels("val")) == "qrels/val/mbeir_mscoco_task0_val_qrels.txt"
    assert str(cirr.pool("test", "local")) == "cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl"
    assert str(cirr.queries("test")) == "query/test/mbeir_cirr_task7_test.jsonl"


@pytest.fixture(scope="module")
def stage1(tiny_model, tmp_path_factory):
    """A model as merge_lora.sh leaves it: it remembers settings that are not the defaults."""
    folder = tmp_path_factory.mktemp("stage1") / "merged"
    shutil.copytree(tiny_model, folder)
    Settings("elsewhere", "mrope", max_pixels=100 * 28 * 28).write(folder)
    return folder


@pytest.fixture(scope="module")
def trained(mbeir, stage1, tmp_path_factory):
    """finetune.sh on two processes: ZeRO-2, hard negatives, a measurement after the epoch."""
    output = tmp_path_factory.mktemp("runs") / "stage2"
    run_script(
        *("bash", "scripts/lamra_ret/finetune.sh", "--max_steps", 6, "--dataloader_num_workers", 1),
        MODEL_ID="miniature",
        MODEL_LOCAL_PATH=stage1,
        DATA_PATH=mbeir,
        EVAL_QUERIES="query/val/mbeir_cirr_task7_val.jsonl",
        EVAL_POOL="cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl",
        HARD_NEGATIVES=1,
        OUTPUT_DIR=output,
        NUM_GPUS=2,
        PER_DEVICE_BATCH_SIZE=8,
        BF16=False,
    )
    return output


def test_stage_2_goes_on_from_what_stage_1_remembers(trained, stage1):
    settings = Settings.read(trained)
    base = dict(base_model=str(stage1), base_sha256=model_sha256(stage1))
    assert settings == Settings(**base, position_ids="mrope", max_pixels=100 * 28 * 28, text_max_tokens=480)
    history = json.loads((trained / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if "loss" in entry]) == 6
    assert any("eval_recall@1" in entry for entry in history)
    record = json.loads((trained / "run.json").read_text())
    assert record["base_sha256"] == settings.base_sha256
    assert record["data"]["pairs"] == 5 * SCENES and len(record["data"]["sha256"]) == 3
    assert record["arguments"]["hard_negatives"] == 1 and record["arguments"]["lora_r"] == 128


def flags(mbeir, stage1, output) -> dict:
    """A short run on one process, in this one."""
    return dict(
        model_id="miniature",
        model_local_path=stage1,
        data_path=mbeir,
        output_dir=output,
        per_device_train_batch_size=40,
        num_train_epochs=3,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=9,
        learning_rate=1e-3,
        lora_r=4,
        dataloader_num_workers=0,
        report_to="none",
    )


def call(main, monkeypatch, **named) -> None:
    arguments = [str(part) for name, value in named.items() for part in (f"--{name}", value)]
    monkeypatch.setattr("sys.argv", ["entrypoint", *arguments])
    main()


def test_every_epoch_is_drawn_anew_and_a_resumed_run_ends_alike(mbeir, stage1, tmp_path, monkeypatch):
    """100 pairs make 2 steps an epoch; checkpoint-3 is in the middle of the second."""
    epochs = []
    set_epoch = MBEIRPairs.set_epoch
    monkeypatch.setattr(MBEIRPairs, "set_epoch", lambda self, epoch: epochs.append(epoch) or set_epoch(self, epoch))
    run = flags(mbeir, stage1, tmp_path)
    call(train_mbeir.main, monkeypatch, **run)
    assert sorted(set(epochs)) == [0, 1, 2]
    expected = load_file(tmp_path / "adapter_model.safetensors")
    for later in ("checkpoint-6", "adapter_model.safetensors", "lamra.json"):
        path = tmp_path / later
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    epochs.clear()
    call(train_mbeir.main, monkeypatch, **run, resume="auto")
    assert sorted(set(epochs)) == [1, 2]
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_training_flags_that_contradict(fails, no_model, mbeir, stage1, trained, tmp_path):
    run = flags(mbeir, stage1, tmp_path / "o")
    for change, words in (
        ({"position_ids": "sequential"}, "--position_ids sequential contradicts the checkpoint"),
        ({"max_pixels": 28 * 28 * 300}, "--max_pixels 235200 contradicts the checkpoint"),
        ({"model_local_path": trained}, "is an adapter, not a whole model"),
        ({"text_max_tokens": 0}, "--text_max_tokens 0: expected 1 or more"),
        ({"hard_negatives": -1}, "--hard_negatives -1: expected 0 or more"),
        ({"data_path": "/nowhere"}, "/nowhere/query/union_train/mbeir_union_up_train.jsonl does not exist"),
    ):
        assert words in fails(train_mbeir.main, **(run | change))


@pytest.fixture(scope="module")
def evaluated(mbeir, trained, tmp_path_factory):
    """eval_mbeir.sh on two processes, own pools, shards of 5 items."""
    output = tmp_path_factory.mktemp("results") / "two"
    result = run_script(
        *("bash", "scripts/eval/eval_mbeir.sh", "--shard_size", 5, "--data_name", "miniature"),
        MODEL_ID=trained,
        DATA_PATH=mbeir,
        TASKS=",".join(TASKS),
        OUTPUT_DIR=output,
        NUM_GPUS=2,
    )
    return output, result.stdout


def evaluation(mbeir, trained, output) -> dict:
    return dict(
        model_id=trained, data_path=mbeir, tasks=",".join(TASKS), output_dir=output, shard_size=5, num_workers=0
    )


def table_in(stdout: str) -> list[str]:
    lines = stdout.splitlines()
    start = lines.index("miniature test, local pool, recall@k in percent")
    return lines[start : next(i for i, line in enumerate(lines) if line.startswith("written to"))]


def test_one_process_finds_what_two_find_also_when_it_was_killed(
    evaluated, mbeir, trained, tmp_path, monkeypatch, capsys
):
    output, stdout = evaluated
    encoded = []
    encode = Retriever.encode

    def stopping(limit):
        def call(self, items, description):
            if len(encoded) == limit:
                raise KeyboardInterrupt
            encoded.append(description)
            return encode(self, items, description)

        return call

    run = evaluation(mbeir, trained, tmp_path) | {"data_name": "miniature"}
    monkeypatch.setattr(Retriever, "encode", stopping(4))
    with pytest.raises(KeyboardInterrupt):
        call(eval_mbeir.main, monkeypatch, **run)
    (tmp_path / "embeddings" / "mbeir_mscoco_task0_test" / "00001.tmp").touch()  # what a kill while writing leaves
    monkeypatch.setattr(Retriever, "encode", stopping(None))
    call(eval_mbeir.main, monkeypatch, **run)
    files = list((tmp_path / "embeddings").glob("*/*.npy"))
    assert len(encoded) == len(set(encoded)) == len(files) > 4  # nothing twice
    same = (tmp_path / "test_local" / "metrics.json").read_bytes()
    assert same == (output / "test_local" / "metrics.json").read_bytes()
    table = table_in(capsys.readouterr().out)
    assert len(table) == 8 and table == table_in(stdout)

    encoded.clear()
    call(eval_mbeir.main, monkeypatch, **run)
    assert not encoded and (tmp_path / "test_local" / "metrics.json").read_bytes() == same
    assert table_in(capsys.readouterr().out) == table
    call(eval_mbeir.main, monkeypatch, **run | {"pool": "global"})
    assert {name.split()[0] for name in encoded} == {"mbeir_union_test_cand_pool"}  # the queries are known


def test_rankings_and_metrics(evaluated, mbeir):
    output, _ = evaluated
    metrics = json.loads((output / "test_local" / "metrics.json").read_text())
    assert set(metrics) == {*TASKS, "average"}
    assert metrics["average"] == pytest.approx(sum(metrics[task]["recall@5"] for task in TASKS) / 5)
    for task in TASKS:
        stem = task.removesuffix("_test") + "_test"
        lines = map(json.loads, (output / "test_local" / f"ranking_{task}.jsonl").read_text().splitlines())
        first = {line["qid"]: line["did"] for line in lines if line["rank"] == 1}
        qrels = [line.split() for line in (mbeir / f"qrels/test/mbeir_{stem}_qrels.txt").read_text().splitlines()]
        hits = {qid for qid, _, did, *_ in qrels if first[qid] == did}
        assert len(first) == 6 and metrics[task]["recall@1"] == len(hits) / 6


def test_evaluation_refuses(fails, evaluated, mbeir, trained, stage1, tmp_path, monkeypatch):
    output, _ = evaluated
    other = evaluation(mbeir, stage1, output)
    differs = "holds embeddings made otherwise (not the same: model, base)"
    assert differs in fails(eval_mbeir.main, **other)
    monkeypatch.setattr("lamra.eval.inference.load_retriever", lambda *_: pytest.fail("a model was loaded"))
    run = evaluation(mbeir, trained, tmp_path)
    root = tmp_path / "mbeir"
    shutil.copytree(mbeir, root, ignore=shutil.ignore_patterns("*.png", "*.npy"))
    with open(root / "qrels/test/mbeir_cirr_task7_test_qrels.txt", "a") as file:
        file.write("8:7 0 8:99999 1 7\n")
    for change, words in (
        ({"tasks": "cirr_task7,mnist"}, "--tasks 'mnist' is unknown: choose all, or of visualnews_task0"),
        ({"tasks": "all"}, "mbeir_visualnews_task0_cand_pool.jsonl does not exist: data/README.md shows"),
        ({"pool": "both"}, "--pool both: expected local or global"),
        ({"depth": 5}, "--depth 5: expected 50 or more"),
        ({"data_path": root}, "names candidates that are in no pool, neither in"),
    ):
        assert words in fails(eval_mbeir.main, **(run | change))


def test_a_picture_that_cannot_be_read_is_named(fails, mbeir, stage1, tmp_path):
    root = tmp_path / "mbeir"
    shutil.copytree(mbeir, root)
    (root / "mbeir_images/test/0.png").unlink()
    run = evaluation(root, stage1, tmp_path / "o") | {"tasks": "nights_task4"}
    assert f"picture {root}/mbeir_images/test/0.png does not exist" in fails(eval_mbeir.main, **run)
