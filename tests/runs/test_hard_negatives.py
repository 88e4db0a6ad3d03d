"""Hard negatives and distillation through their scripts, on two processes as on one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import call, run_script
from safetensors.torch import load_file
from training import stage2_flags

from lamra.datasets.columns import columns_file, read_columns
from lamra.datasets.mbeir.layout import TRAIN_QUERIES
from lamra.eval import mine_negatives, teacher_scores
from lamra.models.settings import Settings
from lamra.train import train_mbeir, train_rerank

STEPS = 3


@pytest.fixture(scope="module")
def reranker(tiny_model, tmp_path_factory):
    """The tiny model, which answers at random, as a reranker's checkpoint."""
    folder = tmp_path_factory.mktemp("reranker") / "model"
    shutil.copytree(tiny_model, folder)
    Settings(str(folder), "mrope", role="reranker", rank_style="released").write(folder)
    return folder


@pytest.fixture(scope="module")
def few(mbeir, tmp_path_factory):
    """The training queries of 3 scenes, 15 in all."""
    path = tmp_path_factory.mktemp("few") / "few.jsonl"
    path.write_text("".join((mbeir / TRAIN_QUERIES).read_text().splitlines(keepends=True)[:15]))
    return path


@pytest.fixture(scope="module")
def two(mbeir, tiny_model, mined, reranker, few, tmp_path_factory):
    """The folder of what two processes make: negatives/, teacher/ and run/."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(mined / "embeddings", folder / "negatives/embeddings")
    common = dict(DATA_PATH=mbeir, QUERIES=few, NUM_GPUS=2)
    run_script(
        *("bash", "scripts/lamra_ret/mine_negatives.sh", "--judge_above", 0.9, "--num_workers", 0),
        **common | dict(MODEL_ID=tiny_model, RANKS="0:6", KEEP=3, MARGIN=0.001, OUTPUT_DIR=folder / "negatives"),
        **dict(JUDGE=reranker, BELOW_SHARE=0.9999),
    )
    negatives = folder / "negatives/negatives.arrow"
    run_script(
        *("bash", "scripts/lamra_ret/teacher_scores.sh", "--num_workers", 0),
        **common | dict(MODEL_ID=reranker, MINED=negatives, OUTPUT_DIR=folder / "teacher"),
    )
    run_script(
        *("bash", "scripts/lamra_ret/finetune.sh", "--max_steps", STEPS, "--save_strategy", "steps"),
        *("--save_steps", STEPS, "--lora_dropout", 0, "--dataloader_num_workers", 0),
        *("--distill_weight", 2, "--distill_temperature", 0.1, "--queries", few),
        **common | dict(MODEL_ID="miniature", MODEL_LOCAL_PATH=tiny_model, MINED=negatives, HARD_NEGATIVES=2),
        **dict(TEACHER=folder / "teacher/teacher.arrow", OUTPUT_DIR=folder / "run", PER_DEVICE_BATCH_SIZE=4),
        **dict(BF16="False", LORA_R=4, LORA_ALPHA=8, LR="1e-3", DS_STAGE="none", NUM_EPOCHS=1),
    )
    return folder


def test_one_process_mines_and_scores_what_two_do(two, few, mbeir, tiny_model, mined, reranker, tmp_path):
    shutil.copytree(mined / "embeddings", tmp_path / "negatives/embeddings")
    how = dict(data_path=mbeir, queries=few, num_workers=0)
    rules = dict(ranks="0:6", keep=3, margin=0.001, below_share=0.9999, judge=reranker, judge_above=0.9)
    call(mine_negatives.main, model_id=tiny_model, output_dir=tmp_path / "negatives", **how, **rules)
    call(
        teacher_scores.main,
        **how | dict(model_id=reranker, mined=two / "negatives/negatives.arrow", output_dir=tmp_path / "teacher"),
    )
    assert (two / "negatives/negatives.arrow").read_bytes() == (tmp_path / "negatives/negatives.arrow").read_bytes()
    assert (two / "teacher/teacher.arrow").read_bytes() == (tmp_path / "teacher/teacher.arrow").read_bytes()


def losses_of(run) -> list[float]:
    state = json.loads((run / f"checkpoint-{STEPS}/trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_one_process_trains_alike_also_cached_and_after_a_break(two, few, mbeir, tiny_model, tmp_path, fails, capsys):
    """The global batch of 8 in chunks of 5 prompts. Then without the teacher, from the same draws."""
    mined, teacher = two / "negatives/negatives.arrow", two / "teacher/teacher.arrow"
    run = stage2_flags(mbeir, tiny_model, tmp_path / "one") | dict(per_device_train_batch_size=8, max_steps=STEPS)
    run |= dict(queries=few, lora_alpha=8, lora_dropout=0, warmup_ratio=0.03, text_max_tokens=480, save_steps=2)
    untaught = run | dict(mined=mined, hard_negatives=2)
    taught = untaught | dict(teacher=teacher, distill_weight=2, distill_temperature=0.1)
    call(train_mbeir.main, **taught, grad_cache_chunk=5)
    assert "queries have fewer than --hard_negatives 2 candidates; the rest are random ones" in capsys.readouterr().out
    losses = losses_of(tmp_path / "one")
    assert losses == pytest.approx(losses_of(two / "run"), rel=1e-4) and len(losses) == STEPS

    path = tmp_path / "one/adapter_model.safetensors"
    weights = load_file(path)
    path.unlink(), shutil.rmtree(tmp_path / f"one/checkpoint-{STEPS}")
    other = tmp_path / "other.arrow"
    found = read_columns(teacher)
    (piece,) = found.pieces
    with columns_file(other, found.about) as write:
        write(piece._replace(scores=piece.scores + 1))
    resumed = taught | dict(grad_cache_chunk=5, resume="auto")
    for change, words in (
        (dict(distill_weight=1), "belongs to another run: distill_weight was 2.0 and is 1.0"),
        (dict(distill_temperature=1), "belongs to another run: distill_temperature was 0.1 and is 1.0"),
        (dict(teacher=other), "belongs to another run: data_sha256 was"),
    ):
        assert words in fails(train_mbeir.main, **resumed | change)
    call(train_mbeir.main, **resumed)
    assert losses_of(tmp_path / "one") == losses
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(path).items())

    call(train_mbeir.main, **untaught | dict(output_dir=tmp_path / "untaught", save_steps=STEPS))
    assert all(less < more - 0.001 for less, more in zip(losses_of(tmp_path / "untaught"), losses))


def test_what_is_refused(two, few, mbeir, tiny_model, mined, tmp_path, fails, no_model):
    run = stage2_flags(mbeir, tiny_model, tmp_path / "o") | dict(queries=few)
    negatives, teacher = two / "negatives/negatives.arrow", two / "teacher/teacher.arrow"
    both = dict(mined=negatives, hard_negatives=1)
    other = tmp_path / "other.jsonl"
    asked = {line["qid"] for line in map(json.loads, few.read_text().splitlines())}
    lines = (mined / "mined.jsonl").read_text().splitlines(keepends=True)
    other.write_text("".join(line for line in lines if json.loads(line)["qid"] in asked))
    for change, words in (
        (dict(mined=negatives), f"--mined {negatives} needs --hard_negatives 1 or more"),
        (dict(teacher=teacher, hard_negatives=1), f"--teacher {teacher} needs --mined: it scores those candidates"),
        (both | dict(distill_weight=2), "--distill_weight 2.0 needs --teacher"),
        (both | dict(distill_temperature=2), "--distill_temperature 2.0 needs --teacher"),
        (both | dict(teacher=teacher, distill_weight=-1), "--distill_weight -1.0: expected more than 0"),
        (both | dict(teacher=teacher, mined=other), "does not score the candidate"),
        (both | dict(mined=mined / "mined.jsonl"), "which is not in"),
    ):
        assert words in fails(train_mbeir.main, **run | change)
    reranking = dict(model_id="miniature", model_local_path=tiny_model, data_path=mbeir, output_dir=tmp_path / "r")
    for change, words in (
        (dict(teacher=teacher), f"--teacher {teacher}: expected no value: it is for a retriever"),
        (dict(hard_negatives=1), "--hard_negatives 1: expected 0: the mined candidates are those"),
    ):
        assert words in fails(train_rerank.main, **reranking, mined=negatives, **change)
