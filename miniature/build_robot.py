"""Make the robot's memory and its base model: `python miniature/build_robot.py --seed 0`. See robot_memories.py."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from lamra.common.cli import run
from lamra.miniature.recipes import RobotRecipe, ensure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0, help="of the episodes; the base model is one for all seeds")
    parser.add_argument("--folder", type=Path, default="data/miniature_robot", help="of the memories of all seeds")
    parser.add_argument("--model", type=Path, default="checkpoints/hf_models/miniature_robot")
    args = parser.parse_args()
    recipe, folder = RobotRecipe(), args.folder / f"seed{args.seed}"

    from lamra.miniature.robot import expert_episodes, first_seed  # minigrid: after --help
    from lamra.miniature.robot_memories import INSTRUCTION, write_memories

    def memories(use: str, seed: int, episodes: int) -> list:
        return [memory for each in expert_episodes(first_seed(use, seed), episodes).values() for memory in each]

    def build() -> None:
        from lamra.miniature.pretrain_robot import build_robot_base  # torch: only to build

        build_robot_base(recipe, memories("base", 0, recipe.pictures), [INSTRUCTION], args.model)

    def remember() -> None:
        rng = random.Random(f"robot {args.seed}")
        write_memories(folder, memories("memory", args.seed, recipe.episodes), rng, recipe.triplets)

    built = [ensure([args.model], recipe, build), ensure([folder], recipe, remember)]
    of_model, of_folder = ("now in" if new else "already in" for new in built)
    print(f"the robot's memory {of_folder} {folder}, its base model {of_model} {args.model}")


if __name__ == "__main__":
    run(main)
