"""Secrets that a user's flags may hold are neither recorded nor printed: tokens, keys, and passwords in URLs."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
SECRET_NAME = re.compile(r"(^|[_.-])(token|password|passwd|secret|api[_-]?key|credentials?)$", re.IGNORECASE)
# "https://user:password@host" and "https://token@host"; what hubs and clouds begin their tokens with.
IN_TEXT = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)|\bhf_\w{8,}|\bgh[a-z]_\w{16,}|\bsk-[\w-]{16,}|\bAKIA\w{16}\b")


def is_secret(name: str) -> bool:
    """Whether a flag or field of this name holds a secret: hub_token, api_key, ..."""
    return bool(SECRET_NAME.search(name))


def without_secrets(value: Any) -> Any:
    """The same with *** for each secret; lists are command lines ("--hub_token", "x") or other values."""
    match value:
        case str():
            name, equals, given = value.partition("=")
            if given and is_secret(name):
                return f"{name}{equals}{HIDDEN}"
            return IN_TEXT.sub(HIDDEN, value)
        case dict():
            return {
                name: HIDDEN if entry and isinstance(name, str) and is_secret(name) else without_secrets(entry)
                for name, entry in value.items()
            }
        case list() | tuple():
            after_name = [False, *(isinstance(word, str) and word[:2] == "--" and is_secret(word) for word in value)]
            return [HIDDEN if hidden else without_secrets(word) for hidden, word in zip(after_name, value)]
    return value
