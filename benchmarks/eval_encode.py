"""The evaluation loop on captioned pictures: against batches of a single item, and against fixed batches of 4.

python benchmarks/eval_encode.py [--model_id DIR --image_data_path PICTURES --text_data_path CAPTIONS.json]

Without the three it makes its input: pictures of the miniature world, and the miniature's model with random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lamra.collators.processing import Processor
from lamra.datasets.caption import load_captioned_images
from lamra.datasets.items import Item
from lamra.eval.encode import encode
from lamra.miniature.model import build_config, build_tokenizer
from lamra.miniature.world import build_world
from lamra.models.embedder import Embedder
from lamra.models.loading import load_embedder


@torch.no_grad()
def fixed_batches(embedder: Embedder, processor: Processor, items: list[Item], size: int) -> torch.Tensor:
    """(N, D): `size` items at a time in their own order, decoded in this process, padded, nothing reused."""
    return torch.cat([embedder(**processor(items[i : i + size])) for i in range(0, len(items), size)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_id")
    parser.add_argument("--image_data_path")
    parser.add_argument("--text_data_path")
    parser.add_argument("--pictures", type=int, default=200, help="to make, where none are given")
    parser.add_argument("--max_tokens_per_batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not (args.model_id and args.image_data_path and args.text_data_path):
            make_input(Path(folder), args)
        measure(args)


def make_input(folder: Path, args: argparse.Namespace) -> None:
    """A gallery and a model, at the paths that `args` then hold."""
    build_world(folder, seed=0, train_pictures=1, gallery_pictures=args.pictures, triplets=100)
    tokenizer = build_tokenizer((folder / "nli.csv").read_text().splitlines())
    torch.manual_seed(0)
    args.model_id = folder / "model"
    Qwen2VLForConditionalGeneration(build_config(tokenizer)).save_pretrained(args.model_id)
    tokenizer.save_pretrained(args.model_id)
    Qwen2VLImageProcessorPil().save_pretrained(args.model_id)
    args.image_data_path, args.text_data_path = folder / "test" / "images", folder / "test" / "captions.json"


def measure(args: argparse.Namespace) -> None:
    data = load_captioned_images(args.image_data_path, args.text_data_path)
    items = data.images + data.texts
    ours, settings = load_embedder(args.model_id, dtype=torch.float32)
    plain, _ = load_embedder(args.model_id, dtype=torch.float32, padding_free=False, merge=False)
    processor = Processor(args.model_id, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)
    ways = {
        "ours": lambda: encode(ours, processor, items, max_tokens_per_batch=args.max_tokens_per_batch, num_workers=1),
        "one at a time": lambda: fixed_batches(plain, processor, items, 1),
        "batches of 4": lambda: fixed_batches(plain, processor, items, 4),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(args.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - start)

    others = [name for name in ways if name != "ours"]
    ratios = {name: statistics.median(a / b for a, b in zip(seconds[name], seconds["ours"])) for name in others}
    result = {
        "items": len(items),
        "seconds_median": {name: round(statistics.median(times), 2) for name, times in seconds.items()},
        "wall_ratio_median": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "max_abs_difference": max((found[name] - found["ours"]).abs().max().item() for name in others),
    }
    print(f"{len(data.images)} pictures, {len(data.texts)} captions")
    for name, times in seconds.items():
        ratio = f"{ratios[name]:8.2f} x ours" if name in ratios else ""
        print(f"{name:<16}{statistics.median(times):8.2f} s{ratio}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
