"""Random files of M-BEIR with random embeddings, and what is mined in them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from lamra.datasets.columns import Piece, read_columns
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows
from lamra.eval import mining
from lamra.eval.cache.manifest import VERSION
from lamra.eval.mining import Embedded, TrainingQueries, mined_pieces

TOP, QUERIES, POOL = 4, 60, 120
HOW = dict(top=TOP, search_memory=1.0, device="cpu")


def write_files(folder: Path, seed: int = 0) -> None:
    """Texts and pictures that are often the same, nothing at all, several positives, queries that stand twice."""
    rng = random.Random(seed)
    for number in range(6):  # of equal size all, and every second has another's bytes
        Image.new("RGB", (8, 8), (40 * (number // 2), 0, 0)).save(folder / f"{number}.bmp")
    Image.new("RGB", (9, 9)).save(folder / "large.bmp")
    pictures = [None, None, "large.bmp", *(f"{number}.bmp" for number in range(6)), "./0.bmp"]
    texts = ["", None, '"', "same", "Same.", "one", "two", "three"]
    modality = {(True, True): "image,text", (True, False): "image", (False, True): "text", (False, False): "text"}
    pool = []
    for row in range(POOL):
        text, picture = rng.choice(texts), rng.choice(pictures)
        candidate = {"did": f"{9 - row % 3}:{row + 1}", "txt": text, "modality": modality[bool(picture), bool(text)]}
        pool.append(candidate | ({"img_path": picture} if picture else {}))
    queries = []
    for row in range(QUERIES):
        right = [candidate["did"] for candidate in rng.sample(pool, rng.choice([1, 1, 2, 5]))]
        query = {"qid": f"9:{rng.choice([row, row // 2])}", "query_txt": "a", "query_modality": "text"}
        queries.append(query | {"pos_cand_list": right})
    for name, lines in (("pool", pool), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kinds = ("text", "image", "image,text")
    table = ["\t".join(("text", kind, "A", dataset, "Show it.")) for kind in kinds for dataset in ("9", "8", "7")]
    (folder / "table.tsv").write_text("\n".join(["\t".join(Instructions.COLUMNS), *table]) + "\n")
    vectors = np.random.default_rng(seed).integers(-4, 5, (POOL + QUERIES, 8)).astype(np.float32)  # they tie
    np.save(folder / "gallery.npy", vectors[:POOL])
    np.save(folder / "embeddings.npy", vectors[POOL:])


def open_files(folder: Path) -> Embedded:
    files = (Rows(folder / f"{name}.jsonl", folder, kind) for name, kind in (("queries", QUERY), ("pool", CANDIDATE)))
    queries = TrainingQueries(MBEIRPairs(*files, Instructions(folder / "table.tsv")))
    embeddings, gallery = np.load(folder / "embeddings.npy")[: len(queries)], np.load(folder / "gallery.npy")
    return Embedded(queries, embeddings, gallery, {"version": VERSION})


def mined_in(folder: Path, output: Path, **how) -> list[Piece]:
    """The pieces, blocks of 7 queries, 3 of them compared at a time."""
    small = {"QUERIES_TOGETHER": 7, "LINES_TOGETHER": 3 * 2 * TOP}
    with patch.multiple(mining, **small):  # and as before for the next test in this process
        files = mined_pieces(open_files(folder), output, **HOW | dict(own_kind=True, search_depth=None) | how)
    return [piece for file in files for piece in read_columns(file).pieces]
