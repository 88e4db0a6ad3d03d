"""Make the miniature M-BEIR: `python miniature/build_mbeir.py --seed 0`. See mbeir.py."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from lamra.common.cli import run
from lamra.miniature.mbeir import DONE, TASKS, build_mbeir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default="data/miniature_mbeir")
    parser.add_argument("--train", type=int, default=1000, help="scenes to train on, five queries each")
    parser.add_argument("--gallery", type=int, default=200, help="scenes of each of val and test")
    args = parser.parse_args()
    if (args.folder / DONE).is_file():
        shutil.rmtree(args.folder)  # a folder that we wrote
    build_mbeir(args.folder, args.seed, train=args.train, gallery=args.gallery)
    print(f"miniature M-BEIR in {args.folder}; its tasks: {','.join(TASKS)}")


if __name__ == "__main__":
    run(main)
