"""M-BEIR's files and its 16 test tasks: their paths, what they count in the average, and what the paper reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lamra.common.errors import UserError
from lamra.common.flags import FILE, FOLDER, Flags, flag
from lamra.datasets.tasks import Reported

DATA_NAME = "M-BEIR"  # what reports call it; the paper's numbers stand beside no other name

# All paths are relative to M-BEIR's folder.
DATA_PATH = "data/M-BEIR"  # where that is by default
GET_MBEIR = "bash scripts/download.sh mbeir gets it"
TRAIN_QUERIES = "query/union_train/mbeir_union_up_train.jsonl"
TRAIN_POOL = "cand_pool/global/mbeir_union_train_cand_pool.jsonl"
INSTRUCTIONS = "instructions/query_instructions.tsv"


@dataclass
class TrainingFiles(Flags):
    data_path: str = flag(DATA_PATH, "M-BEIR's folder; the paths below are inside it", path=FOLDER, source=GET_MBEIR)
    queries: str = flag(TRAIN_QUERIES, "of the training", path=FILE, inside="data_path", source=GET_MBEIR)
    pool: str = flag(TRAIN_POOL, "candidates", path=FILE, inside="data_path", source=GET_MBEIR)
    instructions: str = flag(INSTRUCTIONS, "what to retrieve", path=FILE, inside="data_path", source=GET_MBEIR)


def global_pool(split: str) -> str:
    """The candidates of all tasks together."""
    return f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl"


def local_pool(name: str) -> str:
    return f"cand_pool/local/mbeir_{name}_cand_pool.jsonl"


def queries_of(name: str, split: str) -> str:
    """The queries of a task, by upstream's name for it."""
    return f"query/{split}/mbeir_{name}_{split}.jsonl"


def qrels_of(name: str, split: str) -> str:
    return f"qrels/{split}/mbeir_{name}_{split}_qrels.txt"


class TaskFiles(NamedTuple):
    """The files of a task; `union` is the pool of all tasks together, which qrels may name too."""

    task: Task
    queries: Path
    pool: Path
    qrels: Path
    union: Path


@dataclass(frozen=True)
class Task:
    """A test task.

    Attributes:
        candidate: modality of what its queries look for; None: that of their answers.
        reported: recall of LamRA (Qwen2-VL-7B, arXiv 2412.01720) in the local pool, at `k`.
        k: the recall that counts in the average.
        weight: of LamRA-Rank's P(Yes) beside the retriever's score.
    """

    name: str
    candidate: str | None = None
    reported: Reported | None = None
    k: int = 5
    weight: float = 1.0

    @property
    def upstream_name(self) -> str:
        return self.name.removesuffix("_test")

    def files(self, root: str | Path, split: str, pool: str) -> TaskFiles:
        """M-BEIR's own files below `root`; `pool` is "local", the task's own, or "global"."""
        name, union = self.upstream_name, Path(root, global_pool(split))
        local = Path(root, local_pool(name if name == self.name else f"{name}_{split}"))  # COCO's: one for each split
        queries, qrels = Path(root, queries_of(name, split)), Path(root, qrels_of(name, split))
        return TaskFiles(self, queries, union if pool == "global" else local, qrels, union)


TASKS = (
    Task("visualnews_task0", "image", Reported(41.6, 48.0)),
    Task("mscoco_task0_test", "image", Reported(81.5, 85.2), weight=0.5),
    Task("fashion200k_task0", "image", Reported(28.7, 32.9), k=10),
    Task("webqa_task1", "text", Reported(86.0, 96.7)),
    Task("edis_task2", "image,text", Reported(62.6, 75.8)),
    Task("webqa_task2", "image,text", Reported(81.2, 87.7)),
    Task("visualnews_task3", "text", Reported(39.6, 48.6)),
    Task("mscoco_task3_test", "text", Reported(90.6, 92.3), weight=0.1),
    Task("fashion200k_task3", "text", Reported(30.4, 36.1), k=10),
    Task("nights_task4", "image", Reported(32.1, 33.5)),
    Task("oven_task6", "text", Reported(54.1, 59.2)),
    Task("infoseek_task6", "text", Reported(52.1, 64.1)),
    Task("fashioniq_task7", "image", Reported(33.2, 37.8), k=10),
    Task("cirr_task7", "image", Reported(53.1, 63.3)),
    Task("oven_task8", "image,text", Reported(76.2, 79.2)),
    Task("infoseek_task8", "image,text", Reported(63.3, 78.3)),
)
PAPER_AVERAGE = {"local": Reported(56.6, 63.7), "global": Reported(54.9, 61.4)}


def task_of_file(queries: str | Path) -> tuple[Task, str | None]:
    """The task and the split whose queries a file holds, by its name; any other file is a task of its own."""
    path = Path(queries)
    for split in ("test", "val"):
        for task in TASKS:
            if Path(queries_of(task.upstream_name, split)).name == path.name:
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
