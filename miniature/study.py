"""The miniature world of the study: four kinds of pre-training data from a domain that is not the evaluation's.

The evaluation's pictures and captions are those of world.py. The training data's are another domain, as ShareGPT4V's
differ from Flickr30K's: dark backgrounds, a paler palette, four or five shapes of two sizes instead of one to three of
one size, and other wording. All four kinds come from that domain, so that they differ in kind alone.
"""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

from lamra.miniature import world
from lamra.miniature.world import CAPTIONS, GRID, NAMES, RGB, Scene, Shape, edited, sentence, write_pictures

PALETTE: dict[str, RGB] = {
    "red": (255, 110, 110),
    "green": (130, 235, 130),
    "blue": (120, 170, 255),
    "yellow": (255, 245, 150),
    "purple": (215, 150, 245),
    "orange": (255, 190, 120),
}
BACKGROUND: RGB = (5, 40, 20)
POSITIONS = (  # of each cell, in words
    *("in the upper left corner", "along the upper edge", "in the upper right corner"),
    *("on the left side", "in the centre", "on the right side"),
    *("in the lower left corner", "along the lower edge", "in the lower right corner"),
)
NUMBERS = ("no", "one", "two", "three", "four", "five")
CHANGES = ("colour", "kind", "cell", "size")
PICTURES_TO_KNOW = 1500  # of each domain, for the base model's pre-training


def random_scene(rng: random.Random) -> Scene:
    """Four or five shapes, small or large, in different cells."""
    cells = rng.sample(range(GRID * GRID), rng.choice((4, 5)))
    return frozenset(
        Shape(cell, rng.choice(list(PALETTE)), rng.choice(list(NAMES)), rng.choice(("small", "large")))
        for cell in cells
    )


draw_study = partial(world.draw, colours=PALETTE, background=BACKGROUND)  # a scene's picture in this domain's light
_noun = partial(world.noun, sized=True)


def premise(scene: Scene, rng: random.Random) -> str:
    """A sentence with position, size, colour and kind of every shape, as NLI's first sentences."""
    return _statement(rng.sample(sorted(scene), len(scene)), rng)


def hypothesis(scene: Scene, rng: random.Random) -> str:
    """A sentence about two of the shapes, which follows from every premise of the scene."""
    return _statement(rng.sample(sorted(scene), 2), rng)


def long_caption(scene: Scene, rng: random.Random) -> str:
    """Several sentences: how many shapes there are, then each with its position, size and a neighbour."""
    shapes = rng.sample(sorted(scene), len(scene))
    sentences = [sentence(f"the image features {NUMBERS[len(shapes)]} objects on a dark background")]
    for shape in shapes:
        beside = [f"{where} {_noun(other, rng)}" for other in shapes if (where := _neighbour(shape, other))]
        sentences.append(sentence(_sits(shape, rng) + (f", {beside[0]}" if beside else "")))
    return " ".join(sentences)


def _statement(shapes: list[Shape], rng: random.Random) -> str:
    if rng.random() < 0.5:
        return sentence(*(_sits(shape, rng) for shape in shapes))
    return sentence(*(f"{_noun(shape, rng)} is {POSITIONS[shape.cell]}" for shape in shapes))


def _sits(shape: Shape, rng: random.Random) -> str:
    return f"{POSITIONS[shape.cell]} sits {_noun(shape, rng)}"


def _neighbour(shape: Shape, other: Shape) -> str | None:
    """How `shape` lies to an `other` in the next cell."""
    return {1: "to the left of", -1: "to the right of", GRID: "above", -GRID: "below"}.get(
        other.cell - shape.cell if abs(shape.cell % GRID - other.cell % GRID) <= 1 else 0
    )


def build_study_world(folder: str | Path, seed: int, *, gallery_pictures: int = 200, rows: int = 2000) -> None:
    """Write the world; the same seed writes the same bytes. No scene is in two of these.

    <folder>/everyday, studio: what the base model is pre-trained on, one gallery of each domain.
    <folder>/flickr, val: galleries of the evaluation's domain in LamRA_Eval's layout. <folder>/coco: in Karpathy's.
    <folder>/text.csv, region_edit.jsonl, image_text.json: `rows` training pairs of each kind, formats nli, region_edit
    and sharegpt4v; their pictures are in <folder>/pictures.
    """
    folder, rng = Path(folder), random.Random(seed)
    seen: set[Scene] = set()
    for name in ("val", "flickr", "coco", "everyday"):
        count = PICTURES_TO_KNOW if name == "everyday" else gallery_pictures
        world.write_gallery(folder / name, world.distinct_scenes(rng, count, seen), rng)
    to_karpathy(folder / "coco")

    scenes = iter(world.distinct_scenes(rng, PICTURES_TO_KNOW + 3 * rows, set(), random_scene))
    known = [next(scenes) for _ in range(PICTURES_TO_KNOW)]
    text, captioned, sources = ([next(scenes) for _ in range(rows)] for _ in range(3))
    write_pictures(folder / "studio" / "images", map(draw_study, known))
    world.write_captions(folder / "studio", [premise(scene, rng) for scene in known for _ in range(CAPTIONS)])

    world.write_triplets(
        folder / "text.csv",
        ((premise(s, rng), hypothesis(s, rng), premise(edited(s, rng, CHANGES), rng)) for s in text),
    )
    pictures = folder / "pictures"
    names = write_pictures(pictures, map(draw_study, captioned), "captioned_")
    entries = []
    for i, (name, scene) in enumerate(zip(names, captioned)):
        turns = {"human": "<image>\nDescribe the image.", "gpt": long_caption(scene, rng)}
        conversation = [{"from": who, "value": words} for who, words in turns.items()]
        entries.append({"id": str(i), "image": f"pictures/{name}", "conversations": conversation})
    (folder / "image_text.json").write_text(json.dumps(entries, indent=0) + "\n")
    before = write_pictures(pictures, map(draw_study, sources), "source_")
    after = write_pictures(pictures, (draw_study(edited(scene, rng, CHANGES)) for scene in sources), "edited_")
    edits = [{"source_image": f"pictures/{a}", "edited_image": f"pictures/{b}"} for a, b in zip(before, after)]
    (folder / "region_edit.jsonl").write_text("".join(json.dumps(edit) + "\n" for edit in edits))


def to_karpathy(folder: Path) -> None:
    """Rewrite a gallery's captions as Karpathy's json, dataset.json, all pictures in the test split."""
    captions = world.read_captions(folder)
    images = []
    for i in range(0, len(captions), CAPTIONS):
        sentences = [{"raw": raw} for raw in captions[i : i + CAPTIONS]]
        images.append({"filename": f"{i // CAPTIONS}.png", "split": "test", "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"images": images}) + "\n")
    (folder / "captions.json").unlink()
