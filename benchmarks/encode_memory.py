"""Peak memory of each process while a set of texts and pictures is encoded into a shard, over the vectors' own bytes.

python benchmarks/encode_memory.py --items 60000 --pictures 0.95

A stand-in makes the embeddings, in memory that is not counted, as a GPU's would not be; lengths, batches, gathering and
the shard are the evaluation's own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from suite_memory import status
from torch import Tensor

from lamra.common.cli import run
from lamra.datasets.items import Item
from lamra.eval import encode as loop
from lamra.eval.cache.embeddings import encode_to_shards

TOKENS = {True: 330, False: 30}  # of an item with a picture, of a text
MOST_TOKENS = 32768


class StandIn:
    """An Encoder: each item's own unit vector (D,), drawn from its number."""

    device, padding_free = torch.device("cpu"), True

    def __init__(self, size: int, pictures: float, items: int):
        self.first_text, self.size = int(pictures * items), size
        # Where a GPU would have its batch: not in this memory.
        self.device_memory = torch.zeros(MOST_TOKENS // TOKENS[False], size)

    def length(self, item: Item) -> int:
        return TOKENS[int(item.id) < self.first_text]

    def prepare(self, items: Sequence[Item]) -> tuple[Tensor, list]:
        return torch.tensor([int(item.id) for item in items]), []

    def embed(self, inputs: Tensor) -> Tensor:
        vectors = self.device_memory[: len(inputs)]
        for vector, number in zip(vectors, inputs.tolist()):
            torch.randn(self.size, generator=torch.Generator().manual_seed(number), out=vector)
            vector /= vector.norm()
        return vectors


def measure(rank: int, world: int, port: int, args: argparse.Namespace, folder: Path, connection: Connection) -> None:
    torch.set_num_threads(1)
    if world > 1:
        ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), f"{rank}")
        sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), f"{world}")
        os.environ |= {**ranks, **sizes, "MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    PartialState(cpu=True)
    encoder = StandIn(args.hidden_size, args.pictures, args.items)

    def encode(items: list[Item], description: str, **options: Any) -> Tensor:
        return loop.encode_items(encoder, items, max_tokens_per_batch=MOST_TOKENS, description=description, **options)

    items = [Item(f"{number}", f"{number}") for number in range(args.items)]
    loop.encode_items(encoder, items[:: len(items) // 8], max_tokens_per_batch=MOST_TOKENS, description=None)  # warm
    before = status("VmRSS")
    manifest = {} if args.store == "float32" else {"store": args.store}
    encode_to_shards(SimpleNamespace(encode=encode), items, folder / "shards", manifest, args.items)  # type: ignore[arg-type]
    connection.send(status("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--pictures", type=float, default=0.5, help="share of the items")
    parser.add_argument("--hidden_size", type=int, default=3584)
    parser.add_argument("--store", choices=("float32", "float16"), default="float32")
    args = parser.parse_args()
    ideal = args.items * args.hidden_size * (4 if args.store == "float32" else 2) / 2**30
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            with socket.create_server(("localhost", 0)) as free:
                port = free.getsockname()[1]
            pipes = [multiprocessing.Pipe() for _ in range(world)]
            context = multiprocessing.get_context("fork")
            started = [
                context.Process(target=measure, args=(rank, world, port, args, Path(name), theirs))
                for rank, (_, theirs) in enumerate(pipes)
            ]
            for process in started:
                process.start()
            for process in started:
                process.join()
            if any(process.exitcode for process in started):
                raise SystemExit(1)  # its traceback is above
            peaks = [ours.recv() for ours, _ in pipes]
            (shard,) = Path(name, "shards").glob("*.npy")
            made = hashlib.sha256(shard.read_bytes()).hexdigest()[:16]
        of_vectors = [round(peak / ideal, 2) for peak in peaks]
        result = {
            "items": args.items,
            "processes": world,
            "vectors_gib": round(ideal, 3),
            "peak_of_vectors": of_vectors,
        }
        print(json.dumps(result | {"sha256": made}))


if __name__ == "__main__":
    run(main)
