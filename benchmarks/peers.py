"""Beside sentence-transformers and faiss, in one run and in turn: a training step, encoding, start-up, exact search.

python benchmarks/peers.py [--nli CSV --tokenizer DIR --pictures FOLDER] [--threads 1]

The same model for both: random weights in a small Qwen2-VL's shape, exported as scripts/export.sh does; with M-RoPE, so
that sentence-transformers needs no code of ours. Without the three flags it makes its input: sentences of stage 1's
lengths and drawn pictures. Needs `pip install -e ".[guests]" faiss-cpu`.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shapes import add_length_flags, build_stock, sentence_lengths, with_lora
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lamra import load
from lamra.collators.processing import Processor
from lamra.datasets.items import Item
from lamra.eval.search import top_k
from lamra.export import sentence_transformers as export
from lamra.export.verify import draw
from lamra.miniature.model import build_tokenizer
from lamra.models.embedder import Embedder
from lamra.models.loading import load_model
from lamra.models.losses import info_nce
from lamra.models.settings import Settings

WORDS = ["a", "the", "man", "woman", "dog", "two", "red", "old", "runs", "sits", "holds", "near", "with", "of", "on"]
# Queries, gallery, size of a vector, k: Flickr30K and COCO by captions at the 7B's size, pools of smaller vectors.
SEARCHES = [(1000, 1000, 3584, 10), (1000, 5000, 3584, 50), (1000, 20000, 1536, 50), (1000, 100000, 256, 50)]


def in_turn(rounds: int, **ways: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], other: str, ours: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[other], seconds[ours]))


def flops(way: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


def build(folder: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    """The model's folder, and its export."""
    source, exported = folder / "model", folder / "export"
    source.mkdir()
    if args.tokenizer:
        for path in Path(args.tokenizer).iterdir():
            shutil.copy(path, source / path.name)
    else:
        build_tokenizer([" ".join(WORDS)] * 3).save_pretrained(source)
        Qwen2VLImageProcessorPil().save_pretrained(source)
    torch.manual_seed(args.seed)
    tokenizer = Processor(source).tokenizer
    vocabulary = 152064 if args.tokenizer else 1536
    stock = build_stock("tiny", "cpu", torch.float32, tokenizer=tokenizer, vision=True, vocab_size=vocabulary)
    stock.save_pretrained(source)
    Settings("random", "mrope").write(source)
    sys.argv = ["export", "--model_id", str(source), "--save_path", str(exported), "--dtype", "fp32"]
    export.main()
    return source, exported


def sentences(args: argparse.Namespace) -> list[tuple[str, str]]:
    if args.nli:
        with open(args.nli, newline="", encoding="utf-8") as file:
            return [(row["sent0"], row["sent1"]) for row in csv.DictReader(file)]
    rng, lengths = random.Random(args.seed), sentence_lengths(args)
    texts = [" ".join(rng.choices(WORDS, k=rng.choice(lengths))) for _ in range(4000)]
    return list(zip(texts[::2], texts[1::2]))


def pictures(folder: Path, args: argparse.Namespace) -> list[Path]:
    if args.pictures:
        return sorted(Path(args.pictures).glob("*.jpg"))[: args.count_pictures]
    paths = [folder / f"{number}.jpg" for number in range(args.count_pictures)]
    for number, path in enumerate(paths):
        draw(*((500, 375) if number % 3 else (375, 500)), number).save(path, quality=90)
    return paths


def measure_step(source: Path, exported: Path, pairs: list[tuple[str, str]], args: argparse.Namespace) -> dict:
    """Forward, loss and backward of stage 1, inputs ready; LoRA of the same weights, nothing dropped out."""
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
        named = ((name.partition("language_model.")[2], weight) for name, weight in model.named_parameters())
        return {name.replace(".default", ""): weight for name, weight in named if "lora_" in name}

    library = SentenceTransformer(str(exported), device="cpu")
    linears = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    library.add_adapter(LoraConfig(r=64, lora_alpha=128, lora_dropout=0.0, target_modules=linears))
    library.train()
    loss_of = MultipleNegativesRankingLoss(library, scale=20.0)
    theirs = trained(library)
    for name, weight in theirs.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)  # zeros would hide lora_A's gradient

    processor = Processor(source)
    ours = Embedder(with_lora(load_model(source, dtype=torch.float32), dropout=0.0), "mrope").train()
    own, prefix = trained(ours), len(processor.prefix_ids)
    assert own.keys() == theirs.keys()
    for name, weight in own.items():
        weight.data.copy_(theirs[name].data)

    size, batches = args.pairs, []
    for number in range(args.rounds + 2):
        some = pairs[number * size : (number + 1) * size]
        columns = [library.preprocess(list(column)) for column in zip(*some)]
        batches.append((columns, processor([Item("", text) for column in zip(*some) for text in column])))

    def their_step(batch: Any) -> torch.Tensor:
        library.zero_grad(set_to_none=True)
        loss = loss_of([dict(column) for column in batch[0]], torch.arange(size))
        loss.backward()
        return loss.detach()

    def our_step(batch: Any, shared: int) -> torch.Tensor:
        ours.zero_grad(set_to_none=True)
        ours.shared_prefix = shared
        embeddings = ours(**batch[1])
        loss = info_nce(embeddings[:size], embeddings[size:], temperature=0.05).loss
        loss.backward()
        return loss.detach()

    errors, losses = [], []
    expected_loss = their_step(batches[-1])
    expected = torch.cat([theirs[name].grad.flatten() for name in own])
    for shared in (0, prefix):
        losses.append(abs(our_step(batches[-1], shared) / expected_loss - 1).item())
        gradient = torch.cat([weight.grad.flatten() for weight in own.values()])
        errors.append(((gradient - expected).norm() / expected.norm()).item())
    counted = {
        "sentence-transformers": flops(lambda: their_step(batches[-1])),
        "ours": flops(lambda: our_step(batches[-1], 0)),
        "ours, --share_prefix True": flops(lambda: our_step(batches[-1], prefix)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in counted}
    ways: list[Callable[[Any], object]] = [their_step, *(partial(our_step, shared=shared) for shared in (0, prefix))]
    for number, batch in enumerate(batches[:-1]):
        for name, way in zip(counted, ways):
            start = time.perf_counter()
            way(batch)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "gflop": {name: value / 1e9 for name, value in counted.items()},
        "loss_rel_error": max(losses),
        "grad_rel_error": max(errors),
    }


def measure_encode(exported: Path, texts: list[str], images: list[Path], args: argparse.Namespace) -> dict:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(exported), device="cpu")
    alone = load(exported, dtype=torch.float32, device="cpu", num_workers=0)
    workers = load(exported, dtype=torch.float32, device="cpu", num_workers=1)
    result: dict = {"seconds": {}, "max_abs_difference": 0.0}
    for name, entries in (("texts", texts), ("photographs", images)):
        shown = [str(entry) for entry in entries]
        found: dict[str, torch.Tensor] = {}

        def theirs(shown: list[str] = shown, found: dict = found) -> None:
            found["theirs"] = library.encode(shown, batch_size=32, convert_to_tensor=True, show_progress_bar=False)

        def ours(model, entries: list = entries, found: dict = found) -> None:
            found["ours"] = model.encode(entries, None)

        result["seconds"][name] = in_turn(
            args.rounds,
            **{
                "sentence-transformers": theirs,
                "ours": lambda ours=ours: ours(alone),
                "ours, 1 worker": lambda ours=ours: ours(workers),
            },
        )
        difference = (found["theirs"] - found["ours"]).abs().max().item()
        result["max_abs_difference"] = max(result["max_abs_difference"], difference)
    return result


def measure_start(exported: Path, args: argparse.Namespace) -> dict:
    """From the command to the first vector, each in a fresh process."""
    programs = {
        "sentence-transformers": "from sentence_transformers import SentenceTransformer as S\n"
        "S({path!r}, device='cpu').encode(['a dog'])",
        "ours": "import torch\nfrom lamra import load\n"
        "load({path!r}, dtype=torch.float32, device='cpu').encode(['a dog'])",
    }
    ways = {
        name: lambda program=program: subprocess.run(
            [sys.executable, "-c", program.format(path=str(exported))], check=True, capture_output=True
        )
        for name, program in programs.items()
    }
    return {"seconds": in_turn(min(args.rounds, 3), **ways)}


def measure_search(args: argparse.Namespace) -> dict:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    result: dict = {"seconds": {}, "gflops": {}}
    for queries, size, dimension, k in SEARCHES if not args.tiny else [(20, 300, 32, 5)]:
        generator = torch.Generator().manual_seed(args.seed)
        query, gallery = (
            torch.nn.functional.normalize(torch.randn(n, dimension, generator=generator)) for n in (queries, size)
        )
        index = faiss.IndexFlatIP(dimension)
        index.add(gallery.numpy())
        name = f"{queries} x {size} x {dimension}, top {k}"
        seconds = in_turn(
            args.rounds,
            faiss=partial(index.search, query.numpy(), k),
            ours=partial(top_k, query, gallery, k),
            product=partial(torch.mm, query, gallery.T),
        )
        result["seconds"][name] = seconds
        result["gflops"][name] = 2 * queries * size * dimension / statistics.median(seconds["product"]) / 1e9
        scores, rows = top_k(query, gallery, k)
        expected, ids = index.search(query.numpy(), k)
        assert abs(scores.numpy() - expected).max() < 1e-5 and (rows.numpy() == ids).mean() > 0.999
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nli", metavar="CSV", help="real pairs: sent0 and sent1 of this csv")
    parser.add_argument("--pictures", metavar="FOLDER", help="real photographs, *.jpg")
    parser.add_argument("--count_pictures", type=int, default=100)
    parser.add_argument("--texts", type=int, default=500, help="sentences to encode")
    parser.add_argument("--pairs", type=int, default=72, help="of a training step")
    parser.add_argument("--rounds", type=int, default=7, help="how often all are timed in turn")
    parser.add_argument("--threads", type=int, help="of PyTorch and faiss; default: all cores")
    parser.add_argument("--tiny", action="store_true", help="a few inputs, to see that it runs")
    add_length_flags(parser)
    args = parser.parse_args()
    try:
        import faiss  # noqa: F401
        import sentence_transformers  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        sys.exit(f'error: {error}: pip install -e ".[guests]" faiss-cpu')
    if args.tiny:
        args.rounds, args.pairs, args.texts, args.count_pictures = 1, 4, 8, 4
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, exported = build(folder, args)
        pairs = sentences(args)
        texts = [text for pair in pairs for text in pair][: args.texts]
        step = measure_step(source, exported, pairs, args)
        encoded = measure_encode(exported, texts, pictures(folder, args), args)
        start = measure_start(exported, args)
    searched = measure_search(args)
    report(args, step, encoded, start, searched)


def report(args: argparse.Namespace, step: dict, encoded: dict, start: dict, searched: dict) -> None:
    rows: list[tuple[str, str, float, float, str]] = []  # what, who, seconds, other / who, note
    peer = "sentence-transformers"
    for who, seconds in step["seconds"].items():
        note = f"{step['gflop'][who]:.1f} GFLOP"
        rows.append(
            (f"step, {args.pairs} pairs", who, statistics.median(seconds), ratio(step["seconds"], peer, who), note)
        )
    for what, seconds in encoded["seconds"].items():
        for who in seconds:
            rows.append((f"encode {what}", who, statistics.median(seconds[who]), ratio(seconds, peer, who), ""))
    for who, seconds in start["seconds"].items():
        rows.append(("start to first vector", who, statistics.median(seconds), ratio(start["seconds"], peer, who), ""))
    for what, seconds in searched["seconds"].items():
        for who in seconds:
            note = f"{searched['gflops'][what]:.0f} GFLOP/s" if who == "product" else ""
            rows.append((f"search {what}", who, statistics.median(seconds[who]), ratio(seconds, "faiss", who), note))
    print(f"{torch.get_num_threads()} threads, ratio: the first line's seconds over this one's, median of the rounds")
    for what, who, seconds, faster, note in rows:
        print(f"{what:<36}{who:<28}{seconds:>9.3f} s{faster:>7.2f} x  {note}")
    of_texts, of_pictures = encoded["seconds"].values()
    both = {who: [a + b for a, b in zip(of_texts[who], of_pictures[who])] for who in of_texts}
    result = {
        "threads": torch.get_num_threads(),
        "step_ratio": ratio(step["seconds"], peer, "ours, --share_prefix True"),
        "step_ratio_unshared": ratio(step["seconds"], peer, "ours"),
        "encode_ratio": ratio(both, peer, "ours, 1 worker"),
        "encode_ratio_without_worker": ratio(both, peer, "ours"),
        "search_ratio": min(ratio(of, "faiss", "ours") for of in searched["seconds"].values()),
        "grad_rel_error": step["grad_rel_error"],
        "loss_rel_error": step["loss_rel_error"],
        "max_abs_difference": encoded["max_abs_difference"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
