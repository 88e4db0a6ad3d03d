"""The only place where a prompt is spelt. Bytes matter: released checkpoints were trained with these strings."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from lamra.datasets.items import Item, Picture, Text, Video

# One trailing space each, as in the published checkpoints.
SUMMARIZE_TEXT = "\nSummarize above sentence in one word: "
SUMMARIZE_IMAGE = "\nSummarize above image in one word: "
SUMMARIZE_BOTH = "\nSummarize above image and sentence in one word: "
SUMMARIZE_PLURAL = "\nSummarize above images and sentences in one word: "
SUMMARIZE_VIDEO = "\nSummarize above video in one word: "
SUMMARIZE_VIDEO_AND_TEXT = "\nSummarize above video and sentence in one word: "  # in upstream's source, of no data set

# LamRA-Rank. "released" is what the published weights were trained with: a backslash in upstream's source continued its
# strings over a line's indentation, 24 blanks, and "responed" is spelt so. "clean" is the same without.
RANK_STYLES = ("released", "clean", "qwen3_reranker")
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
LISTWISE["qwen3_reranker"] = LISTWISE["clean"]  # its maker has no lists
YES, NO = "Yes", "No"
YES_NO = {"released": (YES, NO), "clean": (YES, NO), "qwen3_reranker": ("yes", "no")}

# Qwen3-VL-Reranker (arXiv 2601.04720), as in the maker's qwen3_vl_reranker.py.
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".'
)
RETRIEVE = "Given a search query, retrieve relevant candidates that answer the query."  # of a query without instruction

# Qwen3-VL-Embedding (arXiv 2601.04720), as in the maker's qwen3_vl_embedding.py.
REPRESENT = "Represent the user's input."
NOTHING = "NULL"
MOST_CANDIDATES = 5  # of a list; LamRA-Rank is trained on 2 to 5


def instructed_texts(item: Item) -> list[str]:
    """An item's words in order: the instruction, if there is one, begins the first text."""
    first, *others = item.texts or ("",)
    return [" ".join(filter(None, (item.instruction, first))), *others]


def item_content(item: Item) -> list[dict]:
    """An item inside a prompt: its parts in order, nothing between; empty texts are not there.

    The instruction stands before the first text, or where there is none, at the end.
    """
    texts = instructed_texts(item)
    content: list[dict] = []
    for part in item.parts if item.texts else (*item.parts, Text("")):
        match part:
            case Picture():
                content.append({"type": "image"})
            case Video():
                content.append({"type": "video", "video": part})
            case Text():
                content.append({"type": "text", "text": texts.pop(0)})
    return [part for part in content if part.get("text") != ""]


def embedding_messages(item: Item, style: str = "lamra") -> list[dict]:
    """The prompt whose last token becomes the item's embedding.

    Args:
        style: "lamra" asks for one word in the user turn. "qwen3_embedding" has the instruction, or REPRESENT, as the
            system turn and the item alone as the user turn; items of several texts keep the order of their parts, of
            which the maker's script says nothing.
    """
    if style == "qwen3_embedding":
        return _two_turns(_punctuated(item.instruction or "") or REPRESENT, uninstructed_content(item))
    content = item_content(item)
    kinds = {part["type"] for part in content}
    if "video" in kinds:
        request = SUMMARIZE_VIDEO_AND_TEXT if "text" in kinds else SUMMARIZE_VIDEO
    else:
        request = SUMMARIZE_TEXT if "image" not in kinds else SUMMARIZE_BOTH if "text" in kinds else SUMMARIZE_IMAGE
    if item.plural:
        request = SUMMARIZE_PLURAL
    if content and content[-1]["type"] == "text":
        request = content.pop()["text"] + request
    return [{"role": "user", "content": [*content, {"type": "text", "text": request}]}]


def uninstructed_content(item: Item) -> list[dict]:
    """An item alone, in the prompts of Qwen3-VL-Embedding and Qwen3-VL-Reranker; NOTHING where it is empty."""
    return item_content(replace(item, instruction=None)) or [{"type": "text", "text": NOTHING}]


def _two_turns(system: str, user: list[dict]) -> list[dict]:
    told = {"type": "text", "text": system}
    return [{"role": "system", "content": [told]}, {"role": "user", "content": user}]


def _punctuated(instruction: str) -> str:
    instruction = instruction.strip()
    ends = not instruction or unicodedata.category(instruction[-1]).startswith("P")
    return instruction if ends else instruction + "."


def pointwise_messages(style: str, query: Item, candidate: Item) -> list[dict]:
    """The prompt that asks whether `candidate` is what `query` looks for; the answers are those of YES_NO.

    "qwen3_reranker" has the instruction, or RETRIEVE, before the query; a candidate's own is not shown.
    """
    if style == "qwen3_reranker":
        instruct, found = ({"type": "text", "text": text} for text in (instructed(query), "\n<Document>:"))
        asked = [instruct, *uninstructed_content(query), found, *uninstructed_content(candidate)]
        return _two_turns(JUDGE, asked)
    head, middle = {"type": "text", "text": POINTWISE[style] + "Query:"}, {"type": "text", "text": "Candidate:"}
    return [{"role": "user", "content": [head, *item_content(query), middle, *item_content(candidate)]}]


def instructed(query: Item) -> str:
    """What Qwen3-VL-Reranker reads before a query's content."""
    return f"<Instruct>: {query.instruction or RETRIEVE}<Query>:"


def listwise_messages(style: str, query: Item, candidates: Sequence[Item]) -> list[dict]:
    """The user turn that asks which of `candidates` is best; `listwise_answer` spells the answers."""
    content = [{"type": "text", "text": LISTWISE[style] + "Query:"}, *item_content(query)]
    content.append({"type": "text", "text": "Candidates:"})
    for number, candidate in enumerate(candidates, start=1):
        content += [{"type": "text", "text": f"({number}) "}, *item_content(candidate)]
    return [{"role": "user", "content": content}]


def listwise_answer(number: int) -> str:
    """The answer that names a candidate, counted from 1."""
    return f"Ans: ({number})"
