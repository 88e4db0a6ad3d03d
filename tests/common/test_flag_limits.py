"""A flag's limits, what its path leads to, and secrets that are neither recorded nor printed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import pytest

from lamra.common.cli import OFFLINE, fail, run
from lamra.common.errors import UserError
from lamra.common.flags import (
    FILE,
    FILE_OR_FOLDER,
    FOLDER,
    OUT_FILE,
    OUT_FOLDER,
    Flags,
    flag,
    is_a,
    listed,
    require_path,
    shown,
)
from lamra.common.secrets import without_secrets
from lamra.models.settings import Settings
from lamra.train.record import write_run_record

NAN, INF = float("nan"), float("inf")


@dataclass
class Some(Flags):
    share: float = flag(0.5, "of all", low=0, below=1)
    rows: int | None = flag(None, "so many", low=1)
    steps: int = flag(-1, "-1: all", low=1, also=(-1,))
    kind: str = flag("a", "of data", one_of=("a", "b"))
    name: str = "x"
    rate: float = flag(1.0, "of learning", above=0)
    unused: str | None = flag(None, "ignored", checked=False)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (dict(share=1.0), "--share 1.0: expected 0 or more and below 1"),
        (dict(share=NAN), "--share nan: expected a finite number"),
        (dict(rate=INF), "--rate inf: expected a finite number"),
        (dict(rate=0.0), "--rate 0.0: expected more than 0"),
        (dict(rate=1e30), "--rate 1e+30: expected a number between"),
        (dict(rows=0), "--rows 0: expected 1 or more"),
        (dict(rows=10**30), "expected a number between"),
        (dict(rows=1.5), "--rows 1.5: expected a whole number"),
        (dict(rows=True), "--rows True: expected a whole number"),
        (dict(steps=0), "--steps 0: expected 1 or more, or -1"),
        (dict(kind="c"), "--kind c: expected a or b"),
        (dict(kind=None), "--kind None: expected text"),
        (dict(name=""), "--name : expected a value that is not empty"),
        (dict(name="\udcff"), "expected text in UTF-8"),
    ],
)
def test_values_outside_of_the_limits(value, words):
    with pytest.raises(UserError, match=words.replace("+", "[+]").replace("(", "[(]")):
        Some(**value)


def test_values_inside():
    for value in (
        dict(share=0),
        dict(rows=2**31 - 1),
        dict(steps=-1),
        dict(rate=1),
        dict(unused=""),
        dict(name="\u00fc"),
    ):
        Some(**value)
    assert is_a([1], list[int]) and not is_a("x", int | None) and is_a(None, int | None) and is_a(1, float)


def test_what_a_path_leads_to(tmp_path):
    file, folder, new = tmp_path / "file", tmp_path / "folder", tmp_path / "new"
    file.touch()
    folder.mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    right = {FILE: [file], FOLDER: [folder], FILE_OR_FOLDER: [file, folder]}
    right |= {OUT_FILE: [file, new, new / "a/b"], OUT_FOLDER: [folder, new, new / "a/b"]}
    wrong = {
        FILE: [folder, new, file / "x", tmp_path / "link", tmp_path / "pipe", "/dev/null"],
        FOLDER: [file, new, file / "x"],
        FILE_OR_FOLDER: [new, tmp_path / "pipe"],
        OUT_FILE: [folder, file / "x", "/proc/lamra/x", "/dev/null", tmp_path / ("x" * 256)],
        OUT_FOLDER: [file, file / "x", "/proc/lamra", "/dev/null", tmp_path / ("x" * 256)],
    }
    for kind in right:
        for path in right[kind]:
            require_path("f", path, kind)
        for path in wrong[kind]:
            with pytest.raises(UserError, match="^--f "):
                require_path("f", path, kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link", "pipe"]  # nothing is made


def test_a_list_of_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert listed("a,b") == ["a", "b"]
    (tmp_path / "a,b").touch()
    assert listed("a,b") == ["a,b"]


def test_a_value_in_a_sentence():
    assert shown("a\nb\x1b[0m") == "a\\nb\\x1b[0m" and len(shown("x" * 9999)) == 203


SECRETS = ("hf_" + "a" * 20, "very-secret", "pass:word")
COMMAND = [
    "train.py",
    "--hub_token",
    SECRETS[1],
    f"--api_key={SECRETS[1]}",
    "--data_path",
    f"https://me:{SECRETS[2]}@host/x",
]


def test_secrets_are_not_recorded(tmp_path, monkeypatch):
    """--hub_token stood in run.json."""
    monkeypatch.setattr("sys.argv", [*COMMAND, "--run_name", f"with {SECRETS[0]}", "--seed", "7"])
    arguments = {"hub_token": SECRETS[1], "nested": {"password": SECRETS[1], "text_max_tokens": 7}, "url": COMMAND[-1]}
    write_run_record(tmp_path, Settings("base", "mrope"), arguments, {"path": "data"})
    text = (tmp_path / "run.json").read_text()
    assert not [secret for secret in SECRETS if secret in text]
    record = json.loads(text)
    assert record["command"][1:4] == ["--hub_token", "***", "--api_key=***"] and record["command"][-1] == "7"
    assert record["arguments"]["nested"]["text_max_tokens"] == 7 and "https://***@host/x" in record["command"]
    assert without_secrets("a@b.c: https://host/@x, hf_x") == "a@b.c: https://host/@x, hf_x"


def test_secrets_are_not_printed(capsys):
    with pytest.raises(SystemExit):
        fail(f"https://me:{SECRETS[2]}@host with {SECRETS[0]}\ncannot be reached")
    assert capsys.readouterr().err == "\nerror: https://***@host with *** cannot be reached\n"


def test_only_a_download_reaches_for_a_hub(monkeypatch):
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    run(lambda: None, online=True)
    assert "HF_HUB_OFFLINE" not in os.environ
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    run(lambda: None)
    assert os.environ["HF_HUB_OFFLINE"] == "1" and os.environ["TRANSFORMERS_OFFLINE"] == "1"
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
