"""Find pictures and videos in a folder by words, a picture or a video: the smallest use of a trained model.

python demo.py --model_id DIR --folder PICTURES --text "two dogs in the snow" [--rerank RERANKER]
python demo.py --model_id DIR --index INDEX --queries items.jsonl --html out.html
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamra.app.results import Shown, page
from lamra.common.cli import note, parse, run
from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.common.flags import FILE, FOLDER, OUT_FILE, flag, require
from lamra.datasets.items import Item, Picture, Text, Video
from lamra.datasets.jsonl import load_items
from lamra.datasets.picture_folder import pictures_in
from lamra.eval.flags import SkippingArguments
from lamra.eval.index.extra import require_index, require_lancedb
from lamra.eval.index.hits import Hit
from lamra.eval.rerank.fusion import reranked
from lamra.models.folders import local_folder

if TYPE_CHECKING:
    from lamra.eval.rerank.judge import Judge


@dataclass
class DemoArguments(SkippingArguments):
    folder: str | None = flag(None, "pictures and videos to search", path=FOLDER)
    index: str | None = flag(None, "what to search instead of --folder: an index of scripts/index.sh", path=FOLDER)
    text: str | None = flag(None, "what to look for, in words")
    image: str | None = flag(None, "what to look for, as a picture; alone or with --text", path=FILE)
    video: str | None = flag(None, "what to look for, as a video; alone or with --text", path=FILE)
    queries: str | None = flag(None, "many things to look for, instead of one: items.jsonl", path=FILE)
    top: int = flag(10, "how many to show", low=1)
    rerank: str | None = flag(None, "a reranker that looks at these once more", path=FOLDER)
    html: str | None = flag(None, "out.html: the queries and what was found, with pictures", path=OUT_FILE)

    def __post_init__(self):
        super().__post_init__()
        if self.rerank:
            self.rerank = local_folder(self.rerank, "rerank")
        if (self.folder is None) == (self.index is None):
            raise UserError("give --folder PICTURES or --index INDEX: one of them is searched")
        for name in ("skip_unreadable", "truncate_dim") if self.index else ():
            value = getattr(self, name)
            require(not value, name, value, "it with --folder alone: an index has its own")
        one = self.text or self.image or self.video
        if not one and not self.queries:
            raise UserError('give --text "what to look for", --image picture.jpg, --video clip.mp4, or several of them')
        require(not (one and self.queries), "queries", self.queries, "it without --text, --image and --video")


def main() -> None:
    (args,) = parse(DemoArguments)
    if args.index:
        require_lancedb()
        require_index(args.index)
    queries = queries_of(args)
    found = search_index(args, queries) if args.index else search_folder(args, queries)
    judge = judge_of(args) if args.rerank else None
    results = []
    for query, hits in zip(queries, found):
        if args.queries:
            print(f"{query.id}: {query.text or 'a picture or a video'}")
        yes = None if judge is None else judge.rerank(query, [item for _, item in hits]).tolist()
        results.append(show([hit for hit, _ in hits], yes))
    if args.html:
        write_html(Path(args.html), queries, results)


def queries_of(args: DemoArguments) -> list[Item]:
    """What to look for."""
    if args.queries:
        return load_items(args.queries)
    given = (args.image, Picture), (args.video, Video), (args.text, Text)
    return [Item("query", parts=[kind(value) for value, kind in given if value])]


def search_folder(args: DemoArguments, queries: list[Item]) -> list[list[tuple[Hit, Item]]]:
    """What a folder has for each query, best first: each hit, and its item for a reranker."""
    paths = pictures_in(args.folder, note)
    from lamra.eval.index.thumbnails import thumbnail_of
    from lamra.eval.inference import as_item, load_retriever  # torch and transformers, which --help does not wait for
    from lamra.eval.unreadable import Unreadable

    retriever = load_retriever(args)
    lost = Unreadable(args.skip_unreadable, retriever).rows([as_item(path, str(path)) for path in paths], args.folder)
    items = [as_item(path, str(path)) for path, is_lost in zip(paths, lost) if not is_lost]
    scores, rows = retriever.search(queries, items, args.top, truncate_dim=args.truncate_dim)  # (Q, top) each

    def hit(item: Item, score: float) -> Hit:
        thumbnail = thumbnail_of(item) if args.html else b""
        return Hit(item.id, "", "", path=item.id, text="", score=score, thumbnail=thumbnail, line="")

    return [
        [(hit(items[row], score), items[row]) for score, row in zip(*of_query)]
        for of_query in zip(scores.tolist(), rows.tolist())
    ]


def search_index(args: DemoArguments, queries: list[Item]) -> list[list[tuple[Hit, Item]]]:
    """The same of an index."""
    from lamra.eval.index.index import Index
    from lamra.eval.inference import load_retriever

    index = Index.open(args.index, load_retriever(args))
    return [[(hit, index.item(hit)) for hit in index.search(query, args.top)] for query in queries]


def judge_of(args: DemoArguments) -> Judge:
    """The reranker."""
    from lamra.eval.rerank.judge import load_judge

    chosen: dict[str, Any] = dict(original_model_id=None, library=None, trust_remote_code=False, truncate_dim=None)
    return load_judge(replace(args, model_id=args.rerank, **chosen))


def show(hits: list[Hit], yes: list[float] | None) -> list[Shown]:
    """Print what was found; with P(Yes) both scores of each, and the rank that it had before."""
    names = [hit.path or f"{hit.key}: {hit.text}" for hit in hits]
    if yes is None:
        for rank, (hit, name) in enumerate(zip(hits, names), start=1):
            print(f"{rank:3d}  {hit.score:.4f}  {name}")
        return [Shown(hit) for hit in hits]
    order, fused = reranked([hit.score for hit in hits], yes, "pointwise", weight=1.0)
    print("rank  was   score = similarity + P(Yes)")
    for rank, (before, score) in enumerate(zip(order, fused), start=1):
        similarity = hits[before].score
        print(f"{rank:4d} {before + 1:4d}  {score:.4f} = {similarity:10.4f} + {yes[before]:.4f}  {names[before]}")
    return [Shown(hits[before], yes[before], before + 1) for before in order]


def write_html(path: Path, queries: list[Item], results: list[list[Shown]]) -> None:
    """Queries and what was found in one file, with pictures and without scripts."""
    from lamra.eval.index.thumbnails import thumbnail_of

    shown = [(query.text or "", thumbnail_of(query), found) for query, found in zip(queries, results)]
    with whole_file(path) as file:
        file.write(page("LamRA", shown))
    print(f"{len(queries)} queries with their results: {path}")


if __name__ == "__main__":
    run(main)
