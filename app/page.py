"""The page: a sentence, a picture, or both, and what an index has for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lamra.app.results import STYLE, Shown, grid, short, shown
from lamra.app.words import WORDS, language_of
from lamra.collators.pictures import open_image
from lamra.common.errors import UserError
from lamra.datasets.caption import INSTRUCTION_IMAGE_TO_TEXT, INSTRUCTION_TEXT_TO_IMAGE
from lamra.datasets.items import Item, Part, Picture, Text, is_blank
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.zeroshot.multiturn_fashion import INSTRUCTION as INSTRUCTION_FASHION
from lamra.datasets.zeroshot.visdial import INSTRUCTION as INSTRUCTION_DIALOG
from lamra.eval.index import ivf_pq
from lamra.eval.index.hits import Hit
from lamra.eval.index.index import Index
from lamra.eval.index.rows import KINDS
from lamra.eval.rerank.fusion import reranked
from lamra.eval.rerank.judge import Judge

# The paper's, of its zero-shot suite; those of M-BEIR are in a file of M-BEIR's.
INSTRUCTIONS = (INSTRUCTION_TEXT_TO_IMAGE, INSTRUCTION_IMAGE_TO_TEXT, INSTRUCTION_DIALOG, INSTRUCTION_FASHION)
LONGEST_QUERY = 2000  # letters
MOST, FIRST = 100, 12  # results
CSS = (
    STYLE
    + """
.gradio-container { max-width: 1600px !important; padding: 0 !important; }
.main.app { padding: 20px !important; }
footer { display: none !important; }
#lamra-ask { align-self: flex-start; gap: 12px; }
#lamra-about h1 { font-size: 20px; margin: 0 0 2px; }
.lamra-about { font-size: 13px; opacity: .75; overflow-wrap: anywhere; }
#lamra-found { gap: 8px; }
#lamra-picture { min-height: 0; }
#lamra-picture .wrap { font-size: 14px; }
@media (min-width: 900px) {
  #lamra-ask { position: sticky; top: 20px; max-height: calc(100vh - 40px); overflow-y: auto; }
}
@media (max-width: 700px) {
  .main.app { padding: 10px !important; }
  #lamra-ask { flex-grow: 1 !important; }
}
"""
)
ASK_FOR_MORE = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-key]');
  if (button) trigger('select', {key: button.dataset.key});
});
"""


@dataclass
class Asked:
    """What a user asks for. `picture` is the path of an upload; `key` names an item to find more like it."""

    text: str | None
    picture: str | None
    instruction: str | None
    folder: str | None
    kind: str | None
    top: float
    rerank: bool
    key: str | None


@dataclass
class Gallery:
    """What the page searches.

    Attributes:
        indexes: one, or two side by side.
        judge: of the reranking.
        uploads: the folder of uploaded pictures; no other file is opened for a query.
    """

    indexes: Sequence[Index]
    judge: Judge | None
    uploads: Path

    def query(self, text: str | None, path: str | None, instruction: str | None) -> Item | None:
        """A sentence, a picture or both as an item; None without any.

        Raises:
            UserError: the picture cannot be read, or the sentence is too long.
        """
        parts: list[Part] = []
        if path is not None:
            parts.append(Picture(self._opened(path)))
        if text and not is_blank(text):
            if len(text) > LONGEST_QUERY:
                raise UserError(f"the sentence has {len(text)} letters: write at most {LONGEST_QUERY}")
            parts.append(Text(text))
        if not parts:
            return None
        instruction = None if not instruction or is_blank(instruction) else instruction[:LONGEST_QUERY]
        return Item("query", parts=parts, instruction=instruction)

    def _opened(self, path: str) -> Any:
        real, retriever = Path(os.path.realpath(path)), self.indexes[0].retriever
        assert retriever is not None  # a page opens indexes with their models
        if Path(os.path.realpath(self.uploads)) not in real.parents:
            raise UserError("this file was not uploaded: drop a picture on the page")
        try:
            return open_image(real, exif_rotation=retriever.exif_rotation)
        except UserError as error:
            raise UserError(str(error).replace(str(real), real.name)) from None  # not where it lies

    def reranked(self, index: Index, query: Item, hits: Sequence[Hit]) -> list[Shown]:
        """Hits in the order of similarity + P(Yes) (arXiv 2412.01720); raises UserError where a file is gone."""
        if not hits:
            return []
        assert self.judge is not None  # whoever asks has looked
        yes = self.judge.rerank(query, [index.item(hit) for hit in hits]).tolist()
        order, _ = reranked([hit.score or 0.0 for hit in hits], yes, "pointwise", weight=1.0)
        return [Shown(hits[position], yes[position], position + 1) for position in order]

    def results(self, index: Index, asked: Asked, query: Item | None, language: str) -> str:
        """What an index has, as HTML. `query` is None where `asked` names an item of an index by its key."""
        words = WORDS[language]
        limits = min(max(int(asked.top), 1), MOST), asked.kind or None, asked.folder or None
        if query is None:
            key = asked.key or ""
            query = index.item_at(key)
            if query is None:
                return status(words["not_there"].format(name=asked.key))
            hits = index.like(key, *limits)
        else:
            hits = index.search(query, *limits)
        again = asked.rerank and self.judge is not None
        found = self.reranked(index, query, hits) if again else [Shown(hit) for hit in hits]
        return grid(found, language, buttons=True) if found else status(words["nothing"])

    def answer(self, asked: Asked, language: str) -> list[str]:
        """The line above the results, and the results of each index."""
        words = WORDS[language]
        try:
            query = None if asked.key else self.query(asked.text, asked.picture, asked.instruction)
            if not asked.key and query is None:
                return [status(words["ask"]), *("" for _ in self.indexes)]
            found = [self.results(index, asked, query, language) for index in self.indexes]
        except UserError as error:
            return [status(f"{words['error']}: {error}", wrong=True), *("" for _ in self.indexes)]
        return [status(words["like"].format(name=asked.key) if asked.key else ""), *found]

    def greeting(self, language: str) -> list[str]:
        """The title, the line above the results, some items of each index, and a line for each of two indexes."""
        heads = [f'<div class="lamra-about">{about(index, language)}</div>' for index in self.indexes]
        one, several = (heads, []) if len(heads) == 1 else ([], heads)
        some = [grid([Shown(hit) for hit in index.first(FIRST)], language, buttons=True) for index in self.indexes]
        return [
            '<div class="lamra-about"><h1>LamRA</h1></div>' + "".join(one),
            status(WORDS[language]["ask"]),
            *some,
            *several,
        ]


def about(index: Index, language: str) -> str:
    """A line about an index."""
    words = WORDS[language]
    of = {"count": len(index), "source": short(index.about["source"]), "model": short(index.about["model_id"])}
    line = words["items"].format(**of)
    if index.is_approximate and (found := ivf_pq.kept(index)):
        line += ", " + words["approximate"].format(recall=f"{100 * found['recall@10']:.1f}")
    return shown(line)


def status(text: str, wrong: bool = False) -> str:
    """A line of text as HTML; nothing for an empty one."""
    return f'<div class="lamra-status{" lamra-error" if wrong else ""}">{shown(text)}</div>' if text else ""


def instructions_of(path: str | None) -> list[str]:
    """The paper's, and those of M-BEIR's query_instructions.tsv."""
    of_mbeir = Instructions(path).all() if path else []
    return list(dict.fromkeys([*INSTRUCTIONS, *of_mbeir]))


def translations() -> gr.I18n:
    return gr.I18n(en=WORDS["en"], zh=WORDS["zh"], **{"zh-CN": WORDS["zh"]})


def build_page(gallery: Gallery, instructions: Sequence[str], say: gr.I18n) -> gr.Blocks:
    """The page of one or two indexes, not yet served.

    Args:
        say: translations(), which whoever serves it needs, too.
    """
    folders = sorted({folder for index in gallery.indexes for folder in index.folders()})
    there = {kind for index in gallery.indexes for kind in index.kinds()}
    kinds = [(say(f"{kind}_kind"), kind) for kind in KINDS if kind in there]

    # Gradio gives a request to an argument that has a place.
    def answer(text, picture, instruction, folder, kind, top, rerank, key, request: gr.Request) -> list[str]:
        asked = Asked(text, picture, instruction, folder, kind, top, rerank, key)
        return gallery.answer(asked, language_of(request.headers.get("accept-language", "")))

    def greet(request: gr.Request) -> list[str]:
        return gallery.greeting(language_of(request.headers.get("accept-language", "")))

    with gr.Blocks(analytics_enabled=False, title="LamRA", fill_width=True, delete_cache=(600, 3600)) as page, gr.Row():
        with gr.Column(scale=0, min_width=300, elem_id="lamra-ask"):
            head = gr.HTML(padding=False, elem_id="lamra-about")
            text = gr.Textbox(
                label=say("text"), placeholder=say("example"), max_length=LONGEST_QUERY, elem_id="lamra-query"
            )
            picture = gr.Image(
                label=say("picture"),
                type="filepath",
                placeholder=say("drop"),
                sources=["upload", "clipboard"],
                height=170,
                buttons=[],
                elem_id="lamra-picture",
            )
            # The project's own reader opens it: it knows what to refuse. (A subclass would leave a .pyi here.)
            picture.preprocess = lambda payload: None if payload is None else payload.path
            with gr.Row():
                go = gr.Button(say("search"), variant="primary", scale=2, min_width=120, elem_id="lamra-search")
                clear = gr.Button(say("clear"), scale=1, min_width=80, elem_id="lamra-clear")
            with gr.Group():
                choices = [(say("none"), ""), *((sentence, sentence) for sentence in instructions)]
                instruction = gr.Dropdown(
                    choices, value="", label=say("instruction"), allow_custom_value=True, elem_id="lamra-instruction"
                )
                with gr.Row():
                    choices = [(say("all"), ""), *((name, name) for name in folders)]
                    folder = gr.Dropdown(choices, value="", label=say("folder"), min_width=130, elem_id="lamra-folder")
                    choices = [(say("all"), ""), *kinds]
                    kind = gr.Dropdown(choices, value="", label=say("kind"), min_width=130, elem_id="lamra-kind")
                top = gr.Slider(1, MOST, value=FIRST, step=1, label=say("top"), buttons=[], elem_id="lamra-top")
                rerank = gr.Checkbox(label=say("rerank"), visible=gallery.judge is not None, elem_id="lamra-rerank")
        heads, results = [], []
        with gr.Column(scale=1, min_width=320, elem_id="lamra-found"):
            line = gr.HTML(padding=False, elem_id="lamra-status")
            with gr.Row():
                for number in range(len(gallery.indexes)):
                    with gr.Column(min_width=300):
                        if len(gallery.indexes) > 1:
                            heads.append(gr.HTML(padding=False, elem_id=f"lamra-head-{number}"))
                        found = gr.HTML(padding=False, elem_id=f"lamra-results-{number}", js_on_load=ASK_FOR_MORE)
                        results.append(found)

        key = gr.State(None)
        asked = [text, picture, instruction, folder, kind, top, rerank]
        hidden: dict[str, Any] = dict(api_visibility="private")
        ask: dict[str, Any] = dict(fn=answer, inputs=[*asked, key], outputs=[line, *results], **hidden)
        gr.on([go.click, text.submit], lambda: None, outputs=key, **hidden).then(**ask)
        gr.on([folder.input, kind.input, rerank.input], **ask)
        for result in results:
            result.select(_key_of, outputs=key, **hidden).then(**ask)
        empty = ["", None, "", "", "", FIRST, False, None, *("" for _ in [line, *results])]
        clear.click(lambda: empty, outputs=[*asked, key, line, *results], **hidden)
        page.load(greet, outputs=[head, line, *results, *heads], **hidden)
    return page


def _key_of(event: gr.EventData) -> str:
    return str(event._data["key"])
