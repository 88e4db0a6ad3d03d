"""Files of zero-shot data for tests, and the prompts of what is read from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from clips import drawn, write_clip
from PIL import Image

from lamra.collators.messages import POINTWISE, embedding_messages, pointwise_messages
from lamra.datasets.items import Item
from lamra.datasets.rankings import RankedQuery, write_ranking
from lamra.datasets.zeroshot.genecis import SUBSETS
from lamra.datasets.zeroshot.sugar_crepe import KINDS
from lamra.eval.zeroshot_sets import SETS
from lamra.models.settings import Settings

T = "\nSummarize above sentence in one word: "
I = "\nSummarize above image in one word: "  # noqa: E741 (as the table of prompts calls it)
B = "\nSummarize above image and sentence in one word: "
M = "\nSummarize above images and sentences in one word: "


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def draw(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def _shown(messages: list[dict], *items: Item) -> str:
    (turn,) = messages
    names = (f"[{Path(file).name}]" for item in items for file in item.files)
    return "".join(part["text"] if part["type"] == "text" else next(names) for part in turn["content"])


def embedded(item: Item) -> str:
    """The user turn of an item's embedding, [file name] for each picture and video."""
    return _shown(embedding_messages(item), item)


def reranked(query: Item, candidate: Item) -> str:
    """A pair as LamRA-Rank reads it, after the sentence that all share."""
    shown = _shown(pointwise_messages("released", query, candidate), query, candidate)
    return shown.removeprefix(POINTWISE["released"])


def suite_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Invented rows of the suite's sets, two queries or more each: name -> flags that name the files."""
    names = [*(f"{n}.jpg" for n in range(1, 13)), *(f"VisualDialog_val2018_{n:012}.jpg" for n in (1, 2))]
    pictures = draw(folder / "pictures", *names)
    turns = [{"question": n % 2, "answer": n % 2} for n in range(10)]
    dialogs = {
        "questions": ["is it red", "is it big"],
        "answers": ["no", "yes"],
        "dialogs": [{"image_id": n, "caption": "c", "dialog": turns[n:] + turns[:n]} for n in (1, 2)],
    }
    story = [
        [{"text": f"text {n} of {first}", "photo_flickr_id": str(first + n), "story_id": str(first)}
         | {"tier": "story-in-sequence", "worker_arranged_photo_order": n}]
        for first in (1, 7) for n in range(5)
    ]  # fmt: skip
    garments = [{"target": ["u", "1"], "reference": [["u", ["is red", "is blue"], "2"], ["u", ["", "is long"], "3"]]}]
    garments.append({"target": ["u", "4"], "reference": [["u", ["is wide"], "1"]]})
    pair = {"caption": "a ball", "negative_caption": "a box, and a ball"}
    (folder / "crepe").mkdir()
    for number, kind in enumerate(KINDS):
        rows = {str(n): {"filename": f"{n}.jpg", **pair, "caption": f"ball {number} {n}"} for n in (1, 2)}
        write(folder / "crepe" / f"{kind}.json", rows)
    (folder / "circo").mkdir()
    changes = [{"id": n, "reference_img_id": n + 1, "relative_caption": f"is {n}"} for n in range(2)]
    known = [
        {**row, "target_img_id": 4, "gt_img_ids": [4, 5 + row["id"]], "semantic_aspects": ["a"]} for row in changes
    ]
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(1, 13)]
    for name, content in (("val", known), ("test", changes), ("image_info_unlabeled2017", {"images": images})):
        write(folder / "circo" / f"{name}.json", content)
    (folder / "genecis").mkdir()
    for subset in SUBSETS:
        key = "val_image_id" if subset.endswith("object") else "image_id"
        entry = [{key: n, "instance_bbox": [1, 1, 4, 4]} for n in range(1, 13)]
        rows = [{"condition": f"{subset} {n}", "reference": entry[n], "target": entry[11]} for n in (0, 1)]
        write(folder / "genecis" / f"{subset}.json", [{**row, "gallery": entry[:11]} for row in rows])
    draw(folder / "pictures" / "val2017", *(f"{n:012}.jpg" for n in range(1, 13)))
    (folder / "clips").mkdir()
    for n in (1, 2):
        write_clip(folder / "clips" / f"video{n}.mp4", drawn(4 + n))
        write_clip(folder / "clips" / f"c{n}.avi", drawn(12 + n))
    videos = "".join(f"ret{n},msr{n},video{n},clip {n}\n" for n in (1, 2))
    spoken = "".join(json.dumps({"id": f"c{n}", "captions": [f"scene {n}", f"{n} again"]}) + "\n" for n in (1, 2))
    negations = [{"image": f"{n}.jpg", **pair, "caption": f"a ball, {n}"} for n in (1, 2, 3)]
    captions = [{"image_name": f"{n}.jpg", "caption": f"long {n} of them"} for n in range(1, 13)]
    (folder / "captions").mkdir()
    for n in range(1, 13):
        write(folder / "captions" / f"{n}.txt", f"street {n}\n")
    streets = draw(folder / "streets", *(f"{n}.jpg" for n in range(1, 13)))
    below = {"image_path_prefix": pictures}
    return {
        "sharegpt4v": {"text_data_path": write(folder / "share.json", captions), "image_data_path": pictures},
        "urban1k": {"text_data_path": folder / "captions", "image_data_path": streets},
        "circo": {"annotation_path_prefix": folder / "circo", **below},
        "genecis": {"annotation_path": folder / "genecis", **below},
        "msrvtt": {
            "data_path": write(folder / "msrvtt.csv", f"key,vid_key,video_id,sentence\n{videos}"),
            "video_data_path": folder / "clips",
        },
        "msvd": {
            "video_path_prefix": folder / "clips",
            "test_video_path": write(folder / "test_list.txt", "c1\nc2\n"),
            "captions_path": write(folder / "msvd.jsonl", spoken),
        },
        "visdial": {"data_path": write(folder / "visdial.json", {"split": "val2018", "data": dialogs}), **below},
        "vist": {"data_path": write(folder / "vist.json", {"annotations": story}), **below},
        "multiturn_fashion": {
            "query_data_path": write(folder / "all.val.json", garments),
            "cand_data_path": write(folder / "split.all.val.json", [str(n) for n in range(1, 6)]),
            **below,
        },
        "ccneg": {"data_path": write(folder / "ccneg.jsonl", "\n".join(map(json.dumps, negations))), **below},
        "sugarcrepe": {"annotation_path_prefix": folder / "crepe", **below},
    }


def suite_rankings(folder: Path, files: dict[str, dict[str, Path]]) -> None:
    """Invented rankings of all that suite_files wrote: query i finds row i first, of its own candidates the first."""
    for name, flags in files.items():
        of = SETS[name]
        (folder / name).mkdir()
        write(folder / name / "metrics.json", {"protocol": "released"})
        for task in of.tasks(
            of.arguments("model", protocol="clean", **{key: str(path) for key, path in flags.items()})
        ):
            size, ranking = len(task.gallery), []
            for query in range(len(task.queries)):
                rows = task.candidates[query] if task.candidates else [row % size for row in range(query, query + size)]
                rows = [row for row in rows if not task.excluded or row not in task.excluded[query]]
                ranking.append(RankedQuery(query, rows, [0.9 - i / 50 for i in range(len(rows))]))
            write_ranking(folder / name / f"ranking_{task.name}.jsonl", task.queries, task.gallery, ranking)


def suite_reranker(tiny_model: Path, folder: Path) -> Path:
    """As long as Qwen2-VL; it remembers that texts were cut after 4 tokens in its training."""
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 32768
    write(folder / "config.json", config)
    Settings(str(tiny_model), "mrope", role="reranker", rank_style="released", text_max_tokens=4).write(folder)
    return folder
