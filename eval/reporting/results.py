"""The results of runs: their json files, how a command line names them, and their tables on the terminal."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.datasets.tasks import KS

Recalls = Mapping[str, Mapping[str, float]]  # name of a run -> content of its metrics.json

DIRECTIONS = {"image_retrieval_recall": "image retrieval", "text_retrieval_recall": "text retrieval"}

METRICS, MADE_BY = "metrics.json", "made_by.json"
OF_TASKS = ("files", "rankings", "tasks")  # of MADE_BY: what each task was made of
AGAIN = "delete it, and evaluate again"

# Qwen2-VL-7B after stage 1 on the Flickr30K 1K test split, zero-shot, as the practice this project starts from reports.
PRACTICE_STAGE1_FLICKR30K = {
    "image_retrieval_recall@1": 0.8056,
    "image_retrieval_recall@5": 0.9536,
    "image_retrieval_recall@10": 0.9732,
    "text_retrieval_recall@1": 0.9140,
    "text_retrieval_recall@5": 0.9910,
    "text_retrieval_recall@10": 0.9970,
}


class Parser(argparse.ArgumentParser):
    """argparse, whose refusals are a UserError like every other mistake. Flags are not abbreviated.

    Args:
        runs: what its arguments "name=..." are, a file or a folder (see named_paths); None takes none.
    """

    def __init__(self, description: str | None, runs: str | None = None):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)
        if runs:
            self.add_argument("runs", nargs="+", metavar=f"name={runs}")

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


@dataclass(frozen=True)
class Result:
    """What a run measured.

    Attributes:
        path: the json file.
        content: the object in it.
        way_out: where to find such a file, for messages.
    """

    path: Path
    content: dict
    way_out: str

    def number(self, *keys: str) -> float:
        """The finite number below nested keys; raises UserError if there is none."""
        value: object = self.content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{self.path} has no number for {' '.join(keys)}: {self.way_out}")
        return value


def write_json(path: Path, content: Mapping[str, object]) -> Path:
    """Write an object whole or not at all: keys sorted, floats in full, so that equal results are equal files.

    Raises:
        ValueError: a number is NaN or infinite; an older file still stands.
    """
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with whole_file(path) as file:
        file.write(text)
    return path


def read_result(path: Path, way_out: str) -> Result:
    """Read a run's json file; raises UserError if it cannot be read or holds no json object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {way_out}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {way_out}") from None
    except ValueError as error:
        raise UserError(f"{path} is no json ({error}): {way_out}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no json object but a {type(content).__name__}: {way_out}")
    return Result(path, content, way_out)


def of_earlier_tasks(folder: Path, made_by: Mapping[str, object]) -> tuple[dict, dict]:
    """metrics.json and made_by.json of an earlier run with the same model and settings, perhaps of other tasks.

    Two empty dicts where there is nothing, or where another model or other settings wrote it, which is said.

    Args:
        made_by: what decides the numbers of every task.
    """
    metrics, maker = folder / METRICS, folder / MADE_BY
    if not metrics.exists() or not maker.exists():
        return {}, {}
    earlier = read_result(maker, AGAIN).content
    names = (name for name in {**made_by, **earlier} if name not in OF_TASKS)
    if other := [name for name in names if earlier.get(name) != made_by.get(name)]:
        note(f"{metrics} is replaced: an earlier run with another {', '.join(other)} wrote it")
        return {}, {}
    return read_result(metrics, AGAIN).content, earlier


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def read_results(arguments: Sequence[str], way_out: str) -> dict[str, Result]:
    """Arguments "name=metrics.json" to name -> result; raises UserError as named_paths and read_result."""
    return {name: read_result(path, way_out) for name, path in named_paths(arguments, "metrics.json").items()}


def named_paths(arguments: Sequence[str], kind: str) -> dict[str, Path]:
    """Arguments "name=path" to name -> path; raises UserError for another form or a name that stands twice."""
    paths: dict[str, Path] = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not name or not path or name in paths:
            raise UserError(f'{argument!r} is not "name={kind}" with a name of its own')
        paths[name] = Path(path)
    return paths


def print_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, name_width: int = 0, cell_width: int = 0
) -> None:
    """Print columns of text: the first aligned to the left, the others to the right, two blanks between them.

    Args:
        heads: the first line.
        rows: lines of as many cells as `heads`.
        name_width: least width of the first column.
        cell_width: least width of the others, their two blanks included.
    """
    lines = [heads, *rows]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    for name, *cells in lines:
        widths = (max(width + 2, cell_width) for width in others)
        print(f"{name:<{max(first, name_width)}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths)))


def print_recalls(rows: Recalls) -> None:
    """Print one line a run: recall@1, 5 and 10 of image retrieval, then of text retrieval."""
    name_width = max(map(len, rows), default=0)
    group = len(KS) * len("  0.1234")
    print(" " * name_width + "".join(f"  {title:>{group}}" for title in DIRECTIONS.values()))
    heads, lines = [""], [[name] for name in rows]
    for direction in DIRECTIONS:
        heads += ["", *(f"R@{k}" for k in KS)]  # an empty column sets the directions apart
        for line, recalls in zip(lines, rows.values()):
            line += ["", *(f"{recalls[f'{direction}@{k}']:.4f}" for k in KS)]
    print_table(heads, lines)
