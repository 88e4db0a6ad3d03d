"""The miniature world as data sets of the zero-shot suite, each in the files that its authors publish.

Scenes of two or three shapes, told in the world's words and drawn as JPEG. Each set asks what the real one asks: which
caption is wrong, which picture a long caption or a dialog tells of, how a story goes on, what changes lead to.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

from lamra.datasets.zeroshot.ccneg import PREFIX
from lamra.datasets.zeroshot.sugar_crepe import KINDS
from lamra.datasets.zeroshot.visdial import ROUNDS, SPLIT
from lamra.miniature.comparisons import different
from lamra.miniature.mbeir import crowded_scene
from lamra.miniature.world import (
    COLOURS,
    NAMES,
    Scene,
    Shape,
    describe,
    descriptions,
    distinct_scenes,
    draw,
    noun,
    position,
)
from lamra.miniature.zeroshot_changes import (
    circo,
    genecis,
    msrvtt,
    msvd,
    multiturn_fashion,
    save,
    save_json,
    told,
    vist,
)


def build_zeroshot(folder: Path, seed: int, size: int) -> None:
    """Write each of SETS into a folder of its name, with `size` queries; the same seed writes the same bytes.

    No scene is in one set twice, but where a story or a chain of changes leads to one.
    """
    for name, write in SETS.items():
        rng = random.Random(f"{name} {seed}")
        write(folder / name, distinct_scenes(rng, size, set(), crowded_scene), rng)


# Which of two captions is wrong?


def sugar_crepe(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """All kinds on one set of pictures. swap_* leave out scenes in which nothing can be swapped: keys have gaps."""
    for number, scene in enumerate(scenes):
        save(folder / f"images/val2017/{number:012}.jpg", draw(scene))
    for kind in KINDS:
        rows = {}
        for number, scene in enumerate(scenes):
            if captions := true_and_wrong(kind, scene, rng):
                names = ("filename", "caption", "negative_caption")
                rows[str(number)] = dict(zip(names, (f"{number:012}.jpg", *captions), strict=True))
        save_json(folder / f"data/{kind}.json", rows)


def true_and_wrong(kind: str, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """Two captions in the same wording, the second of which is wrong in the way of SugarCrepe's `kind`."""
    shape, other = rng.sample(sorted(scene), 2)
    change, _, what = kind.partition("_")
    if kind == "add_obj":
        caption = describe(scene - {shape}, rng)
        return caption, f"{caption[:-1]} and {told(different(shape, ('kind', 'colour'), rng), rng)}."
    attribute = {"att": "colour", "obj": "kind", "rel": "cell"}[what]
    if change == "swap":
        wrong = scene - {shape, other} | swapped(shape, other, attribute)
        if wrong == scene:
            return None
    else:
        wrong = frozenset()
        while len({each.cell for each in wrong}) < len(scene):
            wrong = scene - {shape} | {different(shape, (attribute,), rng)}
    wording = rng.random()
    caption, negative = (describe(of, random.Random(wording)) for of in (scene, wrong))
    if kind == "add_att":  # the true caption does not tell the colour
        caption = re.sub(rf"\b([Aa])n? {shape.colour} ", r"\1 ", caption)
    return caption, negative


def swapped(shape: Shape, other: Shape, attribute: str) -> set[Shape]:
    def with_its(one: Shape, of: Shape) -> Shape:
        return Shape(**{**vars(one), attribute: getattr(of, attribute)})

    return {with_its(shape, other), with_its(other, shape)}


def ccneg(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """What is there is denied, and something else said to be in its place; with a comma, which the reader removes."""
    import torch  # slow to import

    images, annotations = [], []
    for number, scene in enumerate(scenes):
        name = f"cc3m_subset_images_extracted_final/{number}.jpg"
        save(folder / name, draw(scene))
        shape = rng.choice(sorted(scene))
        wrong = different(shape, ("kind", "colour"), rng)
        negative = f"{describe(scene - {shape}, rng)[:-1]} and not {noun(shape, rng)}, but {told(wrong, rng)}."
        images.append(PREFIX + name)
        annotations.append({"json": {"caption": describe(scene, rng)}, "sop_data": {"negative-prompt": negative}})
    torch.save({"image_paths": images, "annotations": annotations}, folder / "ccneg_preprocessed.pt")


# Long texts and pictures


def sharegpt4v(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """The scene in four wordings, one after the other."""
    rows = []
    for number, scene in enumerate(scenes):
        rows.append({"image_name": f"sa_{number:06}.jpg", "caption": " ".join(descriptions(scene, rng, 4))})
        save(folder / "val_data" / rows[-1]["image_name"], draw(scene))
    save_json(folder / "datas_for_validation.json", rows)


def urban1k(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """A sentence for each shape, then one for all."""
    (folder / "caption").mkdir(parents=True)
    for number, scene in enumerate(scenes, start=1):
        save(folder / f"image/{number}.jpg", draw(scene))
        shapes = rng.sample(sorted(scene), len(scene))
        sentences = [describe(part, rng) for part in (*(frozenset({shape}) for shape in shapes), scene)]
        (folder / f"caption/{number}.txt").write_text(" ".join(sentences) + "\n")


def visdial(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """Ten rounds about a scene: what, where and of which colour each shape is, and whether there is some other."""
    questions: dict[str, int] = {}  # text -> position
    answers: dict[str, int] = {}
    dialogs = []
    for number, scene in zip(rng.sample(range(600_000), len(scenes)), scenes):
        save(folder / f"VisualDialog_{SPLIT}/VisualDialog_{SPLIT}_{number:012}.jpg", draw(scene))
        dialog = []
        for question, answer in rounds(scene, rng):
            found = {"question": questions.setdefault(question, len(questions))}
            found["answer"] = answers.setdefault(answer, len(answers))
            dialog.append({**found, "answer_options": [found["answer"]], "gt_index": 0})
        dialogs.append({"image_id": number, "caption": describe(scene, rng), "dialog": dialog})
    data = {"questions": list(questions), "answers": list(answers), "dialogs": dialogs}
    save_json(folder / "visdial_1.0_val.json", {"version": "1.0", "split": SPLIT, "data": data})


def rounds(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Questions without their "?" and answers without their full stop."""
    said = []
    for shape in sorted(scene):
        place, kind = position(shape, rng), rng.choice(NAMES[shape.kind])
        said += [(f"what is at {place}", noun(shape, rng)), (f"where is {noun(shape, rng)}", f"at {place}")]
        said += [(f"what colour is the {kind} at {place}", shape.colour)]
    there = {(shape.colour, shape.kind) for shape in scene}
    while len(said) < ROUNDS:
        colour, kind = rng.choice(list(COLOURS)), rng.choice(list(NAMES))
        if (colour, kind) not in there:
            said.append((f"is there {noun(Shape(0, colour, kind), rng)}", "no"))
    return rng.sample(said, ROUNDS)


SETS: dict[str, Callable[[Path, list[Scene], random.Random], None]] = {
    "sugarcrepe": sugar_crepe,
    "ccneg": ccneg,
    "sharegpt4v": sharegpt4v,
    "urban1k": urban1k,
    "visdial": visdial,
    "vist": vist,
    "multiturn_fashion": multiturn_fashion,
    "circo": circo,
    "genecis": genecis,
    "msrvtt": msrvtt,
    "msvd": msvd,
}
