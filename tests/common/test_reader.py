"""Lines of text, jsonl and csv: every encoding that people have is read alike, or refused with file and line."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from lamra.common.errors import UserError
from lamra.common.files import read_csv, read_json, read_jsonl, read_lines
from lamra.datasets.nli import NLIPairs

TEXT = "one é\u2028still one\u0085\rand still\r\ntwo 🦊\n\n"
LINES = ["one é\u2028still one\u0085\rand still\r\n", "two 🦊\n", "\n"]
ENCODED = {
    "utf-8": TEXT.encode(),
    "a byte-order mark": TEXT.encode("utf-8-sig"),
    "utf-16": TEXT.encode("utf-16"),
    "utf-16 big end first": "\ufeff".encode("utf-16-be") + TEXT.encode("utf-16-be"),
    "utf-32": TEXT.encode("utf-32"),
    "gzip": gzip.compress(TEXT.encode("utf-8-sig")),
    "gzip of utf-16": gzip.compress(TEXT.encode("utf-16")),
}


@pytest.mark.parametrize("content", ENCODED.values(), ids=ENCODED)
def test_every_encoding_gives_the_same_lines(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert list(read_lines(tmp_path / "a")) == LINES


BROKEN = {
    "latin-1": (b'{"a": 1}\n{"a": "\xe9"}', r"a line 2 is not UTF-8 \(byte 0xe9\): save the file as UTF-8"),
    "utf-16 without a mark": ('{"a": 1}'.encode("utf-16-le"), "a line 1 is not json"),
    "utf-16 cut": (TEXT.encode("utf-16")[:-1], "a line 1 is not UTF-8"),
    "gzip cut": (gzip.compress(os.urandom(5000))[:-100], "a is a damaged gzip file|a line 1 is not UTF-8"),
    "half of a letter": (b'\n{"a": "\\ud83e"}', r"a line 2 has \\ud83e, half of a letter"),
    "raw half of a letter": (b'{"a": "\xed\xa0\xbe"}', "a line 1 is not UTF-8"),
    "NaN": (b'{"a": NaN}', r"a line 1 is not json \(NaN is no value of json\)"),
    "deep": (b'{"a": ' + 100_000 * b"[", "a line 1 is not json"),
    "a very long number": (b'{"a": ' + 5000 * b"9" + b"}", "a line 1 is not json"),
}


@pytest.mark.parametrize(("content", "sentence"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_jsonl_is_refused_with_its_line(tmp_path, content, sentence):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        list(read_jsonl(tmp_path / "a"))


def test_a_whole_letter_may_be_spelt_as_two_halves(tmp_path):
    (tmp_path / "a").write_text(json.dumps("🦊"))
    assert read_json(tmp_path / "a") == "🦊" and "\\ud83e" in (tmp_path / "a").read_text()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path):
        with pytest.raises(UserError, match=f"{path} is not a file"):
            list(read_lines(path))


def test_a_line_without_end_is_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr("lamra.common.files.LONGEST_LINE", 10)
    (tmp_path / "a").write_bytes(gzip.compress(b"1\n" + bytes(100)))
    with pytest.raises(UserError, match="a line 2 has more than 10 bytes"):
        list(read_lines(tmp_path / "a"))


def test_a_row_of_a_csv_knows_its_line_and_how_many_it_goes_over(tmp_path):
    (tmp_path / "a.csv").write_text('\na,b\r\n1,"x\u2028y"\r\n\n"2\nand ""more""",z\n3,5" wide\n4\n')
    rows = list(read_csv(tmp_path / "a.csv", ["b"]))
    assert rows == [
        {"a": "1", "b": "x\u2028y"},
        {"a": '2\nand "more"', "b": "z"},
        {"a": "3", "b": '5" wide'},
        {"a": "4"},
    ]
    assert [(int(row.location.rpartition(" ")[2]), row.lines) for row in rows] == [(3, 1), (5, 2), (7, 1), (8, 1)]
    with pytest.raises(UserError, match=r'a.csv line 8 lacks "b"'):
        rows[3]["b"]


def test_a_quote_that_swallows_rows_is_said(tmp_path):
    """pandas made 20 pairs of such 200 rows, in silence."""
    path = tmp_path / "nli.csv"
    rows = ["sent0,sent1,hard_neg"] + [f"{'' if i % 10 else chr(34)}a {i},b {i},c {i}" for i in range(200)]
    path.write_text("\n".join(rows))
    with pytest.raises(
        UserError, match=r"nli.csv line 2: a quote opens there and closes only in line 12, which swallows"
    ):
        NLIPairs(path)
    path.write_text('sent0,sent1\na,"b\n')
    with pytest.raises(UserError, match="nli.csv line 2 cannot be read as a csv: the quote that opens there"):
        NLIPairs(path)
    path.write_bytes(b'sent0,sent1\n"a\nlone\rone\nb",c\nd,e\n\xe2\x80\x8b,f\n')
    pairs = NLIPairs(path)
    assert pairs.folded == 1 and pairs.dropped == 1 and len(pairs) == 2
