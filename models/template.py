"""A chat template is a program by whoever made the folder: what may not end soon is not run, what is wrong is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
LONGEST = 50_000  # letters; the published templates have about 1,000
DEEPEST = 2  # loops within loops: messages and their parts
# What templates of these models are made of. A loop goes over what it is given, and a step makes a text longer by what
# it is given: nothing counts up, is repeated, or is put behind itself.
ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.NSRef, nodes.Keyword),
    *(nodes.For, nodes.If, nodes.Break, nodes.Continue, nodes.Assign, nodes.Getattr, nodes.Getitem, nodes.Slice),
    *(nodes.Call, nodes.Filter, nodes.Test, nodes.CondExpr, nodes.Compare, nodes.Operand),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Add, nodes.Sub, nodes.Concat),
)
FUNCTIONS = {"namespace", "raise_exception"}
METHODS = {"startswith", "endswith", "strip", "lstrip", "rstrip", "get"}
FILTERS = {"trim", "length", "tojson", "first", "last", "string"}
TEXT, OTHER = "  One text, 7 words:\nwith blanks ", "and\tanother. "  # nothing of them may be changed


def template_fault(template: str) -> str | None:
    """What is wrong with a chat template, as the end of a sentence; None if it renders what the prompts need.

    It is run only if it is made of what surely ends, whatever the messages.
    """
    if len(template) > LONGEST:
        return f"has {len(template)} letters, more than {LONGEST}"
    environment = _environment()
    try:
        tree = environment.parse(template)
    except (TemplateError, RecursionError) as error:
        return f"is no template ({error})"
    if construct := _not_allowed(tree):
        return f"has {construct}, which no published template of these models has, and is not run"
    compiled = environment.from_string(template)

    def render(*turns: list[dict], generate: bool = False) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(("user", "assistant"), turns)]
        return compiled.render(messages=messages, tools=None, documents=None, add_generation_prompt=generate)

    try:
        return _render_fault(render)
    # What an expression of the template does with a value of another type.
    except (TemplateError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        return f"cannot be rendered ({type(error).__name__}: {error})"


def frame_of(template: str, messages: list[dict], **variables: str) -> list[str] | None:
    """What stands before, between and behind the texts of a prompt, one piece more than there are texts.

    Args:
        template: without a template_fault.
        messages: with lists of parts as contents; their texts are of no account.
        variables: the tokenizer's special tokens, by which templates may name them.

    Returns:
        None where the template looks at a text, so that the frame may be another around another text.
    """
    environment = _environment()
    marks: list[str] = []
    if any(environment.parse(template).find_all(nodes.Concat)):  # makes new texts of those that are watched
        return None

    def marked(part: dict) -> dict:
        if part["type"] != "text":
            return part
        marks.append(f'\ufdd0{len(marks)}\n"\\\ufdd0')  # json would spell it otherwise
        return {**part, "text": _Unread(marks[-1])}

    watched = [{**message, "content": list(map(marked, message["content"]))} for message in messages]
    compiled = environment.from_string(template)
    try:
        rest = compiled.render(messages=watched, tools=None, documents=None, add_generation_prompt=True, **variables)
    except _LookedAt:
        return None
    frame = []
    for mark in marks:
        before, written, rest = rest.partition(mark)
        if not written:
            return None
        frame.append(before)
    return [*frame, rest]


class _LookedAt(Exception):
    """A template asked a text for more than to be written."""


class _Unread(str):
    """A text that can be written as it is; all else that a text can do raises _LookedAt."""

    __slots__ = ()

    def __str__(self) -> str:
        return self


def _look(_text: str, *_: Any) -> NoReturn:
    raise _LookedAt


_COMPARED = {f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "hash")}
for _name in {*dir(str), "__bool__", "__radd__"} - {*dir(object)} | _COMPARED:
    setattr(_Unread, _name, _look)


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    return environment


def _render_fault(render: Callable[..., str]) -> str | None:
    text, other, picture = {"type": "text", "text": TEXT}, {"type": "text", "text": OTHER}, {"type": "image"}
    for content, drawn in (([text], TEXT), ([text, other], TEXT + OTHER), ([picture, text], PICTURE + TEXT)):
        without, whole = render(content), render(content, generate=True)
        if drawn == PICTURE + TEXT and PICTURE not in without:
            return f"draws no picture: {PICTURE} is not where a picture is"
        if without.count(drawn) != 1:
            return "changes the text of a prompt, leaves it out, or repeats it"
        if not whole.startswith(without) or not whole[len(without) :].strip():
            return "has no generation prompt (add_generation_prompt), the place where an embedding is read"
    if render([picture, text, picture, picture]).count(PICTURE) != 3:
        return "does not draw every picture of a message once"
    if not render([text], [other]).startswith(render([text], generate=True) + OTHER):
        return "writes an assistant's turn otherwise than its generation prompt begins it"
    return None


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _not_allowed(tree: nodes.Template) -> str | None:
    """The first part of a template that is not of ALLOWED, or None."""
    targets = [assign.target for assign in tree.find_all(nodes.Assign)]
    names = [name for target in targets for name in (target, *target.find_all((nodes.Name, nodes.NSRef)))]
    assigned = {name.name for name in names if isinstance(name, nodes.Name | nodes.NSRef)}

    def grows(node: nodes.Node, most: int) -> bool:
        return sum(name.name in assigned for name in node.find_all(nodes.Name)) > most

    def quotes_again(node: nodes.Filter, kept: bool) -> bool:  # a quote in a quote takes twice the letters
        quoted = [inner for inner in node.find_all(nodes.Filter) if inner.name == "tojson"]
        return node.name == "tojson" and (bool(quoted) or (kept and grows(node, 0)))

    def wrong(node: nodes.Node, depth: int, kept: bool) -> str | None:
        kind: Any = type(node).__name__
        match node:
            case nodes.For():
                depth += 1
                if depth > DEEPEST or node.recursive:
                    return f"loops within loops within loops (line {node.lineno})"
            case nodes.Call():
                function = node.node
                known = isinstance(function, nodes.Name) and function.name in FUNCTIONS
                if not known and not (isinstance(function, nodes.Getattr) and function.attr in METHODS):
                    return (
                        f"a call of {getattr(function, 'name', getattr(function, 'attr', '?'))!r} (line {node.lineno})"
                    )
            case nodes.Assign():
                kept = True
            case nodes.Filter() if node.name not in FILTERS or quotes_again(node, kept):
                return f"the filter {node.name!r} (line {node.lineno})"
            case nodes.Add() | nodes.Concat() if grows(node, 1):
                return f"a text that grows by itself (line {node.lineno})"
        if not isinstance(node, ALLOWED):
            return f"a {kind} (line {node.lineno})"
        return next(filter(None, (wrong(child, depth, kept) for child in node.iter_child_nodes())), None)

    return wrong(tree, 0, kept=False)
