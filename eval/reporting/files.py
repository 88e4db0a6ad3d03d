"""The files of an evaluation: metrics.json and made_by.json. Each is written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lamra.common.files import whole_file


def write_json(path: str | Path, content: Mapping[str, object]) -> Path:
    """Write an object: keys sorted, floats in full, so that equal results are equal files.

    Raises:
        ValueError: a number is NaN or infinite; an older file still stands.
    """
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with whole_file(path) as file:
        file.write(text)
    return Path(path)


def write_metrics(folder: str | Path, metrics: Mapping[str, object]) -> Path:
    """Write metrics.json into `folder`; see write_json."""
    return write_json(Path(folder) / "metrics.json", metrics)


def write_provenance(folder: str | Path, provenance: Mapping[str, object]) -> Path:
    """Write made_by.json beside rankings: the digests of what was really used (see cache.manifest.provenance_of)."""
    return write_json(Path(folder) / "made_by.json", provenance)
