"""What stage 1 costs with each published base model: its true shape on the meta device, without weights.

    python benchmarks/backbones.py [--pairs 72] [--ranks 8] [--lora-r 64]

FLOPs are PyTorch's count of a forward and backward pass of one process's batch, nothing computed again. Memory is the
estimate of --dry_run True (train/dry_run.py) with activation checkpointing, bf16 and ZeRO-2. No GPU is needed.

Stage 2 has pictures too: of each, the forward pass of the vision tower and its projectors, which it does not train.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

import torch
from shapes import add_length_flags, batches, sentence_lengths
from train_flops import step_flops
from transformers import PreTrainedModel

from lamra.models.embedder import Embedder
from lamra.models.families import FAMILIES, Family
from lamra.models.lora import add_lora
from lamra.train.dry_run import GIB, memory_estimate

PICTURE = 300  # tokens of the largest picture in training


@dataclass(frozen=True)
class Shape:
    """What a published config.json says of sizes; the rest are its family's defaults.

    Attributes:
        text: hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size.
        tied: lm_head is the token embeddings.
        vision: where it is not the family's default.
    """

    family: str
    text: tuple[int, int, int, int, int, int]
    tied: bool
    vision: dict[str, Any]

    def config(self) -> Any:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        text: dict[str, Any] = dict(zip((*names, "vocab_size"), self.text)) | {"tie_word_embeddings": self.tied}
        section = [24, 20, 20] if FAMILIES[self.family].qk_norm else [16, 24, 24]
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}}
        tokens = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
        return FAMILIES[self.family].model_class.config_class(
            text_config=text | tokens, vision_config=self.vision, tie_word_embeddings=self.tied
        )


SMALL = dict(depth=24, hidden_size=1024, intermediate_size=4096, deepstack_visual_indexes=[5, 11, 17])
PUBLISHED = {
    "Qwen2-VL-2B": Shape("qwen2_vl", (1536, 8960, 28, 12, 2, 151936), True, dict(hidden_size=1536)),
    "Qwen2-VL-7B": Shape("qwen2_vl", (3584, 18944, 28, 28, 4, 152064), False, dict(hidden_size=3584)),
    "Qwen2.5-VL-3B": Shape(
        "qwen2_5_vl", (2048, 11008, 36, 16, 2, 151936), True, dict(hidden_size=1280, out_hidden_size=2048)
    ),
    "Qwen2.5-VL-7B": Shape(
        "qwen2_5_vl", (3584, 18944, 28, 28, 4, 152064), False, dict(hidden_size=1280, out_hidden_size=3584)
    ),
    "Qwen3-VL-2B": Shape("qwen3_vl", (2048, 6144, 28, 16, 8, 151936), True, SMALL | dict(out_hidden_size=2048)),
    "Qwen3-VL-4B": Shape("qwen3_vl", (2560, 9728, 36, 32, 8, 151936), True, SMALL | dict(out_hidden_size=2560)),
    "Qwen3-VL-8B": Shape("qwen3_vl", (4096, 12288, 36, 32, 8, 151936), False, dict(out_hidden_size=4096)),
}


def picture_flops(stock: PreTrainedModel, family: Family, tokens: int) -> int:
    """Of a picture's forward pass through the vision tower and its projectors, DeepStack's among them.

    Products with weights, and attention in whole windows: an edge of a picture that fills no window costs less.
    """
    config = stock.model.visual.config
    merged = config.spatial_merge_size**2
    patches = tokens * merged
    flops = 0
    for modules, rows in ((family.vision.encoder, patches), (family.vision.projectors, tokens)):
        for name in modules:
            products = (torch.nn.Linear, torch.nn.Conv3d)  # the latter has a patch for its kernel
            found = (part for part in stock.model.get_submodule(name).modules() if isinstance(part, products))
            flops += sum(2 * rows * part.weight.numel() for part in found)
    window = (config.window_size // config.patch_size) ** 2 if family.vision.window else patches
    full = len(config.fullatt_block_indexes) if family.vision.window else config.depth
    seen = full * patches + (config.depth - full) * min(window, patches)
    return flops + 4 * patches * seen * getattr(config, family.vision.width)


def cost(shape: Shape, lengths: list[int], ranks: int, r: int) -> dict[str, float]:
    """Of a process: parameters in all and trained, FLOPs of a step and of a picture of PICTURE tokens, GiB.

    Args:
        lengths: tokens of each prompt of a batch.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            stock = FAMILIES[shape.family].model_class._from_config(shape.config(), attn_implementation="sdpa")
            model = add_lora(stock, r=r, alpha=2 * r, dropout=0.0)
    finally:
        torch.set_default_dtype(default)
    embedder = Embedder(model, FAMILIES[shape.family].position_ids).train()
    size = {parameter: parameter.numel() for parameter in embedder.parameters()}
    return {
        "parameters": sum(size.values()),
        "trained": sum(count for parameter, count in size.items() if parameter.requires_grad),
        "flops": step_flops(embedder, lengths),
        "picture_flops": picture_flops(stock, FAMILIES[shape.family], PICTURE),
        "gib": memory_estimate(embedder, sum(lengths), size=size, shards=ranks, recomputed=True) / GIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=72, help="of a process")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--lora-r", type=int, default=64)
    parser.add_argument("--only", choices=PUBLISHED)
    add_length_flags(parser)
    args = parser.parse_args()

    (lengths,) = batches(sentence_lengths(args), 2 * args.pairs, 1, args.seed)
    batch = f"{2 * args.pairs} prompts of {sum(lengths)} tokens a process"
    print(f"{batch}, {args.ranks} processes, LoRA of rank {args.lora_r}")
    print(
        f"{'':<16}{'parameters':>12}{'trained':>10}{'TFLOP a step':>14}{'GFLOP a token':>15}{'GiB':>7}"
        f"{'TFLOP a picture':>17}"
    )
    found = {}
    for name in [args.only] if args.only else PUBLISHED:
        of = found[name] = cost(PUBLISHED[name], lengths, args.ranks, args.lora_r)
        print(
            f"{name:<16}{of['parameters'] / 1e9:>10.2f} B{of['trained'] / 1e6:>8.0f} M{of['flops'] / 1e12:>14.1f}"
            f"{of['flops'] / sum(lengths) / 1e9:>15.1f}{of['gib']:>7.1f}{of['picture_flops'] / 1e12:>17.2f}"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
