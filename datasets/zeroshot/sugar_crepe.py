"""SugarCrepe (RAIVNLab/sugar-crepe, MIT): COCO val2017 pictures, each with a true and a false caption.

Seven files <kind>.json, each an object {"0": {"filename": "000000085329.jpg", "caption": "A cat sits.",
"negative_caption": "A dog sits."}, "1": ...}; swap_obj leaves a number out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import Row, read_json
from lamra.datasets.tasks import Reported, RetrievalTask
from lamra.datasets.zeroshot.fields import picture_path, text
from lamra.datasets.zeroshot.pairs import CaptionPair, pair_task

# Kind -> rows of the published file.
KINDS = {
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}
RERANK_WEIGHT = 0.1
PAPER_MEAN = Reported(85.8, 93.5)  # accuracy, mean of the seven kinds (arXiv 2412.01720)
GET = "bash scripts/download.sh sugarcrepe gets it"


def sugar_crepe_tasks(
    annotations: str | Path, pictures: str | Path, protocol: str, kinds: Sequence[str] = tuple(KINDS)
) -> list[RetrievalTask]:
    """A task for each kind, "sugarcrepe_add_att" and so on.

    Args:
        annotations: the folder of the json files.
        pictures: COCO's val2017. Whether a picture is there is left to whoever opens it.
        protocol: "released" or "clean"; here both are the same.

    Raises:
        UserError: a file is missing, is of another data set, or a row is malformed; names file and row.
    """
    return [_task(Path(annotations, f"{kind}.json"), Path(pictures), kind) for kind in kinds]


def _task(path: Path, pictures: Path, kind: str) -> RetrievalTask:
    if not path.is_file():
        raise UserError(f"SugarCrepe's {path} does not exist: {GET}")
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(
            f'{path} is not of SugarCrepe: an object {{"0": {{filename, caption, negative_caption}}}} is expected'
        )
    rows = []
    for key, row in content.items():
        row = Row(f"{path}, row {key!r}", row)
        name, caption, negative = (text(row, of) for of in ("filename", "caption", "negative_caption"))
        rows.append(CaptionPair(key, picture_path(pictures, name, row.location), caption, negative))
    return pair_task(f"sugarcrepe_{kind}", rows, path, weight=RERANK_WEIGHT)
