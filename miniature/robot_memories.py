"""The robot's memory on disk, and what both stages learn from it.

A folder holds the expert's episodes: memories.jsonl and their pictures; nli.csv, sentences for stage 1; and for stage 2
M-BEIR's files, in which a memory finds others of the same mission and next step.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lamra.common.errors import UserError
from lamra.common.files import read_jsonl
from lamra.datasets.mbeir.layout import INSTRUCTIONS, TRAIN_POOL
from lamra.datasets.mbeir.write import MBEIRFiles
from lamra.miniature.robot import Memory, SubGoal
from lamra.miniature.robot_scene import triplet
from lamra.miniature.world import write_triplets

MEMORIES = "memories.jsonl"  # {"image", "text", "subgoal"} of each
DATASET = 11  # a number that M-BEIR's datasets leave free
POSITIVES = 8  # of a query, at most
INSTRUCTION = "Find a memory of the same next step."  # of a query, after stage 2
INSTRUCTION_ROWS = f"""\
query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1
image,text\timage,text\tRobot\t{DATASET}\t{INSTRUCTION}
"""

Seen = tuple[Image.Image, str]  # a picture and a mission


def write_memories(folder: Path, memories: Sequence[Memory], rng: random.Random, triplets: int) -> None:
    """Write all that the robot keeps and what both stages learn from it."""
    (folder / "pictures").mkdir(parents=True)
    files, rows, same = MBEIRFiles(folder), [], defaultdict(list)
    for number, memory in enumerate(memories):
        row = {"image": f"pictures/{number}.png", "text": memory.mission, "subgoal": str(memory.subgoal)}
        memory.picture.save(folder / row["image"])
        did = files.candidate(DATASET, [TRAIN_POOL], memory.mission, row["image"])
        same[memory.mission, memory.subgoal].append(did)
        rows.append((row, did))
    for memory, (row, did) in zip(memories, rows):
        others = [another for another in same[memory.mission, memory.subgoal] if another != did]
        positives = rng.sample(others, min(POSITIVES, len(others)))
        if positives:
            files.query(DATASET, "robot", "train", positives, text=memory.mission, image=row["image"])
    files.write()
    (folder / INSTRUCTIONS).parent.mkdir()
    (folder / INSTRUCTIONS).write_text(INSTRUCTION_ROWS)
    (folder / MEMORIES).write_text("".join(json.dumps(row) + "\n" for row, _ in rows))
    drawn = (rng.choice(memories) for _ in range(triplets))
    write_triplets(folder / "nli.csv", (triplet(memory.scene, memory.mission, rng) for memory in drawn))


def read_memories(folder: Path) -> tuple[list[Seen], list[SubGoal]]:
    """What the robot keeps, and the sub-goal that followed each."""
    if not (folder / MEMORIES).is_file():
        raise UserError(f"{folder}/{MEMORIES} is not there: python miniature/build_robot.py writes it")
    rows = list(read_jsonl(folder / MEMORIES))
    seen = [(Image.open(folder / row["image"]).convert("RGB"), row["text"]) for row in rows]
    return seen, [SubGoal.read(row["subgoal"]) for row in rows]
