"""M-BEIR's files and its 16 test tasks: their paths, what they count in the average, and what the paper reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lamra.common.errors import UserError

DATA_NAME = "M-BEIR"  # what reports call it; the paper's numbers stand beside no other name

# All paths are relative to M-BEIR's folder.
DATA_PATH = "data/M-BEIR"  # where that is by default
TRAIN_QUERIES = "query/union_train/mbeir_union_up_train.jsonl"
TRAIN_POOL = "cand_pool/global/mbeir_union_train_cand_pool.jsonl"
INSTRUCTIONS = "instructions/query_instructions.tsv"


def global_pool(split: str) -> str:
    """The candidates of all tasks together."""
    return f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl"


def local_pool(name: str) -> str:
    return f"cand_pool/local/mbeir_{name}_cand_pool.jsonl"


def queries_of(name: str, split: str) -> str:
    """The queries of a task, by its name without "_test"."""
    return f"query/{split}/mbeir_{name}_{split}.jsonl"


def qrels_of(name: str, split: str) -> str:
    return f"qrels/{split}/mbeir_{name}_{split}_qrels.txt"


@dataclass(frozen=True)
class Task:
    """A test task.

    Attributes:
        candidate: modality of what its queries look for; None: that of their answers.
        paper: recall of LamRA-Ret (Qwen2-VL-7B, arXiv 2412.01720) in percent, local pool, at `k`; None: not reported.
        paper_reranked: the same after LamRA-Rank.
        k: the recall that counts in the average.
        weight: of LamRA-Rank's P(Yes) beside the retriever's score.
    """

    name: str
    candidate: str | None = None
    paper: float | None = None
    paper_reranked: float | None = None
    k: int = 5
    weight: float = 1.0

    def queries(self, split: str) -> Path:
        return Path(queries_of(self.name.removesuffix("_test"), split))

    def qrels(self, split: str) -> Path:
        return Path(qrels_of(self.name.removesuffix("_test"), split))

    def pool(self, split: str, kind: str) -> Path:
        """The task's own candidates, or those of all tasks together for kind "global"."""
        if kind == "global":
            return Path(global_pool(split))
        name = self.name.removesuffix("_test")  # COCO's: its splits have pools of their own
        return Path(local_pool(name if name == self.name else f"{name}_{split}"))


TASKS = (
    Task("visualnews_task0", "image", 41.6, 48.0),
    Task("mscoco_task0_test", "image", 81.5, 85.2, weight=0.5),
    Task("fashion200k_task0", "image", 28.7, 32.9, k=10),
    Task("webqa_task1", "text", 86.0, 96.7),
    Task("edis_task2", "image,text", 62.6, 75.8),
    Task("webqa_task2", "image,text", 81.2, 87.7),
    Task("visualnews_task3", "text", 39.6, 48.6),
    Task("mscoco_task3_test", "text", 90.6, 92.3, weight=0.1),
    Task("fashion200k_task3", "text", 30.4, 36.1, k=10),
    Task("nights_task4", "image", 32.1, 33.5),
    Task("oven_task6", "text", 54.1, 59.2),
    Task("infoseek_task6", "text", 52.1, 64.1),
    Task("fashioniq_task7", "image", 33.2, 37.8, k=10),
    Task("cirr_task7", "image", 53.1, 63.3),
    Task("oven_task8", "image,text", 76.2, 79.2),
    Task("infoseek_task8", "image,text", 63.3, 78.3),
)
PAPER_AVERAGE = {"local": 56.6, "global": 54.9}
PAPER_AVERAGE_RERANKED = {"local": 63.7, "global": 61.4}


def task_of_file(queries: str | Path) -> tuple[Task, str | None]:
    """The task and the split whose queries a file holds, by its name; any other file is a task of its own."""
    path = Path(queries)
    for split in ("test", "val"):
        for task in TASKS:
            if task.queries(split).name == path.name:
                return task, split
    return Task(path.stem), None


def choose_tasks(names: str) -> list[Task]:
    """Tasks by name, separated by commas or blanks, in the table's order; "all" for all.

    Raises:
        UserError: a name is unknown.
    """
    wanted = names.replace(",", " ").split()
    known = [task.name for task in TASKS]
    unknown = [name for name in wanted if name not in (*known, "all")]
    if unknown or not wanted:
        raise UserError(f"--tasks {' '.join(unknown) or names!r} is unknown: choose all, or of {', '.join(known)}")
    return [task for task in TASKS if "all" in wanted or task.name in wanted]
