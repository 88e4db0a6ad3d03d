"""Make the miniature world and a base model that knows it: `python miniature/build.py --seed 0`.

The model is a stock Qwen2-VL of about a million parameters. What stands in for Qwen2-VL's pre-training is next-token
prediction on four tasks: caption a picture, reword a sentence, and name a detail of either. Nothing here compares
embeddings; that is stage 1's part.

The tasks are chosen (on validation pictures) so that the miniature starts where the paper's models start. Naming
details makes it understand pictures and sentences alike. Asked to summarize, though, it opens its answer about a
picture and about a sentence with different words, so the embeddings of the two lie apart: the modality gap.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lamra.collators import messages
from lamra.collators.processing import Processor
from lamra.datasets.items import Item
from lamra.miniature import study, world
from lamra.miniature.study import build_study_world

MANIFEST = "miniature.json"  # written last: a folder without it is not finished
END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
OTHER_SPECIAL_TOKENS = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
# Pre-training alone uses these; they are no part of LamRA's prompts (collators/messages.py).
NAME_IMAGE = "\nName a detail of above image: "
NAME_TEXT = "\nName a detail of above sentence: "
CAPTION, REWORDED = "I see: ", "You say: "
# Qwen2-VL's conversation: a default system turn, then <|im_start|>role, newline, content, <|im_end|>, newline.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else %}{{ part['text'] }}{% endif %}
{%- endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@dataclass(frozen=True)
class Recipe:
    """What a build depends on; chosen on the validation pictures."""

    seed: int = 0
    pictures: int = 2000  # to pre-train on
    gallery: int = 200  # pictures of each of the validation and the test gallery
    triplets: int = 4000  # rows of nli.csv
    steps: int = 400
    sentences: int = 8  # examples a step of captioning and of rewording
    details: int = 12  # examples a step of each of the two naming tasks
    learning_rate: float = 2e-3
    study: bool = False  # the world of datasets/miniature_study.py, and a base model that knows both its domains


STUDY = Recipe(triplets=2000, steps=600, study=True)


def build_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE like Qwen2's: words of the world and of the prompts become one token, all else stays bytes."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+| ?[^\s\p{L}]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    prompts = [messages.SUMMARIZE_TEXT, messages.SUMMARIZE_IMAGE, messages.SUMMARIZE_BOTH, NAME_IMAGE, NAME_TEXT]
    frame = ["system\n", "You are a helpful assistant.", "user\n", "assistant\n", CAPTION, REWORDED]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,  # an upper bound: merging stops earlier, when every word is whole
        min_frequency=2,
        special_tokens=[PADDING, END_OF_TURN, *OTHER_SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sentences, *2 * (*prompts, *frame, *sorted(world.DETAILS))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        extra_special_tokens=OTHER_SPECIAL_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    """Qwen2-VL at 1.2 M parameters with `tokenizer`'s vocabulary."""
    token_id = tokenizer.convert_tokens_to_ids
    hidden_size, initializer_range = 128, 0.06  # the usual 0.02 is for large widths and starts slowly here
    return Qwen2VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            initializer_range=initializer_range,
            bos_token_id=token_id(PADDING),
            eos_token_id=token_id(END_OF_TURN),
            pad_token_id=token_id(PADDING),
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        ),
        vision_config=dict(
            depth=2, embed_dim=64, num_heads=4, hidden_size=hidden_size, initializer_range=initializer_range
        ),
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )


@dataclass(frozen=True)
class Example:
    """A prompt and what follows it: an answer, or one of several single words, each of which is right."""

    prompt: list[int]
    answer: list[int]
    alternatives: bool
    pixels: Tensor | None = None  # (36, 1176) patches

    @property
    def input_ids(self) -> list[int]:
        return self.prompt if self.alternatives else self.prompt + self.answer

    @property
    def positions(self) -> list[int]:
        """Where each token of the answer is predicted: one place after the other, or all at the prompt's end."""
        last = len(self.prompt) - 1
        return [last + i * (not self.alternatives) for i in range(len(self.answer))]


class Corpus:
    """The four tasks over the pictures and captions in gallery folders; pixels are computed once."""

    def __init__(self, folders: list[Path], processor: Processor):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.captions = all_captions(folders)
        counts = {folder: len(all_captions([folder])) // world.CAPTIONS for folder in folders}
        paths = [folder / f"images/{i}.png" for folder, count in counts.items() for i in range(count)]
        pictures = [Item(str(path), images=(path,)) for path in paths]
        self.pictures = [processor.encode(item) for item in tqdm(pictures, desc="pixels")]

    def sample(self, rng: random.Random, sentences: int, details: int) -> list[Example]:
        """One step's examples."""
        tasks = sentences * [self.caption, self.reword] + details * [self.name_in_picture, self.name_in_sentence]
        return [task(rng, rng.randrange(len(self.pictures))) for task in tasks]

    def caption(self, rng: random.Random, i: int) -> Example:
        answer = self._ids(CAPTION + self._captions(rng, i)[0] + END_OF_TURN)
        return Example(self.pictures[i]["input_ids"], answer, False, self._pixels(i))

    def reword(self, rng: random.Random, i: int) -> Example:
        given, wanted = self._captions(rng, i)
        prompt = self.processor.encode(Item("", text=given))["input_ids"]
        return Example(prompt, self._ids(REWORDED + wanted + END_OF_TURN), False)

    def name_in_picture(self, rng: random.Random, i: int) -> Example:
        prompt = self.tokenizer.decode(self.pictures[i]["input_ids"])
        prompt = prompt.replace(messages.SUMMARIZE_IMAGE, NAME_IMAGE)
        return Example(self._ids(prompt), self._details(self._captions(rng, i)[0]), True, self._pixels(i))

    def name_in_sentence(self, rng: random.Random, i: int) -> Example:
        given, wanted = self._captions(rng, i)
        prompt = self.processor.render(messages.embedding_messages(Item("", text=given)))
        prompt = prompt.replace(messages.SUMMARIZE_TEXT, NAME_TEXT)
        return Example(self._ids(prompt), self._details(wanted), True)

    def _captions(self, rng: random.Random, i: int) -> list[str]:
        first = i * world.CAPTIONS
        return rng.sample(self.captions[first : first + world.CAPTIONS], 2)

    def _pixels(self, i: int) -> Tensor:
        return self.pictures[i]["pixel_values"]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def _details(self, caption: str) -> list[int]:
        words = re.findall(r"[a-z]+", caption)
        return [self.tokenizer.convert_tokens_to_ids(word) for word in words if word in world.DETAILS]


def all_captions(folders: list[Path]) -> list[str]:
    return [caption for folder in folders for caption in json.loads((folder / "captions.json").read_text())]


def next_token_loss(model: nn.Module, examples: list[Example], pad_id: int) -> Tensor:
    """Mean cross-entropy over all answer tokens of B examples."""
    rows = [torch.tensor(example.input_ids) for example in examples]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)  # (B, L)
    pixels = [example.pixels for example in examples if example.pixels is not None]
    hidden = model.model(
        input_ids=ids,
        # Plain positions, as stage 1 uses for Qwen2-VL. Right padding needs no mask under causal attention.
        position_ids=torch.arange(ids.shape[1]).expand(3, *ids.shape),
        pixel_values=torch.cat(pixels),
        image_grid_thw=torch.tensor([[1, 6, 6]]).expand(len(pixels), 3),
        use_cache=False,
    ).last_hidden_state  # (B, L, D)
    row, position, target = answer_tokens(examples)
    return F.cross_entropy(model.lm_head(hidden[row, position]), target)


def answer_tokens(examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """(A,) each of all answer tokens: the example's number, where in it the token is predicted, and the token."""
    row = [i for i, example in enumerate(examples) for _ in example.answer]
    position = [p for example in examples for p in example.positions]
    return torch.tensor(row), torch.tensor(position), torch.tensor([t for example in examples for t in example.answer])


def train(model: nn.Module, corpus: Corpus, recipe: Recipe) -> float:
    """Teach the model the four tasks; returns the mean loss of the last ten steps."""
    rng = random.Random(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1, cycle_momentum=False
    )
    losses = []
    progress = tqdm(range(recipe.steps), desc="pre-training")
    for _ in progress:
        loss = next_token_loss(
            model, corpus.sample(rng, recipe.sentences, recipe.details), corpus.tokenizer.pad_token_id
        )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}")
    return sum(losses[-10:]) / len(losses[-10:])


def build(recipe: Recipe, world: Path, folder: Path) -> None:
    """Write the world's files into `world` and the trained base model into `folder`."""
    if recipe.study:
        build_study_world(world, recipe.seed, gallery_pictures=recipe.gallery, rows=recipe.triplets)
        folders = [world / "everyday", world / "studio"]
    else:
        sizes = dict(train_pictures=recipe.pictures, gallery_pictures=recipe.gallery, triplets=recipe.triplets)
        world.build_world(world, recipe.seed, **sizes)
        folders = [world / "train"]
    torch.manual_seed(recipe.seed)
    build_tokenizer(all_captions(folders)).save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    processor = Processor(folder)
    model = Qwen2VLForConditionalGeneration(build_config(processor.tokenizer))
    loss = train(model, Corpus(folders, processor), recipe)
    model.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"base model: {parameters / 1e6:.2f} M parameters, pre-training loss {loss:.3f}, in {folder}")


def ensure(recipe: Recipe, world: Path, folder: Path, force: bool = False) -> bool:
    """Build what is not there, was built by another recipe or version of this code, or is asked for by `force`.

    Returns:
        Whether anything was built.
    """
    sources = [world.__file__, study.__file__, messages.__file__, __file__]
    return ensure_built([world, folder], recipe, sources, lambda: build(recipe, world, folder), force)


def ensure_built(folders: list[Path], recipe, sources: list[str], build: Callable[[], None], force: bool) -> bool:
    """`ensure` for a `build` that writes `folders` and follows from a dataclass `recipe` and the files `sources`."""
    digest = hashlib.sha256(b"".join(Path(source).read_bytes() for source in sources)).hexdigest()
    manifest = json.dumps({**asdict(recipe), "source": digest}, indent=2) + "\n"
    paths = [folder / MANIFEST for folder in folders]
    if not force and all(path.is_file() and path.read_text() == manifest for path in paths):
        return False
    for path in paths:
        if path.is_file():  # a folder that we wrote: nothing of an earlier build stays behind
            shutil.rmtree(path.parent)
    build()
    for path in paths:
        path.write_text(manifest)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the miniature world and its base model.")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of the model")
    parser.add_argument("--study", action="store_true", help="the world of scripts/study/, with its own base model")
    parser.add_argument("--world", type=Path, help="folder of pictures and sentences (default: data/miniature)")
    parser.add_argument("--model", type=Path, help="folder of the model (default: checkpoints/hf_models/miniature)")
    parser.add_argument("--force", action="store_true", help="build again even if both are there")
    args = parser.parse_args()

    name = "miniature_study" if args.study else "miniature"
    world, model = args.world or Path("data", name), args.model or Path("checkpoints/hf_models", name)
    recipe = STUDY if args.study else Recipe()
    built = ensure(replace(recipe, seed=args.seed), world, model, args.force)
    state = "now in" if built else "already in"
    print(f"miniature world {state} {world}, its base model {state} {model}")


if __name__ == "__main__":
    main()
