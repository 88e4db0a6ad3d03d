"""Compare this project with upstream's own numbers, key by key: python tests/golden/compare.py FOLDER_OR_FILE.

FOLDER holds upstream_mbeir and upstream_rank (.safetensors, .json), or files in the format of upstream_golden.safetensors
and upstream_collate.safetensors, or model.safetensors and values.safetensors as beside this program. One line a key:
key, what was compared, worst error, ok or FAIL. The last line is json; the exit status is 1 if a key failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from comparison import Comparison
from stage2_mbeir import Stage2
from stage2_rank import Rank

DATA = Path(__file__).parents[3] / "shared" / "data"


def compare(folder: str | Path, *, model=None, reranker=None, processor=None, photographs=None) -> dict:
    folder = Path(folder)
    processor = Path(processor or DATA / "qwen2vl_processor")
    photographs = Path(photographs or DATA / "coco" / "images")
    comparison = Comparison()
    with tempfile.TemporaryDirectory() as work:
        for kind, chosen, name in ((Stage2, model, "upstream_mbeir"), (Rank, reranker, "upstream_rank")):
            if (folder / f"{name}.safetensors").is_file():
                kind(comparison, folder, Path(work), processor, photographs, chosen).compare()
    return comparison.summary()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--reranker")
    parser.add_argument("--processor")
    parser.add_argument("--photographs")
    args = vars(parser.parse_args())
    torch.set_num_threads(1)
    summary = compare(args.pop("folder"), **args)
    print(json.dumps(summary))
    sys.exit(bool(summary["failed"]))


if __name__ == "__main__":
    main()
