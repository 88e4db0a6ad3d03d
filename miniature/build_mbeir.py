"""Make the miniature M-BEIR: `python miniature/build_mbeir.py --seed 0`. See mbeir.py."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from lamra.common.cli import run
from lamra.miniature.mbeir import DONE, TASKS, build_mbeir
from lamra.miniature.mbeir_hard import build_hard_mbeir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hard", action="store_true", help="of families of near misses: see mbeir_hard.py")
    parser.add_argument("--folder", type=Path, help="default: data/miniature_mbeir, or with --hard that and _hard")
    parser.add_argument(
        "--train", type=int, help="scenes to train on, five queries each; with --hard families a data set"
    )
    parser.add_argument("--gallery", type=int, help="of each of val and test, the same")
    args = parser.parse_args()
    folder = args.folder or Path("data", "miniature_mbeir_hard" if args.hard else "miniature_mbeir")
    if (folder / DONE).is_file():
        shutil.rmtree(folder)  # a folder that we wrote
    sizes = {name: size for name in ("train", "gallery") if (size := getattr(args, name)) is not None}
    (build_hard_mbeir if args.hard else build_mbeir)(folder, args.seed, **sizes)
    print(f"{'hard ' if args.hard else ''}miniature M-BEIR in {folder}; its tasks: {','.join(TASKS)}")


if __name__ == "__main__":
    run(main)
