"""A miniature M-BEIR in which hard negatives have something to teach: the tasks and files of mbeir.py, in families.

It is made so, on purpose, and a gain here says that a method works, not how much it gives on real data. Scenes come in
families: all members are the first with one of its three shapes recoloured, exchanged or moved, and a local pool holds
whole families. To find the family is easy and gives a recall at 5 of about 5 / MEMBERS; to find the member needs each
detail. Queries to train on are so few of each family that a batch drawn at random hardly ever holds two of them: it
teaches to find families. A miner finds the other members in the training pool, and `neg_cand_list` names them, an
oracle's negatives. As in real data, some training candidates are right and not listed as such (TWINS): whoever mines
without care trains against right answers. The pools of val and test have none, and what matches scenes exactly scores
100.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from lamra.datasets.mbeir.layout import INSTRUCTIONS, global_pool, local_pool
from lamra.datasets.mbeir.write import MBEIRFiles
from lamra.miniature import world
from lamra.miniature.mbeir import CIRR, COCO, DONE, INFOSEEK, INSTRUCTION_ROWS, NIGHTS, change, question
from lamra.miniature.world import Scene, Shape, describe, descriptions, draw, edited, shaken

MEMBERS = 16  # of a family
TWINS = 0.3  # share of training queries with a right candidate beside it that is not listed
SPLITS = ("val", "test", "train")

# Adds a family's candidates and queries: the split, its scenes, how many of them have queries.
AddFamily = Callable[[str, list[Scene], int], None]


def build_hard_mbeir(
    folder: str | Path, seed: int, *, train: int = 160, gallery: int = 30, asked: tuple[int, int] = (3, 7)
) -> None:
    """Write the hard miniature M-BEIR; the same seed writes the same bytes. No scene is in two splits or datasets.

    Args:
        train, gallery: families of each dataset, to train on, and of each of val and test.
        asked: members of a family that have a query in each task: to train on, and in val and test.
    """
    builder = _Builder(Path(folder), random.Random(f"hard mbeir {seed}"))
    for split, families in {"val": gallery, "test": gallery, "train": train}.items():
        (builder.files.root / "mbeir_images" / split).mkdir(parents=True, exist_ok=True)
        for add_family in (builder.captions, builder.same_pictures, builder.changes, builder.questions):
            for _ in range(families):
                add_family(split, builder.family(), asked[split != "train"])
    builder.files.write()
    (builder.files.root / INSTRUCTIONS).parent.mkdir(exist_ok=True)
    (builder.files.root / INSTRUCTIONS).write_text(INSTRUCTION_ROWS)
    (builder.files.root / DONE).touch()


class _Builder:
    """What the families of one world share: its files, its facts, and the scenes that are taken."""

    def __init__(self, root: Path, rng: random.Random):
        self.files, self.rng = MBEIRFiles(root), rng
        self.taken: set[Scene] = set()
        self.pictures = 0
        pools = [local_pool("infoseek_task6"), *map(global_pool, SPLITS)]
        self.facts = {}  # of each shape that there can be, in two wordings
        for parts in product(range(world.GRID**2), world.COLOURS, world.NAMES):
            shape = Shape(*parts)
            texts = descriptions(frozenset({shape}), rng, 2)
            self.facts[shape] = [self.files.candidate(INFOSEEK, pools, text) for text in texts]

    def family(self) -> list[Scene]:
        """MEMBERS new scenes: one of three shapes, and edits of it."""
        (first,) = world.distinct_scenes(self.rng, 1, self.taken, three_shapes)
        return [first, *world.distinct_scenes(self.rng, MEMBERS - 1, self.taken, partial(edited, first))]

    def captions(self, split: str, scenes: list[Scene], asked: int) -> None:
        """MSCOCO, both directions."""
        images = {scene: self._image(COCO, "mscoco_task0", split, scene) for scene in scenes}
        texts = {scene: self._text(COCO, "mscoco_task3", split, scene) for scene in scenes}
        for scene in self.rng.sample(scenes, asked):
            if self._twin(split):
                self._image(COCO, "mscoco_task0", split, scene, shake=True)
                self._text(COCO, "mscoco_task3", split, scene)
            caption, picture = describe(scene, self.rng), self._draw(split, scene)
            self._query(COCO, "mscoco_task0", split, images, scene, text=caption)
            self._query(COCO, "mscoco_task3", split, texts, scene, image=picture)

    def same_pictures(self, split: str, scenes: list[Scene], asked: int) -> None:
        """NIGHTS: the same scene, some pixels aside and in other light."""
        images = {scene: self._image(NIGHTS, "nights_task4", split, scene, shake=True) for scene in scenes}
        for scene in self.rng.sample(scenes, asked):
            if self._twin(split):
                self._image(NIGHTS, "nights_task4", split, scene, shake=True)
            self._query(NIGHTS, "nights_task4", split, images, scene, image=self._draw(split, scene))

    def changes(self, split: str, scenes: list[Scene], asked: int) -> None:
        """CIRR: from a member to one of its edits; the picture of the query is in the pool too."""
        images = {scene: self._image(CIRR, "cirr_task7", split, scene) for scene in scenes}
        edits = [(a, b) for a in scenes for b in scenes if len(a - b) == len(b - a) == 1]
        for before, after in self.rng.sample(edits, asked):
            if self._twin(split):
                self._image(CIRR, "cirr_task7", split, after, shake=True)
            words, picture = change(before, after, self.rng), self._draw(split, before)
            self._query(CIRR, "cirr_task7", split, images, after, text=words, image=picture)

    def questions(self, split: str, scenes: list[Scene], asked: int) -> None:
        """InfoSeek: what is in a cell. Wrong facts tell of another shape of the picture, or differ in one respect."""
        for scene in self.rng.sample(scenes, asked):
            shape = self.rng.choice(sorted(scene))
            near = [other for other in self.facts if other in scene or _differ_in_one(shape, other)]
            wrong = [did for other in near if other != shape for did in self.facts[other]]
            parts = dict(text=question(shape, self.rng), image=self._draw(split, scene))
            self.files.query(INFOSEEK, "infoseek_task6", split, self.facts[shape], negatives=wrong, **parts)

    def _twin(self, split: str) -> bool:
        return split == "train" and self.rng.random() < TWINS

    def _pools(self, task: str, split: str) -> Sequence[str]:
        own = f"{task}_{split}" if task.startswith("mscoco") else task
        return [global_pool(split)] if split == "train" else [global_pool(split), local_pool(own)]

    def _image(self, dataset: int, task: str, split: str, scene: Scene, *, shake: bool = False) -> str:
        return self.files.candidate(dataset, self._pools(task, split), image=self._draw(split, scene, shake=shake))

    def _text(self, dataset: int, task: str, split: str, scene: Scene) -> str:
        return self.files.candidate(dataset, self._pools(task, split), describe(scene, self.rng))

    def _draw(self, split: str, scene: Scene, *, shake: bool = False) -> str:
        """Write the scene's picture; returns its path below the root."""
        path = f"mbeir_images/{split}/{self.pictures}.png"
        self.pictures += 1
        (shaken(draw(scene), self.rng) if shake else draw(scene)).save(self.files.root / path)
        return path

    def _query(self, dataset: int, task: str, split: str, candidates: dict[Scene, str], right: Scene, **parts) -> None:
        """A query whose wrong candidates are the rest of the family."""
        wrong = [did for scene, did in candidates.items() if scene != right]
        self.files.query(dataset, task, split, [candidates[right]], negatives=wrong, **parts)


def three_shapes(rng: random.Random) -> Scene:
    while len(scene := world.random_scene(rng)) < 3:
        pass
    return scene


def _differ_in_one(shape: Shape, other: Shape) -> bool:
    return sum(getattr(shape, name) != getattr(other, name) for name in ("cell", "colour", "kind")) == 1
