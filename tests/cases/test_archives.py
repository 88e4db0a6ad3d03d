"""No archive writes outside its folder, fills the disk or runs for ever; each fault is one sentence that names it."""

from __future__ import annotations

import os

from cases import count, faults, run_forked
from cases.archives import CASES


def test_archives(tmp_path):
    outcomes = run_forked(CASES, tmp_path)
    print(count(outcomes))
    assert not faults(outcomes), "\n\n".join(faults(outcomes))
    assert not [name for name in os.listdir("/tmp") if name == "escaped"]
