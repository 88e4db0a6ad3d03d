"""Visual Storytelling: which photo ends the story? Started by accelerate from scripts/eval/eval_zeroshot.sh."""

from __future__ import annotations

from dataclasses import dataclass

from lamra.common.cli import run
from lamra.common.flags import FILE, FOLDER, flag
from lamra.datasets.tasks import RetrievalTask
from lamra.datasets.zeroshot.vist import vist_tasks
from lamra.eval.zeroshot_suite import GET, SuiteArguments, ZeroshotSet, evaluate_set

VIST = ZeroshotSet("vist", "VIST", "R@1")


@dataclass
class VISTArguments(SuiteArguments):
    data_path: str = flag("./data/vist/sis/val.story-in-sequence.json", "the stories", path=FILE, source=GET)
    image_path_prefix: str = flag("./data/vist/images/val", "its photos", path=FOLDER, source=GET)


def tasks_of(args: VISTArguments) -> list[RetrievalTask]:
    return vist_tasks(args.data_path, args.image_path_prefix, args.protocol)


def main() -> None:
    evaluate_set(VIST, VISTArguments, tasks_of)


if __name__ == "__main__":
    run(main)
