"""The one encode loop: items to embeddings, on any number of processes, in the order of the items."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lamra.collators.processing import Processor
from lamra.datasets.items import Item
from lamra.models.distributed import all_gather_with_grad, process_rank
from lamra.models.embedder import Embedder


class _Batches(Dataset):
    """Batches of item indices to (indices, model inputs), prepared in a worker process ahead of the model."""

    def __init__(self, items: Sequence[Item], batches: list[list[int]], processor: Processor):
        self.items, self.batches, self.processor = items, batches, processor

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int):
        try:
            return self.batches[i], self.processor([self.items[j] for j in self.batches[i]])
        except ValueError as error:  # a worker would wrap it in its own traceback
            return error, None


def _one_thread(_worker_id: int) -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def encode(
    embedder: Embedder,
    processor: Processor,
    items: Sequence[Item],
    *,
    batch_size: int,
    num_workers: int = 0,
    description: str = "encode",
) -> Tensor:
    """Embed all items.

    Batches are formed from all items sorted by size and dealt out to the processes, so that the embeddings do not
    depend on how many processes there are.

    Returns:
        (len(items), D) float32 unit embeddings on the CPU, in the order of `items`, the same on every process.

    Raises:
        ValueError: a picture cannot be read, or an item is too long; names it.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = process_rank()
    by_size = sorted(range(len(items)), key=lambda i: (len(items[i].images), len(items[i].text or "")), reverse=True)
    batches = [by_size[i : i + batch_size] for i in range(0, len(by_size), batch_size)]
    # Every process makes the same number of forwards (ZeRO-3 gathers weights in each): the last may be a repetition.
    steps = -(-len(batches) // world)
    mine = [batches[min(step * world + rank, len(batches) - 1)] for step in range(steps)]

    training = embedder.training
    embedder.eval()
    loader = DataLoader(
        _Batches(items, mine, processor), batch_size=None, num_workers=num_workers, worker_init_fn=_one_thread
    )
    parts = []
    with tqdm(total=len(items), desc=description, unit="item", disable=rank > 0) as progress:
        for indices, inputs in loader:
            if inputs is None:
                progress.close()
                raise indices
            inputs = {name: tensor.to(embedder.device, non_blocking=True) for name, tensor in inputs.items()}
            rows = torch.full((batch_size,), -1, device=embedder.device)  # -1 marks padding of a short batch
            rows[: len(indices)] = torch.tensor(indices)
            embeddings = embedder(**inputs).float()  # (b, D)
            embeddings = torch.cat([embeddings, embeddings.new_zeros(batch_size - len(indices), embeddings.shape[1])])
            parts.append((all_gather_with_grad(rows).cpu(), all_gather_with_grad(embeddings).cpu()))
            progress.update(min(len(indices) * world, len(items) - progress.n))
    embedder.train(training)
    return _in_order(parts, len(items))


def _in_order(parts: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
    rows, embeddings = (torch.cat(column) for column in zip(*parts))
    real = rows >= 0
    rows, embeddings = rows[real], embeddings[real]
    if len(rows.unique()) != count:
        raise RuntimeError(f"{count - len(rows.unique())} of {count} items were not encoded")
    ordered = embeddings.new_empty(count, embeddings.shape[1])
    ordered[rows] = embeddings
    return ordered
