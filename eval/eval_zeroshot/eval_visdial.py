"""Visual Dialog: which picture was talked about? Started by accelerate from scripts/eval/eval_zeroshot.sh."""

from __future__ import annotations

from dataclasses import dataclass

from lamra.common.cli import run
from lamra.common.flags import FILE, FOLDER, flag
from lamra.datasets.tasks import RetrievalTask
from lamra.datasets.zeroshot.visdial import visdial_tasks
from lamra.eval.zeroshot_suite import GET, SuiteArguments, ZeroshotSet, evaluate_set

VISDIAL = ZeroshotSet("visdial", "VisDial", "R@1")


@dataclass
class VisDialArguments(SuiteArguments):
    data_path: str = flag("./data/visdial/visdial_1.0_val.json", "the dialogs", path=FILE, source=GET)
    image_path_prefix: str = flag("./data/visdial/VisualDialog_val2018", "its pictures", path=FOLDER, source=GET)


def tasks_of(args: VisDialArguments) -> list[RetrievalTask]:
    return visdial_tasks(args.data_path, args.image_path_prefix, args.protocol)


def main() -> None:
    evaluate_set(VISDIAL, VisDialArguments, tasks_of)


if __name__ == "__main__":
    run(main)
