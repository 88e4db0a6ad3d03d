"""The only place where a prompt is spelt. Bytes matter: released checkpoints were trained with these strings."""

from __future__ import annotations

from lamra.datasets.items import Item

# One trailing space each, as in the published checkpoints.
SUMMARIZE_TEXT = "\nSummarize above sentence in one word: "
SUMMARIZE_IMAGE = "\nSummarize above image in one word: "
SUMMARIZE_BOTH = "\nSummarize above image and sentence in one word: "

# Flickr30K and COCO retrieval with an instruction-tuned model (`--mode finetuned`).
INSTRUCTION_TEXT_TO_IMAGE = "Find me an everyday image that matches the given caption."
INSTRUCTION_IMAGE_TO_TEXT = "Find an image caption describing the following everyday image."


def instructed_text(item: Item) -> str:
    """An item's own part of its prompt: the instruction, then the text."""
    return " ".join(part for part in (item.instruction, item.text) if part)


def embedding_messages(item: Item) -> list[dict]:
    """The user turn whose generation prompt ends at the token that becomes the item's embedding."""
    text = instructed_text(item)
    if not item.images:
        prompt = text + SUMMARIZE_TEXT
    elif text:
        prompt = text + SUMMARIZE_BOTH
    else:
        prompt = SUMMARIZE_IMAGE
    content = [{"type": "image"} for _ in item.images] + [{"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]
