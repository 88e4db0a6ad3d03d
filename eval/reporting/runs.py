"""The json files that runs write, and how the command line of a report names the runs that it compares."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lamra.common.errors import UserError
from lamra.common.files import whole_file


class Parser(argparse.ArgumentParser):
    """argparse, whose refusals are a UserError like every other mistake. Flags are not abbreviated."""

    def __init__(self, description: str | None):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser_of_runs(description: str | None, kind: str) -> Parser:
    """A parser whose `runs` are arguments "name=`kind`", a file or a folder (see named_paths)."""
    parser = Parser(description)
    parser.add_argument("runs", nargs="+", metavar=f"name={kind}")
    return parser


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
