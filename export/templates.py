"""Chat templates for sentence-transformers: from its messages to this project's prompts, byte for byte.

sentence-transformers passes an instruction as a system turn, and a pair for a reranker as the roles "query" and
"document". Both templates end with the generation prompt, which its tools and vLLM's embedding API do not ask for.
"""

from __future__ import annotations

import re

from lamra.collators.messages import JUDGE as JUDGE_TURN
from lamra.collators.messages import (
    NOTHING,
    POINTWISE,
    RETRIEVE,
    SUMMARIZE_BOTH,
    SUMMARIZE_IMAGE,
    SUMMARIZE_TEXT,
    SUMMARIZE_VIDEO,
    SUMMARIZE_VIDEO_AND_TEXT,
)
from lamra.collators.processing import Processor
from lamra.models.template import PICTURE

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
SLOT = "the user's content"

# Of each role what its turns hold: what is seen, in its order, before what is read.
COLLECT = """{%- for message in messages -%}{%- if message['content'] is string -%}
    {%- if message['role'] == ROLE -%}{%- set ns.TEXT = ns.TEXT + message['content'] -%}{%- endif -%}
  {%- elif message['role'] == ROLE -%}{%- for part in message['content'] -%}
    {%- if part['type'] in ('image', 'image_url') -%}{%- set ns.SEEN = ns.SEEN + PICTURE -%}
    {%- elif part['type'] in ('video', 'video_url') -%}VIDEO_PART
    {%- elif 'text' in part -%}{%- set ns.TEXT = ns.TEXT + part['text'] -%}{%- endif -%}
  {%- endfor -%}{%- endif -%}{%- endfor -%}
"""
SHOW_VIDEO = "{%- set ns.SEEN = ns.SEEN + VIDEO -%}"
NO_VIDEO = "{{- raise_exception('this model takes texts and pictures here, no videos') -}}"
EMBED = """{%- set ns = namespace(instruction='', text='', seen='', none='', ready=false) -%}
INSTRUCTION_TURNS
USER_TURNS
{%- for end in (
  SUMMARIZE_TEXT, SUMMARIZE_IMAGE, SUMMARIZE_BOTH, SUMMARIZE_VIDEO, SUMMARIZE_VIDEO_AND_TEXT
) -%}{%- if ns.text.endswith(end) -%}{%- set ns.ready = true -%}{%- endif -%}{%- endfor -%}
{%- set whole = ns.text -%}
{%- if not ns.ready -%}
  {%- set whole = ns.instruction + (' ' if ns.instruction and ns.text else '') + ns.text -%}
  {%- if VIDEO in ns.seen -%}{%- set whole = whole + (SUMMARIZE_VIDEO_AND_TEXT if whole else SUMMARIZE_VIDEO) -%}
  {%- elif ns.seen -%}{%- set whole = whole + (SUMMARIZE_BOTH if whole else SUMMARIZE_IMAGE) -%}
  {%- else -%}{%- set whole = whole + SUMMARIZE_TEXT -%}{%- endif -%}
{%- endif -%}
{{- HEAD + ns.seen + whole + TAIL -}}"""
JUDGE = """{%- set ns = namespace(instruction='', query='', images='', document='', shown='', none='') -%}
INSTRUCTION_TURNS
QUERY_TURNS
DOCUMENT_TURNS
{%- set query = ns.instruction + (' ' if ns.instruction and ns.query else '') + ns.query -%}
{{- HEAD + QUESTION + ns.images + query + 'Candidate:' + ns.shown + ns.document + TAIL -}}"""
# Of the style "qwen3_reranker"; HEAD holds the system turn.
JUDGE_APART = (
    JUDGE[: JUDGE.index("{%- set query")]
    + """{{- HEAD + '<Instruct>: ' + (ns.instruction or RETRIEVE)
  + '<Query>:' + (ns.images + ns.query or NOTHING)
  + '\\n<Document>:' + (ns.shown + ns.document or NOTHING) + TAIL -}}"""
)


def embedding_template(processor: Processor, *, videos: bool) -> str:
    """For a retriever: prompts that are ready, with their SUMMARIZE_ at the end, are let through.

    Args:
        videos: False refuses them.
    """
    turns = {
        "INSTRUCTION_TURNS": _collect("system", "instruction", "none"),
        "USER_TURNS": _collect("user", "text", "seen", videos=videos),
    }
    words = {
        "SUMMARIZE_TEXT": SUMMARIZE_TEXT,
        "SUMMARIZE_IMAGE": SUMMARIZE_IMAGE,
        "SUMMARIZE_BOTH": SUMMARIZE_BOTH,
        "SUMMARIZE_VIDEO": SUMMARIZE_VIDEO,
        "SUMMARIZE_VIDEO_AND_TEXT": SUMMARIZE_VIDEO_AND_TEXT,
    }
    return _filled(_filled(EMBED, turns), _literals(words | _frame(processor)))


def draws_videos(processor: Processor) -> bool:
    """Whether the model's own template has something for a video."""
    return VIDEO in processor.render([{"role": "user", "content": [{"type": "video"}]}])


def judging_template(processor: Processor, style: str) -> str:
    """For a reranker: LamRA-Rank's pointwise prompt in one of messages.RANK_STYLES."""
    turns = {
        "INSTRUCTION_TURNS": _collect("system", "instruction", "none"),
        "QUERY_TURNS": _collect("query", "query", "images"),
        "DOCUMENT_TURNS": _collect("document", "document", "shown"),
    }
    if style == "qwen3_reranker":
        words = {"RETRIEVE": RETRIEVE, "NOTHING": NOTHING} | _frame(processor, system=JUDGE_TURN)
        return _filled(_filled(JUDGE_APART, turns), _literals(words))
    return _filled(_filled(JUDGE, turns), _literals({"QUESTION": POINTWISE[style] + "Query:"} | _frame(processor)))


def _frame(processor: Processor, system: str | None = None) -> dict[str, str]:
    """What the model's own template writes around a user turn's content, and for a picture or a video."""
    turns = [{"role": "user", "content": [{"type": "text", "text": SLOT}]}]
    if system:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    head, tail = processor.render(turns).split(SLOT)
    return {"HEAD": head, "TAIL": tail, "PICTURE": PICTURE, "VIDEO": VIDEO}


def _collect(role: str, text: str, seen: str, *, videos: bool = False) -> str:
    with_videos = _filled(COLLECT, {"VIDEO_PART": SHOW_VIDEO if videos else NO_VIDEO})
    return _filled(with_videos, {"ROLE": repr(role), "TEXT": text, "SEEN": seen})


def _literals(words: dict[str, str]) -> dict[str, str]:
    def quoted(word: str) -> str:
        return "'" + word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"

    return {name: quoted(word) for name, word in words.items()}


def _filled(template: str, words: dict[str, str]) -> str:
    """The template with its names in capitals replaced, once."""
    return re.sub(r"\b[A-Z_]{4,}\b", lambda name: words.get(name[0], name[0]), template)
