"""ShareGPT4V: long captions and pictures, both ways. Started by accelerate from scripts/eval/eval_zeroshot.sh."""

from __future__ import annotations

from dataclasses import dataclass

from lamra.common.cli import run
from lamra.common.flags import FILE, FOLDER, flag
from lamra.datasets.tasks import RetrievalTask
from lamra.datasets.zeroshot.sharegpt4v import sharegpt4v_tasks
from lamra.eval.zeroshot_suite import GET, SuiteArguments, ZeroshotSet, evaluate_set

SHAREGPT4V = ZeroshotSet("sharegpt4v", "ShareGPT4V", "R@1")


@dataclass
class ShareGPT4VArguments(SuiteArguments):
    image_data_path: str = flag("./data/sharegpt4v/val_data", "its pictures", path=FOLDER, source=GET)
    text_data_path: str = flag("./data/sharegpt4v/datas_for_validation.json", "its captions", path=FILE, source=GET)


def tasks_of(args: ShareGPT4VArguments) -> list[RetrievalTask]:
    return sharegpt4v_tasks(args.image_data_path, args.text_data_path, args.protocol)


def main() -> None:
    evaluate_set(SHAREGPT4V, ShareGPT4VArguments, tasks_of)


if __name__ == "__main__":
    run(main)
