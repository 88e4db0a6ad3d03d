"""Training pairs from any source: NLI's csv, captioned pictures, region edits, or one jsonl schema for all else.

A format says what a pair is made of:
    nli          csv sent0,sent1,hard_neg: a sentence and a paraphrase (datasets/nli.py)
    sharegpt4v   json list, entries {"image", "conversations": [.., {"from": "gpt", "value": caption}]}: a picture and
                 its long caption (Chen et al., arXiv 2311.12793)
    region_edit  jsonl {"source_image", "edited_image", ...}, or a folder as InstructPix2Pix ships it,
                 <number>/<seed>_0.jpg and <seed>_1.jpg: a picture and the same with one region changed. The edit's
                 instruction is not used: these are pairs of pictures alone.
    pairs        jsonl {"query": {"text"?, "image"?, "video"?}, "target": {..}, "negatives"?: [{..}, ..]}; each side may
                 also be {"content": [{"text"}, {"image"}, ..]}, several of them in any order (datasets/jsonl.py)

Picture paths are relative to a root, by default the folder of the file.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import read_json, read_jsonl
from lamra.datasets.items import Indexed, Item, Pair, Part, Picture
from lamra.datasets.jsonl import read_parts, with_root
from lamra.datasets.nli import NLIPairs
from lamra.datasets.tasks import ItemList, RetrievalTask

PICTURES_CHECKED = 2000  # of a source, before training; a missing one among the others is a picture fault in training


Row = tuple[tuple[Part, ...], ...]  # query, target, negatives; pictures by their paths below the source's root


class PairFile:
    """The pairs of one source.

    Raises:
        UserError: the file is missing, malformed or empty, or a picture does not exist; names file and line.
    """

    def __init__(
        self, path: str | Path, format: str, *, root: str | Path | None = None, use_hard_negatives: bool = False
    ):
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path} does not exist")
        self.root = Path(root) if root else path if path.is_dir() else path.parent
        self.rows = [row[: None if use_hard_negatives else 2] for row in READERS[format](path)]
        if not self.rows:
            raise UserError(f"{path} has no {format} pairs")
        if len({len(row) for row in self.rows}) > 1:
            counts = sorted({len(row) - 2 for row in self.rows})
            raise UserError(
                f"--use_hard_negatives True: rows of {path} have {counts} negatives; give each the same number"
            )
        if use_hard_negatives and len(self.rows[0]) == 2:
            raise UserError(f"--use_hard_negatives True: {path} has no hard negatives; leave the flag out")
        step = -(-len(self.rows) // PICTURES_CHECKED)
        for side in (side for row in self.rows[::step] for side in row):
            for file in Item("", parts=with_root(side, self.root)).files:
                if not Path(file).is_file():
                    raise UserError(f"picture or video {file} of {path} does not exist; is --image_root right?")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        query, target, *negatives = (
            Item(f"{index}.{i}", parts=with_root(side, self.root)) for i, side in enumerate(self.rows[index])
        )
        return Pair(query, target, tuple(negatives))


def _read_pairs(path: Path) -> Iterator[Row]:
    for row in read_jsonl(path):
        if unknown := row.keys() - {"query", "target", "negatives"}:
            raise UserError(
                f"{row.location} has the key {', '.join(map(repr, sorted(unknown)))}, which nothing reads: known are "
                "query, target, negatives"
            )
        negatives = row.get("negatives", [])
        if not isinstance(negatives, list):
            raise UserError(f'{row.location}: "negatives" is {str(negatives)[:80]}: give a list, or leave it out')
        with_negatives = [row["query"], row["target"], *negatives]
        yield tuple(read_parts(side, row.location) for side in with_negatives)


def _read_sharegpt4v(path: Path) -> Iterator[Row]:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path} is not ShareGPT4V's json: it is no list")
    for number, entry in enumerate(entries, start=1):
        try:
            caption = next(turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt")
            sides = {"image": entry["image"]}, {"text": caption}
        except (KeyError, TypeError, StopIteration) as error:
            raise UserError(
                f'{path} entry {number} is not ShareGPT4V\'s: it needs "image" and a "gpt" turn in "conversations" '
                f"({error!r})"
            ) from None
        yield tuple(read_parts(side, f"{path} entry {number}") for side in sides)


def _read_region_edits(path: Path) -> Iterator[Row]:
    if path.is_dir():
        for source in sorted(path.glob("*/*_0.jpg")):
            edited = source.with_name(source.name.replace("_0.jpg", "_1.jpg"))
            if edited.is_file():
                yield tuple((Picture(str(picture.relative_to(path))),) for picture in (source, edited))
        return
    for row in read_jsonl(path):
        yield tuple(read_parts({"image": row[name]}, row.location) for name in ("source_image", "edited_image"))


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "pairs": _read_pairs,
    "sharegpt4v": _read_sharegpt4v,
    "region_edit": _read_region_edits,
}
DATA_FORMATS = ("nli", *READERS)


def load_source(path: str | Path, format: str, root: str | Path | None, use_hard_negatives: bool) -> Indexed[Pair]:
    """The pairs of one file or folder in one of DATA_FORMATS."""
    if format == "nli":
        return NLIPairs(path, use_hard_negatives)
    return PairFile(path, format, root=root, use_hard_negatives=use_hard_negatives)


def task_of_pairs(path: str | Path, root: str | Path | None = None) -> RetrievalTask:
    """The queries of a jsonl of pairs search the targets of all. Equal queries are one, equal targets too.

    Raises:
        UserError: as PairFile.
    """
    queries: dict[Hashable, Item] = {}
    targets: dict[Hashable, Item] = {}
    answers: dict[Hashable, list[Hashable]] = {}
    pairs = PairFile(path, "pairs", root=root)
    for pair in (pairs[index] for index in range(len(pairs))):
        queries.setdefault(pair.query.content, pair.query)
        targets.setdefault(pair.target.content, pair.target)
        answers.setdefault(pair.query.content, []).append(pair.target.content)
    row_of = {content: row for row, content in enumerate(targets)}
    return RetrievalTask(
        "pairs",
        ItemList(list(queries.values()), "queries", path),
        ItemList(list(targets.values()), "targets", path),
        [sorted({row_of[content] for content in of_query}) for of_query in answers.values()],
    )


class Mixture:
    """Several sources as one; `groups` gives each source's indices."""

    def __init__(self, sources: Mapping[str, Indexed[Pair]]):
        self.sources = list(sources.values())
        self.ends = list(accumulate(len(source) for source in self.sources))
        starts = [0, *self.ends]
        self.groups = {name: range(start, end) for name, start, end in zip(sources, starts, self.ends)}

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Pair:
        number = bisect_right(self.ends, index)
        return self.sources[number][index - (self.ends[number - 1] if number else 0)]


class Subset:
    """`count` pairs of a source, drawn by `seed`: a smaller subset of the same seed is among a larger one's."""

    def __init__(self, source: Indexed[Pair], count: int, seed: int):
        self.source = source
        self.indices = random.Random(seed).sample(range(len(source)), len(source))[:count]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Pair:
        return self.source[self.indices[index]]
