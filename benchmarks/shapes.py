"""What the training benchmarks share: Qwen2-VL's true shapes, and the lengths of stage 1's sentences."""

from __future__ import annotations

import argparse
import random
import statistics

import torch
from peft import PeftModel
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lamra.models.embedder import Embedder
from lamra.models.lora import add_lora

# Tokens of Qwen2-VL's chat template around a sentence, up to the pooled token, and what upstream adds after it.
PREFIX, SUFFIX, AFTER = 14, 15, 4

TEXT_TOWERS = {
    "7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, kv_heads=4),
    "2b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, kv_heads=2),
    "tiny": dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, kv_heads=2),
}


# Qwen2-VL's vision tower at every size but "tiny". Stage 1 never runs it: there the smallest stands in.
VISION_TOWER = dict(depth=32, embed_dim=1280, num_heads=16, mlp_ratio=4)
TINY_VISION_TOWER = dict(depth=4, embed_dim=80, num_heads=2, mlp_ratio=4)  # its share of the work is as in the 7B
SMALLEST_VISION_TOWER = dict(depth=1, embed_dim=32, num_heads=2, mlp_ratio=1)


def build_stock(
    size: str, device: str, dtype: torch.dtype, *, tokenizer=None, vision: bool = False, **text
) -> Qwen2VLForConditionalGeneration:
    """A random model with a text tower of the true shape.

    Args:
        tokenizer: whose special tokens the model is to know; its vocabulary may be smaller than the model's.
        vision: with the true vision tower, else with the smallest.
        text: other values of the text tower, for example num_hidden_layers.
    """
    tower = TEXT_TOWERS[size] | text
    head = tower["hidden_size"] // tower["num_attention_heads"]
    special = {}
    if tokenizer is not None:
        names = dict(image="<|image_pad|>", video="<|video_pad|>", vision_start="<|vision_start|>")
        names["vision_end"] = "<|vision_end|>"
        special = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=tower.pop("vocab_size", 152064 if size != "tiny" else 1536),
            num_key_value_heads=tower.pop("kv_heads"),
            rms_norm_eps=1e-6,
            bos_token_id=None,
            eos_token_id=None,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16],
            },
            **tower,
        ),
        vision_config=dict(
            hidden_size=tower["hidden_size"],
            **(SMALLEST_VISION_TOWER if not vision else TINY_VISION_TOWER if size == "tiny" else VISION_TOWER),
        ),
        **special,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(default)


def with_lora(stock: Qwen2VLForConditionalGeneration, r: int = 64, dropout: float = 0.05) -> PeftModel:
    """The model with LamRA's LoRA, on its device and in its dtype."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(stock.dtype)
    try:
        with torch.device(stock.device):
            return add_lora(stock, r=r, alpha=2 * r, dropout=dropout)
    finally:
        torch.set_default_dtype(default)


def build(size: str, device: str, dtype: torch.dtype, dropout: float = 0.05, **flags) -> Embedder:
    """A random Embedder in training mode with stage 1's LoRA (r 64) on a text tower of the true shape."""
    return Embedder(with_lora(build_stock(size, device, dtype), dropout=dropout), "sequential", **flags).train()


def add_length_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lengths-from", metavar="CSV", help="tokenize sent0 and sent1 of this csv")
    parser.add_argument("--tokenizer", metavar="DIR", help="with this tokenizer (default: the miniature's)")
    parser.add_argument("--seed", type=int, default=0)


def sentence_lengths(args: argparse.Namespace) -> list[int]:
    """Tokens of each sentence: of a real csv, else a seeded log-normal sample.

    Its mean is nli_for_simcse.csv's, 13.9; its spread gives about that csv's longest of 144 sentences (69 tokens) and
    of 8 x 144 (107).
    """
    if args.lengths_from:
        from lamra.collators.processing import Processor
        from lamra.datasets.nli import NLIPairs

        tokenizer = Processor(args.tokenizer or "checkpoints/hf_models/Qwen2-VL-7B-Instruct").tokenizer
        texts = [text for row in NLIPairs(args.lengths_from).rows for text in row]
        return [len(ids) for ids in tokenizer(texts)["input_ids"]]
    rng = random.Random(args.seed)
    drawn = [rng.lognormvariate(0, 0.7) for _ in range(200_000)]
    scale = 13.9 / statistics.fmean(drawn)
    return [max(1, round(length * scale)) for length in drawn]


def batches(lengths: list[int], sentences: int, count: int, seed: int) -> list[list[int]]:
    """`count` batches of whole-prompt lengths (template and sentence, up to the pooled token)."""
    rng = random.Random(seed)
    return [[PREFIX + rng.choice(lengths) + SUFFIX for _ in range(sentences)] for _ in range(count)]


def right_padded(lengths: list[int], vocabulary: int, device: str, generator: torch.Generator | None = None) -> dict:
    """Random token ids of these lengths as Embedder's input_ids and attention_mask, (B, L) each."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, vocabulary - 1000, mask.shape, generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
