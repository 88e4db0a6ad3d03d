"""What every script starts: whole commands, as commands.txt says, with defaults, with edited values, with flags behind.

A stand-in for Python and the launchers records the commands and starts nothing. Each of them must also be a command
line that its entrypoint's parser takes. `python tests/scripts/test_commands.py` writes commands.txt anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/support"))
import slurm  # noqa: E402

TRANSCRIPT = Path(__file__).with_name("commands.txt")
NO_COMMAND = {"scripts/env.sh", "scripts/setup.sh", "scripts/test.sh", "scripts/types.sh", "scripts/study/env.sh",
              "scripts/eval/suite.sh", "scripts/slurm/job.sh"}  # fmt: skip


def blocks() -> dict[str, list[list[str]]]:
    """What stands behind a `$` in commands.txt -> the commands below it."""
    found: dict[str, list[list[str]]] = {}
    for line in TRANSCRIPT.read_text().splitlines():
        if line.startswith("$ "):
            found[line[2:]] = commands = []
        elif line.startswith("      "):
            commands[-1] += shlex.split(line)
        elif line.strip():
            commands.append(shlex.split(line))
    return found


BLOCKS = blocks()
ENTRYPOINTS = sorted({word for commands in BLOCKS.values() for command in commands for word in command
                      if word.endswith(".py") and word != "common/tether.py"})  # fmt: skip


def make_checkout(folder: Path) -> Path:
    """The repository as a folder in which scripts may write and delete; its setup has been done."""
    for path in ROOT.iterdir():
        if path.is_dir() and path.name not in ("scripts", "checkpoints", "results", "data") and path.name[0] != ".":
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "scripts/setup.sh").write_text("")
    (folder / "bin").mkdir()
    stand_in = shlex.join([sys.executable, "-IS", str(ROOT / "tests/support/stand_in.py"), "python"])
    (folder / "bin/python").write_text(f'#!/bin/sh\nexec {stand_in} "$@"\n')
    (folder / "bin/python").chmod(0o755)
    slurm.stand_ins(folder / "bin")
    return folder


def recorded(checkout: Path, command: str, **variables) -> tuple[list[list[str]], subprocess.CompletedProcess]:
    """What a line of bash starts in a checkout, with nothing of this process's environment."""
    record = checkout / "record"
    record.unlink(missing_ok=True)
    environment = dict(PATH=f"{checkout}/bin:{os.environ['PATH']}", PYTHON=f"{checkout}/bin/python")
    environment |= dict(CUDA_VISIBLE_DEVICES="", LAMRA_RECORD=str(record)) | variables
    done = subprocess.run(
        ["bash", "-c", command], cwd=checkout, env=environment, capture_output=True, text=True, timeout=60
    )
    lines = record.read_text().splitlines() if record.exists() else []
    return [json.loads(line) for line in lines], done


@pytest.fixture
def checkout(tmp_path) -> Path:
    return make_checkout(tmp_path)


@pytest.mark.parametrize("line", BLOCKS)
def test_what_a_script_starts(checkout, line):
    commands, done = recorded(checkout, line)
    assert done.returncode == 0, done.stderr
    assert commands == BLOCKS[line]


def test_every_script_and_every_variable_is_tried():
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "scripts").rglob("*.*sh")}
    scripts |= {str(path.relative_to(ROOT)) for path in (ROOT / "scripts").rglob("*.sbatch")}
    for script in scripts - NO_COMMAND:
        lines = [line for line in BLOCKS if script in line]
        assert lines, script
        text = (ROOT / script).read_text()
        for sourced in ("scripts/study/env.sh", "scripts/eval/suite.sh"):
            if f"source {sourced}" in text:
                text += (ROOT / sourced).read_text()
        for name in re.findall(r"\b([A-Z_]+)=\$\{\1:-", text):
            assert any(re.search(rf"\b{name}=", line) for line in lines), f"{script}: {name} has its default everywhere"


class Parsed(Exception):
    pass


ENTRYPOINTS = {part for command in sum(BLOCKS.values(), []) for part in command if part[-3:] == ".py"}
ENTRYPOINTS -= {"common/tether.py"}  # takes any command


@pytest.mark.parametrize("entrypoint", sorted(ENTRYPOINTS))
def test_every_command_line_is_one_that_its_entrypoint_takes(entrypoint, monkeypatch):
    parse = argparse.ArgumentParser.parse_known_args

    def only_parse(self, *args, **kwargs):
        _namespace, unknown = parse(self, *args, **kwargs)
        assert not unknown
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", only_parse)
    monkeypatch.chdir(ROOT)
    for command in sum(BLOCKS.values(), []):
        if entrypoint in command:
            monkeypatch.setattr(sys, "argv", command[command.index(entrypoint) :])
            with pytest.raises(Parsed):
                runpy.run_path(entrypoint, run_name="__main__")


def test_a_flag_that_no_entrypoint_has_would_be_found(monkeypatch):
    monkeypatch.setitem(
        BLOCKS, "x", [["python", "export/merge_lora.py", "--model_id", "a", "--save_path", "b", "--model", "c"]]
    )
    with pytest.raises(AssertionError):
        test_every_command_line_is_one_that_its_entrypoint_takes("export/merge_lora.py", monkeypatch)


def variables_of_scripts() -> set[str]:
    """All that a user may set, but for what chooses Python itself and its packages."""
    files = [path for path in (ROOT / "scripts").rglob("*") if path.suffix in (".sh", ".sbatch")]
    found = {name for path in files for name in re.findall(r"\b([A-Z][A-Z0-9_]+)=\$\{\1:-", path.read_text())}
    return found - {"PYTHON", "PIP_ARGS", "CONSTRAINTS", "OMP_NUM_THREADS", "TEST_WORKERS"}


COMMAND = "-a[$(touch ran)]"  # bash runs it where it takes the variable for a number


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (dict(OUTPUT_DIR="-out"), "error: OUTPUT_DIR=-out: expected a value that does not begin with a dash"),
        (dict(NNODES="2", NODE_RANK="0"), "is in use here: set another, the same on all machines"),
        *(({name: COMMAND}, f"error: {name}={COMMAND}: expected ") for name in sorted(variables_of_scripts())),
        (dict(NUM_GPUS="a[$(touch ran)]"), "error: NUM_GPUS=a[$(touch ran)]: expected a whole number, 1 or more"),
        (dict(NNODES="abc"), "error: NNODES=abc: expected a whole number, 1 or more"),
        (dict(NODE_RANK="2", NNODES="2"), "error: NODE_RANK=2: expected less than NNODES=2"),
        (dict(MASTER_PORT="65536"), "error: MASTER_PORT=65536: expected a port"),
        (dict(NUM_GPUS="08"), "error: NUM_GPUS=08: expected a whole number"),
        (dict(DATASETS="flickr nowhere"), "error: DATASETS=flickr nowhere: expected flickr or coco"),
    ],
)
def test_scripts_tell_a_mistake(checkout, variables, words):
    with socket.socket() as server:
        server.bind(("localhost", 0))
        server.listen()
        port = str(server.getsockname()[1])
        variables = dict(MASTER_PORT=port) | variables
        commands, done = recorded(checkout, "bash scripts/lamra_ret/pretrain.sh", **variables)
    assert not commands and done.returncode == 2 and not (checkout / "ran").exists()
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_checkout_that_was_copied_gets_a_python_environment_of_its_own(tmp_path):
    """The old one's starts the code of the old place."""
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "scripts").mkdir(parents=True)
    (old / "bin").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", old / "scripts")
    for name in ("requirements.txt", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, old)
    # In the place of Python: makes an environment whose pip names it, and says so.
    (old / "bin/python").write_text(
        """#!/bin/bash
case "$*" in
  "-m venv --clear .venv")
    echo "made anew"
    rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python
    echo "#!$PWD/.venv/bin/python" >.venv/bin/pip ;;
esac
"""
    )
    (old / "bin/python").chmod(0o755)

    def setup(folder: Path) -> str:
        command = ["bash", "scripts/setup.sh"]
        environment = os.environ | {"PYTHON": str(folder / "bin/python")}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 2), done.stderr
        return done.stdout + done.stderr

    assert "made anew" in setup(old) and setup(old) == ""
    shutil.copytree(old, new)
    assert "made anew" in setup(new) and setup(new) == ""
    shutil.rmtree(new / ".venv")
    (new / ".venv").symlink_to(old / ".venv")
    assert setup(new).endswith(f"error: .venv is a link to {old}/.venv, where another folder's code is installed: "
                               "delete the link\n")  # fmt: skip
    assert (old / ".venv/installed").exists()


@pytest.mark.parametrize(("status", "preempted", "ends"), [(0, False, 0), (3, False, 3), (1, True, 75)])
def test_slurm_queues_a_preempted_job_again(checkout, status, preempted, ends):
    run = checkout / "run"
    run.mkdir()
    if preempted:  # as a run leaves it; its lock keeps the next start from deleting it
        (run / "preempted").touch()
        (run / ".lock").touch()
    variables = slurm.job(2, OUTPUT_DIR="run", LAMRA_RECORD_STATUS=str(status), NUM_GPUS="4")
    commands, done = recorded(checkout, "bash scripts/slurm/pretrain.sbatch", **variables)
    assert done.returncode == ends
    ranks = [command[command.index("--node_rank") + 1 :][:5] for command in commands]
    assert sorted(ranks) == [[rank, "--master_addr", "localhost", "--master_port", "20017"] for rank in "01"]
    assert all(command[:3] == ["torchrun", "--nnodes", "2"] for command in commands)
    requeued = checkout / "bin/step.scontrol"
    assert (requeued.read_text() if requeued.exists() else "") == ("scontrol requeue 17\n" if preempted else "")


def test_a_job_file_is_no_script(checkout):
    commands, done = recorded(checkout, "bash scripts/slurm/mine.sbatch")
    assert not commands and done.returncode == 2
    assert done.stderr.endswith(" submit it with sbatch, or start scripts/lamra_rank/mine.sh itself\n")


def main() -> None:
    text = ""
    for line in BLOCKS:
        with tempfile.TemporaryDirectory() as folder:
            commands, done = recorded(make_checkout(Path(folder)), line)
        if done.returncode:
            sys.exit(f"{line}: {done.stderr}")
        text += f"$ {line}\n"
        for command in commands:
            rows = [" "]
            for word in map(shlex.quote, command):
                if len(rows[-1]) + len(word) > 110:
                    rows.append(5 * " ")
                rows[-1] += f" {word}"
            text += "\n".join(rows) + "\n"
        text += "\n"
    TRANSCRIPT.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
