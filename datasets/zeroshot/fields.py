"""What the readers of zero-shot data share: fields of a row by their type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from lamra.common.errors import UserError
from lamra.common.files import Row, path_inside, read_json
from lamra.datasets.items import is_blank


def read(path: Path, data: str) -> Any:
    """The value of a json file of `data`; raises as files.read_json, and where it does not exist."""
    if not path.exists():
        raise UserError(f"{data}: {path} does not exist: give the file with its annotations")
    return read_json(path)


def text(row: Row, name: str, *, blank: bool = False) -> str:
    """A field that is a string; `blank` allows one that shows nothing.

    Raises:
        UserError: it is missing or something else; names file and row.
    """
    value = row[name]
    if not isinstance(value, str) or (is_blank(value) and not blank):
        _refuse(row.location, name, value, "a string" if blank else "a text")
    return value


def identifier(row: Row, name: str) -> str:
    """A field that is an id, a string or a whole number, as a string: files spell one id both ways; raises as text."""
    value = row[name]
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        _refuse(row.location, name, value, "a string or a whole number")
    return str(value)


def whole_number(row: Row, name: str) -> int:
    """A field that is a whole number; raises as `text`."""
    value = row[name]
    if not isinstance(value, int) or isinstance(value, bool):
        _refuse(row.location, name, value, "a whole number")
    return value


def listed(row: Mapping[str, Any], location: str, name: str) -> list:
    """A field that is a list with something in it; raises as `text`."""
    value = row[name]
    if not isinstance(value, list) or not value:
        _refuse(location, name, value, "a list that is not empty")
    return value


def picture_path(folder: str | Path, name: str, location: str) -> Path:
    """The picture `name` below `folder`.

    Raises:
        UserError: it lies elsewhere; names file and row.
    """
    try:
        return path_inside(folder, name)
    except UserError as error:
        raise UserError(f"{location}: {error}") from None


def _refuse(location: str, name: str, value: object, wanted: str) -> NoReturn:
    raise UserError(f'{location}: "{name}" is {str(value)[:80]!r}: {wanted} is expected')
