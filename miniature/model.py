"""A stock model of about a million parameters, of any family: its tokenizer, its configuration, a step of learning.

Two base models are made of it: pretrain.py teaches the model that stage 1 starts from, pretrain_rank.py LamRA-Rank's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lamra.collators import messages
from lamra.collators.processing import Processor
from lamra.miniature.world import DETAILS
from lamra.models.families import FAMILIES

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
OTHER_SPECIAL_TOKENS = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
# Pre-training alone uses these; they are no part of LamRA's prompts (collators/messages.py).
NAME_IMAGE = "\nName a detail of above image: "
NAME_TEXT = "\nName a detail of above sentence: "
CAPTION, REWORDED = "I see: ", "You say: "
GRID = (1, 6, 6)  # patches of a picture of the world: 84 x 84 pixels, 14 a patch, or resized to 96 x 96, 16 a patch
# A conversation: <|im_start|>role, newline, content, <|im_end|>, newline for each turn.
TURNS = """\
{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else %}{{ part['text'] }}{% endif %}
{%- endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
DEFAULT_SYSTEM_TURN = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}
"""


@dataclass(frozen=True)
class Miniature:
    """What a family's miniature has of its own; the rest is in build_config.

    Attributes:
        text, vision: parts of text_config and of vision_config.
        normalisation: image_mean and image_std of each colour; None is CLIP's, the library's default.
        chat_template: as the family's published models have it.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    normalisation: float | None = None
    chat_template: str = DEFAULT_SYSTEM_TURN + TURNS


WIDTH, VISION_WIDTH = 128, 64
MINIATURES = {
    "qwen2_vl": Miniature(
        text=dict(rope_parameters={"mrope_section": [4, 6, 6]}),
        vision=dict(embed_dim=VISION_WIDTH, hidden_size=WIDTH),
    ),
    "qwen2_5_vl": Miniature(
        text=dict(rope_parameters={"mrope_section": [4, 6, 6]}),
        vision=dict(hidden_size=VISION_WIDTH, intermediate_size=168, out_hidden_size=WIDTH, fullatt_block_indexes=[1])
        # A gated MLP multiplies two small values and starts more slowly still: with 0.06 the loss ends higher.
        | dict(initializer_range=0.12),
    ),
    "qwen3_vl": Miniature(
        text=dict(head_dim=32, rope_parameters={"mrope_section": [6, 5, 5], "mrope_interleaved": True}),
        vision=dict(hidden_size=VISION_WIDTH, intermediate_size=4 * VISION_WIDTH, out_hidden_size=WIDTH)
        | dict(num_position_embeddings=64, deepstack_visual_indexes=[0]),
        normalisation=0.5,
        chat_template=TURNS,  # no system turn of its own
    ),
}


def build_tokenizer(sentences: list[str], family: str = "qwen2_vl") -> PreTrainedTokenizerFast:
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
    tokenizer.train_from_iterator([*sentences, *2 * (*prompts, *frame, *sorted(DETAILS))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        extra_special_tokens=OTHER_SPECIAL_TOKENS,
        chat_template=MINIATURES[family].chat_template,
    )


def build_config(tokenizer: PreTrainedTokenizerFast, family: str = "qwen2_vl") -> PreTrainedConfig:
    """A model of a family (models.families.FAMILIES) at 1.2 M parameters with `tokenizer`'s vocabulary."""
    token_id, own = tokenizer.convert_tokens_to_ids, MINIATURES[family]
    initializer_range = 0.06  # the usual 0.02 is for large widths and starts slowly here
    rope = {"rope_type": "default", "rope_theta": 1e4, **own.text["rope_parameters"]}
    return FAMILIES[family].model_class.config_class(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            initializer_range=initializer_range,
            bos_token_id=token_id(PADDING),
            eos_token_id=token_id(END_OF_TURN),
            pad_token_id=token_id(PADDING),
            **own.text | {"rope_parameters": rope},
        ),
        vision_config=dict(depth=2, num_heads=4, initializer_range=initializer_range) | own.vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def random_model(folder: Path, sentences: list[str], seed: int, family: str) -> tuple[PreTrainedModel, Processor]:
    """A model with random weights, and its processor; all files but the weights are written into `folder`."""
    tokenizer = build_tokenizer(sentences, family)
    config = build_config(tokenizer, family)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    colours = MINIATURES[family].normalisation
    normalisation = {} if colours is None else dict(image_mean=3 * [colours], image_std=3 * [colours])
    Qwen2VLImageProcessorPil(patch_size=config.vision_config.patch_size, **normalisation).save_pretrained(folder)
    torch.manual_seed(seed)
    return FAMILIES[family].model_class(config), Processor(folder)


def save_model(model: PreTrainedModel, folder: Path, loss: str) -> None:
    """Write the weights into `folder`, and say so with the words of `loss`."""
    model.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"base model: {parameters / 1e6:.2f} M parameters, {loss}, in {folder}")


@dataclass(frozen=True)
class Example:
    """A prompt and what follows it: an answer, or alternatives of a single token, each of which is right.

    Attributes:
        pixels: patches of each picture of the prompt, in order; (36, C) for a picture of the world.
        grid: of each picture's patches: time, rows and columns.
    """

    prompt: list[int]
    answer: list[int]
    alternatives: bool = False
    pixels: Tensor | None = None
    grid: tuple[int, int, int] = GRID

    @property
    def input_ids(self) -> list[int]:
        return self.prompt if self.alternatives else self.prompt + self.answer

    @property
    def positions(self) -> list[int]:
        """Where each token of the answer is predicted: one position after the other, or all at the prompt's end."""
        last = len(self.prompt) - 1
        return [last + i * (not self.alternatives) for i in range(len(self.answer))]


def answer_tokens(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """(A,) each of all answer tokens: the example's index, the position that predicts the token, and the token."""
    row = [i for i, example in enumerate(examples) for _ in example.answer]
    position = [p for example in examples for p in example.positions]
    return torch.tensor(row), torch.tensor(position), torch.tensor([t for example in examples for t in example.answer])


def grids(pixels: Tensor | None, grid: tuple[int, int, int] = GRID) -> Tensor | None:
    """(pictures, 3) time, rows and columns of the pictures whose patches these are."""
    return None if pixels is None else torch.tensor([grid]).expand(len(pixels) // (grid[1] * grid[2]), 3)


def padded(examples: Sequence[Example], processor: Processor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One batch, as Backbone.hidden takes it: ids and mask (B, L), pixels (P, C) and grids (pictures, 3)."""
    batch = processor.pad(
        [
            {
                "input_ids": example.input_ids,
                "pixel_values": example.pixels,
                "image_grid_thw": grids(example.pixels, example.grid),
            }
            for example in examples
        ]
    )
    return batch["input_ids"], batch["attention_mask"], batch.get("pixel_values"), batch.get("image_grid_thw")


def adamw(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=0.01)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """A step, with clipped gradients."""
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
