"""What the training benchmarks share: Qwen2-VL's true shapes, and the lengths of stage 1's sentences."""

from __future__ import annotations

import argparse
import random
import statistics

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lamra.models.embedder import Embedder
from lamra.models.lora import add_lora

# Tokens of Qwen2-VL's chat template around a sentence, up to the pooled token, and those that upstream adds after it.
PREFIX, SUFFIX, AFTER = 14, 15, 4

TEXT_TOWERS = {
    "7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, kv_heads=4),
    "2b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, kv_heads=2),
    "tiny": dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, kv_heads=2),
}


def build(size: str, device: str, dtype: torch.dtype, dropout: float = 0.05, **flags) -> Embedder:
    """A random Embedder in training mode with stage 1's LoRA (r 64) on a text tower of the true shape.

    The vision tower, which stage 1 never runs, is the smallest possible.
    """
    tower = dict(TEXT_TOWERS[size])
    head = tower["hidden_size"] // tower["num_attention_heads"]
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=152064 if size != "tiny" else 1024,
            num_key_value_heads=tower.pop("kv_heads"),
            rms_norm_eps=1e-6,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16],
            },
            **tower,
        ),
        vision_config=dict(depth=1, embed_dim=32, hidden_size=tower["hidden_size"], num_heads=2, mlp_ratio=1),
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
            model = add_lora(model, r=64, alpha=128, dropout=dropout)
    finally:
        torch.set_default_dtype(default)
    return Embedder(model, "sequential", **flags).train()


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
