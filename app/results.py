"""Results as HTML: pictures as data URIs, every text as text whatever it holds, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from lamra.app.words import WORDS
from lamra.eval.index.hits import Hit

LONGEST_TEXT = 300  # letters of an item's text
# Gradio's page reads these as a template's, in a text, too.
TEMPLATES = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})

STYLE = """
.lamra-grid { display: flex; flex-wrap: wrap; gap: 10px; }
.lamra-grid::after { content: ""; flex: 1000 1 0; }
.lamra-hit { margin: 0; flex: 1 1 auto; position: relative; min-width: 120px; max-width: 100%; }
.lamra-hit img { display: block; width: 100%; height: 170px; object-fit: cover; border-radius: 8px; margin: 0; }
.lamra-hit .lamra-text { width: 220px; height: 170px; min-width: 100%; overflow: auto; padding: 12px;
  border-radius: 8px; background: #8882; box-sizing: border-box; font-size: 14px; line-height: 1.45;
  overflow-wrap: anywhere; }
.lamra-hit figcaption { width: 0; min-width: 100%; padding: 4px 2px 6px; font-size: 12px; line-height: 1.45;
  box-sizing: border-box; }
.lamra-hit figcaption div { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.lamra-hit .lamra-score { display: flex; flex-wrap: wrap; gap: 0 8px; white-space: normal; font-size: 13px;
  font-variant-numeric: tabular-nums; }
.lamra-hit .lamra-name { opacity: .65; }
.lamra-hit button { position: absolute; top: 8px; right: 8px; max-width: calc(100% - 16px); border: 0;
  padding: 5px 10px; border-radius: 999px; background: #000b; color: #fff; font: inherit; font-size: 12px;
  cursor: pointer; }
@media (hover: hover) {
  .lamra-hit button { opacity: 0; transition: opacity .15s; }
  .lamra-hit:hover button, .lamra-hit button:focus-visible { opacity: 1; }
}
@media (max-width: 480px) {
  .lamra-grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .lamra-grid::after { content: none; }
  .lamra-hit img, .lamra-hit .lamra-text { width: 100%; height: 124px; }
}
.lamra-status { padding: 4px 0; overflow-wrap: anywhere; }
.lamra-error { border-left: 4px solid #c33; padding-left: 10px; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 16px; }}
h2 {{ font-size: 18px; margin: 32px 0 10px; overflow-wrap: anywhere; }}
h2 img {{ height: 96px; vertical-align: middle; margin-right: 12px; border-radius: 6px; }}
{style}
</style>
<h1>{title}</h1>
{queries}
</html>
"""


@dataclass(frozen=True)
class Shown:
    """A result as it is shown.

    Attributes:
        yes: P(Yes) of a reranker, which was added to the hit's score.
        was: the rank before that, from 1.
    """

    hit: Hit
    yes: float | None = None
    was: int | None = None


def shown(text: str) -> str:
    """A text for HTML, also inside of an attribute, and inside of a template."""
    return html.escape(text, quote=True).translate(TEMPLATES)


def data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def grid(results: Sequence[Shown], language: str = "en", buttons: bool = False) -> str:
    """Results in their order.

    Args:
        buttons: each has one, with the hit's key in its data-key, that asks for more like it.
    """
    words = WORDS[language]
    tiles = []
    for rank, result in enumerate(results, start=1):
        hit = result.hit
        score = ""
        if hit.score is not None:
            score = f'<b>{rank}</b> <span title="{words["similarity"]}">{hit.score:.3f}</span>'
        if result.yes is not None:
            score += f" <span>P(Yes)&nbsp;{result.yes:.3f}</span>"
            score += f" <span>({result.was}&nbsp;→&nbsp;{rank})</span>" if result.was != rank else ""
        text = hit.text if len(hit.text) <= LONGEST_TEXT else hit.text[:LONGEST_TEXT] + "…"
        name = shown(hit.path or hit.key)
        if hit.thumbnail:
            picture = f'<img src="{data_uri(hit.thumbnail)}" alt="{name}">'
            below = f'<div title="{shown(text)}">{shown(text)}</div>' if text else ""
        else:
            picture, below = f'<div class="lamra-text">{shown(text)}</div>', ""
        button = f'<button type="button" data-key="{shown(hit.key)}">{words["more"]}</button>' if buttons else ""
        tiles.append(
            f'<figure class="lamra-hit">{picture}<figcaption><div class="lamra-score">{score}</div>{below}'
            f'<div class="lamra-name" title="{name}">{name}</div></figcaption>{button}</figure>'
        )
    return f'<div class="lamra-grid">{"".join(tiles)}</div>'


def page(title: str, queries: Sequence[tuple[str, bytes, Sequence[Shown]]]) -> str:
    """A whole file without scripts.

    Args:
        queries: of each its text, a JPEG or b"", and its results.
    """
    parts = []
    for text, jpeg, results in queries:
        picture = f'<img src="{data_uri(jpeg)}" alt="">' if jpeg else ""
        parts.append(f"<h2>{picture}{shown(text)}</h2>\n{grid(results)}")
    return PAGE.format(title=shown(title), style=STYLE, queries="\n".join(parts))


def short(path: str) -> str:
    """The last two parts of a path."""
    return "/".join(PurePath(path).parts[-2:])
