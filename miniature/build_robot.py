"""Make the robot's memory and its base model: `python miniature/build_robot.py --seed 0`. See robot.py and docs/robot.md.

<folder>/seed<N> holds the expert's episodes: memories.jsonl and their pictures; nli.csv, sentences for stage 1; and for
stage 2 M-BEIR's files, in which a memory finds others of the same next step. The base model is one for all seeds.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lamra.common.cli import run
from lamra.datasets.mbeir.layout import INSTRUCTIONS, TRAIN_POOL
from lamra.datasets.mbeir.write import MBEIRFiles
from lamra.miniature.recipes import RobotRecipe, ensure
from lamra.miniature.robot import INSTRUCTION, MEMORIES, Memory, expert_episodes, first_seed
from lamra.miniature.robot_scene import triplet
from lamra.miniature.world import write_triplets

DATASET = 11  # a number that M-BEIR's datasets leave free
POSITIVES = 8  # of a query, at most
INSTRUCTION_ROWS = f"""\
query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1
image,text\timage,text\tRobot\t{DATASET}\t{INSTRUCTION}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0, help="of the episodes; the base model's is 0")
    parser.add_argument("--folder", type=Path, default="data/miniature_robot")
    parser.add_argument("--model", type=Path, default="checkpoints/hf_models/miniature_robot")
    args = parser.parse_args()
    recipe, folder = RobotRecipe(), args.folder / f"seed{args.seed}"

    def build() -> None:
        from lamra.miniature.pretrain_robot import build_robot_base  # torch: only to build

        seen = expert_episodes(first_seed("base", 0), recipe.pictures)
        build_robot_base(recipe, list_of(seen), [INSTRUCTION], args.model)

    def record() -> None:
        memories = list_of(expert_episodes(first_seed("memory", args.seed), recipe.episodes))
        write_memories(folder, memories, random.Random(f"robot {args.seed}"), recipe.triplets)

    built = [ensure([args.model], recipe, build), ensure([folder], recipe, record)]
    of_model, of_folder = ("now in" if new else "already in" for new in built)
    print(f"the robot's memory {of_folder} {folder}, its base model {of_model} {args.model}")


def list_of(episodes: dict[int, list[Memory]]) -> list[Memory]:
    return [memory for memories in episodes.values() for memory in memories]


def write_memories(folder: Path, memories: Sequence[Memory], rng: random.Random, triplets: int) -> None:
    """Write all that the robot keeps and what both stages learn from it."""
    (folder / "pictures").mkdir(parents=True)
    files, rows, same = MBEIRFiles(folder), [], defaultdict(list)
    for number, memory in enumerate(memories):
        row = {"image": f"pictures/{number}.png", "text": memory.mission, "subgoal": str(memory.subgoal)}
        memory.picture.save(folder / row["image"])
        did = files.candidate(DATASET, [TRAIN_POOL], memory.mission, row["image"])
        same[memory.subgoal].append(did)
        rows.append((row, did))
    for memory, (row, did) in zip(memories, rows):
        others = [another for another in same[memory.subgoal] if another != did]
        positives = rng.sample(others, min(POSITIVES, len(others)))
        if positives:
            files.query(DATASET, "robot", "train", positives, text=memory.mission, image=row["image"])
    files.write()
    (folder / INSTRUCTIONS).parent.mkdir()
    (folder / INSTRUCTIONS).write_text(INSTRUCTION_ROWS)
    (folder / MEMORIES).write_text("".join(json.dumps(row) + "\n" for row, _ in rows))
    drawn = (rng.choice(memories) for _ in range(triplets))
    write_triplets(folder / "nli.csv", (triplet(memory.scene, memory.mission, rng) for memory in drawn))


if __name__ == "__main__":
    run(main)
