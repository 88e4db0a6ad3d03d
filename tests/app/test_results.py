"""Results as HTML, and demo.py --html: one file, nothing from outside, texts as texts."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from conftest import call
from PIL import Image

from lamra import demo
from lamra.app.results import Shown, grid, page
from lamra.app.words import WORDS, language_of
from lamra.eval.index.hits import Hit

HOSTILE = "</div><script>alert(1)</script> <img src=x onerror=alert(2)> ' \" & ${alert(3)} {{alert}} `x`"


class Read(HTMLParser):
    """The elements, the attributes and the text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_every_text_is_shown_as_text():
    hit = Hit(HOSTILE, "text", "", "", HOSTILE, 0.5, b"", "")
    picture = Hit(HOSTILE, "mixed", "", HOSTILE, HOSTILE, 0.25, b"jpeg", "")
    text = grid([Shown(hit), Shown(picture, yes=0.75, was=7)], "zh", buttons=True)
    found = Read(text)
    assert found.tags.count("img") == 1 and "script" not in found.tags
    assert not re.search(r"[$`{}]", text)  # no template of Gradio's
    assert found.text.count(HOSTILE) == 4 and "P(Yes)\xa00.750" in found.text and "(7\xa0→\xa02)" in found.text
    attributes = dict(found.attributes)
    assert attributes["data-key"] == attributes["alt"] == HOSTILE and not [a for a in attributes if a.startswith("on")]
    assert WORDS["zh"]["more"] in found.text
    whole = Read(page(HOSTILE, [(HOSTILE, b"", [Shown(hit)])]))
    assert "script" not in whole.tags and whole.text.count(HOSTILE) == 5


def test_both_languages_have_all_words():
    assert WORDS["en"].keys() == WORDS["zh"].keys()
    for name, text in WORDS["en"].items():
        assert re.findall(r"\{\w+\}", text) == sorted(re.findall(r"\{\w+\}", WORDS["zh"][name]), key=text.index)
    assert [language_of(text) for text in ("zh-CN,zh;q=0.9", "en-US", "", "de, zh;q=0.5")] == ["zh", "en", "en", "en"]


def html_of(path) -> Read:
    """The page of demo.py; nothing in it leads outside."""
    text = path.read_text()
    found = Read(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(found.tags)
    sources = [value for name, value in found.attributes if name in ("src", "href", "srcset")]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    for source in sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).verify()
    assert "url(" not in text and "default-src 'none'" in text and "@import" not in text
    return found


def test_one_file_of_a_folder(world, tiny_model, tmp_path, capsys, fails):
    images = tmp_path / "images"
    shutil.copytree(world / "test" / "images", images)
    (images / "0.png").rename(images / "<script>alert(1)<.png")
    flags = dict(model_id=tiny_model, folder=images)
    call(demo.main, **flags, text=HOSTILE, image=images / "1.png", top=11, html=tmp_path / "out.html")
    found = html_of(tmp_path / "out.html")
    assert found.tags.count("img") == 12 and HOSTILE in found.text and "<script>alert(1)<.png" in found.text
    assert len([line for line in capsys.readouterr().out.splitlines() if images.name in line]) == 11
    # Several queries, and a reranker.
    queries = tmp_path / "queries.jsonl"
    rows = [{"id": 1, "text": "a red circle"}, {"id": 2, "image": "images/2.png"}]
    queries.write_text("\n".join(map(json.dumps, rows)))
    more = dict(queries=queries, top=3, rerank=tiny_model)
    call(demo.main, **flags, **more, html=tmp_path / "more.html")
    found, printed = html_of(tmp_path / "more.html"), capsys.readouterr().out
    assert found.tags.count("h2") == 2 and found.tags.count("img") == 7 and found.text.count("P(Yes)") == 6
    assert "1: a red circle\nrank  was" in printed and "2: a picture or a video\nrank  was" in printed
    assert "--queries" in fails(demo.main, **flags, **more, text="x")
    assert "give --folder PICTURES or --index INDEX" in fails(demo.main, model_id=tiny_model, text="x")


def test_an_index_gives_the_same_as_its_folder(world, tiny_model, tmp_path, capsys, fails):
    pytest.importorskip("lancedb", reason="LanceDB is not installed: the demonstration on an index is not tried")
    from lamra import load

    images, flags = world / "test" / "images", dict(model_id=tiny_model, text="a red circle", top=4)
    index = load(tiny_model).index(images, tmp_path / "index")
    assert [hit.path for hit in index.search("a red circle", 4)]
    printed = []
    for where in (dict(folder=images), dict(index=tmp_path / "index")):
        capsys.readouterr()
        call(demo.main, **flags, **where, html=tmp_path / "out.html")
        lines = capsys.readouterr().out.replace(f"{images}/", "").splitlines()
        printed.append([line for line in lines if "png" in line])
    assert printed[0] == printed[1] and len(printed[0]) == 4
    assert html_of(tmp_path / "out.html").tags.count("img") == 4
    assert "--truncate_dim 8: expected it with --folder alone" in fails(
        demo.main, **flags, index=tmp_path / "index", truncate_dim=8
    )
    assert "is no index" in fails(demo.main, **flags, index=images)
