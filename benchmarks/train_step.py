"""A training step on this machine: the padded, fully recomputed reference against ours, on the same batches in turn.

python benchmarks/train_step.py [--lengths-from data/nli_for_simcse.csv --tokenizer DIR] [--pairs 9]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from shapes import AFTER, TEXT_TOWERS, add_length_flags, batches, build, right_padded, sentence_lengths
from torch.profiler import ProfilerActivity, profile

from lamra.models.embedder import Embedder
from lamra.models.losses import info_nce


def step(embedder: Embedder, batch: dict) -> torch.Tensor:
    """Forward, loss and backward; gradients are left in the parameters."""
    embedder.zero_grad(set_to_none=True)
    embeddings = embedder(**batch)
    half = len(embeddings) // 2
    loss = info_nce(embeddings[:half], embeddings[half:], temperature=0.05).loss
    loss.backward()
    return loss.detach()


def gradients(embedder: Embedder) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in embedder.parameters() if p.grad is not None])


def peak_bytes(run) -> int:
    """The most memory that tensors made by `run` hold at a time (CPU)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    now = peak = 0
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def loss_peak(batch: int) -> int:
    query, target = (torch.nn.functional.normalize(torch.randn(batch, 64)).requires_grad_() for _ in range(2))
    return peak_bytes(lambda: info_nce(query, target, temperature=0.05).loss.backward())


def reference_batch(batch: dict) -> dict:
    """The same sentences with upstream's tokens after the pooled position counted, as padding that is computed."""
    return {name: torch.nn.functional.pad(rows, (0, AFTER)) for name, rows in batch.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(TEXT_TOWERS), default="tiny")
    parser.add_argument("--pairs", type=int, default=9, help="how often the two are timed in turn")
    parser.add_argument("--sentences", type=int, default=144, help="queries and targets of a step")
    parser.add_argument("--cached", type=int, default=64, help="sentences of a gradient cache whose memory is measured")
    parser.add_argument("--loss-batch", type=int, default=4096, help="queries of the loss whose memory is measured")
    add_length_flags(parser)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    ours = build(args.size, "cpu", torch.float32, dropout=0.0)
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)  # zeros would hide lora_A's gradient
    reference = build(args.size, "cpu", torch.float32, dropout=0.0, padding_free=False)
    reference.load_state_dict(ours.state_dict())
    reference.activation_checkpointing_enable()

    vocabulary = ours.config.text_config.vocab_size
    drawn = batches(sentence_lengths(args), args.sentences, args.pairs + 1, args.seed)
    inputs = [right_padded(lengths, vocabulary, "cpu") for lengths in drawn]
    losses = step(reference, reference_batch(inputs[0])), step(ours, inputs[0])
    expected = gradients(reference)
    error = ((gradients(ours) - expected).norm() / expected.norm()).item()

    seconds: dict[str, list[float]] = {"reference": [], "ours": []}
    for batch in inputs[1:]:
        for name, embedder, given in (("reference", reference, reference_batch(batch)), ("ours", ours, batch)):
            start = time.perf_counter()
            step(embedder, given)
            seconds[name].append(time.perf_counter() - start)

    ours.grad_cache_chunk = 16
    small, large = (right_padded([40] * count, vocabulary, "cpu") for count in (args.cached, 4 * args.cached))
    result = {
        "size": args.size,
        "threads": torch.get_num_threads(),
        "reference_seconds_median": round(statistics.median(seconds["reference"]), 3),
        "ours_seconds_median": round(statistics.median(seconds["ours"]), 3),
        "wall_ratio_median": round(statistics.median(a / b for a, b in zip(*seconds.values())), 3),
        "loss_rel_error": ((losses[0] - losses[1]).abs() / losses[0]).item(),
        "grad_rel_error": error,
        "loss_peak_growth": round(loss_peak(2 * args.loss_batch) / loss_peak(args.loss_batch), 3),
        "gradcache_peak_growth": round(
            peak_bytes(lambda: step(ours, large)) / peak_bytes(lambda: step(ours, small)), 3
        ),
    }
    for name, value in result.items():
        print(f"{name:<28}{value:>14}" if not isinstance(value, float) else f"{name:<28}{value:>14.4g}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
