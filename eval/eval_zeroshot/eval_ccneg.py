"""CC-Neg: is the caption or its negation the picture's? Started by accelerate from scripts/eval/eval_zeroshot.sh."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lamra.common.cli import run
from lamra.common.flags import FILE, FOLDER, flag
from lamra.datasets.tasks import RetrievalTask
from lamra.datasets.zeroshot.ccneg import GET, ccneg_tasks
from lamra.eval.zeroshot_suite import SuiteArguments, ZeroshotSet, evaluate_set

CCNEG = ZeroshotSet("ccneg", "CC-Neg", "accuracy")


@dataclass
class CCNegArguments(SuiteArguments):
    data_path: str = flag("./data/ccneg/ccneg_preprocessed.pt", "its pickle, or a jsonl", path=FILE, source=GET)
    image_path_prefix: str | None = flag(
        None, "the folder above its pictures' folder; default: where data_path lies", path=FOLDER
    )


def tasks_of(args: CCNegArguments) -> list[RetrievalTask]:
    pictures = args.image_path_prefix or Path(args.data_path).parent
    return ccneg_tasks(args.data_path, pictures, args.protocol)


def main() -> None:
    evaluate_set(CCNEG, CCNegArguments, tasks_of)


if __name__ == "__main__":
    run(main)
