"""The miniature world in twos: a query, a candidate, and whether the candidate fits, for a model that is to compare.

Each side is a sentence or a picture. The candidate tells of the query's scene, or of one shape of it, or of something
else. What else, and of how many shapes, grows harder: a model that meets hard comparisons first learns none.
"""

from __future__ import annotations

import random
from collections import defaultdict
from functools import lru_cache
from typing import NamedTuple

from PIL import Image

from lamra.datasets.items import Item
from lamra.datasets.miniature import Scene, describe, distinct_scenes, draw, edited
from lamra.datasets.miniature_mbeir import shaken

ONE_SHAPE = 0.3  # share of candidates that tell of one shape of a scene, when whole scenes are compared
HARDEST = 0.8  # share of unfit candidates that differ in one shape alone, at the end


class Comparison(NamedTuple):
    query: Item
    candidate: Item
    fits: bool


class Comparisons:
    """Comparisons of `count` scenes, which `rng` draws."""

    def __init__(self, rng: random.Random, count: int):
        self.scenes = distinct_scenes(rng, count, set())
        self.alike: dict[int, list[Scene]] = defaultdict(list)  # by their number of shapes
        for scene in self.scenes:
            self.alike[len(scene)].append(scene)
            self.alike[1] += [frozenset({shape}) for shape in sorted(scene)]

    def draw(self, rng: random.Random, sides: tuple[str, str], progress: float) -> Comparison:
        """One comparison.

        Args:
            sides: what query and candidate are, "sentence" or "picture" each.
            progress: 0 compares single shapes that differ in all respects, 1 whole scenes that differ in one.
        """
        scene = rng.choice(self.scenes)
        if rng.random() < 1 - 2 * progress:
            scene = _one_shape(scene, rng)
        told = _one_shape(scene, rng) if rng.random() < ONE_SHAPE else scene
        fits, hard = rng.random() < 0.5, rng.random() < HARDEST * progress
        candidate = told
        while not fits and candidate <= scene:
            candidate = edited(told, rng) if hard else rng.choice(self.alike[len(told)])
        return Comparison(_shown(scene, sides[0], rng), _shown(candidate, sides[1], rng), fits)

    def fitting(self, rng: random.Random, query: str) -> tuple[Item, Item]:
        """A query, a "sentence" or a "picture", and a sentence about the same scene."""
        scene = rng.choice(self.scenes)
        return _shown(scene, query, rng), _shown(scene, "sentence", rng)


def _one_shape(scene: Scene, rng: random.Random) -> Scene:
    return frozenset({rng.choice(sorted(scene))})


def _shown(scene: Scene, side: str, rng: random.Random) -> Item:
    if side == "sentence":
        return Item("", describe(scene, rng))
    picture = _drawn(scene)
    return Item("", images=(shaken(picture, rng) if rng.random() < 0.5 else picture,))


@lru_cache(maxsize=10_000)  # of 21 kB
def _drawn(scene: Scene) -> Image.Image:
    return draw(scene)
