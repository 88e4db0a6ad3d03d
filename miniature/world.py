"""The miniature world: pictures of coloured shapes on a 3x3 grid, and sentences about them, for machines without data.

A scene is a set of shapes. `draw` makes its picture, `describe` one of its many sentences, `edited` a scene that
contradicts it; whatever training data this world offers is put together from these three. `build_world` writes the
files that training and evaluation read. All randomness comes from the `rng` that is passed in.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageEnhance

# A cell is as large as one image token (14-pixel patches merged 2 x 2), so a tiny vision tower is enough.
CELL = 28
GRID = 3
CAPTIONS = 5  # of each picture
SMOOTHING = 4  # drawn so many times larger, then reduced

RGB = tuple[int, int, int]
COLOURS: dict[str, RGB] = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 80, 200),
    "yellow": (250, 210, 20),
    "purple": (140, 60, 170),
    "orange": (255, 127, 14),
}
# Each kind with its synonym.
NAMES = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus"),
    "diamond": ("diamond", "rhombus"),
}
SIZES = {"small": 0.5, "medium": 0.72, "large": 0.92}  # of a cell's side
POLYGONS = {  # in the unit square; the circle is no polygon
    "square": ((0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92)),
    "triangle": ((0.5, 0.05), (0.98, 0.92), (0.02, 0.92)),
    "cross": (
        *((0.33, 0.0), (0.67, 0.0), (0.67, 0.33), (1.0, 0.33), (1.0, 0.67), (0.67, 0.67)),
        *((0.67, 1.0), (0.33, 1.0), (0.33, 0.67), (0.0, 0.67), (0.0, 0.33), (0.33, 0.33)),
    ),
    "diamond": ((0.5, 0.0), (0.95, 0.5), (0.5, 1.0), (0.05, 0.5)),
}
ROWS = (("top", "upper"), ("middle", "centre"), ("bottom", "lower"))
COLUMNS = (("left",), ("middle", "centre"), ("right",))
# Every word that says something about a scene; all others are wording.
DETAILS = frozenset(word for words in (COLOURS, *NAMES.values(), *ROWS, *COLUMNS) for word in words)
OPENINGS = ("", "there is ", "here is ", "the picture shows ", "we can see ")


@dataclass(frozen=True, order=True)
class Shape:
    cell: int  # 0..8, row by row
    colour: str
    kind: str
    size: str = "medium"


Scene = frozenset[Shape]


def random_scene(rng: random.Random) -> Scene:
    """One to three shapes in different cells."""
    count = rng.choices((1, 2, 3), weights=(1, 2, 1))[0]
    cells = rng.sample(range(GRID * GRID), count)
    return frozenset(Shape(cell, rng.choice(list(COLOURS)), rng.choice(list(NAMES))) for cell in cells)


def distinct_scenes(
    rng: random.Random, count: int, seen: set[Scene], generate: Callable[[random.Random], Scene] = random_scene
) -> list[Scene]:
    """`count` scenes that are not in `seen`, which then holds them too."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = generate(rng)
        if scene not in seen:
            seen.add(scene)
            scenes.append(scene)
    return scenes


def draw(scene: Scene, colours: Mapping[str, RGB] = COLOURS, background: RGB = (175, 225, 175)) -> Image.Image:
    """The scene's picture, 84 x 84 pixels, RGB, in a palette and on the darkest shade of a background."""
    cell = CELL * SMOOTHING
    image = _background(GRID * cell, background)
    canvas = ImageDraw.Draw(image)
    for shape in sorted(scene):
        side = SIZES[shape.size] * cell
        margin = (cell - side) / 2
        left, top = shape.cell % GRID * cell + margin, shape.cell // GRID * cell + margin
        if shape.kind == "circle":
            canvas.ellipse((left, top, left + side, top + side), fill=colours[shape.colour])
        else:
            points = [(left + x * side, top + y * side) for x, y in POLYGONS[shape.kind]]
            canvas.polygon(points, fill=colours[shape.colour])
    return image.resize((GRID * CELL, GRID * CELL), Image.Resampling.LANCZOS)


def _background(side: int, darkest: RGB) -> Image.Image:
    """A shade that changes from left to right and from top to bottom, as light does in a photograph.

    It lets a model see where a patch is: Qwen2-VL's vision tower knows relative positions only.
    """
    red, green, blue = darkest
    across = Image.linear_gradient("L").rotate(90).resize((side, side)).point(lambda v: red + v * 5 // 16)
    down = Image.linear_gradient("L").resize((side, side)).point(lambda v: blue + v * 5 // 16)
    return Image.merge("RGB", (across, Image.new("L", (side, side), green), down))


def shaken(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture a few pixels aside, and lighter or darker."""
    aside = ImageChops.offset(picture, rng.randint(-5, 5), rng.randint(-5, 5))
    return ImageEnhance.Brightness(aside).enhance(rng.uniform(0.8, 1.2))


def describe(scene: Scene, rng: random.Random) -> str:
    """A sentence with colour, kind and position of every shape, in a wording and order that `rng` chooses."""
    shapes = rng.sample(sorted(scene), len(scene))
    if rng.random() < 0.5:
        parts = [f"{_at(shape, rng)} is {noun(shape, rng)}" for shape in shapes]
    else:
        parts = [f"{noun(shape, rng)} {_at(shape, rng)}" for shape in shapes]
        parts[0] = rng.choice(OPENINGS) + parts[0]
    return sentence(*parts)


def noun(shape: Shape, rng: random.Random, *, sized: bool = False) -> str:
    """A shape in words: "an orange disc", or "a small orange disc"."""
    words = [*([shape.size] if sized else []), shape.colour, rng.choice(NAMES[shape.kind])]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def position(shape: Shape, rng: random.Random) -> str:
    """Row and column of a shape's cell in words: "upper left"."""
    row, column = divmod(shape.cell, GRID)
    return f"{rng.choice(ROWS[row])} {rng.choice(COLUMNS[column])}"


def _at(shape: Shape, rng: random.Random) -> str:
    words = position(shape, rng)
    return f"at {words.split()[0] if shape.cell == GRID * GRID // 2 else words}"  # not "middle middle"


def sentence(*parts: str) -> str:
    """Parts joined by commas and a last "and", with a capital letter and a full stop."""
    words = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return words[0].upper() + words[1:] + "."


def descriptions(scene: Scene, rng: random.Random, count: int) -> list[str]:
    """`count` different sentences about one scene."""
    sentences: dict[str, None] = {}  # keeps their order
    while len(sentences) < count:
        sentences[describe(scene, rng)] = None
    return list(sentences)


def edited(scene: Scene, rng: random.Random, changes: tuple[str, ...] = ("colour", "kind", "cell")) -> Scene:
    """The scene with one shape recoloured, exchanged, moved or resized: no full sentence is true of both."""
    old = rng.choice(sorted(scene))
    change = rng.choice(changes)
    taken = {shape.cell for shape in scene}
    free = [cell for cell in range(GRID * GRID) if cell not in taken]
    choices: dict[str, list] = {"colour": list(COLOURS), "kind": list(NAMES), "cell": free, "size": ["small", "large"]}
    value = rng.choice([choice for choice in choices[change] if choice != getattr(old, change)])
    return scene - {old} | {replace(old, **{change: value})}


def triplet(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """A sentence, a paraphrase of it, and a contradiction."""
    given, paraphrase = descriptions(scene, rng, 2)
    return given, paraphrase, describe(edited(scene, rng), rng)


def build_world(
    folder: str | Path, seed: int, *, train_pictures: int = 2000, gallery_pictures: int = 200, triplets: int = 4000
) -> None:
    """Write the world; the same seed writes the same bytes.

    <folder>/train, val and test: images/0.png, ... and captions.json, a list in which caption i belongs to image
    i // 5 (the layout of LamRA_Eval's Flickr30K). <folder>/nli.csv and nli_eval.csv: header sent0,sent1,hard_neg.
    No scene is in two of these five, and none twice in one.
    """
    folder, rng = Path(folder), random.Random(seed)
    seen: set[Scene] = set()
    # The galleries come first: they stay the same when the training sets grow.
    sizes = {"val": gallery_pictures, "test": gallery_pictures, "train": train_pictures}
    for name, size in sizes.items():
        write_gallery(folder / name, distinct_scenes(rng, size, seen), rng)
    for name, size in {"nli_eval.csv": gallery_pictures, "nli.csv": triplets}.items():
        write_triplets(folder / name, (triplet(scene, rng) for scene in distinct_scenes(rng, size, seen)))


def write_gallery(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """Pictures and their captions in LamRA_Eval's layout."""
    write_pictures(folder / "images", map(draw, scenes))
    write_captions(folder, [caption for scene in scenes for caption in descriptions(scene, rng, CAPTIONS)])


def write_pictures(folder: Path, pictures: Iterable[Image.Image], prefix: str = "") -> list[str]:
    """Write <folder>/<prefix>0.png, ...; returns these names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i, picture in enumerate(pictures):
        names.append(f"{prefix}{i}.png")
        picture.save(folder / names[-1])
    return names


def write_captions(folder: Path, captions: list[str]) -> None:
    (folder / "captions.json").write_text(json.dumps(captions, indent=0) + "\n")


def read_captions(folder: Path) -> list[str]:
    """The captions of a gallery, CAPTIONS for each picture."""
    return json.loads((folder / "captions.json").read_text())


def write_triplets(path: Path, triplets: Iterable[tuple[str, str, str]]) -> None:
    """A csv in the layout of nli_for_simcse.csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sent0", "sent1", "hard_neg"))
        writer.writerows(triplets)
