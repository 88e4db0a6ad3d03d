"""Multi-turn FashionIQ: which garment is meant? Started by accelerate from scripts/eval/eval_zeroshot.sh."""

from __future__ import annotations

from dataclasses import dataclass

from lamra.common.cli import run
from lamra.common.flags import FILE, FOLDER, flag
from lamra.datasets.tasks import RetrievalTask
from lamra.datasets.zeroshot.multiturn_fashion import CATEGORIES, multiturn_fashion_tasks
from lamra.eval.zeroshot_suite import GET, SuiteArguments, ZeroshotSet, evaluate_set

MULTITURN_FASHION = ZeroshotSet("multiturn_fashion", "MT-FIQ", "R@5")


@dataclass
class MultiturnFashionArguments(SuiteArguments):
    query_data_path: str = flag("./data/multiturnfashion/data/all.val.json", "the turns", path=FILE, source=GET)
    cand_data_path: str = flag(
        "./data/multiturnfashion/image_splits/split.all.val.json", "the gallery", path=FILE, source=GET
    )
    image_path_prefix: str = flag(
        "./data/M-BEIR/mbeir_images/fashioniq_images", "FashionIQ's pictures", path=FOLDER, source=GET
    )
    category: str = flag("all", "whose files beside these to read", one_of=CATEGORIES)


def tasks_of(args: MultiturnFashionArguments) -> list[RetrievalTask]:
    return multiturn_fashion_tasks(
        args.query_data_path,
        args.cand_data_path,
        args.image_path_prefix,
        args.protocol,
        category=args.category,
    )


def main() -> None:
    evaluate_set(MULTITURN_FASHION, MultiturnFashionArguments, tasks_of)


if __name__ == "__main__":
    run(main)
