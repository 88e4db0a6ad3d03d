"""The house: which room may import which. Read from the code, nothing is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

# A room and the rooms below it, all that it may import.
BELOW = {
    "common": set(),
    "models": {"common"},
    "datasets": {"common"},
    "collators": {"datasets", "common"},
    "eval": {"collators", "datasets", "models", "common"},
    "train": {"collators", "datasets", "models", "common"},
    "export": {"eval", "collators", "datasets", "models", "common"},
    "app": {"eval", "collators", "datasets", "models", "common"},
    "miniature": {"collators", "datasets", "models", "common"},
}
# Training evaluates with the one encode loop and the one search; the one inspection of a model's folder reads the files
# of its processor too, and what differs between families is in one table.
ALLOWED = {("train", "lamra.eval.encode"), ("train", "lamra.eval.search")}
ALLOWED |= {("collators", f"lamra.models.{name}") for name in ("inspect", "template", "families")}
ALLOWED |= {("export", "lamra.load")}
# The robot uses a model as a user's program does, and draws its results as reports do.
ALLOWED |= {("miniature", "lamra.load"), ("miniature", "lamra.eval.reporting.figures")}

# Commands of upstream's that stand in train/ and belong to eval/: each names and starts what does the work.
NAMED_BY_UPSTREAM = {"train/mbeir_get_rerank_train_data.py", "train/mbeir_merge_rerank_train_data.py"}


def imports(path: Path) -> list[str]:
    """All modules of this project that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names]
    return [name for name in found if name.startswith("lamra.")]


def upward(room: str, path: Path) -> list[str]:
    """What a file of a room imports and may not."""
    return [
        name
        for name in imports(path)
        if (other := name.split(".")[1]) != room
        and other not in BELOW[room]
        and not any(room == of and name.startswith(module) for of, module in ALLOWED)
    ]


@pytest.mark.parametrize("room", BELOW)
def test_dependencies_point_down(room):
    files = {str(path.relative_to(ROOT)): path for path in (ROOT / room).rglob("*.py")}
    wrong = {name: found for name, path in files.items() if (found := upward(room, path))}
    assert wrong.keys() <= NAMED_BY_UPSTREAM


def test_an_upward_import_is_found(tmp_path):
    path = tmp_path / "losses.py"
    path.write_text("def f():\n    from lamra.collators.processing import Processor\n")
    assert upward("models", path) == ["lamra.collators.processing.Processor"]
    path.write_text(
        "from lamra.eval.encode import encode\nfrom lamra.eval.report import run\nfrom lamra import miniature\n"
    )
    assert upward("train", path) == ["lamra.eval.report.run", "lamra.miniature"]
    assert "lamra.eval.encode.encode" in upward("datasets", path)


def test_every_room_is_in_the_table():
    rooms = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/*.py")}
    assert rooms - {"tests", "scripts", "benchmarks", "merge_lora"} == set(BELOW)


# Beside the table: names of published models, and their licences. All families share the first's image processor.
NAMES_FAMILIES = {"models/families.py", "models/folders.py", "export/card.py"}
FAMILY = re.compile(r"qwen\d(_\d)?_vl|Qwen\d(_\d)?VL(?!ImageProcessor)(?!VideoProcessor)", re.IGNORECASE)


def test_no_family_is_asked_for_by_name():
    rooms = ("common", "models", "collators", "datasets", "train", "eval", "export", "app")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    wrong = []
    for path in files:
        if str(path.relative_to(ROOT)) in NAMES_FAMILIES:
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            code = line.split("#")[0]
            if FAMILY.search(re.sub(r"transformers\.models\.qwen2_vl\S*", "", code)):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong


def test_whoever_waits_is_told_for_what():
    """common.processes has the one way to let the first process go ahead: it says so once a minute."""
    rooms = ("models", "collators", "datasets", "train", "eval", "export", "app", "miniature")
    files = {str(path.relative_to(ROOT)): path.read_text() for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert not [name for name, text in files.items() if "main_process_first" in text]
    assert "main_process_first" in (ROOT / "common/processes.py").read_text()
