"""Chat templates for sentence-transformers: from its messages to this project's prompts, byte for byte.

sentence-transformers passes an instruction as a system turn, and a pair for a reranker as the roles "query" and
"document". Both templates end with the generation prompt, which its tools and vLLM's embedding API do not ask for.
"""

from __future__ import annotations

from lamra.collators.messages import POINTWISE, SUMMARIZE_BOTH, SUMMARIZE_IMAGE, SUMMARIZE_TEXT
from lamra.collators.processing import Processor
from lamra.models.template import PICTURE

SLOT = "the user's content"

# Of each role what its turns hold, pictures before texts.
COLLECT = """{%- for message in messages -%}{%- if message['content'] is string -%}
    {%- if message['role'] == ROLE -%}{%- set ns.TEXT = ns.TEXT + message['content'] -%}{%- endif -%}
  {%- elif message['role'] == ROLE -%}{%- for part in message['content'] -%}
    {%- if part['type'] in ('image', 'image_url') -%}{%- set ns.COUNT = ns.COUNT + 1 -%}
    {%- elif 'text' in part -%}{%- set ns.TEXT = ns.TEXT + part['text'] -%}{%- endif -%}
  {%- endfor -%}{%- endif -%}{%- endfor -%}
"""
EMBED = """{%- set ns = namespace(instruction='', text='', images=0, none=0) -%}
INSTRUCTION_TURNS
USER_TURNS
{%- set whole = ns.text -%}
{%- if not (whole.endswith(SUMMARIZE_TEXT) or whole.endswith(SUMMARIZE_BOTH) or whole.endswith(SUMMARIZE_IMAGE)) -%}
  {%- set whole = ns.instruction + (' ' if ns.instruction and ns.text else '') + ns.text -%}
  {%- set whole = whole + (SUMMARIZE_TEXT if not ns.images else SUMMARIZE_BOTH if whole else SUMMARIZE_IMAGE) -%}
{%- endif -%}
{{- HEAD + PICTURE * ns.images + whole + TAIL -}}"""
JUDGE = """{%- set ns = namespace(instruction='', query='', images=0, document='', shown=0, none=0) -%}
INSTRUCTION_TURNS
QUERY_TURNS
DOCUMENT_TURNS
{%- set query = ns.instruction + (' ' if ns.instruction and ns.query else '') + ns.query -%}
{{- HEAD + QUESTION + PICTURE * ns.images + query + 'Candidate:' + PICTURE * ns.shown + ns.document + TAIL -}}"""


def embedding_template(processor: Processor) -> str:
    """For a retriever: prompts that are ready, with their SUMMARIZE_ at the end, are let through."""
    turns = {
        "INSTRUCTION_TURNS": _collect("system", "instruction", "none"),
        "USER_TURNS": _collect("user", "text", "images"),
    }
    words = {
        "SUMMARIZE_TEXT": SUMMARIZE_TEXT,
        "SUMMARIZE_BOTH": SUMMARIZE_BOTH,
        "SUMMARIZE_IMAGE": SUMMARIZE_IMAGE,
    }
    return _filled(EMBED, turns, words | _frame(processor))


def judging_template(processor: Processor, style: str) -> str:
    """For a reranker: LamRA-Rank's pointwise prompt in one of messages.RANK_STYLES."""
    turns = {
        "INSTRUCTION_TURNS": _collect("system", "instruction", "none"),
        "QUERY_TURNS": _collect("query", "query", "images"),
        "DOCUMENT_TURNS": _collect("document", "document", "shown"),
    }
    return _filled(JUDGE, turns, {"QUESTION": POINTWISE[style] + "Query:"} | _frame(processor))


def _frame(processor: Processor) -> dict[str, str]:
    """What the model's own template writes around a user turn's content, and for a picture."""
    head, tail = processor.render([{"role": "user", "content": [{"type": "text", "text": SLOT}]}]).split(SLOT)
    return {"HEAD": head, "TAIL": tail, "PICTURE": PICTURE}


def _collect(role: str, text: str, count: str) -> str:
    return COLLECT.replace("ROLE", repr(role)).replace("TEXT", text).replace("COUNT", count)


def _filled(template: str, turns: dict[str, str], words: dict[str, str]) -> str:
    for name, turn in turns.items():
        template = template.replace(f"{name}\n", turn)
    for name, word in words.items():
        literal = "'" + word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
        template = template.replace(name, literal)
    return template
