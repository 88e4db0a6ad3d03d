"""How a run ends, and how the ground floor reads a file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from lamra.common.cli import note, parse, run
from lamra.common.errors import ItemError, PictureError, TooLongError, UserError
from lamra.common.files import Row, read_jsonl
from lamra.common.flags import Flags, flag, require


def test_only_a_users_mistake_becomes_a_sentence(capsys):
    for error in (
        UserError("give --x 1"),
        ItemError("give --x 1"),
        PictureError("give --x 1"),
        TooLongError("give --x 1"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run(lambda error=error: (_ for _ in ()).throw(error))
        assert exit_.value.code == 2
        assert capsys.readouterr().err == "\nerror: give --x 1\n"


@pytest.mark.parametrize(
    "bug", ["int('x')", "(lambda a, b: 0)(1)", "[][1]", "{}['a']", "a, b = 1, 2, 3", "raise ValueError('sizes differ')"]
)
def test_a_bug_shows_its_traceback(bug):
    """Our own unpacking bug printed "error: not enough values to unpack"."""
    namespace: dict = {}
    exec(f"def main():\n    {bug}", namespace)
    with pytest.raises(Exception) as raised:
        run(namespace["main"])
    assert not isinstance(raised.value, (SystemExit, UserError))


def test_parse_refuses_in_a_sentence(monkeypatch):
    from dataclasses import dataclass

    @dataclass
    class Mine(Flags):
        number: int = flag(1, "how many", low=1, high=5)
        name: str = "x"

        def __post_init__(self):
            super().__post_init__()
            require(self.name != "y", "name", self.name, "another")

    assert parse(Mine, command_line=["--number", "3"]) == [Mine(3)]
    for line, words in (
        (["--number", "x"], "invalid int value: 'x'"),
        (["--number", "0"], "--number 0: expected 1 to 5"),
        (["--name", "y"], "--name y: expected another"),
        (["--num", "1"], "unknown flag --num 1"),
        (["--other", "1", "--more"], "unknown flag --other 1 --more"),
    ):
        with pytest.raises(UserError, match=words):
            parse(Mine, command_line=line)


def test_note_is_the_first_process_only(monkeypatch, capsys):
    for rank, words in ((None, "note: a\n"), ("0", "note: a\n"), ("1", "")):
        monkeypatch.delenv("RANK", raising=False)
        if rank:
            monkeypatch.setenv("RANK", rank)
        note("a")
        assert capsys.readouterr().out == words


def test_read_jsonl_names_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}\r\n\n  \n{"a": 2}')
    rows = list(read_jsonl(path))
    assert rows == [{"a": 1}, {"a": 2}] and [row.location for row in rows] == [f"{path} line 1", f"{path} line 4"]
    with pytest.raises(UserError, match='rows.jsonl line 4 lacks "b": it has a'):
        rows[1]["b"]
    assert rows[1].get("b") is None and json.dumps(rows[1]) == '{"a": 2}'
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(UserError, match="rows.jsonl line 2 is not an object but list"):
        list(read_jsonl(path))
    path.write_text('{"a": 1}\n\n{"a"\n')
    with pytest.raises(UserError, match="rows.jsonl line 3 is not json"):
        list(read_jsonl(path))
    with pytest.raises(UserError, match="x lacks .*it has nothing"):
        Row("x", {})["a"]


def test_the_ground_floor_is_light():
    """Every command line waits for it: neither torch nor transformers before flags are parsed."""
    modules = "cli, errors, files, lock, processes, tether, upstream"
    heavy = "{'torch', 'transformers', 'numpy'}"
    code = f"import sys; from lamra.common import {modules}; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "set()\n"
