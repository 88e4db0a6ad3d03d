"""An index of scripts/index.sh from a thousand to a million items: what making it takes, and how fast it answers.

python benchmarks/gallery.py [--items 1000 10000 100000 1000000] [--dimension 1536] [--users 8] [--tiny]
python benchmarks/gallery.py --model_id DIR --image_data_path PICTURES --items

First pictures, embedded by a model: without the two flags drawn ones, by the miniature's model with random weights.
Then synthetic vectors of 32 degrees of freedom and some noise, with random bytes in the size of those pictures'
thumbnails; a query is one more such vector. What is timed is all that a search does beyond the model, to the rows with
their thumbnails. Users are threads of one process, as on the page. `taskset -c 0` before it measures one core. Needs
`pip install lancedb`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from eval_encode import make_input

from lamra import load
from lamra.datasets.picture_folder import pictures_in
from lamra.eval.index.held import Held
from lamra.eval.index.index import VERSION, Index
from lamra.eval.index.ivf_pq import LEAST_FOR_PQ, build
from lamra.eval.index.rows import Row

FREEDOM, NOISE = 32, 0.3
TOGETHER = 10_000  # rows that are written at a time
TOP = 12  # results, as on the page
COLUMNS = ["items", "bytes_an_item", "write_s", "learn_s", "first_search_s", "search", "users"]
COLUMNS += ["p50_ms", "p95_ms", "p99_ms", "cpu_p95_ms", "queries", "recall@10"]
SENTENCE = "a red circle at the top left"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--dimension", type=int, default=1536, help="of the synthetic vectors")
    parser.add_argument("--queries", type=int, default=400, help="of each measurement")
    parser.add_argument("--seconds", type=float, default=60, help="after which a measurement asks no more")
    parser.add_argument("--exact", action="store_true", help="leave IVF-PQ out: learning it takes the longest")
    parser.add_argument("--users", type=int, default=8, help="at once, beside one alone")
    parser.add_argument("--pictures", type=int, default=200, help="to draw, where none are given")
    parser.add_argument("--model_id")
    parser.add_argument("--image_data_path")
    parser.add_argument("--tiny", action="store_true", help="in seconds, for the tests")
    args = parser.parse_args()
    if args.tiny:
        args.items, args.dimension, args.queries, args.pictures = [LEAST_FOR_PQ + 44], 16, 16, 3
    with tempfile.TemporaryDirectory() as folder:
        if not (args.model_id and args.image_data_path):
            make_input(Path(folder), args)
        of_pictures, thumbnail_bytes = index_pictures(Path(folder, "pictures index"), args)
        found = {"cores": len(os.sched_getaffinity(0)), "dimension": args.dimension, "pictures": of_pictures}
        print(*(f"{name} {value}" for name, value in of_pictures.items()), sep=", ", flush=True)
        print(*COLUMNS, sep=" | ", flush=True)
        found["searches"] = [row for count in args.items for row in measure(Path(folder), count, thumbnail_bytes, args)]
    print(json.dumps(found))


def index_pictures(folder: Path, args: argparse.Namespace) -> tuple[dict[str, float], int]:
    """Index real pictures; what it took, and the mean size of a thumbnail."""
    retriever = load(args.model_id)
    retriever.index(args.image_data_path, folder.with_name("warm"), report=_silent)
    count = len(pictures_in(args.image_data_path, _silent))
    seconds = [timed(lambda: retriever.index(args.image_data_path, folder, report=_silent)) for _ in range(2)]
    index = Index.open(folder, retriever)
    of_model = [timed(lambda: retriever.encode([SENTENCE])) for _ in range(20)]
    found = {
        "pictures": count,
        "pictures_per_second": round(count / seconds[0], 1),
        "seconds_where_nothing_is_new": round(seconds[1], 2),
        "bytes_an_item": round(size_of(folder) / count),
        "ms_of_the_model_for_a_sentence": round(1000 * float(np.median(of_model)), 1),
    }
    return found, round(np.mean([len(hit.thumbnail) for hit in index.first(count)]))


def measure(folder: Path, count: int, thumbnail_bytes: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Make an index of so many synthetic items and search it, exactly and by IVF-PQ, alone and with others."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        index = Index(place)
        rng = np.random.default_rng(0)
        basis = rng.standard_normal((FREEDOM, args.dimension), dtype=np.float32)

        def drawn(number: int) -> np.ndarray:
            rows = rng.standard_normal((number, FREEDOM), dtype=np.float32) @ basis / FREEDOM**0.5
            rows += NOISE * rng.standard_normal(rows.shape, dtype=np.float32)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

        about = {"version": VERSION, "source": "", "root": "", "model_id": "", "flags": {}, "made_by": {}}
        seconds = 0.0
        for start in range(0, count, TOGETHER):
            rows = [_row(number) for number in range(start, min(start + TOGETHER, count))]
            # JPEG does not shrink further, and repeated pictures would.
            of_rows = [rng.bytes(thumbnail_bytes) for _ in rows]
            vectors = drawn(len(rows))
            seconds += timed(lambda: index.write(rows, of_rows, vectors, about))  # noqa: B023 (called at once)
        seconds += timed(index.tidy)
        index.tidy(timedelta(0))
        queries = drawn(args.queries)
        common = {"items": count, "bytes_an_item": round(size_of(Path(place)) / count), "write_s": round(seconds, 1)}
        how = "exact" if Held.fits(index.table, count) else "exact, read from disk"
        for users in (1, args.users):
            first = timed(lambda: index.nearest(queries[0], TOP)) if users == 1 else None
            row = common | {"search": how, "users": users} | latency(index, queries, users, args.seconds)
            yield told(row | ({} if first is None else {"first_search_s": round(first, 2)}))
        if args.exact:
            return
        recall = 0.0

        def learn() -> None:
            nonlocal recall
            recall = build(index)

        common["learn_s"] = round(timed(learn), 1)
        for users in (1, args.users):
            row = common | {"search": "IVF-PQ", "users": users} | latency(index, queries, users, args.seconds)
            yield told(row | {"recall@10": round(recall, 4)})


def latency(index: Index, queries: np.ndarray, users: int, most: float) -> dict[str, float]:
    """Milliseconds of a search where each user asks for the next as soon as the last is answered.

    cpu_p95_ms: the same of processor time, of a user alone: what an idle core would take, whatever else runs here.
    """
    end = time.perf_counter() + most

    def ask(vector: np.ndarray) -> tuple[float, float]:
        if time.perf_counter() > end:
            return np.nan, np.nan
        worked = time.process_time()
        return 1000 * timed(lambda: index.nearest(vector, TOP)), 1000 * (time.process_time() - worked)

    with ThreadPoolExecutor(users) as pool:
        waited, worked = np.array(list(pool.map(ask, queries))).T  # (queries,) each
    found = {f"p{q}_ms": round(float(np.nanpercentile(waited, q)), 1) for q in (50, 95, 99)}
    if users == 1:
        found["cpu_p95_ms"] = round(float(np.nanpercentile(worked, 95)), 1)
    return found | {"queries": int(np.isfinite(waited).sum())}


def told(row: dict[str, Any]) -> dict[str, Any]:
    """The row, once it is printed."""
    print(*(row.get(name, "") for name in COLUMNS), sep=" | ", flush=True)
    return row


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _row(number: int) -> Row:
    name = f"{number % 100:02d}/{number:07d}.jpg"
    line = json.dumps({"id": name, "content": [{"image": name}]})
    return Row(name, "picture", name[:2], name, "", line, "[[100000, 1764230400000000000]]")


def _silent(_sentence: str) -> None:
    pass


if __name__ == "__main__":
    main()
