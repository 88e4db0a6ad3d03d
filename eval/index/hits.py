"""What a search finds. Imports nothing slow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        key, kind, folder, path, text: see rows.Row.
        score: cosine with the query; None of what was not searched for.
        thumbnail: a JPEG; b"" for a text.
        line: see rows.Row.
    """

    key: str
    kind: str
    folder: str
    path: str
    text: str
    score: float | None
    thumbnail: bytes
    line: str
