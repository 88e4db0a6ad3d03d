"""A stock Qwen2-VL of about a million parameters: its tokenizer, its configuration, and a step of learning.

Two base models are made of it: pretrain.py teaches the model that stage 1 starts from, pretrain_rank.py LamRA-Rank's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lamra.collators import messages
from lamra.collators.processing import Processor
from lamra.miniature.world import DETAILS

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
OTHER_SPECIAL_TOKENS = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
# Pre-training alone uses these; they are no part of LamRA's prompts (collators/messages.py).
NAME_IMAGE = "\nName a detail of above image: "
NAME_TEXT = "\nName a detail of above sentence: "
CAPTION, REWORDED = "I see: ", "You say: "
GRID = (1, 6, 6)  # patches of a picture of the world: 84 x 84 pixels, 14 a patch
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
    tokenizer.train_from_iterator([*sentences, *2 * (*prompts, *frame, *sorted(DETAILS))], trainer)
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


def random_model(folder: Path, sentences: list[str], seed: int) -> tuple[Qwen2VLForConditionalGeneration, Processor]:
    """A model with random weights, and its processor, whose files are written into `folder`."""
    tokenizer = build_tokenizer(sentences)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    torch.manual_seed(seed)
    return Qwen2VLForConditionalGeneration(build_config(tokenizer)), Processor(folder)


def save_model(model: Qwen2VLForConditionalGeneration, folder: Path, loss: str) -> None:
    """Write the weights into `folder`, and say so with the words of `loss`."""
    model.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"base model: {parameters / 1e6:.2f} M parameters, {loss}, in {folder}")


@dataclass(frozen=True)
class Example:
    """A prompt and what follows it: an answer, or alternatives of a single token, each of which is right.

    Attributes:
        pixels: (36, 1176) patches for each picture of the prompt, in order.
    """

    prompt: list[int]
    answer: list[int]
    alternatives: bool = False
    pixels: Tensor | None = None

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


def grids(pixels: Tensor | None) -> Tensor | None:
    """(pictures, 3) time, rows and columns of the pictures whose patches these are."""
    return None if pixels is None else torch.tensor([GRID]).expand(len(pixels) // (GRID[1] * GRID[2]), 3)


def adamw(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=0.01)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """A step, with clipped gradients."""
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
