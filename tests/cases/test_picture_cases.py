"""No picture file ends in a traceback, hangs, or starts a program; what is shown is what the file holds."""

from __future__ import annotations

from cases import count, faults, run_forked
from cases.pictures import CASES


def test_pictures(tmp_path):
    outcomes = run_forked(CASES, tmp_path)
    print(count(outcomes))
    assert not faults(outcomes), "\n\n".join(faults(outcomes))
