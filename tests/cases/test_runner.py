"""The runner of cases tells apart how they end."""

from __future__ import annotations

import os
import sys
import time

from cases import ANY, Case, count, faults, run_forked, start

from lamra.common.errors import UserError


def refuse(folder):
    assert not any(folder.iterdir())
    raise UserError("--x 1: expected 2")


def refuse_in_entrypoint(_folder):
    print("note: about to")
    start(lambda: refuse_with_flag(sys.argv[1:]), "--x", 3)


def refuse_with_flag(flags):
    raise UserError(f"{flags[0]} {flags[1]}: expected 2")


def hang(_folder):
    while True:
        time.sleep(1)


def die(_folder):
    os.kill(os.getpid(), 9)


def print_without_end(_folder):
    print("[1, 2]", end="")


def test_every_end_is_told(tmp_path):
    table = [
        Case("refuses", refuse, "--x"),
        Case("refuses as an entrypoint", refuse_in_entrypoint, "--x 3: expected 2"),
        Case("is right", print_without_end, None),
        Case("is a bug", lambda _: {}["a"], ANY),
        Case("hangs", hang, ANY),
        Case("is killed", die, ANY),
        Case("exits 1", lambda _: sys.exit(1), ANY),
        Case("refuses something else", refuse, "--y"),
        Case("is accepted", lambda _: None, "--x"),
        Case("should be right", refuse, None),
        Case("two lines", two_lines, "a"),
    ]
    outcomes = run_forked(table, tmp_path, seconds=4)
    assert [outcome.ended for outcome in outcomes[:7]] == [
        "refused", "refused", "ok", "traceback", "endless", "traceback", "traceback",
    ]  # fmt: skip
    assert outcomes[0].text == "--x 1: expected 2" and outcomes[1].text == "--x 3: expected 2"
    assert "KeyError" in outcomes[3].text and [outcome.fault() for outcome in outcomes[:3]] == [None] * 3
    assert [fault.partition(": ")[0] for fault in faults(outcomes)] == [case.name for case in table[3:]]
    assert count(outcomes) == "11 starts: 5 refused, 3 traceback, 2 ok, 1 endless"


def two_lines(_folder):
    raise UserError("a\nb")
