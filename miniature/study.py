"""The miniature world of the study: four kinds of pre-training data from a domain that is not the evaluation's.

The evaluation's pictures and captions are datasets/miniature.py's. The training data's are another domain, as
ShareGPT4V's differ from Flickr30K's: dark backgrounds, a paler palette, four or five shapes of two sizes instead of one
to three of one, and other wording. All four kinds come from that one domain, so that they differ in kind alone.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

from lamra.miniature.world import CAPTIONS, GRID, NAMES, RGB, Scene, Shape, distinct_scenes, draw, edited, write_gallery

PALETTE: dict[str, RGB] = {
    "red": (255, 110, 110),
    "green": (130, 235, 130),
    "blue": (120, 170, 255),
    "yellow": (255, 245, 150),
    "purple": (215, 150, 245),
    "orange": (255, 190, 120),
}
BACKGROUND: RGB = (5, 40, 20)
PLACES = (
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


def draw_study(scene: Scene):
    """The scene's picture in this domain's palette and light."""
    return draw(scene, PALETTE, BACKGROUND)


def premise(scene: Scene, rng: random.Random) -> str:
    """One sentence with place, size, colour and kind of every shape, as NLI's first sentences."""
    return _statement(rng.sample(sorted(scene), len(scene)), rng)


def hypothesis(scene: Scene, rng: random.Random) -> str:
    """A sentence about two of the shapes, which follows from every premise of the scene."""
    return _statement(rng.sample(sorted(scene), 2), rng)


def long_caption(scene: Scene, rng: random.Random) -> str:
    """Several sentences: how many shapes there are, then each with its place, size and neighbours."""
    shapes = rng.sample(sorted(scene), len(scene))
    sentences = [f"the image features {NUMBERS[len(shapes)]} objects on a dark background"]
    for shape in shapes:
        beside = [f"{where} {_thing(other, rng)}" for other in shapes if (where := _neighbour(shape, other))]
        sentences.append(f"{PLACES[shape.cell]} sits {_thing(shape, rng)}" + (f", {beside[0]}" if beside else ""))
    return " ".join(map(_sentence, sentences))


def _statement(shapes: list[Shape], rng: random.Random) -> str:
    if rng.random() < 0.5:
        parts = [f"{PLACES[shape.cell]} sits {_thing(shape, rng)}" for shape in shapes]
    else:
        parts = [f"{_thing(shape, rng)} is {PLACES[shape.cell]}" for shape in shapes]
    return _sentence(", ".join(parts[:-1]) + " and " + parts[-1])


def _thing(shape: Shape, rng: random.Random) -> str:
    return f"a {shape.size} {shape.colour} {rng.choice(NAMES[shape.kind])}"


def _neighbour(shape: Shape, other: Shape) -> str | None:
    """How `shape` lies to an `other` in the next cell."""
    return {1: "to the left of", -1: "to the right of", GRID: "above", -GRID: "below"}.get(
        other.cell - shape.cell if abs(shape.cell % GRID - other.cell % GRID) <= 1 else 0
    )


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


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
        write_gallery(folder / name, distinct_scenes(rng, count, seen), rng)
    to_karpathy(folder / "coco")

    scenes: dict[Scene, None] = {}  # keeps their order
    while len(scenes) < PICTURES_TO_KNOW + 3 * rows:
        scenes[random_scene(rng)] = None
    studio = list(scenes)
    known, rest = studio[:PICTURES_TO_KNOW], studio[PICTURES_TO_KNOW:]
    captions = [premise(scene, rng) for scene in known for _ in range(CAPTIONS)]
    _write_pictures(folder / "studio" / "images", known)
    (folder / "studio" / "captions.json").write_text(json.dumps(captions, indent=0) + "\n")

    text, pictured, sources = rest[:rows], rest[rows : 2 * rows], rest[2 * rows :]
    with (folder / "text.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sent0", "sent1", "hard_neg"))
        writer.writerows(
            (premise(scene, rng), hypothesis(scene, rng), premise(edited(scene, rng, CHANGES), rng)) for scene in text
        )
    names = _write_pictures(folder / "pictures", pictured, "captioned_")
    entries = [
        {"id": str(i), "image": f"pictures/{name}", "conversations": _conversation(long_caption(scene, rng))}
        for i, (name, scene) in enumerate(zip(names, pictured))
    ]
    (folder / "image_text.json").write_text(json.dumps(entries, indent=0) + "\n")
    before = _write_pictures(folder / "pictures", sources, "source_")
    after = _write_pictures(folder / "pictures", [edited(scene, rng, CHANGES) for scene in sources], "edited_")
    lines = [
        json.dumps({"source_image": f"pictures/{a}", "edited_image": f"pictures/{b}"}) for a, b in zip(before, after)
    ]
    (folder / "region_edit.jsonl").write_text("\n".join(lines) + "\n")


def to_karpathy(folder: Path) -> None:
    """Rewrite a gallery's captions as Karpathy's json, dataset.json, all pictures in the test split."""
    captions = json.loads((folder / "captions.json").read_text())
    images = [
        {
            "filename": f"{i // CAPTIONS}.png",
            "split": "test",
            "sentences": [{"raw": raw} for raw in captions[i : i + CAPTIONS]],
        }
        for i in range(0, len(captions), CAPTIONS)
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images}) + "\n")
    (folder / "captions.json").unlink()


def _conversation(caption: str) -> list[dict]:
    return [{"from": "human", "value": "<image>\nDescribe the image."}, {"from": "gpt", "value": caption}]


def _write_pictures(folder: Path, scenes: list[Scene], prefix: str = "") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{prefix}{i}.png" for i in range(len(scenes))]
    for name, scene in zip(names, scenes):
        draw_study(scene).save(folder / name)
    return names
