"""Upstream's two commands for reranking M-BEIR: ask a reranker about one task's ranking, then compute the recall.

What they exchange are upstream's files (eval/upstream_files.py); the work is that of eval_rerank.py, which does both in
one run, for all tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState

from lamra.collators.messages import listwise_answer
from lamra.common import upstream
from lamra.common.cli import parse, require
from lamra.common.errors import UserError
from lamra.common.files import sha256
from lamra.common.lock import folder_lock
from lamra.common.processes import start_processes
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import DATA_PATH, INSTRUCTIONS, TASKS, Task, task_of_file
from lamra.datasets.mbeir.queries import InstructedQueries
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows, id_key
from lamra.datasets.rerank import QUERY_NAMES, ranking_files
from lamra.eval import eval_rerank, upstream_files
from lamra.eval.eval_mbeir import TaskData, modality_of, open_tasks
from lamra.eval.inference import RetrieverArguments
from lamra.eval.judge import RankingTask, judge_ranking, load_judge
from lamra.eval.shards import made_by
from lamra.eval.zeroshot import output_folder

KS = {"pointwise": (1, 5, 10, 20), "listwise": (1,)}
# Style -> what upstream's next command expects at the end of --save_name, and the rest of the file's name.
ANSWERS = {
    "pointwise": ("top50", "test_queryid2rerank_score"),
    "listwise": ("top5_all", "test_queryid2rerank_outputs_listwise"),
}


@dataclass
class AskArguments(RetrieverArguments):
    query_data_path: str = field(default="", metadata={"help": "queries"})
    cand_pool_path: str = field(default="", metadata={"help": "a pool that holds the ranking's candidates"})
    instructions_path: str = field(default="", metadata={"help": "query_instructions.tsv"})
    image_path_prefix: str = field(default=DATA_PATH, metadata={"help": "folder that picture paths start from"})
    ret_query_data_path: str = field(default="", metadata={"help": "..._query_names.json of eval_mbeir.py"})
    ret_cand_data_path: str = field(default="", metadata={"help": "..._cand_names.json of eval_mbeir.py"})
    rank_num: int = field(default=0, metadata={"help": "candidates of each query; default: 50, listwise 10"})
    save_name: str = field(default="", metadata={"help": "such as cirr_task7_top50, listwise cirr_task7_top5_all"})
    seed: int = field(default=0, metadata={"help": "draws each query's instruction"})
    output_dir: str | None = field(default=None, metadata={"help": "answers; default: results/<model>/<save_name>"})

    def __post_init__(self):
        super().__post_init__()
        for name in ("query_data_path", "cand_pool_path", "instructions_path"):
            require(bool(getattr(self, name)), name, "", "a file of M-BEIR")
        given = (self.ret_query_data_path, self.ret_cand_data_path)
        if tuple(map(Path, given)) != ranking_files(self.ret_query_data_path)[:2]:
            raise UserError(
                f"--ret_query_data_path {given[0]} and --ret_cand_data_path {given[1]}: expected the two files "
                f"..{QUERY_NAMES} and .._cand_names.json of one ranking, as eval/eval_mbeir.py writes them"
            )
        require(bool(self.save_name), "save_name", "", "a name, such as cirr_task7_top50")
        require(self.rank_num >= 0, "rank_num", self.rank_num, "1 or more")


def ask(style: str) -> None:
    """Parse the command line, ask, and write upstream's file of answers."""
    (args,) = upstream.parse(upstream.RERANKING, AskArguments)
    depth = args.rank_num or {"pointwise": 50, "listwise": 10}[style]
    state = start_processes()
    folder = output_folder(args, args.save_name) / style
    with folder_lock(folder):
        _ask(args, style, depth, folder, state)


def _ask(args: AskArguments, style: str, depth: int, folder: Path, state: PartialState) -> None:
    with state.main_process_first():  # it writes the indexes
        task = open_ranking(args)
    judge = load_judge(args)
    folder = folder / "answers"
    files = {name: sha256(getattr(args, name)) for name in vars(args) if name.endswith("_path") and getattr(args, name)}
    asked_by = {**made_by(args, judge.settings, judge.model), "rank_style": judge.settings.rank_style}
    answers = judge_ranking(judge, task, style, depth, folder, asked_by | files | {"seed": args.seed}, args.save_name)
    if state.is_main_process:
        if style == "listwise":
            answers = [listwise_answer(order[0] + 1) for order in answers]
        path = upstream_files.RERANKED / f"{args.save_name}_{ANSWERS[style][1]}.json"
        qids = [task.queries.queries.id(row) for row in task.asked]
        upstream_files.write_json(path, dict(zip(qids, answers)))
        print(f"answers about {len(qids)} queries in {path}")


def open_ranking(args: AskArguments) -> RankingTask:
    """Everything but the pictures, so that a mistake in the files is told before a model is loaded."""
    root = Path(args.image_path_prefix)
    queries, pool = Rows(args.query_data_path, root, QUERY), Rows(args.cand_pool_path, root, CANDIDATE)
    task, _ = task_of_file(args.query_data_path)
    candidate = task.candidate
    if candidate is None:
        listed = [queries.record(row).get("pos_cand_list") or [] for row in range(len(queries))]
        rows = [[row for row in pool.rows_of([id_key(did) for did in dids]).tolist() if row >= 0] for dids in listed]
        candidate = modality_of(queries, pool, rows)
    instructed = InstructedQueries(queries, Instructions(args.instructions_path), candidate, args.seed)
    data = TaskData(task, queries, pool, instructed, [[]] * len(queries))
    return eval_rerank.mbeir_ranking(Path(args.ret_query_data_path), data)


@dataclass
class ReportArguments:
    task_name: str = field(metadata={"help": "such as cirr_task7"})
    retriever: str = field(default="qwen2-vl-7b_LamRA-Ret", metadata={"help": "whose rankings: its folder's name"})
    data_path: str = field(default=DATA_PATH, metadata={"help": "M-BEIR's folder"})
    # What open_tasks reads besides.
    tasks: str = field(default="", init=False)
    split: str = field(default="test", init=False)
    pool: str = field(default="local", init=False)
    instructions: str = field(default=INSTRUCTIONS, init=False)
    seed: int = field(default=0, init=False)

    def __post_init__(self):
        self.tasks = task_named(self.task_name).name


def task_named(name: str) -> Task:
    """The task that upstream calls so.

    Raises:
        UserError: none is.
    """
    for task in TASKS:
        if name == task.name.removesuffix("_test"):
            return task
    raise UserError(
        f"--task_name {name} is unknown: choose one of {', '.join(task.name.removesuffix('_test') for task in TASKS)}"
    )


def report(style: str) -> None:
    """Parse the command line, and print the recall that follows from upstream's files."""
    (args,) = parse(ReportArguments)
    (data,) = open_tasks(args)
    retrieved = upstream_files.RETRIEVED / f"mbeir_{args.task_name}_test_{args.retriever}{QUERY_NAMES}"
    ranking = eval_rerank.mbeir_ranking(retrieved, data)
    depth, kind = ANSWERS[style]
    path = upstream_files.RERANKED / f"{args.task_name}_{depth}_{kind}.json"
    said = upstream_files.read_json(path, dict, f"eval/eval_mbeir_rerank_{style}.py")
    answers = []
    for row, found in zip(ranking.asked, ranking.found):
        qid = data.queries.id(row)
        if qid not in said:
            raise UserError(f"{path} has no answer about the query {qid} of {retrieved}: ask about that ranking again")
        answers.append(said[qid][: len(found)] if style == "pointwise" else order_of(said[qid], len(found), path))
    after = eval_rerank.rerank(ranking, answers, style, eval_rerank.WEIGHTS.get(data.task.name, 1.0))
    before, after = (eval_rerank.recalls(one, KS[style]) for one in (ranking, after))
    for k in KS[style]:
        print(f"recall_at_{k} = {after[f'recall@{k}']} (retrieved: {before[f'recall@{k}']})")


def order_of(answer: str, candidates: int, path: Path) -> list[int]:
    """The candidate that an answer names first, then the others as they were.

    Raises:
        UserError: it names none.
    """
    for place in range(candidates):
        if answer == listwise_answer(place + 1):
            return [place, *(other for other in range(candidates) if other != place)]
    raise UserError(f"{path}: {answer!r} names none of {candidates} candidates: ask again")
