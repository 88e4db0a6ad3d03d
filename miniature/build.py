"""Make the miniature world and a base model that knows it: `python miniature/build.py --seed 0`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lamra.common.cli import run
from lamra.miniature.recipes import STUDY, Recipe, ensure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0, help="of the world and of the model")
    parser.add_argument("--study", action="store_true", help="the world of scripts/study/, with its own base model")
    parser.add_argument("--world", type=Path, help="folder of pictures and sentences (default: data/miniature)")
    parser.add_argument("--model", type=Path, help="folder of the model (default: checkpoints/hf_models/miniature)")
    parser.add_argument("--force", action="store_true", help="build again even if both are there")
    args = parser.parse_args()

    name = "miniature_study" if args.study else "miniature"
    world, model = args.world or Path("data", name), args.model or Path("checkpoints/hf_models", name)
    recipe = replace(STUDY if args.study else Recipe(), seed=args.seed)

    def build() -> None:
        from lamra.miniature.pretrain import build_base  # torch: after --help, and only to build

        build_base(recipe, world, model)

    state = "now in" if ensure([world, model], recipe, build, args.force) else "already in"
    print(f"miniature world {state} {world}, its base model {state} {model}")


if __name__ == "__main__":
    run(main)
