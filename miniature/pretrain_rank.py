"""The base model of LamRA-Rank's miniature.

LamRA-Rank teaches a model that can compare to answer in its format. Qwen2-VL can; the miniature's other base model,
which captions and names, cannot, and mined candidates do not teach it: they differ in little, and a model that cannot
compare finds nothing in them. This model, of the same architecture and size, learns to first. Each phase is such that a
model that knows the phases before can learn it (all others that were tried stood still at chance): to name the shape in
a picture, to caption pictures and answer questions about them, to compare single shapes that differ in all respects,
and to compare whole scenes, less and less different, in kind above all. It can spell LamRA-Rank's answers and its
tokenizer has the words of the prompts, but it never saw them as prompts: that is left to LamRA-Rank's training.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lamra.collators import messages
from lamra.collators.processing import Processor
from lamra.datasets.items import Item
from lamra.miniature.comparisons import RESPECTS, Comparison, View, compare, one_shape, view
from lamra.miniature.mbeir import instructions
from lamra.miniature.model import (
    END_OF_TURN,
    Example,
    adamw,
    answer_tokens,
    descend,
    grids,
    padded,
    random_model,
    save_model,
)
from lamra.miniature.recipes import RankRecipe
from lamra.miniature.world import NAMES, Scene, describe, descriptions, distinct_scenes, position
from lamra.models.backbone import Backbone

SIDES = [(query, candidate) for query in ("sentence", "picture") for candidate in ("sentence", "picture")]
FITS = "\nDoes the candidate meet the requirements? "
STYLE = "released"  # of LamRA-Rank's prompts, as scripts/miniature/rank.sh trains and reranks with
ANSWERS = (messages.YES, messages.NO, *map(messages.listwise_answer, range(1, messages.MOST_CANDIDATES + 1)))
ASSISTANT = "\n<|im_start|>assistant\n"


class Teacher:
    """Makes the examples of each task from scenes; pixels of the last pictures are kept."""

    def __init__(self, scenes: list[Scene], processor: Processor, rng: random.Random):
        self.scenes, self.processor, self.rng = scenes, processor, rng

        @lru_cache(maxsize=3000)
        def pixels(shown: View) -> Tensor:
            return processor.visuals.pixels(Item("", images=(shown.picture(),)))["pixel_values"]

        self.pixels = pixels

    def scene(self) -> Scene:
        """Of one shape more often than not: what is learnt about a single shape holds for more."""
        scene = self.rng.choice(self.scenes)
        return one_shape(scene, self.rng) if self.rng.random() < 0.6 else scene

    def name(self) -> Example:
        """The kind of the only shape in a picture."""
        return self.answer(view(one_shape(self.scene(), self.rng), "picture", self.rng), "kind")

    def answer(self, shown: View, respect: str) -> Example:
        """The kind or the colour of the shape in a cell, or the position of a shape."""
        shape = self.rng.choice(sorted(shown.scene))
        kind, where = self.rng.choice(NAMES[shape.kind]), position(shape, self.rng)
        question, answer = {
            "kind": (f"\nShape at {where}: ", kind),
            "colour": (f"\nColour at {where}: ", shape.colour),
            "cell": (f"\nPlace of the {shape.colour} {kind}: ", where),
        }[respect]
        return self._example(["Query:", shown, question], " " + answer)

    def caption(self, shown: View) -> Example:
        """A sentence about the scene, word by word, where a candidate's would stand."""
        example = self._example(["Query:", shown, "Candidate:"], describe(shown.scene, self.rng))
        after = len(self._ids(END_OF_TURN + ASSISTANT))  # the sentence stands before the end of the turn
        return replace(example, prompt=example.prompt[:-after])

    def spell(self, answer: str) -> Example:
        """How an answer of LamRA-Rank is spelt, not what it means."""
        return self._example([answer], answer + END_OF_TURN)

    def compare(self, comparison: Comparison) -> Example:
        query, candidate, fits = comparison
        return self._example(["Query:", query, "Candidate:", candidate, FITS], messages.YES if fits else messages.NO)

    def language(self, sentences: int, questions: int) -> list[Example]:
        """Captions, other wordings, questions and an answer's spelling; three pictures to a sentence, or two."""
        captions = [self.caption(self._view(i, pictures=3)) for i in range(sentences)]
        answers = [
            self.answer(self._view(i, pictures=2), self.rng.choice(("kind", *RESPECTS))) for i in range(questions)
        ]
        return [*captions, *answers, self.spell(self.rng.choice(ANSWERS))]

    def comparisons(self, number: int, progress: float) -> list[Comparison]:
        """Of whole scenes: at 0 half of them of one shape, all of them different; at 1 one shape in kind alone."""
        return [
            compare(
                one_shape(scene, self.rng) if self.rng.random() < 0.5 - progress else scene,
                self.rng.choice(SIDES),
                self.rng,
                one_shape_changed=progress,
                kind_alone=0.5 + progress / 2,
            )
            for scene in self.rng.choices(self.scenes, k=number)
        ]

    def shape_comparisons(self, number: int) -> list[Comparison]:
        """Of single shapes, different in all respects."""
        shapes = [one_shape(scene, self.rng) for scene in self.rng.choices(self.scenes, k=number)]
        return [compare(shape, self.rng.choice(SIDES), self.rng, one_shape_changed=0, kind_alone=0) for shape in shapes]

    def _view(self, i: int, pictures: int) -> View:
        """Of a scene: a sentence, then so many pictures, and so on."""
        return view(self.scene(), "picture" if i % (pictures + 1) else "sentence", self.rng)

    def _example(self, parts: Sequence[str | View], answer: str) -> Example:
        content, pictures = [], []
        for part in parts:
            content += messages.item_content(part.item() if isinstance(part, View) else Item("", part))
            if isinstance(part, View) and not part.text:
                pictures.append(self.pixels(part))
        pixels = torch.cat(pictures) if pictures else None
        prompt = self.processor.token_ids([{"role": "user", "content": content}], grids(pixels), "")
        return Example(prompt, self._ids(answer), pixels=pixels)

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer.encode(text)


def next_token_loss(backbone: Backbone, examples: list[Example], processor: Processor) -> Tensor:
    """Mean cross-entropy over all answer tokens of B examples, packed.

    The text that all begin with is computed once: nothing is dropped out here, so that is exact.
    """
    shared = os.path.commonprefix([example.prompt[:-1] for example in examples])
    if backbone.config.vision_start_token_id in shared:
        shared = shared[: shared.index(backbone.config.vision_start_token_id)]
    rows, prefix = padded(examples, processor), backbone.prefix_of(torch.tensor(shared))
    hidden, packing = backbone.hidden(*rows, prefix=prefix)  # (1, T, D)
    row, position, target = answer_tokens(examples)
    predicting = hidden[0, packing.starts[row] + position - len(shared)]  # (A, D)
    return F.cross_entropy(backbone.stock.lm_head(predicting), target)


def train(model: nn.Module, processor: Processor, recipe: RankRecipe) -> float:
    """Teach the model all phases; returns the mean loss of the last ten steps' comparisons."""
    rng = random.Random(recipe.seed)
    teacher = Teacher(distinct_scenes(rng, recipe.scenes, set()), processor, rng)
    backbone = Backbone(model, "mrope").eval()  # no dropout
    backbone.pixels_from_bytes = processor.visuals.floats
    optimizer, steps = adamw(model, recipe.learning_rate), count(1)

    def learn(*groups: list[Example], rate: float = 1.0) -> float:
        """A step on the mean of the groups' losses, after a short warm-up; returns the loss of the first group."""
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * rate * min(1.0, next(steps) / 50)
        losses = [next_token_loss(backbone, examples, processor) for examples in groups]
        descend(optimizer, torch.stack(losses).mean())
        return losses[0].item()

    def learn_to_compare(comparisons: list[Comparison], rate: float = 1.0) -> float:
        beside = teacher.language(recipe.sentences, recipe.questions)
        return learn([teacher.compare(comparison) for comparison in comparisons], beside, rate=rate)

    for _ in tqdm(range(recipe.naming), desc="naming shapes"):
        learn([teacher.name() for _ in range(48)])
    for _ in tqdm(range(recipe.language), desc="captions and questions"):
        learn(teacher.language(sentences=20, questions=48))
    loss, bar = 1.0, tqdm(range(recipe.shapes), desc="comparing shapes")
    for _ in bar:
        loss = 0.9 * loss + 0.1 * learn_to_compare(teacher.shape_comparisons(recipe.comparisons))
        bar.set_postfix(loss=f"{loss:.3f}")
        if loss < recipe.learnt:
            break
    bar.close()
    losses, bar = [], tqdm(range(recipe.whole_scenes), desc="comparing scenes")
    for step in bar:
        progress = step / recipe.whole_scenes
        losses.append(learn_to_compare(teacher.comparisons(recipe.comparisons, progress), rate=1 - progress))
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return sum(losses[-10:]) / len(losses[-10:])


def rank_words() -> list[str]:
    """What a reranker's tokenizer is to know in whole words: prompts, answers, and M-BEIR's instructions."""
    item, numbers = Item("", "A disc."), range(1, messages.MOST_CANDIDATES + 1)
    prompts = [messages.pointwise_messages(STYLE, item, item)]
    prompts += [messages.listwise_messages(STYLE, item, [item for _ in numbers])]
    parts = [[part["text"] for part in turn["content"]] for (turn,) in prompts]
    questions = ["\nShape at top left: ", "\nColour at top left: ", "\nPlace of the red circle: ", FITS]
    return [*map("".join, parts), *parts[1], *ANSWERS, *instructions(), *questions]


def build_rank_base(recipe: RankRecipe, folder: Path) -> None:
    """Write the trained base model into `folder`."""
    rng = random.Random(recipe.seed)
    sentences = [text for scene in distinct_scenes(rng, recipe.scenes, set()) for text in descriptions(scene, rng, 5)]
    model, processor = random_model(folder, [*sentences, *2 * rank_words()], recipe.seed, recipe.family)
    loss = train(model, processor, recipe)
    save_model(model, folder, f"loss of its comparisons {loss:.3f}")
