"""The base model of the robot's world: it has seen pictures of the world with words, and no expert.

As pretrain.py's, it learns to caption a picture, to reword a sentence and to name a detail of either, and also to do so
with a picture and a mission together. Nothing tells it which step comes next.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from lamra.collators.messages import embedding_messages
from lamra.collators.processing import Processor
from lamra.datasets.items import Item
from lamra.miniature.model import Example, grids, random_model, save_model
from lamra.miniature.pretrain import NAME_BOTH, Corpus, train
from lamra.miniature.recipes import RobotRecipe
from lamra.miniature.robot import HEIGHT, WIDTH, Memory
from lamra.miniature.robot_scene import DETAILS, describe, reworded


class Views(Corpus):
    """The tasks over what was seen in the robot's world."""

    details_of_world = DETAILS
    grid = (1, 2 * HEIGHT, 2 * WIDTH)  # a tile is four patches, of which the tower makes a token

    def __init__(self, seen: Sequence[Memory], processor: Processor):
        self.processor, self.tokenizer, self.seen = processor, processor.tokenizer, seen
        self.pixels = [processor.visuals.pixels(Item("", images=(memory.picture,)))["pixel_values"] for memory in seen]

    def sample(self, rng: random.Random, sentences: int, details: int) -> list[Example]:
        """The examples of a step: so many of a picture, of a sentence, and of a picture with a mission."""
        tasks = (self._picture, self._sentence, self._both)
        return [task(rng, naming) for task in tasks for naming in sentences * [False] + details * [True]]

    def _picture(self, rng: random.Random, naming: bool) -> Example:
        row = rng.randrange(len(self.seen))
        return self._say(self._source(row), describe(self.seen[row].scene, rng), naming, "image")

    def _sentence(self, rng: random.Random, naming: bool) -> Example:
        memory = rng.choice(self.seen)
        about = rng.choice(("scene", "mission", "both"))
        given, wanted = (text_of(memory, about, rng) for _ in range(2))
        return self._say(self.processor.encode(Item("", given)), wanted, naming, "sentence")

    def _both(self, rng: random.Random, naming: bool) -> Example:
        row = rng.randrange(len(self.seen))
        source = self._source(row, reworded(self.seen[row].mission, rng))
        return self._say(source, text_of(self.seen[row], "both", rng), naming, "image and sentence")

    def _source(self, row: int, text: str | None = None) -> dict:
        pixels = self.pixels[row]
        content = embedding_messages(Item("", text, ("a picture",)))
        return {"input_ids": self.processor.token_ids(content, grids(pixels, self.grid), ""), "pixel_values": pixels}


def text_of(memory: Memory, about: str, rng: random.Random) -> str:
    """What is seen in words, the mission in one of its wordings, or both."""
    scene, mission = describe(memory.scene, rng), reworded(memory.mission, rng)
    return {"scene": scene, "mission": mission, "both": f"{scene} {mission}"}[about]


def build_robot_base(recipe: RobotRecipe, seen: Sequence[Memory], words: Sequence[str], folder: Path) -> None:
    """Write the trained base model into `folder`; `words` are other texts that its tokenizer shall know."""
    rng = random.Random(recipe.seed)
    sentences = [text_of(memory, "both", rng) for memory in seen]
    model, processor = random_model(
        folder, [*sentences, *2 * [NAME_BOTH, *words, *sorted(DETAILS)]], recipe.seed, recipe.family
    )
    loss = train(model, Views(seen, processor), recipe)
    save_model(model, folder, f"pre-training loss {loss:.3f}")
