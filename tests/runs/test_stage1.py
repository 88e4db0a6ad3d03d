"""Stage 1 through the real scripts: train on two processes, evaluate, merge, embed."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import slurm
from conftest import run_script
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import STEPS, curve, pretrain

SBATCH = "scripts/slurm/pretrain.sbatch"


@pytest.fixture(scope="module")
def trained(world, tiny_model, tmp_path_factory) -> Path:
    """Two processes, ZeRO-2, measured on a csv at the end of the epoch."""
    output = tmp_path_factory.mktemp("runs") / "zero2"
    result = pretrain(world, tiny_model, output, EVAL_DATA_PATH=world / "nli_eval.csv")
    (output / "stdout.txt").write_text(result.stdout)
    return output


def test_a_run_leaves_what_is_needed_to_trust_it(trained, world):
    losses = curve(trained)
    assert len(losses) == STEPS
    assert losses[-3:].mean() < losses[:3].mean() - 0.1
    settings = json.loads((trained / "lamra.json").read_text())
    assert settings["position_ids"] == "sequential" and settings["temperature"] == 0.05
    record = json.loads((trained / "run.json").read_text())
    assert record["data"]["pairs"] == 400 and len(record["data"]["sha256"]) == 64
    assert record["arguments"]["learning_rate"] == 3e-3 and record["versions"]["torch"]
    assert len(record["git_commit"]) >= 7

    (events,) = (trained / "runs").glob("*/events*")
    board = EventAccumulator(str(events.parent))
    board.Reload()
    wanted = {"loss", "learning_rate", "accuracy", "samples_per_second", "useful_tokens_per_second"}
    assert {f"train/{name}" for name in wanted} | {"eval/recall@1", "eval/accuracy"} <= set(board.Tags()["scalars"])
    with safe_open(trained / "adapter_model.safetensors", "pt") as adapter:
        names = list(adapter.keys())
    assert len(names) == 2 * 7 * 4 and all(".language_model.layers." in name for name in names)  # A and B, 4 layers


WAYS = ["data", "zero2_grad_cache", "zero3_on_two_machines", "zero2_queued_again_on_two_machines", "one_process"]


@pytest.mark.parametrize("parallel", WAYS)
def test_every_way_to_run_gives_the_same_curve(trained, world, tiny_model, tmp_path, parallel, monkeypatch):
    output = tmp_path / parallel
    slurm.stand_ins(tmp_path, monkeypatch)
    if parallel == "data":
        pretrain(world, tiny_model, output, DS_STAGE="none", GRAD_CACHE_CHUNK=5)
    elif parallel == "zero2_grad_cache":
        pretrain(world, tiny_model, output, GRAD_CACHE_CHUNK=4, GRADIENT_CHECKPOINTING=False)
    elif parallel == "zero3_on_two_machines":
        job = on_two_machines(NUM_GPUS=1, DS_STAGE="zero3")
        pretrain(world, tiny_model, output, real=True, script=SBATCH, **job)
    elif parallel == "zero2_queued_again_on_two_machines":
        job = on_two_machines(NUM_GPUS=2, PER_DEVICE_BATCH_SIZE=4, GRAD_CACHE_CHUNK=3)
        stop_once_and_finish(world, tiny_model, output, job, tmp_path / "step.scontrol")
    else:
        variables = dict(NUM_GPUS=1, PER_DEVICE_BATCH_SIZE=16, DS_STAGE="none", GRADIENT_CHECKPOINTING=False)
        pretrain(world, tiny_model, output, "--padding_free", "False", **variables)
    np.testing.assert_allclose(curve(output), curve(trained), rtol=1e-5)


def on_two_machines(**variables) -> dict:
    """Of a Slurm job whose machines are launchers on this one."""
    return slurm.job(2, MASTER_PORT=slurm.free_port(), **variables)


def stop_once_and_finish(world, tiny_model, output: Path, job: dict, told: Path) -> None:
    """A preemption of a job of two machines after its second step; Slurm starts it again."""
    flags = ("--save_steps", 1)  # behind the job's own
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(pretrain, world, tiny_model, output, *flags, check=False, script=SBATCH, **job)
        while not (output / "checkpoint-2" / "manifest.json").exists():
            assert not run.done(), run.result().stderr
            time.sleep(0.05)
        (batch,) = (p for p in psutil.Process().children() if SBATCH in p.cmdline())
        batch.send_signal(signal.SIGUSR1)
        stopped = run.result()
    assert stopped.returncode == 75 and "asked to stop: checkpoint-" in stopped.stdout, stopped.stderr
    assert told.read_text() == "scontrol requeue 17\n" and not (output / "lamra.json").exists()
    result = pretrain(world, tiny_model, output, *flags, script=SBATCH, **job, SLURM_RESTART_COUNT=1)
    assert f"going on from {output}/checkpoint-" in result.stdout


def test_a_machine_with_other_data_ends_the_run(world, tiny_model, tmp_path):
    """As users meet it: two launchers, the sentence on the first, no training on either."""
    (tmp_path / "nli.csv").write_text((world / "nli.csv").read_text() + "A dog.,An animal.,A cat.\n")
    job = on_two_machines(NUM_GPUS=1, NNODES=2, MASTER_ADDR="localhost")
    data = (world / "nli.csv", tmp_path / "nli.csv")
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(
                *(pretrain, world, tiny_model, tmp_path / "run"),
                check=False,
                **{**job, "NODE_RANK": rank, "TRAIN_DATA_PATH": path},
            )
            for rank, path in enumerate(data)
        ]
    first, second = (run.result() for run in runs)
    assert first.returncode != 0 and second.returncode != 0
    assert f"error: --data_path {data[0]} is not the same on " in first.stderr
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_written_over(trained, world, tiny_model):
    refused = run_script(
        *("python", "train/train_nli.py", "--model_id", "miniature", "--model_local_path", tiny_model),
        *("--data_path", world / "nli.csv", "--output_dir", trained, "--per_device_train_batch_size", 8),
        check=False,
    )
    assert refused.returncode == 2
    assert f"--output_dir {trained} holds a finished run" in refused.stderr and "--resume auto" in refused.stderr


def test_merged_model_embeds_the_same(trained, world, tmp_path):
    items = tmp_path / "items.jsonl"
    pictures = world / "test" / "images"
    rows = [{"id": "t", "text": "A red circle."}, {"id": "p", "image": "0.png"}]
    rows.append({"id": "both", "text": "now in blue", "image": str(pictures / "0.png")})
    items.write_text("\n".join(map(json.dumps, rows)))
    run_script("bash", "scripts/merge_lora.sh", MODEL_ID=trained, SAVE_PATH=tmp_path / "merged", DTYPE="fp32")
    found = []
    for model in (trained, tmp_path / "merged"):
        out = tmp_path / f"{model.name}.npz"
        files = ("--input", items, "--image_root", pictures, "--output", out)
        run_script("python", "eval/embed.py", "--model_id", model, *files)
        found.append(np.load(out))
    assert found[0]["ids"].tolist() == ["t", "p", "both"]
    assert found[0]["embeddings"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found[0]["embeddings"], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[1]["embeddings"], found[0]["embeddings"], atol=1e-5)

    run_script("bash", "scripts/merge_lora.sh", MODEL_ID=trained, SAVE_PATH=tmp_path / "half", DTYPE="bf16")
    with safe_open(tmp_path / "half" / "model.safetensors", "pt") as merged:
        assert {str(merged.get_tensor(name).dtype) for name in merged.keys()} == {"torch.bfloat16"}  # noqa: SIM118


def test_evaluation_does_not_depend_on_the_number_of_processes(trained, world, tmp_path):
    written = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        result = run_script(
            *("bash", "scripts/eval/eval_pretrained.sh", "--output_dir", output, "--save_for_rerank", "True"),
            *("--mode", "finetuned", "--protocol", "clean"),  # four sets to encode: with and without instruction
            real=True,  # accelerate's ways to start one process and several
            MODEL_ID=trained,
            NUM_GPUS=processes,
            MAX_TOKENS_PER_BATCH=200,  # 11 pictures and 55 captions do not divide
            DATASETS="flickr",
            FLICKR_IMAGES=world / "test" / "images",
            FLICKR_TEXTS=world / "test" / "captions.json",
        )
        written.append({path.name: path.read_text() for path in output.iterdir() if path.suffix != ".arrow"})
    assert written[0]["metrics.json"] == written[1]["metrics.json"]
    for name in ("ranking_image_retrieval.jsonl", "ranking_text_retrieval.jsonl"):
        one, two = ({(r["qid"], r["did"]): r["score"] for r in map(json.loads, w[name].splitlines())} for w in written)
        assert one == pytest.approx(two, abs=1e-6)  # a matrix product may round otherwise in another process
    assert "11 pictures, 55 captions, protocol clean" in result.stdout and "R@10" in result.stdout
    metrics = json.loads(written[0]["metrics.json"])
    assert metrics.pop("protocol") == "clean"
    names = ("recall@1", "recall@5", "recall@10", "ndcg@10", "mrr@10")
    assert list(metrics) == sorted(f"{d}_retrieval_{name}" for d in ("image", "text") for name in names)
    ranking = [json.loads(line) for line in written[0]["ranking_image_retrieval.jsonl"].splitlines()]
    assert len(ranking) == 55 * 11 and ranking[0].keys() == {"qid", "did", "score", "rank"}
    first = [row for row in ranking if row["rank"] == 1]
    hits = sum(row["qid"].split("#")[0] == row["did"] for row in first)
    assert hits / 55 == metrics["image_retrieval_recall@1"]


def test_demo_ranks_pictures(trained, world):
    result = run_script(
        *("python", "demo.py", "--model_id", trained, "--folder", world / "test" / "images"),
        *("--image", world / "test" / "images" / "3.png", "--top", 2),
    )
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 2 and lines[0].split()[0] == "1" and lines[0].endswith("3.png")  # a picture finds itself


def test_dry_run_tells_and_trains_nothing(world, tiny_model, tmp_path):
    result = pretrain(world, tiny_model, tmp_path / "dry", "--dry_run", "True", NUM_GPUS=1, DS_STAGE="none")
    assert "global batch          8 pairs = 8 x 1 processes x 1 accumulated" in result.stdout
    assert "trainable parameters" in result.stdout and "memory a process" in result.stdout
    assert "Summarize above sentence in one word: <|im_end|>" in result.stdout
    assert not list(tmp_path.glob("dry/*"))


def test_a_mistake_is_told_once_and_ends_the_run(world, tiny_model, tmp_path):
    """As a user meets it: under torchrun, the sentence stands once, and the exit status is not 0."""
    result = run_script(
        *("bash", "scripts/lamra_ret/pretrain.sh"),
        check=False,
        MODEL_ID="miniature",
        MODEL_LOCAL_PATH=tiny_model,
        TRAIN_DATA_PATH="/no/such.csv",
        OUTPUT_DIR=tmp_path / "run",  # the default one may hold the quickstart's run
        NUM_GPUS=2,
        DS_STAGE="none",
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert (
        result.stderr.count("error: --data_path /no/such.csv does not exist: bash scripts/download.sh nli gets it") == 1
    )
