"""FLOPs of a stage-1 step of the true 7B shape, ours against the published way, counted by PyTorch without weights.

The reference pads every rank's batch to its longest sentence, computes the 4 tokens after the pooled one, and
recomputes every layer in the backward pass.

    python benchmarks/train_flops.py [--lengths-from data/nli_for_simcse.csv --tokenizer DIR] [--size 7b]
"""

from __future__ import annotations

import argparse
import json
import statistics
from unittest.mock import patch

import torch
from shapes import AFTER, TEXT_TOWERS, add_length_flags, batches, build, sentence_lengths
from torch.utils.flop_counter import FlopCounterMode

from lamra.models.embedder import Embedder
from lamra.models.packing import Packing

RANKS, SENTENCES = 8, 144  # 72 queries and their targets on each of 8 GPUs


def step_flops(embedder: Embedder, lengths: list[int]) -> int:
    """Forward and backward of one rank's batch on the meta device."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    packing = Packing.of(mask.long())  # from real lengths: the meta device knows shapes only
    packing = Packing(packing.starts.to("meta"), packing.slots.to("meta"), packing.longest)
    ids = torch.zeros(mask.shape, dtype=torch.long, device="meta")
    with patch.object(Packing, "of", lambda *_, **__: packing), FlopCounterMode(display=False) as counter:
        embedder(input_ids=ids, attention_mask=mask.long().to("meta")).sum().backward()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(TEXT_TOWERS), default="7b")
    parser.add_argument("--steps", type=int, default=200, help="steps whose lengths are drawn")
    add_length_flags(parser)
    args = parser.parse_args()

    steps = [batches(sentence_lengths(args), SENTENCES, RANKS, args.seed + i) for i in range(args.steps)]
    ranks = [lengths for step in steps for lengths in step]
    useful = statistics.fmean(sum(lengths) for lengths in ranks)
    padded = [SENTENCES * (max(lengths) + AFTER) for lengths in ranks]

    # FLOPs are close to linear in tokens: count a typical batch of each way, and scale by tokens.
    typical = min(ranks, key=lambda lengths: abs(sum(lengths) - useful))
    ours = build(args.size, "meta", torch.bfloat16)
    per_useful = step_flops(ours, typical) / sum(typical)
    reference = build(args.size, "meta", torch.bfloat16, padding_free=False)
    reference.activation_checkpointing_enable()
    longer = [length + AFTER for length in typical]
    per_padded = step_flops(reference, longer) / (SENTENCES * max(longer))

    slowest = [
        (max(padded[i : i + RANKS]), max(sum(lengths) for lengths in ranks[i : i + RANKS]))
        for i in range(0, len(ranks), RANKS)
    ]
    reference_slowest = statistics.fmean(pair[0] for pair in slowest)
    ours_slowest = statistics.fmean(pair[1] for pair in slowest)
    result = {
        "size": args.size,
        "sentence_tokens_mean": round(statistics.fmean(sentence_lengths(args)), 2),
        "useful_tokens_per_step": round(useful),
        "reference_tokens_per_step_mean": round(statistics.fmean(padded)),
        "reference_tokens_per_step_slowest_rank": round(reference_slowest),
        "gflop_per_useful_token": round(per_useful / 1e9, 3),
        "reference_gflop_per_token": round(per_padded / 1e9, 3),
        "tokens_processed_per_useful": 1.0 if ours.padding_free else statistics.fmean(padded) / useful,
        "flops_ratio_mean": round(statistics.fmean(padded) * per_padded / (useful * per_useful), 3),
        "flops_ratio_slowest_rank": round(reference_slowest * per_padded / (ours_slowest * per_useful), 3),
    }
    for name, value in result.items():
        print(f"{name:<42}{value:>12}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
