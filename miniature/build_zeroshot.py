"""Make the miniature of the zero-shot suite: `python miniature/build_zeroshot.py --seed 0`. See zeroshot.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamra.common.cli import run
from lamra.miniature.recipes import ZeroshotRecipe, ensure
from lamra.miniature.zeroshot import SETS, build_zeroshot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default="data/miniature_zeroshot")
    args = parser.parse_args()
    recipe = ZeroshotRecipe(seed=args.seed)
    built = ensure([args.folder], recipe, lambda: build_zeroshot(args.folder, recipe.seed, recipe.size))
    print(f"miniature of the zero-shot suite {'now' if built else 'already'} in {args.folder}: {','.join(SETS)}")


if __name__ == "__main__":
    run(main)
