"""Make the base model of LamRA-Rank's miniature: `python miniature/build_rank.py --seed 0`. See pretrain_rank.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamra.common.cli import run
from lamra.miniature.recipes import RankRecipe, ensure, miniature_of
from lamra.models.families import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES, default="qwen2_vl")
    parser.add_argument("--model", type=Path, help="its folder (default: in checkpoints/hf_models)")
    parser.add_argument("--force", action="store_true", help="build again even if it is there")
    args = parser.parse_args()
    model = args.model or Path("checkpoints/hf_models", f"{miniature_of(args.family)}_rank")
    recipe = RankRecipe(seed=args.seed, family=args.family)

    def build() -> None:
        from lamra.miniature.pretrain_rank import build_rank_base  # torch: after --help, and only to build

        build_rank_base(recipe, model)

    built = ensure([model], recipe, build, args.force)
    print(f"base model of LamRA-Rank's miniature {'now' if built else 'already'} in {model}")


if __name__ == "__main__":
    run(main)
