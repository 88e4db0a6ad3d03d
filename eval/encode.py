"""The one encode loop: items to embeddings, on any number of processes, in the order of the items."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lamra.collators.processing import Processor
from lamra.collators.texts import TextNotes, ToldTexts
from lamra.common.errors import UserError
from lamra.common.gather import all_gather_with_grad
from lamra.common.processes import process_rank, world_size
from lamra.datasets.items import Item, Video
from lamra.models.embedder import Embedder

GATHERED = 64  # embeddings of each process that are exchanged at a time
LENGTHS_TOGETHER = 1024  # items that a worker counts the tokens of at a time
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


class Encoder(Protocol):
    """What the loop asks of a model."""

    @property
    def device(self) -> torch.device: ...

    @property
    def padding_free(self) -> bool:
        """Whether a forward costs what its items cost, and not the longest as often as there are items."""

    def length(self, item: Item) -> int:
        """Tokens of an item, or what comes near it."""

    def prepare(self, items: Sequence[Item]) -> tuple[Any, list[tuple[str, TextNotes]]]:
        """The inputs of a forward, and what befell the items' texts. Called in worker processes, ahead of the model."""

    def embed(self, inputs: Any) -> Tensor:
        """(b, D) float32 embeddings of unit norm, on the device."""


class PromptEncoder:
    """An Embedder, whose inputs are prompts.

    Args:
        share_prefix: compute the prompt's constant beginning once; the embeddings stay the same.
    """

    def __init__(self, embedder: Embedder, processor: Processor, share_prefix: bool):
        self.embedder, self.processor = embedder, processor
        embedder.pixels_from_bytes = processor.visuals.floats
        self.device, self.padding_free = embedder.device, embedder.padding_free
        self.length = processor.length
        self.prefix_ids = torch.tensor(processor.prefix_ids)
        shares = share_prefix and embedder.shares_prefix
        self.prefix = embedder.prefix_of(self.prefix_ids.to(embedder.device)) if shares else None

    def prepare(self, items: Sequence[Item]) -> tuple[dict[str, Tensor], list[tuple[str, TextNotes]]]:
        encoded = [self.processor.encode(item) for item in items]
        return self.processor.pad(encoded), [(item.id, of["notes"]) for item, of in zip(items, encoded)]

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        # Narrower than the prefix where the system turn is an instruction of its own.
        first = inputs["input_ids"][:, : len(self.prefix_ids)]  # (b, P or less)
        begins = first.shape[1] == len(self.prefix_ids) and (first == self.prefix_ids).all()
        inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
        return self.embedder(**inputs, prefix=self.prefix if begins else None)


@torch.no_grad()
def encode(
    embedder: Embedder, processor: Processor, items: Sequence[Item], *, share_prefix: bool = True, **options: Any
) -> Tensor:
    """Embed all items with an Embedder, which is in training afterwards if it was before; see encode_items."""
    training = embedder.training
    embedder.eval()
    embeddings = encode_items(PromptEncoder(embedder, processor, share_prefix), items, **options)
    embedder.train(training)
    return embeddings


@torch.no_grad()
def encode_items(
    encoder: Encoder,
    items: Sequence[Item],
    *,
    max_tokens_per_batch: int,
    num_workers: int = 0,
    description: str | None = "encode",
    texts: ToldTexts | None = None,
    everywhere: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Embed all items; of items that look the same, the first.

    Batches are formed from all items sorted by length and dealt out to the processes, so that the embeddings do not
    depend on how many processes there are.

    Args:
        max_tokens_per_batch: bound on the tokens of a forward, padding counted where there is any. A longer item is a
            forward of its own, with a note.
        num_workers: processes that prepare inputs ahead of the model; a single batch needs none.
        description: of the progress bar; None shows none, as do FEW items.
        texts: collects what is to be told of the items' texts; None tells it at the end.
        everywhere: False keeps the embeddings on the first process alone; the others get (0, 0).
        dtype: of what is returned; the model's answers are float32.

    Returns:
        (len(items), D) unit embeddings on the CPU, in the order of `items`, the same on every process. Beside
        them memory holds a batch of each process.

    Raises:
        UserError: a picture cannot be read, or the model makes no embedding of an item; names it.
    """
    different: dict[Hashable, int] = {}  # content of an item -> its row among the different ones
    items_of: list[list[int]] = []  # of each row
    for number, item in enumerate(items):
        if (row := different.setdefault(item.content, len(items_of))) == len(items_of):
            items_of.append([])
        items_of[row].append(number)
    unique = [items[numbers[0]] for numbers in items_of]

    world, rank = world_size(), process_rank()
    lengths = _lengths(encoder, unique, world, rank, num_workers)
    if rank == 0 and max(lengths) > max_tokens_per_batch:
        print(
            f"note: {description or 'encode'}: the longest item has {max(lengths)} tokens, a forward of its own",
            flush=True,
        )
    batches = token_batches(lengths, max_tokens_per_batch, encoder.padding_free)
    # Every process makes the same number of forwards (ZeRO-3 gathers weights in each): the last may be a repetition.
    steps = [
        [batches[min(start + number, len(batches) - 1)] for number in range(world)]  # the batch of each process
        for start in range(0, len(batches), world)
    ]
    found = torch.empty(0, 0)  # (items, D), from the first batch on
    kept = everywhere or rank == 0
    missing = torch.ones(len(unique), dtype=torch.bool)
    told = ToldTexts() if texts is None else texts

    def prepare(step: int) -> tuple[Any, list[tuple[str, TextNotes]]]:
        return encoder.prepare([unique[row] for row in steps[step][rank]])

    hidden = rank > 0 or description is None or len(unique) <= FEW
    with tqdm(total=len(unique), desc=description, unit="item", disable=hidden) as progress:
        for of_step, (inputs, notes) in zip(steps, prepared(prepare, len(steps), num_workers if len(steps) > 1 else 0)):
            told.add(notes)
            for rows, embeddings in _gathered(encoder.embed(inputs), of_step):  # (n,) and (n, D), n <= GATHERED
                require_unit(rows, embeddings, unique)
                missing[rows] = False
                if kept:
                    if not len(found):
                        found = torch.empty(len(items), embeddings.shape[1], dtype=dtype)
                    numbers = [items_of[row] for row in rows]
                    same = [position for position, those in enumerate(numbers) for _ in those]
                    found[list(chain.from_iterable(numbers))] = embeddings[same].to(dtype)
            progress.update(min(len(of_step[rank]) * world, len(unique) - progress.n))
    if texts is None:
        told.tell(description or "encode")
    if missing.any():
        raise RuntimeError(f"{missing.sum()} of {len(unique)} items were not encoded")
    return found


def _gathered(embeddings: Tensor, of_step: Sequence[list[int]]) -> Iterator[tuple[list[int], Tensor]]:
    """The rows of all processes' batches and their embeddings (n, D) on the CPU, few at a time, not to hold all twice.

    Args:
        embeddings: (b, D) of this process's batch.
        of_step: the rows in the batch of each process.
    """
    longest = max(map(len, of_step))
    for start in range(0, longest, GATHERED):
        size = min(GATHERED, longest - start)
        part = embeddings[start : start + size]  # (size or less, D)
        part = torch.cat([part, part.new_zeros(size - len(part), part.shape[1])]) if len(part) < size else part
        for rows, theirs in zip(of_step, all_gather_with_grad(part).cpu().split(size)):
            if rows := rows[start : start + size]:
                yield rows, theirs[: len(rows)]


def _lengths(encoder: Encoder, items: Sequence[Item], world: int, rank: int, num_workers: int) -> list[int]:
    """Tokens of each item: every process reads the pictures' headers of its share, in its workers where it is large."""
    share = items[rank::world]
    parts = [share[start : start + LENGTHS_TOGETHER] for start in range(0, len(share), LENGTHS_TOGETHER)]
    # What is known of a video's frames is for the workers that are forked later: here, or they decode it once more.
    here = len(parts) < 2 or any(isinstance(part, Video) for item in share for part in item.parts)
    counted = prepared(lambda i: list(map(encoder.length, parts[i])), len(parts), 0 if here else num_workers)
    mine = [tokens for part in counted for tokens in part]
    mine += [0] * (-(-len(items) // world) - len(mine))
    lengths = all_gather_with_grad(torch.tensor(mine, device=encoder.device))
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


def require_unit(rows: Sequence[int], embeddings: Tensor, items: Sequence[Item]) -> None:
    """Raise UserError unless all embeddings (n, D) have unit norm: NaN, infinity and a zero vector have not.

    Args:
        rows: the item of each. Every process holds the same, so that all raise.
    """
    wrong = sorted(row for row, norm in zip(rows, embeddings.norm(dim=1).tolist()) if not abs(norm - 1) < 1e-3)
    if wrong:
        raise UserError(
            f"the model makes no finite embedding of unit norm of {named([items[row].id for row in wrong])}: its "
            "weights, its config.json or its preprocessor_config.json are damaged"
        )


def named(ids: Sequence[str], most: int = 8) -> str:
    """The first of some items' ids, and how many more there are."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return f"{'items' if len(ids) > 1 else 'item'} {', '.join(ids[:most])}{more}"
