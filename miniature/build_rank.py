"""Make the base model of LamRA-Rank's miniature: `python miniature/build_rank.py --seed 0`.

LamRA-Rank teaches a model that can compare to answer in its format. Qwen2-VL can; the miniature's other base model,
which captions and names, cannot, and mined candidates do not teach it: they differ in little, and a model that cannot
compare finds nothing in them. This one, of the same architecture and size, learns to first. Each phase is one that a
model that knows the phases before can learn (all others that were tried stood still at chance): to name the shape in
a picture, to caption pictures and answer questions about them, to compare single shapes that differ in all respects,
and to compare whole scenes, less and less different, in kind above all. It can spell LamRA-Rank's answers and its
tokenizer has the words of the prompts, but it was never asked in them: that is left to LamRA-Rank's training.
"""

from __future__ import annotations

import argparse
import os
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lamra.collators import messages
from lamra.collators.processing import Processor
from lamra.datasets.items import Item
from lamra.miniature import build as base_model
from lamra.miniature import build_mbeir, comparisons, world
from lamra.miniature.build import END_OF_TURN, Example, answer_tokens, build_config, build_tokenizer, ensure_built
from lamra.miniature.comparisons import RESPECTS, Comparison, Shown, compare, one_shape, show
from lamra.miniature.comparisons import picture as picture_of
from lamra.miniature.world import Scene, describe, descriptions, distinct_scenes
from lamra.models.backbone import Backbone

SIDES = list(product(("sentence", "picture"), repeat=2))
FITS = "\nDoes the candidate meet the requirements? "
STYLE = "released"  # of LamRA-Rank's prompts, as scripts/miniature/rank.sh trains and asks
ANSWERS = (messages.YES, messages.NO, *map(messages.listwise_answer, range(1, messages.MOST_CANDIDATES + 1)))
ASSISTANT = "\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Recipe:
    """What a build depends on. The phases' steps, then a step's examples."""

    seed: int = 0
    scenes: int = 2000  # to learn from
    naming: int = 130
    language: int = 270
    shapes: int = 600  # at most: until the loss of the comparisons, averaged over some ten steps, is below `learnt`
    learnt: float = 0.4
    whole_scenes: int = 300
    sentences: int = 12  # beside comparisons
    questions: int = 9
    comparisons: int = 96
    learning_rate: float = 2e-3


class Teacher:
    """Makes the examples of each task from scenes; pixels of the last pictures are kept."""

    def __init__(self, scenes: list[Scene], processor: Processor, rng: random.Random):
        self.scenes, self.processor, self.rng = scenes, processor, rng
        self.pixels = lru_cache(maxsize=3000)(self._pixels)

    def scene(self) -> Scene:
        """Of one shape more often than not: what is learnt about one holds for more."""
        scene = self.rng.choice(self.scenes)
        return one_shape(scene, self.rng) if self.rng.random() < 0.6 else scene

    def name(self) -> Example:
        """The kind of the only shape in a picture."""
        return self.ask(show(one_shape(self.scene(), self.rng), "picture", self.rng), "kind")

    def ask(self, shown: Shown, respect: str) -> Example:
        """The kind or the colour of the shape at a place, or the place of a shape."""
        shape = self.rng.choice(sorted(shown.scene))
        kind, place = self.rng.choice(world.NAMES[shape.kind]), build_mbeir.place(shape, self.rng)
        question, answer = {
            "kind": (f"\nShape at {place}: ", kind),
            "colour": (f"\nColour at {place}: ", shape.colour),
            "cell": (f"\nPlace of the {shape.colour} {kind}: ", place),
        }[respect]
        return self._example(["Query:", shown, question], " " + answer)

    def tell(self, shown: Shown) -> Example:
        """A sentence about the scene, word by word, where a candidate's would stand."""
        example = self._example(["Query:", shown, "Candidate:"], describe(shown.scene, self.rng))
        after = len(self._ids(END_OF_TURN + ASSISTANT))  # the sentence stands before the end of the turn
        return replace(example, prompt=example.prompt[:-after])

    def spell(self, answer: str) -> Example:
        """How an answer of LamRA-Rank is spelt, not what it means."""
        return self._example([answer], answer + END_OF_TURN)

    def compare(self, one: Comparison) -> Example:
        parts = ["Query:", one.query, "Candidate:", one.candidate, FITS]
        return self._example(parts, messages.YES if one.fits else messages.NO)

    def language(self, sentences: int, questions: int) -> list[Example]:
        """Captions, other wordings, questions and an answer's spelling; three pictures to a sentence, or two."""
        told = [self.tell(show(self.scene(), side, self.rng)) for side in _taking_turns(sentences, pictures=3)]
        asked = [
            self.ask(show(self.scene(), side, self.rng), self.rng.choice(("kind", *RESPECTS)))
            for side in _taking_turns(questions, pictures=2)
        ]
        return [*told, *asked, self.spell(self.rng.choice(ANSWERS))]

    def comparisons(self, count: int, progress: float) -> list[Comparison]:
        """Of whole scenes: at 0 half of them of one shape, all of them different; at 1 one shape in kind alone."""
        return [
            compare(
                one_shape(scene, self.rng) if self.rng.random() < 0.5 - progress else scene,
                self.rng.choice(SIDES),
                self.rng,
                one_changed=progress,
                kind_alone=0.5 + progress / 2,
            )
            for scene in self.rng.choices(self.scenes, k=count)
        ]

    def shape_comparisons(self, count: int) -> list[Comparison]:
        """Of single shapes, different in all respects."""
        shapes = [one_shape(scene, self.rng) for scene in self.rng.choices(self.scenes, k=count)]
        return [compare(one, self.rng.choice(SIDES), self.rng, one_changed=0, kind_alone=0) for one in shapes]

    def _example(self, parts: list[str | Shown], answer: str) -> Example:
        content = []
        for part in parts:
            content += messages.item_content(part.item() if isinstance(part, Shown) else Item("", part))
        pictures = [part for part in parts if isinstance(part, Shown) and not part.text]
        pixels = [self.pixels(one.scene, one.variant) for one in pictures]
        ids = self.processor.token_ids([{"role": "user", "content": content}], _grids(len(pixels)), "")
        return Example(ids, self._ids(answer), False, torch.cat(pixels) if pixels else None)

    def _pixels(self, scene: Scene, variant: int) -> Tensor:
        return self.processor.pixels(Item("", images=(picture_of(scene, variant),)))["pixel_values"]

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text)["input_ids"]


def _taking_turns(count: int, pictures: int) -> list[str]:
    return [("sentence", *pictures * ["picture"])[i % (pictures + 1)] for i in range(count)]


def _grids(pictures: int) -> Tensor | None:
    return torch.tensor(pictures * [[1, 6, 6]]) if pictures else None


def encoded(example: Example) -> dict:
    """As Processor.encode's."""
    pictures = 0 if example.pixels is None else len(example.pixels) // 36
    return {"input_ids": example.input_ids, "pixel_values": example.pixels, "image_grid_thw": _grids(pictures)}


def next_token_loss(backbone: Backbone, examples: list[Example], processor: Processor) -> Tensor:
    """Mean cross-entropy over all answer tokens of B examples, packed.

    The text that all begin with is computed once: nothing is dropped out here, so that is exact.
    """
    inputs = processor.pad([encoded(example) for example in examples])
    shared = os.path.commonprefix([example.prompt[:-1] for example in examples])
    if backbone.config.vision_start_token_id in shared:
        shared = shared[: shared.index(backbone.config.vision_start_token_id)]
    hidden, packing = backbone.hidden(**inputs, prefix=backbone.prefix_of(torch.tensor(shared)))  # (1, T, D)
    row, position, target = answer_tokens(examples)
    asked = hidden[0, packing.starts[row] + position - len(shared)]  # (A, D)
    return F.cross_entropy(backbone.stock.lm_head(asked), target)


class Training:
    """Steps of AdamW over the means of groups of examples, after a short warm-up."""

    def __init__(self, model: nn.Module, processor: Processor, learning_rate: float):
        self.backbone, self.processor = Backbone(model, "mrope").eval(), processor  # no dropout
        self.learning_rate, self.steps = learning_rate, 0
        self.optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)

    def step(self, *groups: list[Example], rate: float = 1.0) -> float:
        """One update at `rate` of the learning rate; returns the loss of the first group."""
        self.steps += 1
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.learning_rate * rate * min(1.0, self.steps / 50)
        losses = [next_token_loss(self.backbone, examples, self.processor) for examples in groups]
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(self.backbone.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses[0].item()


def train(model: nn.Module, processor: Processor, recipe: Recipe) -> float:
    """Teach the model all phases; returns the mean loss of the last ten steps' comparisons."""
    rng = random.Random(recipe.seed)
    teacher = Teacher(distinct_scenes(rng, recipe.scenes, set()), processor, rng)
    training = Training(model, processor, recipe.learning_rate)

    for _ in tqdm(range(recipe.naming), desc="naming shapes"):
        training.step([teacher.name() for _ in range(48)])
    for _ in tqdm(range(recipe.language), desc="captions and questions"):
        training.step(teacher.language(sentences=20, questions=48))

    def learn(comparisons: list[Comparison], rate: float = 1.0) -> float:
        beside = teacher.language(recipe.sentences, recipe.questions)
        return training.step([teacher.compare(one) for one in comparisons], beside, rate=rate)

    loss, steps = 1.0, tqdm(range(recipe.shapes), desc="comparing shapes")
    for _ in steps:
        loss = 0.9 * loss + 0.1 * learn(teacher.shape_comparisons(recipe.comparisons))
        steps.set_postfix(loss=f"{loss:.3f}")
        if loss < recipe.learnt:
            break
    steps.close()
    losses, steps = [], tqdm(range(recipe.whole_scenes), desc="comparing scenes")
    for step in steps:
        progress = step / recipe.whole_scenes
        losses.append(learn(teacher.comparisons(recipe.comparisons, progress), rate=1 - progress))
        steps.set_postfix(loss=f"{losses[-1]:.3f}")
    return sum(losses[-10:]) / len(losses[-10:])


def rank_words() -> list[str]:
    """What a reranker's tokenizer is to know in whole words: prompts, answers, and M-BEIR's instructions."""
    some, numbers = Item("", "A disc."), range(1, messages.MOST_CANDIDATES + 1)
    asked = [messages.pointwise_messages(STYLE, some, some)]
    asked += [messages.listwise_messages(STYLE, some, [some for _ in numbers])]
    parts = [[part["text"] for part in turn["content"]] for (turn,) in asked]
    instructions = [prompt for prompts in build_mbeir.PROMPTS.values() for prompt in prompts]
    questions = ["\nShape at top left: ", "\nColour at top left: ", "\nPlace of the red circle: ", FITS]
    return [*map("".join, parts), *parts[1], *ANSWERS, *instructions, *questions]


def build(recipe: Recipe, folder: Path) -> None:
    """Write the trained base model into `folder`."""
    rng = random.Random(recipe.seed)
    sentences = [text for scene in distinct_scenes(rng, recipe.scenes, set()) for text in descriptions(scene, rng, 5)]
    torch.manual_seed(recipe.seed)
    build_tokenizer([*sentences, *2 * rank_words()]).save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    processor = Processor(folder)
    model = Qwen2VLForConditionalGeneration(build_config(processor.tokenizer))
    loss = train(model, processor, recipe)
    model.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"base model: {parameters / 1e6:.2f} M parameters, loss of its comparisons {loss:.3f}, in {folder}")


def ensure(recipe: Recipe, folder: Path, force: bool = False) -> bool:
    """As build.ensure."""
    modules = (base_model, messages, world, comparisons, build_mbeir)
    sources = [__file__, *(module.__file__ for module in modules)]
    return ensure_built([folder], recipe, sources, lambda: build(recipe, folder), force)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the base model of LamRA-Rank's miniature.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default="checkpoints/hf_models/miniature_rank", help="its folder")
    parser.add_argument("--force", action="store_true", help="build again even if it is there")
    args = parser.parse_args()
    built = ensure(replace(Recipe(), seed=args.seed), args.model, args.force)
    print(f"base model of LamRA-Rank's miniature {'now' if built else 'already'} in {args.model}")


if __name__ == "__main__":
    main()
