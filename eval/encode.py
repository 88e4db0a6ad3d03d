"""The one encode loop: items to embeddings, on any number of processes, in the order of the items."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lamra.collators.processing import Processor
from lamra.collators.texts import TextNotes, ToldTexts
from lamra.common.errors import UserError
from lamra.common.gather import all_gather_with_grad
from lamra.common.processes import process_rank, world_size
from lamra.datasets.items import Item
from lamra.models.embedder import Embedder

FEW = 64  # items that are embedded before a progress bar is worth its line


class _Prepared(Dataset):
    def __init__(self, prepare: Callable[[int], Any], count: int):
        self.prepare, self.count = prepare, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        try:
            return self.prepare(i)
        except UserError as error:  # a worker would wrap it in a traceback
            return error


def single_thread(_worker_id: int) -> None:
    torch.set_num_threads(1)


def prepared(prepare: Callable[[int], Any], count: int, num_workers: int) -> Iterator[Any]:
    """prepare(0), prepare(1), ... from worker processes, ahead of the model; a UserError of theirs is raised here."""
    loader = DataLoader(
        _Prepared(prepare, count),
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="fork"
        if num_workers
        else None,  # also where it is not the default: no `prepare` pickles
        worker_init_fn=single_thread,
        generator=torch.Generator(),  # the global generator is training's: a draw would shift its dropout
    )
    for found in loader:
        if isinstance(found, UserError):
            raise found
        yield found


@torch.no_grad()
def encode(
    embedder: Embedder,
    processor: Processor,
    items: Sequence[Item],
    *,
    max_tokens_per_batch: int,
    num_workers: int = 0,
    share_prefix: bool = True,
    description: str | None = "encode",
    texts: ToldTexts | None = None,
) -> Tensor:
    """Embed all items; of items that look the same, the first.

    Batches are formed from all items sorted by length and dealt out to the processes, so that the embeddings do not
    depend on how many processes there are.

    Args:
        max_tokens_per_batch: bound on the tokens of a forward, padding counted where there is any. A longer item is a
            forward of its own, with a note.
        share_prefix: compute the prompt's constant beginning once; the embeddings stay the same.
        num_workers: processes that prepare inputs ahead of the model; a single batch needs none.
        description: of the progress bar; None shows none, as do FEW items.
        texts: collects what is to be told of the items' texts; None tells it at the end.

    Returns:
        (len(items), D) float32 unit embeddings on the CPU, in the order of `items`, the same on every process.

    Raises:
        UserError: a picture cannot be read, or the model makes no embedding of an item; names it.
    """
    different: dict[Hashable, int] = {}  # content of an item -> its row in the embeddings
    row_of_item = [different.setdefault(item.content, len(different)) for item in items]
    first = {row: item for item, row in zip(reversed(items), reversed(row_of_item))}
    unique = [first[row] for row in range(len(different))]

    world, rank = world_size(), process_rank()
    lengths = _lengths(processor, unique, world, rank, embedder.device)
    if rank == 0 and max(lengths) > max_tokens_per_batch:
        print(
            f"note: {description or 'encode'}: the longest item has {max(lengths)} tokens, a forward of its own",
            flush=True,
        )
    batches = token_batches(lengths, max_tokens_per_batch, embedder.padding_free)
    # Every process makes the same number of forwards (ZeRO-3 gathers weights in each): the last may be a repetition.
    steps = -(-len(batches) // world)
    mine = [batches[min(step * world + rank, len(batches) - 1)] for step in range(steps)]
    most = max(map(len, batches))

    training = embedder.training
    embedder.eval()
    prefix_ids = torch.tensor(processor.prefix_ids)
    prefix = embedder.prefix_of(prefix_ids.to(embedder.device)) if share_prefix and embedder.padding_free else None
    parts = []

    told = ToldTexts() if texts is None else texts

    def prepare(i: int) -> tuple[list[int], dict[str, Tensor], list[tuple[str, TextNotes]]]:
        encoded = [processor.encode(unique[row]) for row in mine[i]]
        return mine[i], processor.pad(encoded), [(unique[row].id, of["notes"]) for row, of in zip(mine[i], encoded)]

    hidden = rank > 0 or description is None or len(unique) <= FEW
    with tqdm(total=len(unique), desc=description, unit="item", disable=hidden) as progress:
        for indices, inputs, notes in prepared(prepare, steps, num_workers if steps > 1 else 0):
            told.add(notes)
            begins = (inputs["input_ids"][:, : len(prefix_ids)] == prefix_ids).all()
            inputs = {name: tensor.to(embedder.device, non_blocking=True) for name, tensor in inputs.items()}
            rows = torch.full((most,), -1, device=embedder.device)  # -1 marks padding of a short batch
            rows[: len(indices)] = torch.tensor(indices)
            embeddings = embedder(**inputs, prefix=prefix if begins else None)  # (b, D)
            embeddings = torch.cat([embeddings, embeddings.new_zeros(most - len(indices), embeddings.shape[1])])
            parts.append((all_gather_with_grad(rows).cpu(), all_gather_with_grad(embeddings).cpu()))
            require_unit(*parts[-1], unique)
            progress.update(min(len(indices) * world, len(unique) - progress.n))
    embedder.train(training)
    if texts is None:
        told.tell(description or "encode")
    return _in_order(parts, len(unique))[row_of_item]


def _lengths(processor: Processor, items: Sequence[Item], world: int, rank: int, device: torch.device) -> list[int]:
    """Tokens of each item: every process reads the pictures' headers of its share."""
    mine = [processor.length(item) for item in items[rank::world]]
    mine += [0] * (-(-len(items) // world) - len(mine))
    lengths = all_gather_with_grad(torch.tensor(mine, device=device))
    lengths = lengths.view(world, -1)  # item i at [i % world, i // world]
    return lengths.T.flatten()[: len(items)].tolist()


def token_batches(lengths: Sequence[int], max_tokens: int, padding_free: bool) -> list[list[int]]:
    """Indices in batches of at most `max_tokens` tokens, longest items first; a longer item is a batch of its own."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    room = width = 0
    for i in order:
        if not batches or room < (lengths[i] if padding_free else width):
            batches.append([])
            room, width = max_tokens, lengths[i]
        batches[-1].append(i)
        room -= lengths[i] if padding_free else width
    return batches


def require_unit(rows: Tensor, embeddings: Tensor, items: Sequence[Item]) -> None:
    """Raise UserError unless all embeddings (n, D) have unit norm: NaN, infinity and a zero vector have not.

    Args:
        rows: (n,) the item of each, -1 for padding. Every process holds the same, so that all raise.
    """
    wrong = rows[(rows >= 0) & ~((embeddings.norm(dim=1) - 1).abs() < 1e-3)].unique().tolist()
    if wrong:
        raise UserError(
            f"the model makes no finite embedding of unit norm of {named([items[row].id for row in wrong])}: its "
            "weights, its config.json or its preprocessor_config.json are damaged"
        )


def named(ids: Sequence[str], most: int = 8) -> str:
    """The first of some items' ids, and how many more there are."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return f"{'items' if len(ids) > 1 else 'item'} {', '.join(ids[:most])}{more}"


def _in_order(parts: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
    rows, embeddings = (torch.cat(column) for column in zip(*parts))
    real = rows >= 0
    rows, embeddings = rows[real], embeddings[real]
    if len(rows.unique()) != count:
        raise RuntimeError(f"{count - len(rows.unique())} of {count} items were not encoded")
    ordered = embeddings.new_empty(count, embeddings.shape[1])
    ordered[rows] = embeddings
    return ordered
