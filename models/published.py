"""Published embedders and rerankers, whose prompts and tokenizers are not LamRA's. Imports nothing slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lamra.models.folders import read_object

ENDING = "<|endoftext|>"  # what the tokenizers of Qwen's embedders put after each text
LIBRARY_MARKS = ("modules.json", "config_sentence_transformers.json")  # of sentence-transformers
RERANKER_SCRIPT = "scripts/*_reranker.py"  # what Qwen's rerankers have beside their weights, older ones without marks


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
    if is_published_reranker(folder):
        return False
    if any((folder / mark).is_file() for mark in LIBRARY_MARKS):
        return True
    path = folder / "tokenizer.json"
    return path.is_file() and ending_id(read_object(path)) is not None


def is_published_reranker(folder: str | Path) -> bool:
    """Whether a published folder is a reranker that answers yes or no to prompts of its own: Qwen3-VL-Reranker."""
    library = Path(folder, LIBRARY_MARKS[1])
    kind = read_object(library).get("model_type") if library.is_file() else None
    return kind == "CrossEncoder" or any(Path(folder).glob(RERANKER_SCRIPT))
