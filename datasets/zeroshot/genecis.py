"""GeneCIS: a picture and a condition search one of 10 or 15 pictures, in a gallery of each query's own.

facebookresearch/genecis (CC BY-NC 4.0), {change,focus}_{object,attribute}.json, lists of
    {"condition": "toaster", "reference": {"val_image_id": 1}, "target": {"val_image_id": 2}, "gallery": [{..}, ..]}
Objects are COCO's val2017, <12 digits>.jpg. Attributes have {"image_id": 7, "instance_bbox": [x, y, width, height]}: a
part of a picture of Visual Genome 1.2 (CC BY 4.0), cut here as the authors' reader does, or ready-made as LamRA has it,
<image_id>_<row>_<n>.jpg with n = 0 for the reference, 1 for the target, 2, 3, .. for the gallery.

A query's candidates are the target, then the gallery. A gallery that repeats the target's picture ties for sure, which
is a miss; so is any tie, because the target would win by standing first. The protocols are the same here: all but
focus_attribute are asked for "the described changes", focus_object, too, as LamRA does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import Row
from lamra.datasets.items import Crop, ImageSource, Item
from lamra.datasets.tasks import ItemList, Reported, RetrievalTask
from lamra.datasets.zeroshot.fields import identifier, listed, picture_path, read, text

NAME = "GeneCIS"
# Subset -> rows of the published file; of the attributes as the GeneCIS paper counts them.
SUBSETS = {"change_object": 1960, "focus_object": 1960, "change_attribute": 2112, "focus_attribute": 2000}
PAPER_MEAN = Reported(18.9, 24.8)  # R@1, mean of the four subsets (arXiv 2412.01720)
INSTRUCTION = "I'm looking for a similar everyday image with the described changes."
INSTRUCTIONS = {"focus_attribute": "I'm looking for an image with the same attributes as described."}
KS, COUNTED = (1, 2, 3), 1
DILATION = 0.7  # of a box's width and height, beyond it
GET = "clone https://github.com/facebookresearch/genecis, or take scripts/download.sh genecis"

Opened = Callable[[Row, int, int], tuple[str, ImageSource]]  # an entry, its query's row, its place -> id, picture


def genecis_tasks(
    annotation_path: str | Path, image_path_prefix: str | Path, protocol: str, subset: str | None = None
) -> list[RetrievalTask]:
    """A task for each subset, "genecis_change_object" and so on.

    Args:
        annotation_path: the folder of all four files, or one of them.
        image_path_prefix: the folder above val2017 (COCO's) and vg (Visual Genome's), or either. In vg lie the
            pictures, in VG_100K and VG_100K_2 or without these, or ready-made parts in a folder of the subset's name.
            Whether a picture is there is left to whoever opens it.
        protocol: one of caption.PROTOCOLS.
        subset: one of SUBSETS; None: all that annotation_path has.

    Raises:
        UserError: a file is missing or of another data set or subset, or a row is malformed.
    """
    path, pictures = Path(annotation_path), Path(image_path_prefix)
    if path.is_dir():
        return [_task(path / f"{name}.json", pictures, name) for name in ([subset] if subset else SUBSETS)]
    named = path.stem if path.stem in SUBSETS else subset
    if named is None:
        raise UserError(f"{path} has no name of a subset: say with --data_type which it is, of {', '.join(SUBSETS)}")
    if subset not in (None, named):
        raise UserError(f"--data_type {subset}: {path} is {named}'s by its name, give the file of {subset}")
    return [_task(path, pictures, named)]


def _task(path: Path, pictures: Path, subset: str) -> RetrievalTask:
    content = read(path, NAME)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} is no list of queries: give {NAME}'s {subset}.json")
    rows = [Row(f"{path} row {number}", value) for number, value in enumerate(content)]
    picture = _whole(pictures) if subset.endswith("object") else _parts(pictures, subset, rows[0])
    instruction = INSTRUCTIONS.get(subset, INSTRUCTION)
    queries: list[Item] = []
    image_of: dict[str, ImageSource] = {}  # in the gallery's order
    candidates: list[list[int]] = []
    row_of: dict[str, int] = {}
    for number, row in enumerate(rows):
        entries = [Row(f"{row.location} {name}", row[name]) for name in ("reference", "target")]
        gallery = listed(row, row.location, "gallery")
        entries += [Row(f"{row.location} gallery {place}", entry) for place, entry in enumerate(gallery, start=2)]
        (_, reference), *found = (picture(entry, number, place) for place, entry in enumerate(entries))
        queries.append(Item(str(number), text(row, "condition"), (reference,), instruction))
        seen: Counter[str] = Counter()
        candidates.append([])
        for name, image in found:
            seen[name] += 1
            name = name if seen[name] == 1 else f"{name}#{seen[name]}"  # again in this gallery: a row of its own
            image_of.setdefault(name, image)
            candidates[-1].append(row_of.setdefault(name, len(row_of)))
    return RetrievalTask(
        f"genecis_{subset}",
        ItemList(queries, f"{NAME} {subset} queries", path),
        ItemList([Item(name, images=(image,)) for name, image in image_of.items()], f"{NAME} {subset} pictures", path),
        answers=[own[:1] for own in candidates],
        candidates=candidates,
        ks=KS,
        counted=COUNTED,
        tie_is_miss=True,
        files={"annotations": path},
    )


def _below(folder: Path, *names: str) -> Path:
    """The folder `names` below a folder, as far as they are there."""
    for name in names:
        folder = folder / name if (folder / name).is_dir() else folder
    return folder


def _whole(pictures: Path) -> Opened:
    """COCO's pictures."""
    folder = _below(pictures, "val2017")

    def picture(entry: Row, number: int, place: int) -> tuple[str, ImageSource]:
        name = identifier(entry, "val_image_id")
        return name, picture_path(folder, f"{name.zfill(12)}.jpg", entry.location)

    return picture


def _parts(pictures: Path, subset: str, first: Row) -> Opened:
    """Parts of Visual Genome's pictures: ready-made ones where the first query has its own, else cut here."""
    folder = _below(pictures, "vg")
    folders = [below for below in (folder / "VG_100K", folder / "VG_100K_2") if below.is_dir()] or [folder]
    ready = _below(folder, subset)
    reference = identifier(Row(f"{first.location} reference", first["reference"]), "image_id")
    are_ready = (ready / f"{reference}_0_0.jpg").is_file()

    def picture(entry: Row, number: int, place: int) -> tuple[str, ImageSource]:
        image = identifier(entry, "image_id")
        name = f"{image}_{number}_{place}.jpg"
        if are_ready:
            return name, picture_path(ready, name, entry.location)
        paths = [picture_path(below, f"{image}.jpg", entry.location) for below in folders]
        return name, Crop(next((path for path in paths if path.is_file()), paths[0]), _box(entry))

    return picture


def _box(entry: Row) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is shown of a picture.

    As the authors' reader has it: at the left and top DILATION of the box is added, at the right and bottom only what a
    border cuts off there.
    """
    match entry["instance_bbox"]:
        case [x, y, width, height] as box if all(map(_is_number, box)) and min(width, height) > 0:
            left, top = max(0.0, x - DILATION * width), max(0.0, y - DILATION * height)
            return left, top, left + (1 + DILATION) * width, top + (1 + DILATION) * height
    found = str(entry["instance_bbox"])[:80]
    raise UserError(f'{entry.location}: "instance_bbox" is {found!r}: [x, y, width, height] is expected')


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
