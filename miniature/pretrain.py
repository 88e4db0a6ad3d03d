"""The base model of the miniature: what stands in for the pre-training of its family.

It is next-token prediction on four tasks: caption a picture, reword a sentence, and name a detail of either. Nothing
here compares embeddings; that is stage 1's part.

The tasks are chosen (on validation pictures) so that the miniature starts where the paper's models start. Naming
details makes it understand pictures and sentences alike. Told to summarize, though, it opens its answer about a
picture and about a sentence with different words, so the embeddings of the two lie apart: the modality gap.

The base model of the hard miniature (mbeir_hard.py) learns two tasks more, which Qwen2-VL can do and which no stage
teaches from nothing: to answer a question about a picture, and to tell what a picture shows after a change. It also
sees pictures some pixels aside and in other light.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from lamra.collators import messages
from lamra.collators.messages import embedding_messages
from lamra.collators.processing import Processor
from lamra.datasets.items import Item
from lamra.miniature.comparisons import VARIANTS, View
from lamra.miniature.mbeir import change, instructions, question
from lamra.miniature.model import (
    CAPTION,
    END_OF_TURN,
    GRID,
    NAME_IMAGE,
    NAME_TEXT,
    REWORDED,
    Example,
    adamw,
    answer_tokens,
    descend,
    grids,
    padded,
    random_model,
    save_model,
)
from lamra.miniature.pretrain_rank import next_token_loss as packed_loss
from lamra.miniature.recipes import Recipe, RobotRecipe
from lamra.miniature.world import (
    CAPTIONS,
    DETAILS,
    Scene,
    describe,
    descriptions,
    distinct_scenes,
    edited,
    read_captions,
)
from lamra.models.backbone import Backbone
from lamra.models.families import FAMILIES

NAME_BOTH = "\nName a detail of above image and sentence: "
# What an item shows -> what its prompt asks at its end, and what stands there instead where a detail is to be named.
NAMING = {
    "image": (messages.SUMMARIZE_IMAGE, NAME_IMAGE),
    "sentence": (messages.SUMMARIZE_TEXT, NAME_TEXT),
    "image and sentence": (messages.SUMMARIZE_BOTH, NAME_BOTH),
}


class Corpus:
    """The four tasks over the pictures and captions in gallery folders; pixels are computed once."""

    details_of_world = DETAILS
    grid = GRID

    def __init__(self, folders: list[Path], processor: Processor):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.captions: list[str] = []
        pictures = []
        for folder in folders:
            captions = read_captions(folder)
            self.captions += captions
            pictures += [folder / f"images/{i}.png" for i in range(len(captions) // CAPTIONS)]
        self.pictures = [processor.encode(Item(str(path), images=(path,))) for path in tqdm(pictures, desc="pixels")]

    def sample(self, rng: random.Random, sentences: int, details: int) -> list[Example]:
        """The examples of a step."""
        tasks = sentences * [(True, False), (False, False)] + details * [(True, True), (False, True)]
        return [self.example(rng, pictured, naming) for pictured, naming in tasks]

    def example(self, rng: random.Random, pictured: bool, naming: bool) -> Example:
        """Of a picture or else of a sentence about it: its details, or else a caption or another wording."""
        i = rng.randrange(len(self.pictures))
        given, wanted = rng.sample(self.captions[i * CAPTIONS : (i + 1) * CAPTIONS], 2)
        source, wanted = (self.pictures[i], given) if pictured else (self.processor.encode(Item("", given)), wanted)
        return self._say(source, wanted, naming, "image" if pictured else "sentence")

    def _say(self, source: dict, wanted: str, naming: bool, shown: str) -> Example:
        """The sentence `wanted`, or its details, after what the processor made of an item; `shown` is its kind."""
        prompt, pixels = source["input_ids"], source["pixel_values"]
        if not naming:
            answer = (REWORDED if shown == "sentence" else CAPTION) + wanted + END_OF_TURN
            return Example(prompt, self.tokenizer.encode(answer), pixels=pixels, grid=self.grid)
        prompt = self.tokenizer.encode(self.tokenizer.decode(prompt).replace(*NAMING[shown]))
        details = [word for word in re.findall(r"[a-z]+", wanted) if word in self.details_of_world]
        return Example(prompt, self.tokenizer.convert_tokens_to_ids(details), True, pixels, self.grid)


class Scenes(Corpus):
    """The tasks of the hard miniature's base model, over scenes; pixels of the last pictures are kept."""

    def __init__(self, scenes: list[Scene], processor: Processor):
        self.processor, self.tokenizer, self.scenes = processor, processor.tokenizer, scenes

        @lru_cache(maxsize=2 * len(scenes))
        def pixels(scene: Scene, variant: int) -> Tensor:
            picture = View(scene, variant=variant).picture()
            return processor.visuals.pixels(Item("", images=(picture,)))["pixel_values"]

        self.pixels = pixels

    def sample(self, rng: random.Random, sentences: int, details: int) -> list[Example]:
        """The examples of a step: so many of a picture, of a sentence, of a question and of a change."""
        tasks = (self._picture, self._sentence, self._question, self._change)
        return [task(rng, naming) for task in tasks for naming in sentences * [False] + details * [True]]

    def _picture(self, rng: random.Random, naming: bool) -> Example:
        scene = rng.choice(self.scenes)
        return self._say(self._source(scene, rng), describe(scene, rng), naming, "image")

    def _sentence(self, rng: random.Random, naming: bool) -> Example:
        given, wanted = descriptions(rng.choice(self.scenes), rng, 2)
        return self._say(self.processor.encode(Item("", given)), wanted, naming, "sentence")

    def _question(self, rng: random.Random, naming: bool) -> Example:
        """What is in a cell: a sentence about its shape."""
        scene = rng.choice(self.scenes)
        shape = rng.choice(sorted(scene))
        asked = self._source(scene, rng, question(shape, rng))
        return self._say(asked, describe(frozenset({shape}), rng), naming, "image and sentence")

    def _change(self, rng: random.Random, naming: bool) -> Example:
        """What the picture shows after a change."""
        scene = rng.choice(self.scenes)
        changed = edited(scene, rng)
        source = self._source(scene, rng, change(scene, changed, rng))
        return self._say(source, describe(changed, rng), naming, "image and sentence")

    def _source(self, scene: Scene, rng: random.Random, text: str | None = None) -> dict:
        pixels = self.pixels(scene, rng.choice((0, 0, 0, *range(1, VARIANTS + 1))))
        content = embedding_messages(Item("", text, ("a picture",)))
        return {"input_ids": self.processor.token_ids(content, grids(pixels), ""), "pixel_values": pixels}


def next_token_loss(backbone: Backbone, examples: list[Example], processor: Processor) -> Tensor:
    """Mean cross-entropy over all answer tokens of B examples, padded."""
    hidden, _ = backbone.hidden(*padded(examples, processor))  # (B, L, D)
    row, position, target = answer_tokens(examples)
    return F.cross_entropy(backbone.stock.lm_head(hidden[row, position]), target)


def train(model: PreTrainedModel, corpus: Corpus, recipe: Recipe | RobotRecipe) -> float:
    """Teach the model the four tasks; returns the mean loss of the last ten steps."""
    rng = random.Random(recipe.seed)
    # Positions as stage 1 uses for this family.
    backbone = Backbone(model, FAMILIES[recipe.family].position_ids, padding_free=recipe.hard)
    backbone.pixels_from_bytes = corpus.processor.visuals.floats
    loss_of = packed_loss if recipe.hard else next_token_loss
    optimizer = adamw(model, recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1, cycle_momentum=False
    )
    losses = []
    progress = tqdm(range(recipe.steps), desc="pre-training")
    for _ in progress:
        loss = loss_of(backbone, corpus.sample(rng, recipe.sentences, recipe.details), corpus.processor)
        descend(optimizer, loss)
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}")
    return sum(losses[-10:]) / len(losses[-10:])


def build_base(recipe: Recipe, world: Path, folder: Path) -> None:
    """Write the trained base model of a family, which knows `world`, into `folder`."""
    folders = [world / "everyday", world / "studio"] if recipe.study else [world / "train"]
    sentences = [caption for each in folders for caption in read_captions(each)]
    if recipe.hard:
        sentences += 2 * [NAME_BOTH, *instructions()]
    model, processor = random_model(folder, sentences, recipe.seed, recipe.family)
    if recipe.hard:
        scenes = distinct_scenes(random.Random(recipe.seed), recipe.pictures, set())
        loss = train(model, Scenes(scenes, processor), recipe)
    else:
        loss = train(model, Corpus(folders, processor), recipe)
    save_model(model, folder, f"pre-training loss {loss:.3f}")
