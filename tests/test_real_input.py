"""Real triplets, tokenizer and photographs of ../shared through the practice's own commands, on two processes."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import run_script
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration


@pytest.fixture(scope="module")
def real_model(shared, tmp_path_factory):
    """The published tokenizer and image settings around a random Qwen2-VL of 2 layers."""
    folder = tmp_path_factory.mktemp("real_model")
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=151664,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        ),
        vision_config=dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2),
        tie_word_embeddings=True,
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    for file in (shared / "data" / "qwen2vl_processor").iterdir():
        shutil.copy(file, folder / file.name)
    return folder


def practice_flags(shared, name: str, replaced: dict[str, object]) -> list[str]:
    """The flags of a command of ../shared/practice with its shell variables filled in and some values replaced."""
    script = (shared / "practice" / name).read_text().replace("\\\n", " ")
    variables = dict(re.findall(r"^(\w+)=([^\s#]*)", script, flags=re.MULTILINE))
    command = next(line for line in script.splitlines() if " --model_id " in line)
    for variable, value in variables.items():
        command = command.replace(f"${{{variable}}}", value).replace(f"${variable}", value)
    flags = dict(re.findall(r"--(\w+) +(\S+)", command.split(".py ", 1)[1]))
    return [part for flag, value in (flags | replaced).items() for part in (f"--{flag}", str(value).strip('"'))]


def test_the_practice(shared, real_model, tmp_path):
    data, output = shared / "data", tmp_path / "run"
    torchrun = ["torchrun", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    changed = {"data_path": data / "nli_sample.csv", "output_dir": output, "per_device_train_batch_size": 16}
    small = ["--model_local_path", str(real_model), "--max_steps", "60"]
    flags = practice_flags(shared, "pretrain_command.sh", changed)
    assert {"--tf32", "--warmup_ratio", "--eval_strategy", "--q_lora"} <= set(flags)
    result = run_script(*torchrun, "train/train_nli.py", *flags, *small, "--learning_rate", "5e-3")
    assert "note: --tf32 True is ignored" in result.stdout
    history = json.loads((output / "checkpoint-60" / "trainer_state.json").read_text())["log_history"]
    losses = np.array([entry["loss"] for entry in history if "loss" in entry])
    assert np.isfinite(losses).all() and losses[-10:].mean() < losses[:10].mean() - 0.1

    accelerate = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    for name, pictures in (("flickr", "flickr8k"), ("coco", "coco")):
        folder = data / pictures
        changed = {
            "image_data_path": folder / "images",
            "text_data_path": folder / f"dataset_{pictures}.json",
            "original_model_id": real_model,
            "model_id": output,
            "output_dir": tmp_path / name,
        }
        flags = practice_flags(shared, "eval_command.sh", changed)
        run_script(*accelerate, f"eval/eval_zeroshot/eval_{name}.py", *flags)
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        assert len(metrics) == 6 and all(0 <= value <= 1 for value in metrics.values())
        assert metrics["image_retrieval_recall@1"] <= metrics["image_retrieval_recall@10"]
