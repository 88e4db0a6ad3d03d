"""SugarCrepe: which of two captions is the picture's? Started by accelerate from scripts/eval/eval_zeroshot.sh."""

from __future__ import annotations

from dataclasses import dataclass

from lamra.common.cli import run
from lamra.common.flags import FOLDER, flag
from lamra.datasets.tasks import RetrievalTask
from lamra.datasets.zeroshot.sugar_crepe import GET as CLONE
from lamra.datasets.zeroshot.sugar_crepe import KINDS, PAPER_MEAN, sugar_crepe_tasks
from lamra.eval.zeroshot_suite import GET, SuiteArguments, ZeroshotSet, evaluate_set

SUGAR_CREPE = ZeroshotSet("sugarcrepe", "SugarCrepe", "accuracy", PAPER_MEAN, len(KINDS), sum(KINDS.values()))


@dataclass
class SugarCrepeArguments(SuiteArguments):
    annotation_path_prefix: str = flag("./data/sugar-crepe/data", "folder of the json files", path=FOLDER, source=CLONE)
    image_path_prefix: str = flag("./data/sugar-crepe/images/val2017", "COCO's val2017", path=FOLDER, source=GET)
    data_type: str = flag("all", "the file to read", one_of=("all", *KINDS))


def tasks_of(args: SugarCrepeArguments) -> list[RetrievalTask]:
    kinds = tuple(KINDS) if args.data_type == "all" else (args.data_type,)
    return sugar_crepe_tasks(args.annotation_path_prefix, args.image_path_prefix, args.protocol, kinds)


def main() -> None:
    evaluate_set(SUGAR_CREPE, SugarCrepeArguments, tasks_of)


if __name__ == "__main__":
    run(main)
