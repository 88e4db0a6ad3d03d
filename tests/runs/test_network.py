"""A training and an evaluation reach for nothing but loopback, by whatever library or language: the system tells."""

from __future__ import annotations

import ipaddress
import re
import shutil
from pathlib import Path

import pytest
from conftest import run_script

ADDRESS = re.compile(r'(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')


def reached(*command: str | Path, log: Path, **variables) -> set[str]:
    """The addresses that a command and all that it starts connect or send to, without loopback."""
    calls = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", log]
    run_script(*calls, *command, real=True, **variables)
    found = {ipaddress.ip_address(address) for address in ADDRESS.findall(log.read_text())}
    assert any(address.is_loopback for address in found)  # it does see what is there
    return {str(address) for address in found if not (getattr(address, "ipv4_mapped", None) or address).is_loopback}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is absent: that nothing is reached is not tried")
def test_nothing_but_loopback_is_reached(world, tiny_model, tmp_path):
    run = tmp_path / "run"
    training = dict(MODEL_ID="miniature", MODEL_LOCAL_PATH=tiny_model, TRAIN_DATA_PATH=world / "nli.csv")
    training |= dict(DS_STAGE="none", BF16=False, PER_DEVICE_BATCH_SIZE=8, OUTPUT_DIR=run, NUM_GPUS=2)
    flags = ("--max_steps", "1", "--dataloader_num_workers", "1")
    assert not reached("bash", "scripts/lamra_ret/pretrain.sh", *flags, log=tmp_path / "training", **training)
    evaluation = dict(MODEL_ID=run, DATASETS="flickr", NUM_GPUS=2)
    evaluation |= dict(FLICKR_IMAGES=world / "test/images", FLICKR_TEXTS=world / "test/captions.json")
    command = ("bash", "scripts/eval/eval_pretrained.sh", "--output_dir", tmp_path / "out")
    assert not reached(*command, log=tmp_path / "evaluation", **evaluation)
