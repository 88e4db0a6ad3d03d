"""MSVD: each of a clip's many captions searches it among the 670 clips of the test split.

test_list.txt has a clip's id in each line, the clips are <id>.avi (YouTubeClips.tar of Chen and Dolan).
raw-captions.pkl (msvd_data.zip of ArrowLuo/CLIP4Clip's release v0.0) is a pickle of all clips' captions in words:
    {"mv89psg6zh4_33_46": [["a", "bird", "in", "a", "sink"], ..]}
Or a jsonl:
    {"id": "mv89psg6zh4_33_46", "captions": ["a bird in a sink", ..]}
Upstream shows 12 frames of each clip, and a reranker 8. The protocols are the same here.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from lamra.common.errors import UserError
from lamra.common.files import Row, read_jsonl, read_lines
from lamra.datasets.items import Item, Video
from lamra.datasets.tasks import ItemList, ReportedAsLamRA, RetrievalTask
from lamra.datasets.zeroshot.fields import identifier, listed, picture_path
from lamra.datasets.zeroshot.msrvtt import INSTRUCTION

NAME = "MSVD"
PUBLISHED = 670  # clips of the published list
PAPER = ReportedAsLamRA(52.4, 79.8, 87.0)  # R@1, R@5, R@10 (arXiv 2412.01720)
FRAMES, RERANK_FRAMES = 12, 8
FORMAT = '{"id", "captions": [..]}'


def msvd_tasks(
    video_path_prefix: str | Path, test_video_path: str | Path, captions_path: str | Path, protocol: str
) -> list[RetrievalTask]:
    """The one task, "video_retrieval". A caption's id is its clip's and its position among the clip's captions.

    Args:
        video_path_prefix: the folder of the clips. Whether one is there is left to whoever opens it.
        test_video_path: the list of ids.
        captions_path: the pickle, of which nothing but plain data is loaded, or a jsonl.
        protocol: one of caption.PROTOCOLS.

    Raises:
        UserError: a file is missing or of another form, could run code, or a clip has no captions or is listed twice;
            names file and line.
    """
    test_video_path, captions_path = Path(test_video_path), Path(captions_path)
    for path, what in ((test_video_path, "test_list.txt"), (captions_path, "raw-captions.pkl")):
        if not path.is_file():
            raise UserError(f"{NAME}'s {path} does not exist: give {what}")
    rows = read_jsonl(captions_path) if captions_path.suffix == ".jsonl" else _of_pickle(captions_path)
    captions_of = {identifier(row, "id"): row for row in rows}
    captions, answers = [], []
    clips: dict[str, Path] = {}
    for number, line in enumerate(read_lines(test_video_path), start=1):
        location = f"{test_video_path} line {number}"
        if not (clip := line.strip()):
            continue
        if clip in clips:
            raise UserError(f"{location} repeats the clip {clip!r}: remove one")
        if clip not in captions_of:
            raise UserError(f"{location}: {captions_path} has no captions of {clip!r}: give the files of one data set")
        clips[clip] = picture_path(video_path_prefix, f"{clip}.avi", location)
        row = captions_of[clip]
        for position, caption in enumerate(listed(row, row.location, "captions")):
            captions.append(Item(f"{clip}#{position}", _words(caption, row.location), instruction=INSTRUCTION))
            answers.append([len(clips) - 1])
    if not clips:
        raise UserError(f"{test_video_path} has no clips: give {NAME}'s test_list.txt")

    def shown(frames: int, name: str) -> ItemList:
        items = [Item(clip, parts=[Video(path, frames)]) for clip, path in clips.items()]
        return ItemList(items, f"{NAME} {name}", test_video_path)

    return [
        RetrievalTask(
            "video_retrieval",
            ItemList(captions, f"{NAME} captions", captions_path),
            shown(FRAMES, "clips"),
            answers,
            reported=PAPER if len(clips) == PUBLISHED else None,
            files={"clips": test_video_path, "captions": captions_path},
            rerank_gallery=shown(RERANK_FRAMES, "clips to rerank"),
        )
    ]


def _words(caption: object, location: str) -> str:
    match caption:
        case str():
            return caption
        case [*words] if words and all(isinstance(word, str) for word in words):
            return " ".join(map(str, words))
    raise UserError(f"{location}: the caption {str(caption)[:80]!r} is neither a text nor a list of words")


class _PlainData(pickle.Unpickler):
    """Loads dicts, lists, texts and numbers. All else in a pickle is a name that is called: it could be any program."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _of_pickle(path: Path) -> Iterator[Row]:
    with open(path, "rb") as file:
        try:
            content = _PlainData(file, encoding="utf-8").load()  # of Python 2's strings
        # What a damaged pickle, or a file that is none, ends in.
        except (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is broken, or holds more than plain data and could run code ({str(error)[:80]}): where you "
                f"trust it, write it as a .jsonl of {FORMAT} and give that"
            ) from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not of {NAME}: a dict of captions is expected, and it holds a {type(content).__name__}"
        )
    for clip, captions in content.items():
        yield Row(f"{path} clip {clip}", {"id": clip, "captions": captions})
