"""docs/tables.md and its Chinese twin show the numbers that the evaluations print, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from conftest import ROOT

from lamra.datasets import caption
from lamra.datasets.mbeir.layout import PAPER_AVERAGE, TASKS
from lamra.datasets.tasks import Reported
from lamra.datasets.zeroshot import (
    ccneg,
    circo,
    genecis,
    msrvtt,
    msvd,
    multiturn_fashion,
    sugar_crepe,
    visdial,
    vist,
)
from lamra.eval.reporting.results import PRACTICE_STAGE1_FLICKR30K
from lamra.eval.zeroshot_sets import SETS

DIRECTIONS = ("image_retrieval", "text_retrieval")
SHAREGPT4V, URBAN1K, FLICKR = (caption.PAPER[name] for name in ("ShareGPT4V", "Urban1K", "Flickr30K"))
ZEROSHOT = {
    ("sharegpt4v", "image_retrieval"): SHAREGPT4V[0],
    ("sharegpt4v", "text_retrieval"): SHAREGPT4V[1],
    ("urban1k", "image_retrieval"): URBAN1K[0],
    ("urban1k", "text_retrieval"): URBAN1K[1],
    ("circo", "circo_test"): circo.PAPER,
    ("genecis",): genecis.PAPER_MEAN,
    ("visdial", "image_retrieval"): visdial.PAPER,
    ("vist", "image_retrieval"): vist.PAPER,
    ("multiturn_fashion", "image_retrieval"): multiturn_fashion.PAPER,
    ("ccneg", "ccneg"): ccneg.PAPER,
    ("sugarcrepe",): sugar_crepe.PAPER_MEAN,
}
VIDEOS = {("msrvtt", "video_retrieval"): msrvtt.PAPER, ("msvd", "video_retrieval"): msvd.PAPER}


def numbers_of_the_code() -> dict[tuple[str, ...], tuple[str, ...]]:
    """The keys that a row names -> its measure and its numbers, as the page shows them."""

    def percent(paper: Reported) -> tuple[str, str]:
        return f"{paper.retrieved:.1f}", f"{paper.reranked:.1f}"

    return {
        **{(task.name,): (f"R@{task.k}", *percent(task.reported)) for task in TASKS},
        **{(f"results/MODEL/mbeir/test_{pool}",): percent(paper) for pool, paper in PAPER_AVERAGE.items()},
        **{(name,): (f"{value:.4f}",) for name, value in PRACTICE_STAGE1_FLICKR30K.items()},
        **{(f"{task}_recall@1", task): percent(paper) for task, paper in zip(DIRECTIONS, FLICKR)},
        **{keys: (SETS[keys[0]].measure, *percent(paper)) for keys, paper in ZEROSHOT.items()},
        **{keys: tuple(f"{value:.1f}" for value in paper) for keys, paper in VIDEOS.items()},
    }


def rows_of(page: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Keys, measure and numbers of each row that names a place of ours."""
    for line in re.findall(r"^\|(.*)\|$", (ROOT / page).read_text(), flags=re.MULTILINE):
        cells = [cell.strip() for cell in line.split("|")]
        keys = tuple(cell.strip("`") for cell in cells if re.fullmatch(r"`\S+`", cell))
        if keys:
            found = [cell.replace("准确率", "accuracy") for cell in cells]
            yield keys, tuple(cell for cell in found if re.fullmatch(r"(?:R|mAP)@\d+|accuracy|\d+\.\d+", cell))


@pytest.mark.parametrize("page", ["docs/tables.md", "docs/zh/tables.md"])
def test_the_page_shows_the_numbers_of_the_code(page):
    rows = list(rows_of(page))
    assert len(rows) == len(dict(rows)) == 16 + 2 + 6 + 2 + len(ZEROSHOT) + len(VIDEOS)
    assert dict(rows) == numbers_of_the_code()


def test_every_set_of_the_suite_has_a_row():
    assert {keys[0] for keys in (*ZEROSHOT, *VIDEOS)} == set(SETS)
