"""What the builds of the miniature depend on, and whether a build is there already. Imports nothing slow."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lamra.collators import messages

MANIFEST = "miniature.json"  # written last: a folder without it is not finished


@dataclass(frozen=True)
class Recipe:
    """Of the world and the base model; chosen on the validation pictures."""

    seed: int = 0
    pictures: int = 2000  # to pre-train on
    gallery: int = 200  # pictures of each of the validation and the test gallery
    triplets: int = 4000  # rows of nli.csv
    steps: int = 400
    sentences: int = 8  # examples of a step, of captioning and of rewording
    details: int = 12  # examples of a step, of each of the two naming tasks
    learning_rate: float = 2e-3
    study: bool = False  # the world of study.py, and a base model that knows both its domains
    hard: bool = False  # a base model for the world of mbeir_hard.py, which also answers questions and changes pictures
    family: str = "qwen2_vl"  # of the base model; the world is the same for all


STUDY = Recipe(triplets=2000, steps=600, study=True)
HARD = Recipe(steps=700, sentences=3, details=6, hard=True)


@dataclass(frozen=True)
class RankRecipe:
    """Of the base model of LamRA-Rank's miniature: the phases' steps, then the examples of a step."""

    seed: int = 0
    scenes: int = 2000  # to learn from
    naming: int = 130
    language: int = 270
    shapes: int = 600  # at most: until the loss of the comparisons, averaged over some ten steps, is below `learnt`
    learnt: float = 0.4
    whole_scenes: int = 300
    sentences: int = 12  # beside comparisons
    questions: int = 9
    comparisons: int = 96
    learning_rate: float = 2e-3
    family: str = "qwen2_vl"


@dataclass(frozen=True)
class ZeroshotRecipe:
    """Of the miniature of the zero-shot suite."""

    seed: int = 0
    size: int = 200  # scenes that each set begins with


@dataclass(frozen=True)
class RobotRecipe:
    """Of the robot's world and of its base model; chosen on the validation episodes."""

    seed: int = 0
    pictures: int = 800  # episodes whose pictures the base model sees
    episodes: int = 500  # that the robot remembers
    triplets: int = 4000  # rows of nli.csv
    steps: int = 500
    sentences: int = 6  # examples of a step, of telling a picture, a sentence and both
    details: int = 8  # the same, of naming their details
    learning_rate: float = 2e-3
    hard: bool = True  # examples one after the other, without padding
    family: str = "qwen2_vl"


def miniature_of(family: str) -> str:
    """What the names of the miniature's folders begin with, where a model of this family is in them."""
    return "miniature" if family == "qwen2_vl" else f"miniature_{family}"


def ensure(
    folders: Sequence[Path],
    recipe: Recipe | RankRecipe | ZeroshotRecipe | RobotRecipe,
    build: Callable[[], None],
    force: bool = False,
) -> bool:
    """Build what is not there, or was built by another recipe or another version of this folder's code or the prompts.

    Args:
        folders: those that `build` writes.
        force: build in any case.

    Returns:
        Whether anything was built.
    """
    sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(messages.__file__)]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    manifest = json.dumps({**asdict(recipe), "source": digest}, indent=2) + "\n"
    paths = [folder / MANIFEST for folder in folders]
    if not force and all(path.is_file() and path.read_text() == manifest for path in paths):
        return False
    for path in paths:
        if path.is_file():  # a folder that we wrote: nothing of an earlier build stays behind
            shutil.rmtree(path.parent)
    build()
    for path in paths:
        path.write_text(manifest)
    return True
