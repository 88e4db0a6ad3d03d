"""LamRA-Rank's training in this process."""

from __future__ import annotations

import shutil

from conftest import call

from lamra.train import train_rerank
from lamra.train.arguments import training_arguments
from lamra.train.flags import RerankTrainingFlags
from lamra.train.guards.full import memory_sentence


def test_a_broken_training_ends_like_an_unbroken_one(mbeir, mined, tiny_model, tmp_path):
    flags = dict(model_id="miniature", model_local_path=tiny_model, data_path=mbeir, mined=mined / "mined.jsonl")
    flags |= dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, lora_r=4, learning_rate=5e-3)
    flags |= dict(max_steps=6, save_strategy="steps", save_steps=3, report_to="none", dataloader_num_workers=0)
    flags |= dict(output_dir=tmp_path / "run")
    call(train_rerank.main, **flags)  # with dropout, and into a second epoch
    adapter = tmp_path / "run/adapter_model.safetensors"
    unbroken = adapter.read_bytes()
    adapter.unlink()
    shutil.rmtree(tmp_path / "run/checkpoint-6")
    call(train_rerank.main, **flags, resume="auto")
    assert adapter.read_bytes() == unbroken


def test_memory_without_in_batch_negatives_is_saved_by_accumulation():
    args = training_arguments(RerankTrainingFlags(output_dir="x", use_cpu=True, gradient_checkpointing=True))
    sentence = memory_sentence(args, 5, total=80 * 2**30, allocated=79 * 2**30, in_batch_negatives=False)
    assert sentence.endswith("the batch can stay: set PER_DEVICE_BATCH_SIZE=1 GRAD_ACCUM=8")
