"""Every flag of every entrypoint with odd values: one sentence that names it, or a meaningful start."""

from __future__ import annotations

import pytest
from cases import Outcome, count, faults, run_forked
from cases.flags import bugs, cases, make_places, unlimited


@pytest.fixture(scope="module")
def places(tiny_model, world, mbeir, mined, tmp_path_factory):
    return make_places(tmp_path_factory.mktemp("places"), tiny_model, world, mbeir, mined)


def names(outcome: Outcome) -> bool:
    """Whether the sentence names the flag, or the file that it leads to."""
    _, flag, value = outcome.case.name.split(" ", 2)
    return flag in outcome.text or (value != "''" and value[1:20].rstrip("'") in outcome.text)


def test_every_flag_with_every_value(places, tmp_path):
    outcomes = run_forked(cases(places), tmp_path)
    print(count(outcomes))
    unnamed = [
        f"{outcome.case.name}: does not name the flag: {outcome.text}"
        for outcome in outcomes
        if outcome.ended == "refused" and not names(outcome)
    ]
    wrong = faults(outcomes) + unnamed
    assert not wrong, f"{count(outcomes)}\n" + "\n".join(wrong)


def test_a_bug_shows_its_traceback(places, tmp_path):
    for outcome in run_forked(bugs(places), tmp_path):
        assert outcome.ended == "traceback" and "ValueError: a bug" in outcome.text, outcome


def test_every_number_has_a_limit(places):
    assert unlimited(places) == []
