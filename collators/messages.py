"""The only place where a prompt is spelt. Bytes matter: released checkpoints were trained with these strings."""

from __future__ import annotations

from collections.abc import Sequence

from lamra.datasets.items import Item

# One trailing space each, as in the published checkpoints.
SUMMARIZE_TEXT = "\nSummarize above sentence in one word: "
SUMMARIZE_IMAGE = "\nSummarize above image in one word: "
SUMMARIZE_BOTH = "\nSummarize above image and sentence in one word: "

# Flickr30K and COCO retrieval with an instruction-tuned model (`--mode finetuned`).
INSTRUCTION_TEXT_TO_IMAGE = "Find me an everyday image that matches the given caption."
INSTRUCTION_IMAGE_TO_TEXT = "Find an image caption describing the following everyday image."

# LamRA-Rank. "released" is what the published weights were trained with: a backslash in upstream's source continued its
# strings over a line's indentation, 24 blanks, and "responed" is spelt so. "clean" is the same without.
RANK_STYLES = ("released", "clean")
POINTWISE = {
    "released": "I will provide you with a query and a candidate. Please evaluate whether the candidate"
    + 24 * " "
    + "meets the requirements of the query. If it does, respond with 'Yes'; if it doesn't, responed with 'No'.",
    "clean": "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the "
    "requirements of the query. If it does, respond with 'Yes'; if it doesn't, respond with 'No'.",
}
LISTWISE = {
    "released": "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, "
    "etc. Each candidate is independent of the others. "
    + 24
    * " "
    + "Evaluate each candidate against the query, and respond with the number corresponding to the candidate that best "
    "meets the requirements of the query.",
    "clean": "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, etc. "
    "Each candidate is independent of the others. Evaluate each candidate against the query, and respond with the "
    "number corresponding to the candidate that best meets the requirements of the query.",
}
YES, NO = "Yes", "No"
MOST_CANDIDATES = 5  # of a list; LamRA-Rank is trained on 2 to 5


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


def shown(item: Item) -> list[dict]:
    """A query or a candidate inside a rank prompt: its picture, then its text, nothing between."""
    text = instructed_text(item)
    return [{"type": "image"} for _ in item.images] + ([{"type": "text", "text": text}] if text else [])


def pointwise_messages(style: str, query: Item, candidate: Item) -> list[dict]:
    """The user turn that asks whether `candidate` is what `query` looks for; the answers are YES and NO."""
    head, middle = {"type": "text", "text": POINTWISE[style] + "Query:"}, {"type": "text", "text": "Candidate:"}
    return [{"role": "user", "content": [head, *shown(query), middle, *shown(candidate)]}]


def listwise_messages(style: str, query: Item, candidates: Sequence[Item]) -> list[dict]:
    """The user turn that asks which of `candidates` is best; `listwise_answer` spells the answers."""
    content = [{"type": "text", "text": LISTWISE[style] + "Query:"}, *shown(query)]
    content.append({"type": "text", "text": "Candidates:"})
    for number, candidate in enumerate(candidates, start=1):
        content += [{"type": "text", "text": f"({number}) "}, *shown(candidate)]
    return [{"role": "user", "content": content}]


def listwise_answer(number: int) -> str:
    """The answer that names a candidate, counted from 1."""
    return f"Ans: ({number})"
