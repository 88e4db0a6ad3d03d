"""What each machine of a run has of its own, and must be the same on all: code, packages, data, weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.processes import of_all_processes, several_processes

ROOT = Path(__file__).resolve().parents[1]
CODE = ("common", "models", "datasets", "collators", "train", "eval")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "flash-attn", "numpy", "pillow")


def several_machines() -> bool:
    """Whether a launcher on another machine takes part."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    return several_processes() and world > int(os.environ.get("LOCAL_WORLD_SIZE", world))


def is_first_of_machine() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def require_alike(found: Mapping[str, object]) -> None:
    """Refuse a run whose machines differ; all processes must call this, and on one machine nothing is compared.

    Args:
        found: what this process sees, by the name that a sentence calls it.

    Raises:
        UserError: another machine sees something else than the first; names it and the machine.
    """
    if not several_machines():
        return
    (first, expected), *others = of_all_processes([(socket.gethostname(), dict(found))])
    for machine, seen in others:
        for name, value in expected.items():
            if seen.get(name) != value:
                raise UserError(f"{name} is not the same on {machine} as on {first}: all machines need an equal one")


def require_same_code() -> None:
    """`require_alike` of this project's code and of the packages that decide results."""
    if several_machines():
        versions = {f"the package {name}": version for name, version in package_versions().items()}
        require_alike({f"the code in {ROOT}": code_sha256(), **versions})


def code_sha256() -> str:
    """Of the Python files that a run imports, their names and their bytes."""
    found = hashlib.sha256()
    for path in sorted(path for room in CODE for path in (ROOT / room).rglob("*.py")):
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def package_versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]} | dict.fromkeys(PACKAGES, "not installed")
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
