"""Fixtures: the golden model and where optional real data lies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores, several processes
sys.path.extend(str(Path(__file__).parent / folder) for folder in ("support", "golden"))

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lamra.common.cli import run
from lamra.miniature.model import build_config, build_tokenizer
from lamra.miniature.world import build_world
from lamra.models import loading

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared: real photographs, triplets and tokenizer; the project never depends on it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared is absent: real photographs, NLI triplets and the Qwen2-VL tokenizer are not tried")
    return SHARED


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "values.safetensors")


@pytest.fixture(scope="session")
def golden_config() -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config=dict(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        ),
        vision_config=dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2, patch_size=14),
        image_token_id=507,
        video_token_id=508,
        vision_start_token_id=505,
        vision_end_token_id=506,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory, golden_config) -> Path:
    """The golden model as a published folder: config.json and transformers 4's key layout."""
    folder = tmp_path_factory.mktemp("golden_model")
    golden_config.save_pretrained(folder)
    tensors = load_file(GOLDEN / "model.safetensors")
    state = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def golden_adapter(tmp_path_factory) -> Path:
    """The golden LoRA adapter as transformers 4 and PEFT wrote it: module names model.layers..., listed in full."""
    folder = tmp_path_factory.mktemp("golden_adapter")
    tensors = load_file(GOLDEN / "model.safetensors")
    state = {
        "base_model.model." + name.removeprefix("lora_init."): t
        for name, t in tensors.items()
        if name.startswith("lora_init.")
    }
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name in state})
    (folder / "adapter_config.json").write_text(
        json.dumps(dict(peft_type="LORA", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, bias="none"))
    )
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A small miniature world: nli.csv, nli_eval.csv, test/ and val/ with 11 pictures each."""
    folder = tmp_path_factory.mktemp("world")
    build_world(folder, seed=0, train_pictures=1, gallery_pictures=11, triplets=400)
    return folder


@pytest.fixture(scope="session")
def tiny_model(world, tmp_path_factory) -> Path:
    """The miniature's architecture and tokenizer with random weights, as a folder."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = build_tokenizer((world / "nli.csv").read_text().splitlines())
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(build_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    return folder


def call(main, *flags, **named) -> None:
    """An entrypoint in this process."""
    flags = [*flags, *(part for name, value in named.items() for part in (f"--{name}", value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["entrypoint", *map(str, flags)])
        run(main)


@pytest.fixture
def fails(monkeypatch, capsys):
    """Call an entrypoint with flags, expect exit 1, return the sentence on stderr."""

    def call(main, *flags, **named):
        arguments = [*flags, *(part for name, value in named.items() for part in (f"--{name}", value))]
        monkeypatch.setattr(sys, "argv", ["entrypoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            run(main)
        assert exit_.value.code == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        return error

    return call


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model is a test failure."""
    monkeypatch.setattr("lamra.train.build.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))


def script_environment(variables: dict) -> dict[str, str]:
    """This environment with the tests' own Python first, and shell variables set."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path} | {name: str(value) for name, value in variables.items()}


def run_script(
    *command: str | Path, check: bool = True, timeout: int = 180, **variables
) -> subprocess.CompletedProcess:
    """Run a command of the project from its root as a user would, with shell variables set."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=script_environment(variables),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and result.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} exited {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return result
