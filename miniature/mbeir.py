"""The miniature world as M-BEIR, in its own files.

Five of M-BEIR's tasks, under their names and dataset numbers: captions to pictures and pictures to captions (MSCOCO),
pictures to the same scene (NIGHTS), picture and change to picture (CIRR), picture and question to fact (InfoSeek).
"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

from lamra.datasets.mbeir.layout import INSTRUCTIONS, global_pool, local_pool
from lamra.datasets.mbeir.write import MBEIRFiles
from lamra.miniature import world
from lamra.miniature.world import Scene, Shape, describe, descriptions, draw, shaken

TASKS = ("mscoco_task0_test", "mscoco_task3_test", "nights_task4", "cirr_task7", "infoseek_task6")
COCO, NIGHTS, INFOSEEK, CIRR = 9, 4, 6, 8  # M-BEIR's numbers of these datasets
DONE = "done"  # an empty file, written last

# The file of instructions, in words that the miniature's tokenizer knows, as far as that goes.
INSTRUCTION_ROWS = """\
query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\tprompt_3
text\timage\tMSCOCO\t9\tFind the picture of this sentence.\tWe can see this in the picture.\tShow the picture.
image\ttext\tMSCOCO\t9\tFind the sentence of this picture.\tHere is a picture, what can we see?\tShow the sentence.
image\timage\tNIGHTS\t4\tFind the same picture.\tHere is a picture, show the same.\tShow a picture of the same.
image,text\timage\tCIRR\t8\tFind the picture with this change.\tChange the picture.\tHere is a picture and a change.
image,text\ttext\tINFOSEEK\t6\tFind the answer in the picture.\tHere is a picture and a question.\tAnswer the question.
"""


def build_mbeir(folder: str | Path, seed: int, *, train: int = 1000, gallery: int = 200) -> None:
    """Write `gallery` scenes each as val and test, `train` scenes to train on; the same seed writes the same bytes."""
    folder, rng = Path(folder), random.Random(f"mbeir {seed}")
    seen: set[Scene] = set()
    files = MBEIRFiles(folder)
    pools = [local_pool("infoseek_task6"), *map(global_pool, ("val", "test", "train"))]
    facts = {}  # of each shape that there can be, in two wordings
    for cell, colour, kind in product(range(world.GRID**2), world.COLOURS, world.NAMES):
        shape = Shape(cell, colour, kind)
        facts[shape] = [files.candidate(INFOSEEK, pools, text) for text in descriptions(frozenset({shape}), rng, 2)]
    for split, count in {"val": gallery, "test": gallery, "train": train}.items():
        (folder / "mbeir_images" / split).mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(world.distinct_scenes(rng, count, seen, crowded_scene)):
            add_scene(files, split, f"mbeir_images/{split}/{number}", scene, facts, rng)
    files.write()
    (folder / INSTRUCTIONS).parent.mkdir(exist_ok=True)
    (folder / INSTRUCTIONS).write_text(INSTRUCTION_ROWS)
    (folder / DONE).touch()


def crowded_scene(rng: random.Random) -> Scene:
    """A scene of two or three shapes: those of one are so few that the base model was trained on all of them."""
    while len(scene := world.random_scene(rng)) < 2:
        pass
    return scene


def add_scene(files: MBEIRFiles, split: str, stem: str, scene: Scene, facts: dict, rng: random.Random) -> None:
    """The queries and candidates of a scene, one query for each of TASKS; pictures go to <root>/<stem>*.png."""
    changed = world.edited(scene, rng)
    picture, other = f"{stem}.png", f"{stem}_changed.png"
    shaken_picture, shaken_other = f"{stem}_shaken.png", f"{stem}_changed_shaken.png"
    for drawn, name, shaken_name in ((draw(scene), picture, shaken_picture), (draw(changed), other, shaken_other)):
        drawn.save(files.root / name)
        shaken(drawn, rng).save(files.root / shaken_name)
    everywhere = global_pool(split)

    def pools(task: str) -> list[str]:
        return [everywhere] if split == "train" else [everywhere, local_pool(task)]

    caption, *captions = descriptions(scene, rng, 3)
    image = files.candidate(COCO, pools(f"mscoco_task0_{split}"), image=picture)
    texts = [files.candidate(COCO, pools(f"mscoco_task3_{split}"), text) for text in captions]
    files.query(COCO, "mscoco_task0", split, [image], text=caption)
    files.query(COCO, "mscoco_task3", split, texts, image=picture)

    same = files.candidate(NIGHTS, pools("nights_task4"), image=shaken_picture)
    similar = files.candidate(NIGHTS, pools("nights_task4"), image=shaken_other)
    files.query(NIGHTS, "nights_task4", split, [same], image=picture, negatives=[similar])

    before = files.candidate(CIRR, pools("cirr_task7"), image=picture)
    after = files.candidate(CIRR, pools("cirr_task7"), image=other)
    files.query(CIRR, "cirr_task7", split, [after], text=change(scene, changed, rng), image=picture, negatives=[before])

    shape = rng.choice(sorted(scene))
    wrong = [did for other_shape in sorted(scene - {shape}) for did in facts[other_shape]]
    asked = question(shape, rng)
    files.query(INFOSEEK, "infoseek_task6", split, facts[shape], text=asked, image=picture, negatives=wrong)


def question(shape: Shape, rng: random.Random) -> str:
    """What is in the cell of a shape?"""
    return f"what is at {world.position(shape, rng)}?"


def change(scene: Scene, changed: Scene, rng: random.Random) -> str:
    """What was there, then what is there instead."""
    return f"{describe(scene - changed, rng)} {describe(changed - scene, rng)}"


def instructions() -> list[str]:
    """All prompts of INSTRUCTION_ROWS."""
    return [words for row in INSTRUCTION_ROWS.splitlines()[1:] for words in row.split("\t")[4:]]
