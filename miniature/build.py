"""Make the miniature world and a base model that knows it: `python miniature/build.py --seed 0`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.miniature.recipes import HARD, STUDY, Recipe, ensure, miniature_of
from lamra.miniature.study import build_study_world
from lamra.miniature.world import build_world
from lamra.models.families import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0, help="of the world and of the model")
    parser.add_argument("--family", choices=FAMILIES, default="qwen2_vl", help="of the model")
    parser.add_argument("--study", action="store_true", help="the world of scripts/study/, with its own base model")
    parser.add_argument("--hard", action="store_true", help="a base model for build_mbeir.py --hard; the same world")
    parser.add_argument("--world", type=Path, help="folder of pictures and sentences (default: data/miniature)")
    parser.add_argument("--model", type=Path, help="its folder (default: in checkpoints/hf_models)")
    parser.add_argument("--force", action="store_true", help="build again even if both are there")
    args = parser.parse_args()
    if args.hard and args.study:
        raise UserError("--hard and --study each have a base model: give one of them")

    kind = "_study" if args.study else ""
    world = args.world or Path("data", f"miniature{kind}")
    model = args.model or Path("checkpoints/hf_models", f"{miniature_of(args.family)}{'_hard' if args.hard else kind}")
    drawn = replace(STUDY if args.study else Recipe(), seed=args.seed)
    recipe = replace(HARD if args.hard else drawn, seed=args.seed, family=args.family)

    def draw() -> None:
        if args.study:
            build_study_world(world, drawn.seed, gallery_pictures=drawn.gallery, rows=drawn.triplets)
        else:
            sizes = dict(train_pictures=drawn.pictures, gallery_pictures=drawn.gallery, triplets=drawn.triplets)
            build_world(world, drawn.seed, **sizes)

    def build() -> None:
        from lamra.miniature.pretrain import build_base  # torch: after --help, and only to build

        build_base(recipe, world, model)

    built = [ensure([world], drawn, draw, args.force), ensure([model], recipe, build, args.force)]
    of_world, of_model = ("now in" if new else "already in" for new in built)
    print(f"miniature world {of_world} {world}, its base model {of_model} {model}")


if __name__ == "__main__":
    run(main)
