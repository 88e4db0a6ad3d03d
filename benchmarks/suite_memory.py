"""What the evaluation of CC-Neg, the zero-shot suite's largest set, needs of memory beyond the model.

python benchmarks/suite_memory.py --pairs 40000 --hidden_size 3584

The whole of eval_ccneg.py runs in a process of its own; a stand-in whose scores are known makes the embeddings.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from lamra.common.cli import run
from lamra.datasets.items import Item
from lamra.eval import inference, zeroshot_suite
from lamra.models.settings import Settings

TOKENS = 32  # of each item


class StandInEmbedder(nn.Module):
    """Token n to a unit vector (D,) that is nearest to itself: one of 61 directions, and n in two numbers more."""

    padding_free, shares_prefix, device = True, False, torch.device("cpu")

    def __init__(self, hidden_size: int, items: int):
        super().__init__()
        self.directions = nn.Parameter(nn.functional.normalize(torch.randn(61, hidden_size - 2), dim=1))
        self.items = items

    def prefix_of(self, _ids: Tensor) -> None:
        return None

    def forward(self, input_ids: Tensor, prefix: None) -> Tensor:
        tokens = input_ids[:, 0]  # (B,)
        angle = tokens / self.items * torch.pi  # (B,)
        own = torch.stack([angle.cos(), angle.sin()], dim=1)  # (B, 2)
        return torch.cat([self.directions[tokens % 61], own], dim=1) / 2**0.5  # (B, D)


class StandInProcessor:
    """A picture's token is the number that names it, a caption's the number that it is."""

    prefix_ids, visuals = (0,), SimpleNamespace(floats=None)

    def length(self, _item: Item) -> int:
        return TOKENS

    def encode(self, item: Item) -> dict:
        return {"input_ids": int(item.text or Path(str(item.images[0])).stem), "notes": {}}

    def pad(self, encoded: list[dict]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[of["input_ids"]] for of in encoded])}


def status(name: str) -> float:
    """GiB of this process, from /proc/self/status."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**20


def evaluate(folder: Path, pairs: int, hidden_size: int, connection: Connection) -> None:
    retriever = inference.LamRA(
        max_tokens_per_batch=1024 * TOKENS,
        num_workers=0,
        exif_rotation=False,
        embedder=StandInEmbedder(hidden_size, 2 * pairs),  # type: ignore[arg-type]
        processor=StandInProcessor(),  # type: ignore[arg-type]
        settings=Settings(str(folder), "sequential"),
        share_prefix=True,
    )
    inference.load_retriever = lambda *_, **__: retriever
    sys.argv = ["eval_ccneg.py", "--model_id", str(folder), "--data_path", str(folder / "ccneg.jsonl")]
    sys.argv += ["--output_dir", str(folder / "out"), "--num_workers", "0"]
    before = status("VmRSS")
    run(lambda: zeroshot_suite.evaluate_set("ccneg"))
    connection.send(status("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40_000)
    parser.add_argument("--hidden_size", type=int, default=3584)
    parser.add_argument("--shard_size", type=int, default=zeroshot_suite.SHARD_SIZE, help="items held at a time")
    args = parser.parse_args()
    zeroshot_suite.SHARD_SIZE = args.shard_size

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text("{}")
        (folder / "p").mkdir()
        with (folder / "ccneg.jsonl").open("w") as file:
            for row in range(args.pairs):
                (folder / "p" / f"{row}.png").touch()
                # In every fourth row the false caption is the nearer.
                texts = (f"{row + args.pairs}", f"{row}") if row % 4 == 0 else (f"{row}", f"{row + args.pairs}")
                line = {"image": f"p/{row}.png", "caption": texts[0], "negative_caption": texts[1]}
                file.write(json.dumps(line) + "\n")
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        child = context.Process(target=evaluate, args=(folder, args.pairs, args.hidden_size, theirs))
        child.start()
        child.join()
        if child.exitcode != 0:
            raise SystemExit(f"the evaluation ended with status {child.exitcode}")
        grown = ours.recv()
        found = json.loads((folder / "out" / "metrics.json").read_text())["tasks"]["ccneg"]
    embeddings = 3 * args.pairs * args.hidden_size * 4 / 2**30
    result = {
        "pairs": args.pairs,
        "hidden_size": args.hidden_size,
        "embeddings_gib": round(embeddings, 3),
        "peak_gib_beyond_the_model": round(grown, 3),
        "peak_to_embeddings": round(grown / embeddings, 3),
        "accuracy": found["recall@1"],
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(f"{args.pairs:,} pairs of hidden size {args.hidden_size}: {grown:.2f} GiB beyond the model")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
