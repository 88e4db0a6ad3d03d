"""Find pictures and videos in a folder by words, a picture or a video: the smallest use of a trained model.

python demo.py --model_id DIR --folder PICTURES --text "two dogs in the snow" [--rerank RERANKER]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamra.common.cli import note, parse, run
from lamra.common.errors import UserError
from lamra.common.flags import FILE, FOLDER, flag
from lamra.datasets.items import Item, Picture, Text, Video
from lamra.datasets.picture_folder import pictures_in
from lamra.eval.flags import SkippingArguments
from lamra.eval.rerank.fusion import reranked
from lamra.models.folders import local_folder


@dataclass
class DemoArguments(SkippingArguments):
    folder: str = flag("", "pictures and videos to search", path=FOLDER)
    text: str | None = flag(None, "what to look for, in words")
    image: str | None = flag(None, "what to look for, as a picture; alone or with --text", path=FILE)
    video: str | None = flag(None, "what to look for, as a video; alone or with --text", path=FILE)
    top: int = flag(10, "how many to show", low=1)
    rerank: str | None = flag(None, "a reranker that looks at these once more", path=FOLDER)

    def __post_init__(self):
        super().__post_init__()
        if self.rerank:
            self.rerank = local_folder(self.rerank, "rerank")
        if not (self.text or self.image or self.video):
            raise UserError('give --text "what to look for", --image picture.jpg, --video clip.mp4, or several of them')


def main() -> None:
    (args,) = parse(DemoArguments)
    paths = pictures_in(args.folder, note)
    from lamra.eval.inference import as_item, load_retriever  # torch and transformers, which --help does not wait for
    from lamra.eval.unreadable import Unreadable

    retriever = load_retriever(args)
    lost = Unreadable(args.skip_unreadable, retriever).rows([as_item(path, str(path)) for path in paths], args.folder)
    paths = [path for path, is_lost in zip(paths, lost) if not is_lost]
    given = (args.image, Picture), (args.video, Video), (args.text, Text)
    query = Item("query", parts=[kind(value) for value, kind in given if value])
    scores, indices = retriever.search([query], paths, args.top, truncate_dim=args.truncate_dim)  # (1, top) each
    found = [(score, paths[index]) for score, index in zip(scores[0].tolist(), indices[0].tolist())]
    if args.rerank:
        show_reranked(args, query, found)
        return
    for rank, (score, path) in enumerate(found, start=1):
        print(f"{rank:3d}  {score:.4f}  {path}")


def show_reranked(args: DemoArguments, query: Item, found: list[tuple[float, Path]]) -> None:
    """Both scores of each picture or video, and the rank that it had before."""
    from lamra.eval.rerank.judge import load_judge

    chosen: dict[str, Any] = dict(original_model_id=None, library=None, trust_remote_code=False, truncate_dim=None)
    judge = load_judge(replace(args, model_id=args.rerank, **chosen))
    yes = judge.rerank(query, [path for _, path in found]).tolist()
    scores = [score for score, _ in found]
    order, fused = reranked(scores, yes, "pointwise", weight=1.0)
    print("rank  was   score = similarity + P(Yes)")
    for rank, (before, score) in enumerate(zip(order, fused), start=1):
        print(
            f"{rank:4d} {before + 1:4d}  {score:.4f} = {scores[before]:10.4f} + {yes[before]:.4f}  {found[before][1]}"
        )


if __name__ == "__main__":
    run(main)
