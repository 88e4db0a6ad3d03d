"""Published embedders, whose prompts and tokenizers are not LamRA's. Imports nothing slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lamra.models.folders import read_object

ENDING = "<|endoftext|>"  # what the tokenizers of Qwen's embedders put after each text
EMBEDDER_MARKS = ("modules.json", "config_sentence_transformers.json")


def ending_id(tokenizer: dict[str, Any]) -> int | None:
    """The id of ENDING where a tokenizer.json's post-processor puts it after each text and adds nothing else."""
    post = tokenizer.get("post_processor")
    steps = post.get("processors") if isinstance(post, dict) and post.get("type") == "Sequence" else [post]
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        return None
    *before, last = steps
    template = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": ENDING, "type_id": 0}}]
    if any(step.get("type") != "ByteLevel" for step in before) or last.get("single") != template:
        return None
    match last.get("special_tokens"):
        case {"<|endoftext|>": {"ids": [int(number)]}}:
            return number
    return None


def is_published_embedder(folder: str | Path) -> bool:
    """Whether a published folder is an embedder, with prompts of its own: it is one of sentence-transformers, or its
    tokenizer puts ENDING after each text."""
    folder = Path(folder)
    if any((folder / mark).is_file() for mark in EMBEDDER_MARKS):
        return True
    path = folder / "tokenizer.json"
    return path.is_file() and ending_id(read_object(path)) is not None
