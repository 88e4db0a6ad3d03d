"""Stage 2 and M-BEIR's evaluation through their scripts, on two processes."""

from __future__ import annotations

import json
import shutil

import pytest
import slurm
from conftest import call, run_script
from training import stage2_flags

from lamra.eval import eval_mbeir
from lamra.eval.inference import Retriever
from lamra.miniature.mbeir import TASKS
from lamra.models.digests import model_sha256
from lamra.models.settings import Settings
from lamra.train import train_mbeir

SCENES = 20  # of mbeir_20


@pytest.fixture(scope="module")
def trained(mbeir_20, stage1, tmp_path_factory):
    """finetune.sh on two processes: ZeRO-2, hard negatives, a measurement after the epoch."""
    output = tmp_path_factory.mktemp("runs") / "stage2"
    run_script(
        *("bash", "scripts/lamra_ret/finetune.sh", "--max_steps", 6, "--dataloader_num_workers", 1),
        MODEL_ID="miniature",
        MODEL_LOCAL_PATH=stage1,
        DATA_PATH=mbeir_20,
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


def test_training_flags_that_contradict(fails, no_model, mbeir_20, stage1, trained, tmp_path):
    run = stage2_flags(mbeir_20, stage1, tmp_path / "o")
    for change, words in (
        ({"position_ids": "sequential"}, "--position_ids sequential contradicts the checkpoint"),
        ({"max_pixels": 28 * 28 * 300}, "--max_pixels 235200 contradicts the checkpoint"),
        ({"model_local_path": trained}, "is an adapter, not a whole model"),
        ({"text_max_tokens": 0}, "--text_max_tokens 0: expected 1 or more"),
        ({"hard_negatives": -1}, "--hard_negatives -1: expected 0 to 1000"),
        ({"data_path": "/nowhere"}, "--data_path /nowhere does not exist"),
    ):
        assert words in fails(train_mbeir.main, **(run | change))


@pytest.fixture(scope="module")
def evaluated(mbeir_20, trained, tmp_path_factory):
    """eval_mbeir.sh on two processes, own pools, shards of 5 items."""
    output = tmp_path_factory.mktemp("results") / "two"
    result = run_script(
        *("bash", "scripts/eval/eval_mbeir.sh", "--shard_size", 5, "--data_name", "miniature"),
        MODEL_ID=trained,
        DATA_PATH=mbeir_20,
        TASKS=",".join(TASKS),
        OUTPUT_DIR=output,
        NUM_GPUS=2,
    )
    return output, result.stdout


def evaluation(mbeir_20, trained, output) -> dict:
    return dict(
        model_id=trained, data_path=mbeir_20, tasks=",".join(TASKS), output_dir=output, shard_size=5, num_workers=0
    )


def table_in(stdout: str) -> list[str]:
    lines = stdout.splitlines()
    start = lines.index("miniature test, local pool, in percent")
    return lines[start : next(i for i, line in enumerate(lines) if line.startswith("written to"))]


def test_one_process_finds_what_two_find_also_when_it_was_killed(
    evaluated, mbeir_20, trained, tmp_path, monkeypatch, capsys
):
    """And what two machines find that are a Slurm job."""
    output, stdout = evaluated
    encoded = []
    encode = Retriever.encode

    def stopping(limit):
        def call(self, items, description, **options):
            if len(encoded) == limit:
                raise KeyboardInterrupt
            encoded.append(description)
            return encode(self, items, description, **options)

        return call

    run = evaluation(mbeir_20, trained, tmp_path) | {"data_name": "miniature"}
    monkeypatch.setattr(Retriever, "encode", stopping(4))
    with pytest.raises(KeyboardInterrupt):
        call(eval_mbeir.main, **run)
    (tmp_path / "embeddings" / "mbeir_mscoco_task0_test" / "00001.tmp").touch()  # what a kill while writing leaves
    monkeypatch.setattr(Retriever, "encode", stopping(None))
    call(eval_mbeir.main, **run)
    files = list((tmp_path / "embeddings").glob("*/*.npy"))
    assert len(encoded) == len(set(encoded)) == len(files) > 4  # nothing twice
    same = (tmp_path / "test_local" / "metrics.json").read_bytes()
    assert same == (output / "test_local" / "metrics.json").read_bytes()
    table = table_in(capsys.readouterr().out)
    assert len(table) == 8 and table == table_in(stdout)

    encoded.clear()
    call(eval_mbeir.main, **run)
    assert not encoded and (tmp_path / "test_local" / "metrics.json").read_bytes() == same
    assert table_in(capsys.readouterr().out) == table
    for name in ("metrics.json", "made_by.json"):
        (tmp_path / "test_local" / name).unlink()
    for task in reversed(TASKS):
        call(eval_mbeir.main, **run | {"tasks": task})
    assert (tmp_path / "test_local" / "metrics.json").read_bytes() == same  # one by one as all together
    call(eval_mbeir.main, **run | {"pool": "global"})
    assert {name.split()[0] for name in encoded} == {"mbeir_union_test_cand_pool"}  # the queries are known

    slurm.stand_ins(tmp_path, monkeypatch)
    variables = dict(MODEL_ID=trained, DATA_PATH=mbeir_20, TASKS=",".join(TASKS), OUTPUT_DIR=tmp_path / "machines")
    run_script(
        *("bash", "scripts/slurm/eval_mbeir_global.sbatch", "--shard_size", 5, "--data_name", "miniature"),
        **slurm.job(2, NUM_GPUS=2, MASTER_PORT=slurm.free_port(), **variables),
    )
    same = (tmp_path / "test_global" / "metrics.json").read_bytes()
    assert (tmp_path / "machines" / "test_global" / "metrics.json").read_bytes() == same


def test_rankings_and_metrics(evaluated, mbeir_20):
    output, _ = evaluated
    metrics = json.loads((output / "test_local" / "metrics.json").read_text())
    for task in TASKS:
        by_query = [json.loads(line) for line in (output / "test_local" / f"queries_{task}.jsonl").open()]
        for name in ("recall@1", "ndcg@10", "mrr@10"):
            mean = sum(of_query[name] for of_query in by_query) / len(by_query)
            assert mean == metrics[task][name] and all(of_query["qid"] for of_query in by_query)
    assert set(metrics) == {*TASKS, "average"}
    assert metrics["average"] == pytest.approx(sum(metrics[task]["recall@5"] for task in TASKS) / 5)
    for task in TASKS:
        stem = task.removesuffix("_test") + "_test"
        lines = map(json.loads, (output / "test_local" / f"ranking_{task}.jsonl").read_text().splitlines())
        first = {line["qid"]: line["did"] for line in lines if line["rank"] == 1}
        qrels = [line.split() for line in (mbeir_20 / f"qrels/test/mbeir_{stem}_qrels.txt").read_text().splitlines()]
        hits = {qid for qid, _, did, *_ in qrels if first[qid] == did}
        assert len(first) == 6 and metrics[task]["recall@1"] == len(hits) / 6


def test_evaluation_refuses(fails, evaluated, mbeir_20, trained, stage1, tmp_path, monkeypatch):
    output, _ = evaluated
    other = evaluation(mbeir_20, stage1, output)
    differs = "holds embeddings made otherwise (not the same: model, base)"
    assert differs in fails(eval_mbeir.main, **other)
    monkeypatch.setattr("lamra.eval.inference.load_retriever", lambda *_: pytest.fail("a model was loaded"))
    run = evaluation(mbeir_20, trained, tmp_path)
    root = tmp_path / "mbeir"
    shutil.copytree(mbeir_20, root, ignore=shutil.ignore_patterns("*.png", "*.npy"))
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


def test_a_picture_that_cannot_be_read_is_named(fails, mbeir_20, stage1, tmp_path):
    root = tmp_path / "mbeir"
    shutil.copytree(mbeir_20, root)
    (root / "mbeir_images/test/0.png").unlink()
    run = evaluation(root, stage1, tmp_path / "o") | {"tasks": "nights_task4"}
    assert f"picture {root}/mbeir_images/test/0.png does not exist" in fails(eval_mbeir.main, **run)
