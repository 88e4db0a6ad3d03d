"""A stage-1 step on one GPU, random weights of the true shape: utilisation, and time against the padded step.

    python benchmarks/gpu_train_step.py --size 7b             # on a CUDA machine
    python benchmarks/gpu_train_step.py --size tiny --sentences 16 --pairs 32 --timed 2 # anywhere, to see that it runs

Neither deepspeed nor flash-attn is needed: packed rows use flash-attn's kernel where it is installed, else PyTorch's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from shapes import AFTER, TEXT_TOWERS, add_length_flags, batches, build, right_padded, sentence_lengths

from lamra.models.embedder import Embedder
from lamra.models.losses import info_nce
from lamra.train.throughput import flops_per_token, peak_flops

GIB = 2**30


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(embedder: Embedder, inputs: list[dict], device: str, warm_up: int) -> dict:
    """Median seconds of a whole step (forward, loss, backward, AdamW) and the peak memory."""
    trained = [p for p in embedder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0, fused=device == "cuda")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for batch in inputs:
        synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            embeddings = embedder(**batch)
        half = len(embeddings) // 2
        info_nce(embeddings[:half], embeddings[half:], temperature=0.05).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    found = {"seconds": statistics.median(seconds[warm_up:])}
    if device == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(TEXT_TOWERS), default="7b")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--timed", type=int, default=20)
    parser.add_argument("--sentences", type=int, default=144, help="queries and targets on one of the practice's GPUs")
    parser.add_argument(
        "--pairs", type=int, default=576, help="in the gradient cache's case: the practice's whole batch"
    )
    parser.add_argument("--chunk", type=int, default=144, help="of the gradient cache")
    add_length_flags(parser)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(args.seed)
    lengths = sentence_lengths(args)
    embedder = build(args.size, device, dtype)
    for parameter in embedder.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    vocabulary = embedder.config.text_config.vocab_size
    steps = args.warm_up + args.timed
    drawn = batches(lengths, args.sentences, steps, args.seed)
    inputs = [right_padded(lengths, vocabulary, device) for lengths in drawn]
    useful = statistics.fmean(sum(lengths) for lengths in drawn[args.warm_up :])
    peak = peak_flops(torch.device(device))

    cases = {}

    def case(name: str, batches_: list[dict], tokens: float, warm_up: int = args.warm_up) -> None:
        try:
            found = measure(embedder, batches_, device, warm_up)
        except torch.cuda.OutOfMemoryError:
            cases[name] = {"out_of_memory": True}
            torch.cuda.empty_cache()
            return
        found["useful_tokens_per_second"] = round(tokens / found["seconds"])
        if peak:
            found["mfu"] = round(tokens * flops_per_token(embedder) / found["seconds"] / peak, 4)
        cases[name] = found | {"seconds": round(found["seconds"], 4)}

    case("ours", inputs, useful)
    embedder.selective_checkpointing = True
    embedder.activation_checkpointing_enable()
    case("ours, selective checkpointing", inputs, useful)
    embedder.selective_checkpointing = False
    embedder.activation_checkpointing_enable()
    case("ours, full checkpointing", inputs, useful)
    embedder.stock.gradient_checkpointing_disable()

    embedder.grad_cache_chunk = args.chunk
    large = batches(lengths, 2 * args.pairs, 3, args.seed)
    tokens = statistics.fmean(sum(lengths) for lengths in large[1:])
    case(
        f"{args.pairs} pairs, gradient cache",
        [right_padded(lengths, vocabulary, device) for lengths in large],
        tokens,
        warm_up=1,
    )
    embedder.grad_cache_chunk = 0

    reference = Embedder(embedder.model, "sequential", padding_free=False).train()
    reference.config.text_config._attn_implementation = "sdpa"
    reference.activation_checkpointing_enable()
    embedder = reference
    padded = [{name: torch.nn.functional.pad(rows, (0, AFTER)) for name, rows in batch.items()} for batch in inputs]
    case("padded reference", padded, useful)

    ours = cases["ours"].get("seconds")
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "size": args.size,
        "useful_tokens_per_step": round(useful),
        "speed_up": round(cases["padded reference"]["seconds"] / ours, 3) if ours else None,
        "cases": cases,
    }
    print(f"{result['device']}, {args.size}, {result['useful_tokens_per_step']} useful tokens a step")
    for name, found in cases.items():
        print(f"{name:<32}" + "  ".join(f"{key} {value}" for key, value in found.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
