"""MSR-VTT, the 1k-A split: a caption searches the clip that it was written for.

MSRVTT_JSFUSION_test.csv (msrvtt_data.zip of ArrowLuo/CLIP4Clip's release v0.0), the clips are <video_id>.mp4:
    key,vid_key,video_id,sentence
    ret0,msr9770,video9770,a man cooks
Upstream shows two frames a second of each clip, and so does an embedding here. The protocols are the same.
"""

from __future__ import annotations

from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import read_csv
from lamra.datasets.items import Item, Video
from lamra.datasets.tasks import ItemList, ReportedAsLamRA, RetrievalTask
from lamra.datasets.zeroshot.fields import picture_path, text

NAME = "MSR-VTT"
PUBLISHED = 1000  # captions of the published file
PAPER = ReportedAsLamRA(44.7, 68.6, 78.6)  # R@1, R@5, R@10 (arXiv 2412.01720)
INSTRUCTION = "Find an everyday video match with caption."


def msrvtt_tasks(data_path: str | Path, video_data_path: str | Path, protocol: str) -> list[RetrievalTask]:
    """The one task, "video_retrieval".

    Args:
        data_path: the csv.
        video_data_path: the folder of the clips. Whether one is there is left to whoever opens it.
        protocol: one of caption.PROTOCOLS.

    Raises:
        UserError: the file is missing, has no captions or other columns, or repeats a key; names file and line.
    """
    data_path = Path(data_path)
    if not data_path.is_file():
        raise UserError(f"{NAME}'s {data_path} does not exist: give MSRVTT_JSFUSION_test.csv")
    captions: dict[str, Item] = {}
    clips: dict[str, tuple[int, Item]] = {}
    answers = []
    for row in read_csv(data_path, ("key", "video_id", "sentence")):
        key, video = text(row, "key"), text(row, "video_id")
        if key in captions:
            raise UserError(f"{row.location} repeats the key {key!r}: a caption has one of its own")
        captions[key] = Item(key, text(row, "sentence"), instruction=INSTRUCTION)
        path = picture_path(video_data_path, f"{video}.mp4", row.location)
        position, _ = clips.setdefault(video, (len(clips), Item(video, parts=[Video(path)])))
        answers.append([position])
    if not captions:
        raise UserError(f"{data_path} has no captions: give MSRVTT_JSFUSION_test.csv")
    return [
        RetrievalTask(
            "video_retrieval",
            ItemList(captions.values(), f"{NAME} captions", data_path),
            ItemList([clip for _, clip in clips.values()], f"{NAME} clips", data_path),
            answers,
            reported=PAPER if len(captions) == PUBLISHED else None,
            files={"captions": data_path},
        )
    ]
