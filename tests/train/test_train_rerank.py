"""LamRA-Rank's training in this process."""

from __future__ import annotations

import json
import shutil

from conftest import call

from lamra.datasets.mbeir.layout import TRAIN_QUERIES
from lamra.train import train_rerank
from lamra.train.arguments import training_arguments
from lamra.train.flags import RerankTrainingFlags
from lamra.train.guards.full import memory_sentence


def test_a_broken_training_ends_like_an_unbroken_one(mbeir, mined, tiny_model, tmp_path):
    """12 queries make 3 steps an epoch: checkpoint-2 is in the first, the end in the second."""
    rows = (mbeir / TRAIN_QUERIES).read_text().splitlines(keepends=True)[:12]
    (tmp_path / "queries.jsonl").write_text("".join(rows))
    few = {json.loads(row)["qid"] for row in rows}
    lines = (mined / "mined.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "mined.jsonl").write_text("".join(line for line in lines if json.loads(line)["qid"] in few))
    flags = dict(model_id="miniature", model_local_path=tiny_model, data_path=mbeir, mined=tmp_path / "mined.jsonl")
    flags |= dict(queries=tmp_path / "queries.jsonl", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    flags |= dict(lora_r=4, learning_rate=5e-3, max_steps=4, save_strategy="steps", save_steps=2, report_to="none")
    flags |= dict(dataloader_num_workers=0, output_dir=tmp_path / "run")
    call(train_rerank.main, **flags)  # with dropout
    adapter = tmp_path / "run/adapter_model.safetensors"
    unbroken = adapter.read_bytes()
    state = json.loads((tmp_path / "run/checkpoint-4/trainer_state.json").read_text())
    assert state["epoch"] > 1
    adapter.unlink()
    shutil.rmtree(tmp_path / "run/checkpoint-4")
    call(train_rerank.main, **flags, resume="auto")
    assert adapter.read_bytes() == unbroken


def test_memory_without_in_batch_negatives_is_saved_by_accumulation():
    args = training_arguments(RerankTrainingFlags(output_dir="x", use_cpu=True, gradient_checkpointing=True))
    sentence = memory_sentence(args, 5, total=80 * 2**30, allocated=79 * 2**30, in_batch_negatives=False)
    assert sentence.endswith("the batch can stay: set PER_DEVICE_BATCH_SIZE=1 GRAD_ACCUM=8")
