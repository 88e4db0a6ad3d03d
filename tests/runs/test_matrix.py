"""Two processes equal one, in loss and in every gradient: all combinations of what could make them differ.

Family of the base model, data parallelism, where the pictures are, what of the vision tower is trained, gradient cache
and hard negatives. A rank without pictures must not leave out what the others do together: gloo aborts then, and NCCL
hangs.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from itertools import product
from pathlib import Path

import matrix_worker
import pytest
import torch
from conftest import script_environment
from families import random_model
from matrix_worker import CELLS, OTHERS, PARALLEL, QUERIES, TRAINED, WORLD
from safetensors.torch import save_file

LIMIT = 400  # seconds for all cells, which take 60; an exchange that the other process does not join ends after 100
APART = ("temperature, cache off", "temperature, cache on", "evaluation", "reranker")
NAMES = [*map(str, CELLS), *(f"{p}, {part}" for p in PARALLEL for part in APART)]


def global_batch(data: str, hard_negatives: int, family: str) -> list[dict]:
    """The rows of all ranks: queries, positives, hard negatives."""
    of_ranks = matrix_worker.rows(data, hard_negatives, family)
    parts = [slice(0, QUERIES), slice(QUERIES, 2 * QUERIES), slice(2 * QUERIES, None)]
    return [row for part in parts for of_rank in of_ranks for row in of_rank[part]]


def in_one_process(folder: Path) -> dict[str, torch.Tensor]:
    """Loss and gradients of every reference on the global batch, padded and at once."""
    expected = {}

    def note(name: str, model, loss) -> None:
        model.zero_grad()
        loss.backward()
        expected[f"{name}/loss"] = loss.detach().clone()
        for parameter, p in model.named_parameters():
            if p.grad is not None:
                expected[f"{name}/{parameter}"] = p.grad.clone()

    for family, trained in product(("qwen2_vl", *OTHERS), TRAINED):
        model, _ = matrix_worker.build(folder / family, trained)
        for cell in CELLS:
            if (cell.family, cell.trained) == (family, trained) and f"{cell.reference}/loss" not in expected:
                rows = global_batch(cell.data, cell.hard_negatives, family)
                note(cell.reference, model, matrix_worker.contrastive_loss(model, rows, WORLD * QUERIES))
        if (family, trained) == ("qwen2_vl", "frozen"):
            with torch.no_grad():
                for rank, rows in enumerate(matrix_worker.rows("pictures on one rank", 0)):
                    expected[f"evaluation/{rank}"] = model(**matrix_worker.collated(rows))
    model, _ = matrix_worker.build(folder / "qwen2_vl", "projector", learn_temperature=True)
    loss = matrix_worker.loss_with_options(model, global_batch("mixed", 2, "qwen2_vl"), WORLD * QUERIES)
    note("temperature", model, loss)
    assert "temperature/temperature.offset" in expected
    model, _ = matrix_worker.build(folder / "qwen2_vl", "projector", matrix_worker.build_reranker)
    rows = sum(matrix_worker.rows("pictures on one rank", 0), [])
    note("reranker", model, matrix_worker.answer_loss(model, rows))
    return expected


@pytest.fixture(scope="module")
def report(golden_folder, tmp_path_factory) -> dict[str, dict]:
    """What the two processes measured, by cell, and how they ended."""
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "qwen2_vl").symlink_to(golden_folder)
    for family in OTHERS:
        random_model(family).save_pretrained(folder / family)
    save_file(in_one_process(folder), folder / "expected.safetensors")
    (folder / "wanted.json").write_text(json.dumps(NAMES))
    return run_workers(folder)


def run_workers(folder: Path) -> dict[str, dict]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | dict(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE=str(WORLD))
    environment |= dict(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    ranks, python = [], script_environment({})["PYTHON"]  # forks of the server
    for rank in map(str, range(WORLD)):
        with open(folder / f"output{rank}", "w") as output:
            command = [python, matrix_worker.__file__, str(folder)]
            variables = environment | dict(RANK=rank, LOCAL_RANK=rank)
            ranks.append(subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT))
    try:
        for process in ranks:
            process.wait(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    reports = [folder / f"report{rank}.jsonl" for rank in range(WORLD)]
    lines = [json.loads(line) for path in reports if path.exists() for line in path.read_text().splitlines()]
    found = {line["name"]: line for line in lines if line["name"] != "different"}
    said = [line["said"] for line in lines if line["name"] == "different"]
    ends = [(folder / f"output{rank}").read_text()[-1500:] for rank in range(WORLD)]
    return found | {"different": said, "ends": "\n---\n".join(ends)}


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(report, name):
    assert name in report, f"the processes never got to the end of this cell:\n{report['ends']}"
    assert report[name]["loss"] <= 1e-5 and report[name]["gradient"] <= 1e-5, report[name]


def test_different_numbers_of_hard_negatives_are_refused_on_every_rank(report):
    assert len(report["different"]) == WORLD
    for sentence in report["different"]:
        assert "hard negatives" in sentence
