"""The miniature world in twos: a query, a candidate and whether the candidate fits, for a model that learns to compare.

Each side is a sentence or a picture. A candidate that fits tells of the query's scene or of one shape of it. Any other
differs in as much as the caller says, down to the kind of one shape.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, NamedTuple

from PIL import Image

from lamra.datasets.items import Item
from lamra.miniature.world import COLOURS, GRID, NAMES, Scene, Shape, describe, draw, shaken

RESPECTS: dict[str, list] = {"colour": list(COLOURS), "kind": list(NAMES), "cell": list(range(GRID * GRID))}
VARIANTS = 3  # of a picture, beside the picture itself
ONE_SHAPE = 0.3  # share of candidates that tell of one shape of the query's


class View(NamedTuple):
    """A scene as a sentence or, without `text`, as a picture: 0 as it is drawn, 1 to VARIANTS shaken."""

    scene: Scene
    text: str | None = None
    variant: int = 0

    def item(self) -> Item:
        """For a prompt's words alone: of the picture it says that there is a picture."""
        return Item("", self.text, () if self.text else ("a picture",))

    def picture(self) -> Image.Image:
        """Of a view without text."""
        drawn = draw(self.scene)
        return shaken(drawn, random.Random(f"{sorted(self.scene)} {self.variant}")) if self.variant else drawn


class Comparison(NamedTuple):
    query: View
    candidate: View
    fits: bool


def view(scene: Scene, side: str, rng: random.Random) -> View:
    """`side` is "sentence" or "picture"."""
    if side == "sentence":
        return View(scene, describe(scene, rng))
    return View(scene, variant=rng.choice((0, 0, 0, *range(1, VARIANTS + 1))))


def one_shape(scene: Scene, rng: random.Random) -> Scene:
    return frozenset({rng.choice(sorted(scene))})


def compare(
    scene: Scene, sides: tuple[str, str], rng: random.Random, *, one_shape_changed: float, kind_alone: float
) -> Comparison:
    """A scene with itself, with a shape of it, or with a scene that differs from either.

    Args:
        one_shape_changed: share of unfit candidates of which one shape differs, instead of all.
        kind_alone: share of them that differ in nothing but the kind, instead of colour, kind and cell.
    """
    told = one_shape(scene, rng) if rng.random() < ONE_SHAPE else scene
    candidate, fits = told, rng.random() < 0.5
    while not fits and (candidate <= scene or len({shape.cell for shape in candidate}) < len(told)):
        changed = one_shape(told, rng) if rng.random() < one_shape_changed else told
        respects = ("kind",) if rng.random() < kind_alone else tuple(RESPECTS)
        candidate = (told - changed) | {different(shape, respects, rng) for shape in sorted(changed)}
    return Comparison(view(scene, sides[0], rng), view(candidate, sides[1], rng), fits)


def different(shape: Shape, respects: tuple[str, ...], rng: random.Random) -> Shape:
    """`shape` with another colour, kind or cell, or all of them."""
    others = {name: [value for value in RESPECTS[name] if value != getattr(shape, name)] for name in respects}
    changes: dict[str, Any] = {name: rng.choice(values) for name, values in others.items()}
    return replace(shape, **changes)
