"""In which order the rows of a mixture are trained on; what stands in one step decides its in-batch negatives."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.flags import require
from lamra.datasets.communities import Communities
from lamra.datasets.items import Indexed
from lamra.train.arguments import TrainingArguments


class MixtureSampler(Sampler[int]):
    """Row indices of an epoch, drawn by seed and epoch.

    An epoch has as many rows as all sources together. A source whose weight asks for more rows than it has is gone
    through again in another order.

    Args:
        groups: the rows of each source.
        weights: each source's share of the epoch; by default its share of the rows.
        step: rows of all processes in one step.
        each: rows that an entry of `groups` stands for.
        homogeneous: every step holds rows of one source, and no row twice; otherwise all are shuffled together.

    Raises:
        UserError: weights that do not fit the sources, or a source smaller than a homogeneous step.
    """

    def __init__(
        self,
        groups: dict[str, Sequence[int]],
        *,
        weights: Sequence[float] | None,
        step: int,
        homogeneous: bool,
        seed: int,
        each: int = 1,
    ):
        self.groups, self.step, self.homogeneous, self.seed, self.epoch = groups, step, homogeneous, seed, 0
        weights = [len(rows) for rows in groups.values()] if weights is None else weights
        require(
            len(weights) == len(groups) and all(weight > 0 for weight in weights),
            "mixture_weights",
            ",".join(f"{weight:g}" for weight in weights),
            f"{len(groups)} positive numbers, one for each of {', '.join(groups)}",
        )
        small = [name for name, rows in groups.items() if homogeneous and len(rows) * each < step]
        if small:
            rows = len(groups[small[0]]) * each
            raise UserError(
                f"--mixture_batches homogeneous: {small[0]} has {rows} rows, a step of all processes {step}; use "
                "mixed, or a smaller --per_device_train_batch_size"
            )
        self.unit = step // each if homogeneous else 1  # what is dealt out to the sources: steps, or rows
        self.counts = _shares(weights, sum(map(len, groups.values())) // self.unit)

    def __len__(self) -> int:
        return sum(self.counts) * self.unit

    def set_epoch(self, epoch: int) -> None:
        """Draw as in this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        units = [self._units(np.asarray(rows), count, rng) for rows, count in zip(self.groups.values(), self.counts)]
        order = _permutation(sum(map(len, units)), rng)
        return (int(row) for unit in np.concatenate(units)[order] for row in unit)

    def _units(self, rows: np.ndarray, count: int, rng: random.Random) -> np.ndarray:
        """(count, self.unit) rows of one source."""
        whole = len(rows) // self.unit  # units of one order
        orders = [rows[_permutation(len(rows), rng)] for _ in range(-(-count // whole) if whole else 0)]
        units = [order[: whole * self.unit].reshape(whole, self.unit) for order in orders]
        return np.concatenate([np.empty((0, self.unit), dtype=np.int64), *units])[:count]


class CommunitySampler(Sampler[int]):
    """Row indices of an epoch: communities whole and one after another, in the order that a sampler of them draws.

    A step of all processes holds as many rows as whole communities do, so every step is made of whole ones, the same
    ones for any number of processes. Rows that are left over stand among the first community's, whose last rows end the
    epoch in their place: the incomplete step that is dropped there loses other rows in every epoch.

    Args:
        order: indices of communities.
        left: also train on what is left over.
    """

    def __init__(self, communities: Communities, order: MixtureSampler, *, left: bool):
        self.communities, self.order = communities, order
        self.left = communities.left if left else communities.left[:0]

    def __len__(self) -> int:
        return len(self.order) * self.communities.size + len(self.left)

    def set_epoch(self, epoch: int) -> None:
        """Draw as in this epoch."""
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        first, *others = (self.communities.rows[community] for community in self.order)
        fits = self.communities.size - len(self.left) if len(self.left) else 0
        pieces = [self.left, first[:fits], *others, first[fits:]] if fits else [first, *others]
        return (int(row) for piece in pieces for row in piece)


def mixture_sampler(
    pairs: Indexed, args: TrainingArguments, communities: Communities | None = None
) -> MixtureSampler | CommunitySampler | None:
    """The order of a mixture's rows, or of communities of them; None shuffles all rows together.

    Raises:
        UserError: as MixtureSampler, or communities that do not fill a step.
    """
    groups = getattr(pairs, "groups", {})
    by_source = args.mixture_weights is not None or args.mixture_batches != "mixed"
    if by_source:
        flag = "mixture_batches" if args.mixture_weights is None else "mixture_weights"
        require(len(groups) > 1, flag, getattr(args, flag), "several sources, such as --data_path A,B,C")
    elif communities is None:
        return None
    step, each = args.per_device_train_batch_size * args.world_size, 1
    if communities is not None:
        each = communities.size
        if step % each:
            raise UserError(
                f"--batches has communities of {each} rows, which do not fill a step of {step} rows "
                f"(--per_device_train_batch_size {args.per_device_train_batch_size} on {args.world_size} processes): "
                "make the step a multiple of them, or mine batches with another --size"
            )
        groups = _communities_of(communities, list(groups)) if by_source else {"": range(len(communities.rows))}
    order = MixtureSampler(
        groups,
        weights=[float(weight) for weight in args.mixture_weights.split(",")] if args.mixture_weights else None,
        step=step,
        homogeneous=args.mixture_batches == "homogeneous",
        seed=args.seed if args.data_seed is None else args.data_seed,
        each=each,
    )
    return order if communities is None else CommunitySampler(communities, order, left=not by_source)


def _communities_of(communities: Communities, sources: list[str]) -> dict[str, list[int]]:
    """The communities of each source; those of several are left out, with a note."""
    found: dict[str, list[int]] = {source: [] for source in sources}
    for community, task in enumerate(communities.tasks):
        found.get(task, []).append(community)
    if none := [source for source, its in found.items() if not its]:
        raise UserError(
            f"--batches has no community of {none[0]} alone: give neither --mixture_weights nor --mixture_batches, or "
            "mine batches with a smaller --size"
        )
    without = len(communities.rows) - sum(map(len, found.values()))
    if rows := without * communities.size + len(communities.left):
        note(f"--batches: {rows} rows are in no community of one source and are left out")
    return found


class SetEpoch(TrainerCallback):
    """Tells sampler and data set which epoch begins.

    accelerate's own way does not reach them on several processes after a resume: the loader that skips the rows already
    seen hides the sampler.
    """

    def __init__(self, *parts):
        self.parts = [part for part in parts if hasattr(part, "set_epoch")]

    def on_epoch_begin(self, args, state, control, **_):
        for part in self.parts:
            part.set_epoch(int(state.epoch or 0))


def _permutation(count: int, rng: random.Random) -> np.ndarray:
    """(count,) int64: a list's order after rng.shuffle, without a Python object for each number."""
    order = array("q", range(count))
    rng.shuffle(order)
    return np.frombuffer(order, dtype=np.int64)


def _shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` divided as `weights` are, whole numbers; what rounding leaves goes to the largest remainders."""
    exact = [weight / sum(weights) * total for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
