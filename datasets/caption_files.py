"""Files of pictures with captions, in the layouts that people have; which it is, is seen from the content.

LamRA_Eval      a json list of captions, five in a row for each of 0.png .. n-1.png
Karpathy        a json, images[].{filename, filepath?, split, sentences[].raw}; pictures with split "test" are used
COCO captions   a json, images[].{id, file_name} and annotations[].{image_id, caption}
LAVIS           a json list of {image, caption}, where the caption may be a list
jsonl           a line a picture, or a caption: an object with a path and captions
table           a csv, or columns set apart by a tab or |: a path and a caption a line
CLIP_benchmark  a folder of tar shards (webdataset), or one: for each picture a .txt of the same name, a caption a line
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lamra.common.archives import unpack
from lamra.common.errors import ItemError, UserError
from lamra.common.files import as_on_disk, path_inside, read_csv, read_json, read_jsonl, read_lines

CAPTIONS_PER_IMAGE = 5  # LamRA_Eval's layout says it nowhere else
# What columns and keys are called, in the order in which they are looked for.
PATHS = ("image", "image_path", "img_path", "filename", "file_name", "filepath", "path", "image_name", "img", "picture")
CAPTIONS = ("caption", "captions", "text", "texts", "sentences", "title", "comment", "raw")
SEPARATORS = (",", "\t", "|", ";")
NUMBERED = re.compile(r"#\d+$")  # Flickr8k's "1000092795.jpg#0"
SHARD_PICTURES = (".webp", ".png", ".jpg", ".jpeg")
LAYOUTS = "LamRA_Eval, Karpathy, COCO captions, LAVIS, CLIP_benchmark, jsonl, or a csv of path and caption"


class CaptionFile(NamedTuple):
    """What was read.

    Attributes:
        layout: what to call it.
        captions: of each picture, by its path below the image folder; not checked.
        files: all that it was read from.
    """

    layout: str
    captions: dict[str, list]
    files: list[Path]


def read_captions(text_path: Path, image_folder: Path) -> CaptionFile:
    """Read captions in any of the layouts. Pictures of tar shards are unpacked into `image_folder`.

    Raises:
        UserError: it is none of the layouts, or malformed; names the file.
    """
    if text_path.is_dir() or text_path.suffix == ".tar":
        shards = _shards(text_path)
        return CaptionFile("CLIP_benchmark's shards", _from_shards(shards, image_folder), shards)
    layout, captions = _from_text(text_path, image_folder)
    return CaptionFile(layout, captions, [text_path])


def _from_text(text_path: Path, image_folder: Path) -> tuple[str, dict[str, list]]:
    lines = [line for line in read_lines(text_path) if line.strip()]
    first = lines[0].strip() if lines else ""
    if first and first[0] not in "[{":
        return "a table", _collected(_table(text_path, lines[0].rstrip("\r\n"), image_folder), text_path, image_folder)
    if first.startswith("{") and first.endswith("}") and len(lines) > 1:
        rows = ((row.location, row) for row in read_jsonl(text_path))
        return "jsonl", _collected(_fields(rows), text_path, image_folder)
    del lines  # COCO's have 100 MB
    content = read_json(text_path)
    if isinstance(content, dict) and _column(content, PATHS):
        return "jsonl", _collected(_fields([(f"{text_path} line 1", content)]), text_path, image_folder)
    if isinstance(content, list):
        if content and isinstance(content[0], dict):
            entries = ((f"{text_path} entry {number}", entry) for number, entry in enumerate(content, start=1))
            return "LAVIS's layout", _collected(_fields(entries), text_path, image_folder)
        return "LamRA_Eval's layout", _lamra(content, image_folder, text_path)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        if isinstance(content.get("annotations"), list):
            pairs = _coco(content["images"], content["annotations"], text_path)
            return "COCO captions", _collected(pairs, text_path, image_folder)
        return "Karpathy's layout", _karpathy(content["images"], image_folder, text_path)
    raise UserError(f'{text_path} is neither a list of captions nor an object with "images": known are {LAYOUTS}')


def _lamra(captions: list, image_folder: Path, text_path: Path) -> dict[str, list]:
    numbers = [int(path.stem) for path in image_folder.glob("*.png") if path.stem.isdecimal()]
    images = max(numbers) + 1 if numbers else len(captions) // CAPTIONS_PER_IMAGE
    if not captions or len(captions) != images * CAPTIONS_PER_IMAGE:
        raise UserError(
            f"{text_path} has {len(captions)} captions and {image_folder} pictures up to {images - 1}.png: "
            f"{CAPTIONS_PER_IMAGE} captions for each of 0.png, 1.png, ... are expected; use files that belong together"
        )
    return {f"{i}.png": captions[i * CAPTIONS_PER_IMAGE : (i + 1) * CAPTIONS_PER_IMAGE] for i in range(images)}


def _karpathy(entries: list, image_folder: Path, text_path: Path) -> dict[str, list]:
    captions: dict[str, list] = {}
    try:
        for entry in entries:
            if entry["split"] != "test":
                continue
            name = _karpathy_picture(image_folder, text_path, entry["filename"], entry.get("filepath") or "")
            if not entry["sentences"]:
                raise UserError(f"picture {name} in {text_path} has no caption: remove it or write one")
            if name in captions:
                raise UserError(f"picture {name} occurs twice in {text_path}: join its captions in one entry")
            captions[name] = [sentence["raw"] for sentence in entry["sentences"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{text_path} is not Karpathy's layout ({error!r}): images[] need filename, split and sentences[].raw"
        ) from None
    if not captions:
        raise UserError(f'{text_path} has no picture with split "test": set it on the pictures to evaluate on')
    return captions


def _karpathy_picture(image_folder: Path, text_path: Path, filename: str, filepath: str) -> str:
    """COCO's pictures lie in the image folder, or in val2014 and train2014 below it."""
    nested = Path(filepath, filename)
    try:
        path_inside(image_folder, nested)
    except ItemError as error:
        raise UserError(f"{text_path}: {error}") from None
    flat = (image_folder / filename).is_file() or not (image_folder / nested).is_file()
    return filename if flat else str(nested)


def _coco(images: list, annotations: list, text_path: Path) -> Iterator[tuple[str, object, object]]:
    """(location, path, captions) of each picture, in the order of "images"."""
    captions: dict[Any, list] = {}
    try:
        for annotation in annotations:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        names = {image["id"]: image["file_name"] for image in images}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{text_path} is not COCO's layout ({error!r}): images[] need id and file_name, annotations[] image_id and "
            "caption"
        ) from None
    if len(names) < len(images) or (unknown := [key for key in captions if key not in names]):
        wrong = f"annotations name the image_id {unknown[0]}" if len(names) == len(images) else "an id occurs twice"
        raise UserError(f"{text_path}: {wrong}, which fits to no picture: write images[] and annotations[] again")
    for key, name in names.items():
        yield f"{text_path} image {key}", name, captions.get(key, [])


def _fields(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, object, object]]:
    """(location, path, captions) of objects whose keys are called as people call them."""
    for location, row in rows:
        keys = list(row) if isinstance(row, dict) else []
        path, caption = _column(keys, PATHS), _column(keys, CAPTIONS)
        if not path or not caption:
            has = ", ".join(keys) if keys else f"no key, it is {str(row)[:80]}"
            raise UserError(
                f"{location} has no {'caption' if path else 'path'} among {has}: a path is called "
                f"{', '.join(PATHS)}, a caption {', '.join(CAPTIONS)}"
            )
        yield location, row[path], row[caption]


def _column(names: Iterable[str], known: tuple[str, ...]) -> str:
    """The first of the known names that is among these, as it is spelt there; "" for none."""
    spelt = {name.strip().lower(): name for name in names}
    return next((spelt[name] for name in known if name in spelt), "")


def _table(text_path: Path, first: str, image_folder: Path) -> Iterator[tuple[str, object, object]]:
    """(location, path, caption) of each line; without a header the first column is the path, the last the caption."""
    for separator in SEPARATORS:
        header = next(csv.reader([first], delimiter=separator))
        path, caption = _column(header, PATHS), _column(header, CAPTIONS)
        if path and caption:
            break
        name = NUMBERED.sub("", header[0].strip())
        if len(header) > 1 and name and as_on_disk(image_folder / name).is_file():
            header = []
            break
    else:
        raise UserError(
            f"{text_path} is none of the known layouts ({LAYOUTS}): its first line has no column of paths "
            f"({', '.join(PATHS)}) with one of captions ({', '.join(CAPTIONS)}), and does not begin with a picture of "
            f"{image_folder}"
        )
    if header and separator == ",":
        for row in read_csv(text_path, [path, caption]):
            yield row.location, row.get(path), row.get(caption)
        return
    # Not a csv reader: a caption may begin with a quote that nobody closes.
    most = len(header) - 1 if header else 1 if separator == "," else -1
    columns = (header.index(path), header.index(caption)) if header else (0, -1)
    for number, line in enumerate(read_lines(text_path), start=1):
        if not line.strip() or (header and line.rstrip("\r\n") == first):
            continue
        cells = [_unquoted(cell.strip()) for cell in line.split(separator, maxsplit=most)]
        if len(cells) < max(len(header), 2):
            raise UserError(f"{text_path} line {number} has {len(cells)} columns, fewer than the first line: mend it")
        yield f"{text_path} line {number}", cells[columns[0]], cells[columns[1]]


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _collected(rows: Iterable[tuple[str, object, object]], text_path: Path, image_folder: Path) -> dict[str, list]:
    """Captions of each picture from (location, path, captions), in the order in which pictures occur first."""
    captions: dict[str, list] = {}
    for location, path, of_row in rows:
        if not isinstance(path, str) or not path.strip():
            raise UserError(f"{location}: the path of a picture is {path!r}: write it")
        path = NUMBERED.sub("", path.strip())
        try:
            path_inside(image_folder, path)
        except ItemError as error:
            raise UserError(f"{location}: {error}") from None
        nested = as_on_disk(image_folder / path).is_file() or not as_on_disk(image_folder / Path(path).name).is_file()
        listed = of_row if isinstance(of_row, list) else [of_row]
        if not listed:
            raise UserError(f"{location}: picture {path} has no caption: remove it or write one")
        texts = [text.get("raw", text.get("caption")) if isinstance(text, dict) else text for text in listed]
        captions.setdefault(path if nested else Path(path).name, []).extend(texts)
    if not captions:
        raise UserError(f"{text_path} names no picture")
    return captions


def _shards(path: Path) -> list[Path]:
    """The tar files of a CLIP_benchmark folder, 0.tar, 1.tar, ..., in order; of its folder test if there is one."""
    if not path.is_dir():
        return [path]
    folder = path / "test" if (path / "test").is_dir() else path
    shards = sorted(folder.glob("*.tar"), key=lambda shard: (len(shard.stem), shard.stem))
    count = folder / "nshards.txt"
    for file in (folder / "dataset_type.txt", folder.parent / "dataset_type.txt"):
        if file.is_file() and (found := "".join(read_lines(file)).strip()) != "retrieval":
            raise UserError(f"{file} says {found!r}: pictures with captions are of the type retrieval")
    wanted = "".join(read_lines(count)).strip() if count.is_file() else str(len(shards))
    if not shards or wanted != str(len(shards)):
        raise UserError(
            f"{folder} holds {len(shards)} tar files, and {wanted if shards else 'one or more'} are expected"
        )
    return shards


def _from_shards(shards: list[Path], image_folder: Path) -> dict[str, list]:
    """Captions of each picture, which lies in image_folder/<shard>/ afterwards; what is there already stays."""
    captions: dict[str, list] = {}
    for shard in shards:
        names: list[Path] = []

        def place(name: str, size: int, names: list[Path] = names, shard: Path = shard) -> Path | None:
            target = image_folder / shard.stem / name
            if target.suffix.lower() not in (*SHARD_PICTURES, ".txt"):
                return None
            names.append(target)
            return None if target.is_file() and target.stat().st_size == size else target

        unpack([shard], place)
        texts = {target.with_suffix(""): target for target in names if target.suffix.lower() == ".txt"}
        for target in names:
            if target in texts.values():
                continue
            if target.with_suffix("") not in texts:
                raise UserError(f"{shard}: {target.name} has no .txt of the same name with its captions")
            lines = (line.strip() for line in read_lines(texts[target.with_suffix("")]))
            captions[str(target.relative_to(image_folder))] = [line for line in lines if line]
            if not captions[str(target.relative_to(image_folder))]:
                raise UserError(f"{shard}: {texts[target.with_suffix('')].name} has no caption")
    if not captions:
        raise UserError(f"{shards[0]} holds no picture ({', '.join(SHARD_PICTURES)})")
    return captions
