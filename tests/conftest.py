"""Fixtures: models and data that several rooms use, and how a test calls an entrypoint or starts a command.

With several workers pytest's first process imports this too and needs no torch: fixtures import what they use.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores, several processes
sys.path.extend(str(Path(__file__).parent / folder) for folder in ("support", "golden"))

import pytest

from lamra.common.cli import OFFLINE, run

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2VLConfig

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
STAND_INS = "LAMRA_STAND_INS"  # folder of the fork server's socket and of what stands in for python and launchers


def pytest_configure(config: pytest.Config) -> None:
    """Start the fork server (support/fork_server.py), one for all workers; it imports nothing until it is needed."""
    if hasattr(config, "workerinput"):
        return
    folder = Path(tempfile.mkdtemp(prefix="lamra_tests_"))
    for name in ("python", "torchrun", "accelerate"):
        command = [sys.executable, "-IS", ROOT / "tests/support/stand_in.py", name]
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
        (folder / name).chmod(0o755)
    os.environ |= {STAND_INS: str(folder), "LAMRA_FORK_SERVER": str(folder / "socket")}
    command = [sys.executable, ROOT / "tests/support/fork_server.py", folder / "socket"]
    with open(folder / "socket.log", "w") as log:
        config.fork_server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def pytest_unconfigure(config: pytest.Config) -> None:
    if server := getattr(config, "fork_server", None):
        server.terminate()
        server.wait()
        shutil.rmtree(os.environ[STAND_INS])


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared: real photographs, triplets and tokenizer; the project never depends on it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared is absent: real photographs, NLI triplets and the Qwen2-VL tokenizer are not tried")
    return SHARED


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(GOLDEN / "values.safetensors")


@pytest.fixture(scope="session")
def golden_config() -> Qwen2VLConfig:
    from transformers import Qwen2VLConfig

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
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("golden_model")
    golden_config.save_pretrained(folder)
    tensors = load_file(GOLDEN / "model.safetensors")
    state = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def golden_adapter(tmp_path_factory) -> Path:
    """The golden LoRA adapter as transformers 4 and PEFT wrote it: module names model.layers..., listed in full."""
    from safetensors.torch import load_file, save_file

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
    from lamra.miniature.world import build_world

    folder = tmp_path_factory.mktemp("world")
    build_world(folder, seed=0, train_pictures=1, gallery_pictures=11, triplets=400)
    return folder


@pytest.fixture(scope="session")
def tiny_model(world, tmp_path_factory) -> Path:
    """The miniature's architecture and tokenizer with random weights, as a folder."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from lamra.miniature.model import build_config, build_tokenizer

    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = build_tokenizer((world / "nli.csv").read_text().splitlines())
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(build_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen3(world, tmp_path_factory) -> Path:
    """The miniature of Qwen3-VL with random weights, as a folder."""
    from lamra.miniature.model import random_model

    folder = tmp_path_factory.mktemp("tiny_qwen3")
    model, _ = random_model(folder, (world / "nli.csv").read_text().splitlines(), seed=0, family="qwen3_vl")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mbeir(tmp_path_factory) -> Path:
    """The miniature M-BEIR with 8 scenes to train on and 6 to evaluate on."""
    from lamra.miniature.mbeir import build_mbeir

    folder = tmp_path_factory.mktemp("mbeir")
    build_mbeir(folder, seed=0, train=8, gallery=6)
    return folder


@pytest.fixture(scope="session")
def mbeir_20(tmp_path_factory) -> Path:
    """The miniature M-BEIR with 20 scenes to train on and 6 to evaluate on."""
    from lamra.miniature.mbeir import build_mbeir

    folder = tmp_path_factory.mktemp("mbeir_20")
    build_mbeir(folder, seed=0, train=20, gallery=6)
    return folder


@pytest.fixture(scope="session")
def stage1(tiny_model, tmp_path_factory) -> Path:
    """A model as merge_lora.sh leaves it: it remembers settings that are not the defaults."""
    from lamra.models.settings import Settings

    folder = tmp_path_factory.mktemp("stage1") / "merged"
    shutil.copytree(tiny_model, folder)
    Settings("elsewhere", "mrope", max_pixels=100 * 28 * 28).write(folder)
    return folder


@pytest.fixture(scope="session")
def mined(mbeir, tiny_model, tmp_path_factory) -> Path:
    """Wrong candidates of the training queries of `mbeir`: mined.arrow, mined.jsonl and mined.json."""
    from lamra.eval import mine_rerank

    folder = tmp_path_factory.mktemp("mined")
    call(mine_rerank.main, model_id=tiny_model, data_path=mbeir, output_dir=folder, top=6, search_depth=600, jsonl=True)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """40 pictures, 00.png to 39.png; 05, 06 and 17 cannot be read."""
    from faulty_pictures import write_pictures

    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


def keep_environment(patch: pytest.MonkeyPatch) -> None:
    """What an entrypoint sets for its libraries ends with it: a test after it may download."""
    for name, value in OFFLINE.items():
        patch.setenv(name, value)


def call(main, *flags, **named) -> None:
    """An entrypoint in this process."""
    flags = [*flags, *(part for name, value in named.items() for part in (f"--{name}", value))]
    with pytest.MonkeyPatch.context() as patch:
        keep_environment(patch)
        patch.setattr(sys, "argv", ["entrypoint", *map(str, flags)])
        run(main)


@pytest.fixture
def fails(monkeypatch, capsys):
    """Call an entrypoint with flags, expect exit status 2, return the sentence on stderr."""

    def call(main, *flags, **named):
        arguments = [*flags, *(part for name, value in named.items() for part in (f"--{name}", value))]
        keep_environment(monkeypatch)
        monkeypatch.setattr(sys, "argv", ["entrypoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            run(main)
        assert exit_.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        return error

    return call


@pytest.fixture
def disk(tmp_path):
    """A folder on a file system of its own, and a function that sets its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", folder]
        return subprocess.run(command, capture_output=True).returncode

    if mount("size=1m") != 0:
        pytest.skip("mounting a tmpfs needs root: a disk that fills is not tried through the script")
    yield folder, lambda size: mount(f"remount,size={size}")
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model is a test failure."""
    from lamra.models import loading
    from lamra.train import build  # before the first patch: imported after it, it would keep the stand-in

    for module in (loading, build):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))


def script_environment(variables: dict, real: bool = False) -> dict[str, str]:
    """This environment with the tests' own Python first, and shell variables set; stand-ins first unless `real`."""
    environment = dict(os.environ)
    folders = [str(Path(sys.executable).parent), environment["PATH"]]
    if not real:
        folders.insert(0, os.environ[STAND_INS])
        environment["PYTHON"] = f"{os.environ[STAND_INS]}/python"
    environment["PATH"] = ":".join(folders)
    return environment | {name: str(value) for name, value in variables.items()}


def run_script(
    *command: str | Path, check: bool = True, timeout: int = 600, real: bool = False, **variables
) -> subprocess.CompletedProcess:
    """Run a command of the project from its root as a user would, with shell variables set.

    Its Python processes and launchers are forks of the server, where everything is imported; with `real` they are
    started anew, by the launchers themselves.
    """
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=script_environment(variables, real),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and result.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} exited {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return result
