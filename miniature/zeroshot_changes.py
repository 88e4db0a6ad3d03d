"""The miniature's zero-shot sets of changes and clips, and how all of its sets write a picture and a file."""

from __future__ import annotations

import csv
import json
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from lamra.datasets.zeroshot.genecis import DILATION, SUBSETS
from lamra.datasets.zeroshot.vist import PHOTOS, TIER
from lamra.miniature.comparisons import different
from lamra.miniature.mbeir import change
from lamra.miniature.world import CELL, GRID, Scene, Shape, describe, descriptions, draw, edited, noun, position, shaken

SIDE = GRID * CELL  # of a picture, in pixels
FRAMES, RATE, ENLARGED = 12, 12, 4  # of each scene of a clip; frames a second; a frame's side in pictures' sides


def save(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=95, subsampling=0)


def save_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=0) + "\n")


def told(shape: Shape, rng: random.Random) -> str:
    """A shape and its place, as part of a sentence."""
    return f"{noun(shape, rng)} at {position(shape, rng)}"


def chain(scene: Scene, length: int, rng: random.Random) -> list[Scene]:
    """Scenes of which each differs in one shape from that before; none comes back."""
    scenes = [scene]
    while len(scenes) < length:
        if (after := edited(scenes[-1], rng)) not in scenes:
            scenes.append(after)
    return scenes


def vist(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """Stories: the first sentence tells all, each other only what is new. All else the last photo has from before."""
    annotations, images = [], []
    for number, first in enumerate(scenes):
        told_before: Scene = frozenset()
        for place, scene in enumerate(chain(first, PHOTOS, rng)):
            photo = str(1_000_000 + number * PHOTOS + place)
            save(folder / f"images/val/{photo}{'.png' if number % 10 == 0 else '.jpg'}", draw(scene))
            text = describe(scene - told_before, rng)
            told_before = scene
            row: dict[str, object] = {"original_text": text, "text": f"{text[:-1].lower()} .", "album_id": str(number)}
            row |= {"photo_flickr_id": photo, "story_id": str(30_000 + number), "tier": TIER}
            annotations.append([row | {"worker_id": "W", "worker_arranged_photo_order": place}])
            images.append({"id": photo, "album_id": str(number)})
    save_json(folder / f"sis/val.{TIER}.json", {"images": images, "albums": [], "annotations": annotations})


def multiturn_fashion(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """Two to four garments, each with what goes and what comes. The gallery names one twice, as the published does."""
    names: list[str] = []
    queries = []
    for first in scenes:
        garments = chain(first, rng.choices((3, 4, 5), weights=(73, 20, 7))[0], rng)
        of_chain = [f"B{len(names) + place:09}" for place in range(len(garments))]
        for name, garment in zip(of_chain, garments):
            save(folder / f"images/{name}.jpg", draw(garment))
        turns = []
        for name, before, after in zip(of_chain, garments, garments[1:]):
            (old,), (new,) = before - after, after - before
            turns.append([url(name), [told(old, rng), told(new, rng)], name])
        queries.append({"target": [url(of_chain[-1]), of_chain[-1]], "reference": turns})
        names += of_chain
    save_json(folder / "data/all.val.json", queries)
    save_json(folder / "image_splits/split.all.val.json", [*names, names[0]])


def url(name: str) -> str:
    return f"http://example.org/{name}.jpg"


def circo(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """A picture and a change of it. One to four pictures answer: the changed scene, and the same a little shaken."""
    images: list[dict[str, object]] = []

    def added(picture: Image.Image) -> int:
        number = 3 * len(images) + 7  # an id is no position
        images.append({"id": number, "file_name": f"{number:012}.jpg"})
        save(folder / f"unlabeled2017/{number:012}.jpg", picture)
        return number

    val, test = [], []
    for number, scene in enumerate(scenes):
        changed = edited(scene, rng)
        picture, others = draw(changed), number % 4
        row: dict[str, object] = {
            "reference_img_id": added(draw(scene)),
            "relative_caption": change(scene, changed, rng),
        }
        row |= {"shared_concept": "shapes", "id": number}
        answers = [added(picture), *(added(shaken(picture, rng)) for _ in range(others))]
        val.append(row | {"target_img_id": answers[0], "gt_img_ids": answers, "semantic_aspects": ["addition"]})
        test.append(row)  # the same, without answers
    save_json(folder / "annotations/val.json", val)
    save_json(folder / "annotations/test.json", test)
    save_json(folder / "annotations/image_info_unlabeled2017.json", {"images": images})


def genecis(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """Galleries of 15 (focus_attribute: 10) of their own, for a quarter of the scenes in each subset."""
    wholes: dict[Scene, int] = {}
    boxes: dict[Scene, int] = {}

    def whole(scene: Scene) -> dict[str, object]:
        if scene not in wholes:
            wholes[scene] = len(wholes) + 1
            save(folder / f"val2017/{wholes[scene]:012}.jpg", draw(scene))
        return {"val_image_id": wholes[scene]}

    def boxed(scene: Scene) -> dict[str, object]:
        """The right half of a picture: what a reader cuts around the box."""
        if scene not in boxes:
            boxes[scene] = 2_300_000 + len(boxes)
            both = Image.new("RGB", (2 * SIDE, SIDE))
            both.paste(draw(rng.choice(scenes)), (0, 0))
            both.paste(draw(scene), (SIDE, 0))
            save(folder / f"vg/{boxes[scene]}.jpg", both)
        side = SIDE / (1 + DILATION)
        edge = DILATION * side
        return {"image_id": boxes[scene], "instance_bbox": [SIDE + edge, edge, side, side]}

    for subset in SUBSETS:
        picture = whole if subset.endswith("object") else boxed
        rows = []
        for scene in scenes[: len(scenes) // 4]:
            reference, condition, target, others = conditional(subset, scene, scenes, rng)
            wrong: dict[Scene, None] = {}
            while len(wrong) < (9 if subset == "focus_attribute" else 14):
                if (other := rng.choice(others)()) != target:
                    wrong[other] = None
            row = {"reference": picture(reference), "target": picture(target), "gallery": [*map(picture, wrong)]}
            rows.append({"condition": condition, **row})
        save_json(folder / f"annotations/{subset}.json", rows)


def conditional(
    subset: str, scene: Scene, scenes: list[Scene], rng: random.Random
) -> tuple[Scene, str, Scene, Sequence[Callable[[], Scene]]]:
    """A reference, a condition, the target, and ways to make wrong candidates."""
    thing = rng.choice(sorted(scene))
    name = f"{thing.colour} {thing.kind}"

    def alone(shape: Shape, *respects: str) -> Scene:
        """The shape, or one that differs in all these respects."""
        return frozenset({different(shape, respects, rng)})

    def among(shape: Shape, others: Scene) -> Scene:
        return frozenset({shape, *(other for other in others if other.cell != shape.cell)})

    def elsewhere(shape: Shape) -> Scene:
        return among(shape, rng.choice(scenes))

    def another() -> Shape:
        return different(thing, ("colour", "kind"), rng)

    match subset:
        case "change_object":  # this thing more; wrong: another thing more, this thing in other scenes
            return scene - {thing}, name, scene, (lambda: among(another(), scene), lambda: elsewhere(thing))
        case "focus_object":  # this thing in another scene; wrong: the same scene without it, other scenes
            return scene, name, elsewhere(thing), (lambda: among(another(), scene), lambda: elsewhere(another()))
        case "change_attribute":  # the thing in this colour; wrong: in others, other things
            (target,) = alone(thing, "colour")
            return (
                *(alone(thing), target.colour, alone(target)),
                (
                    lambda: alone(target, "kind"),
                    lambda: alone(target, "colour"),
                    lambda: alone(target, "colour", "kind"),
                ),
            )
        case _:  # another thing of the same colour, or kind; wrong: of others
            kept, other = rng.sample(("colour", "kind"), 2)
            return (
                *(alone(thing), kept, alone(thing, other, "cell")),
                (lambda: alone(thing, kept, "cell"), lambda: alone(thing, kept, other, "cell")),
            )


def msrvtt(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """Clips in which a shape moves once, each with a sentence; half of the scenes, because clips are slow to read."""
    rows = [("key", "vid_key", "video_id", "sentence")]
    for number, scene in enumerate(scenes[: len(scenes) // 2]):
        after = edited(scene, rng, ("cell",))
        film(folder / f"videos/video{number}.mp4", "h264", [scene, after])
        (moved,) = after - scene
        sentence = f"{describe(scene, rng)[:-1]}, then {told(moved, rng)}"
        rows.append((f"ret{number}", f"msr{number}", f"video{number}", sentence))
    path = folder / "annotations/MSRVTT_JSFUSION_test.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def msvd(folder: Path, scenes: list[Scene], rng: random.Random) -> None:
    """Clips of one scene with five captions in words; an eighth of the scenes."""
    names = [f"clip{number}_0_2" for number in range(len(scenes) // 8)]
    captions = {}
    for name, scene in zip(names, scenes):
        film(folder / f"YouTubeClips/{name}.avi", "mpeg4", [scene])
        captions[name] = [text.rstrip(".").lower().split() for text in descriptions(scene, rng, 5)]
    (folder / "test_list.txt").write_text("\n".join(names) + "\n")
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))


def film(path: Path, codec: str, scenes: list[Scene]) -> None:
    """Write a clip that shows each scene for a second."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width = stream.height = ENLARGED * SIDE
        stream.pix_fmt, stream.bit_rate, stream.thread_count = "yuv420p", 2_000_000, 1  # the same bytes on each machine
        for scene in scenes:
            frame = draw(scene).resize((stream.width, stream.height))
            for _ in range(FRAMES):
                container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
