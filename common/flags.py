"""A flag is declared once: its default, its words for --help, which values have a meaning, and what its path leads to.

`Flags` checks the values when it is made, on a command line and in Python alike; `common.cli.parse` then checks the
paths, before anything is loaded.
"""

from __future__ import annotations

import math
import os
import stat
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lamra.common.errors import UserError

LIMITS = "limits"  # of a field's metadata
LARGEST_INT = 2**31 - 1  # where a flag says no other
LARGEST_FLOAT = 1e12
LARGEST_SEED = 2**32 - 1  # NumPy's
MOST_WORKERS = 256  # processes of a data loader
LONGEST_NAME = 255  # bytes; Linux
SHOWN = 200  # letters of a value in a sentence

# What a path leads to.
FILE, FOLDER, FILE_OR_FOLDER = "a file", "a folder", "a file or a folder"
OUT_FILE, OUT_FOLDER = "a file to write", "a folder to write"


@dataclass(frozen=True)
class Limits:
    """The values of a flag that have a meaning. Numbers are finite, strings are not empty.

    Attributes:
        low, above, high, below: bounds of a number: at least, more than, at most, less than.
        also: values outside of them that mean something of their own, such as -1.
        one_of: all there are.
        path: FILE, FOLDER, FILE_OR_FOLDER, OUT_FILE or OUT_FOLDER.
        inside: the flag of the folder that the path starts from.
        several: the path may be a list with commas.
        source: how a user gets what is missing.
        checked: False: the value has no meaning here, whatever it is.
    """

    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    also: Sequence[float] = ()
    one_of: Sequence[Any] | None = None
    path: str | None = None
    inside: str | None = None
    several: bool = False
    source: str | None = None
    checked: bool = True

    def admit(self, value: Any) -> bool:
        if self.one_of is not None:
            return value in self.one_of
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value in self.also:
            return True
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.one_of is not None:
            return " or ".join(dict.fromkeys(map(str, self.one_of)))
        bounds = [f"{word} {bound:g}" for word, bound in (("more than", self.above), ("below", self.below))
                  if bound is not None]  # fmt: skip
        if self.low is not None and self.high is not None:
            bounds.insert(0, f"{_short(self.low)} to {_short(self.high)}")
        elif self.low is not None:
            bounds.insert(0, f"{_short(self.low)} or more")
        elif self.high is not None:
            bounds.append(f"at most {_short(self.high)}")
        words = " and ".join(bounds)
        return ", or ".join([words, *map(_short, self.also)]) if words else ""


def _short(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


UNLIMITED = Limits()


def flag(default: Any, words: str, **limits: Any) -> Any:
    """A field of a dataclass of flags.

    Args:
        words: for --help, to which the limits are added.
        limits: those of Limits; anything else is argparse's (`choices`, `nargs`, `const`).
    """
    argument = {name: limits.pop(name) for name in list(limits) if name not in Limits.__dataclass_fields__}
    limited = Limits(**limits)
    words += f" ({limited})" if str(limited) else ""
    return field(default=default, metadata={"help": words, LIMITS: limited, **argument})


def limited(default: Any, **limits: Any) -> Any:
    """A field of a dataclass whose values come from a file and are checked by check_values."""
    return field(default=default, metadata={LIMITS: Limits(**limits)})


def require(condition: bool, flag: str, value: object, wanted: str) -> None:
    """Refuse a flag's value; `wanted` says what is expected instead."""
    if not condition:
        raise UserError(f"--{flag} {shown(value)}: expected {wanted}")


def shown(value: object) -> str:
    """A value in a sentence: in one line, and not without end."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


class Flags:
    """What a dataclass of flags is made of: its values are checked when it is made, its paths when parse says so.

    A subclass calls super().__post_init__() before it looks at values, and may fill in what is None.
    """

    def __post_init__(self) -> None:
        check_values(self, "--")

    def unread(self) -> Collection[str]:
        """Flags whose paths are not read, for what other flags say."""
        return ()

    def check_paths(self) -> None:
        """Refuse a path that does not lead to what its flag is about.

        Raises:
            UserError: there is nothing, or something else, or it cannot be written; names the flag.
        """
        for argument in fields(self):  # type: ignore[arg-type]
            limits, value = argument.metadata.get(LIMITS, UNLIMITED), getattr(self, argument.name)
            if limits.path is None or value is None or argument.name in self.unread():
                continue
            for path in listed(value) if limits.several else [value]:
                root = getattr(self, limits.inside) if limits.inside else ""
                require_path(argument.name, Path(root, path), limits.path, limits.source)


def check_values(record: Any, prefix: str) -> None:
    """Refuse values of a dataclass that are of another type than its field, outside of its limits, or not finite.

    Args:
        prefix: of a field's name in a sentence, "--" of a flag.

    Raises:
        UserError: names the field, the value and what is expected.
    """
    hints = get_type_hints(type(record))
    for argument in fields(record):
        limits, value = argument.metadata.get(LIMITS, UNLIMITED), getattr(record, argument.name)
        if not limits.checked or (value is argument.default and value != ""):
            continue
        if value is None and is_a(None, hints[argument.name]):
            continue
        wanted = None
        if not is_a(value, hints[argument.name]):
            wanted = _name(hints[argument.name])
        elif isinstance(value, float) and not math.isfinite(value):
            wanted = "a finite number"
        elif not limits.admit(value):
            wanted = str(limits)
        elif isinstance(value, bool):
            continue
        elif isinstance(value, (int, float)) and limits.high is None and limits.below is None:
            largest = LARGEST_INT if isinstance(value, int) else LARGEST_FLOAT
            wanted = None if abs(value) <= largest else f"a number between -{largest:g} and {largest:g}"
        elif value == "":
            wanted = limits.path or "a value that is not empty"
        elif limits.path and any(len(os.fsencode(part)) > LONGEST_NAME for part in value.split("/")):
            wanted = f"{limits.path} with names of at most {LONGEST_NAME} bytes"
        elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            wanted = "text in UTF-8"
        if wanted is not None:
            raise UserError(f"{prefix}{argument.name} {shown(value)}: expected {wanted}")


def is_a(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type; True for a type that is not looked into."""
    if get_origin(hint) in (Union, UnionType):
        return any(is_a(value, member) for member in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    kind = get_origin(hint) or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def _name(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_name(member) for member in get_args(hint) if member is not NoneType)
    words = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    return words.get(hint) or " or ".join(map(str, get_args(hint))) or str(hint)


def listed(paths: str) -> list[str]:
    """The paths of a list with commas; a path that exists as a whole, commas and all, is one."""
    return [paths] if os.path.exists(paths) else paths.split(",")


def require_path(flag: str, path: str | Path, kind: str, source: str | None = None) -> None:
    """Refuse a path that does not lead to a `kind`; a folder to write need not be there yet.

    Args:
        source: how a user gets it.

    Raises:
        UserError: names the flag, the path and what is wrong.
    """
    path = Path(path)

    def refuse(what: str) -> None:
        raise UserError(f"--{flag} {shown(path)} {what}")

    mode = None
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if path.is_symlink():
            refuse("is a link to nothing: mend it, or give another path")
    except OSError as error:
        if kind not in (OUT_FILE, OUT_FOLDER) or not isinstance(error, NotADirectoryError):
            refuse(f"cannot be read ({error.strerror}): expected {kind}")
    if kind == OUT_FILE and mode is not None and not stat.S_ISREG(mode):
        refuse("is no file: expected a file to write")
    if kind in (OUT_FILE, OUT_FOLDER):
        _require_writable(flag, path, path.parent if kind == OUT_FILE else path)
        return
    if mode is None:
        refuse(f"does not exist: {source or f'expected {kind}'}")
    is_file, is_folder = stat.S_ISREG(mode or 0), stat.S_ISDIR(mode or 0)
    if not ((is_file and kind != FOLDER) or (is_folder and kind != FILE)):
        refuse(f"is {'a folder' if is_folder else 'a file' if is_file else 'no file'}: expected {kind}")
    try:
        os.listdir(path) if is_folder else open(path, "rb").close()
    except OSError as error:
        refuse(f"cannot be read ({error.strerror}): give another path, or the right to it")


def _require_writable(flag: str, path: Path, folder: Path) -> None:
    """Refuse a folder that takes no new file, or, where it is not there yet, that cannot be made."""
    folder = Path(os.path.abspath(folder))
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise UserError(f"--{flag} {shown(path)}: its name has more than {LONGEST_NAME} bytes, give a shorter one")
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UserError(f"--{flag} {shown(path)} cannot be written: {there} is no folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"--{flag} {shown(path)} cannot be written ({error.strerror}): choose another place, or get the right to it"
        ) from None
