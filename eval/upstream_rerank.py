"""Upstream's two commands for reranking M-BEIR: a reranker's answers about one task's ranking, then the recall.

What they exchange are upstream's files (eval/upstream_files.py); the work is that of eval_rerank.py, which does both in
one run, for all tasks.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from lamra.collators.messages import listwise_answer
from lamra.common import upstream
from lamra.common.cli import parse
from lamra.common.errors import UserError
from lamra.common.flags import FILE, FOLDER, LARGEST_SEED, OUT_FOLDER, Flags, flag, require_path
from lamra.common.lock import folder_lock
from lamra.common.processes import first_process_first, is_first_process
from lamra.datasets.columns import Ranking
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import DATA_PATH, GET_MBEIR, INSTRUCTIONS, TASKS, task_of_file
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows
from lamra.datasets.mbeir.tasks import InstructedQueries, modality_of, open_tasks
from lamra.datasets.rankings import QUERY_NAMES, ranking_files, read_ranking
from lamra.datasets.tasks import RetrievalTask
from lamra.eval import upstream_files
from lamra.eval.flags import RetrieverArguments, output_folder
from lamra.eval.metrics import measures
from lamra.eval.rerank.fusion import rerank
from lamra.models.digests import file_sha256

DEPTHS = {"pointwise": 50, "listwise": 10}
KS = (1, 5, 10, 20)
PRINTED = {"pointwise": KS, "listwise": KS[:1]}
# Style -> what upstream's next command expects at the end of --save_name, and the rest of the file's name.
ANSWERS = {
    "pointwise": ("top50", "test_queryid2rerank_score"),
    "listwise": ("top5_all", "test_queryid2rerank_outputs_listwise"),
}


@dataclass
class AnswerArguments(RetrieverArguments):
    query_data_path: str = flag("", "queries", path=FILE, source=GET_MBEIR)
    cand_pool_path: str = flag("", "a pool that holds the ranking's candidates", path=FILE, source=GET_MBEIR)
    instructions_path: str = flag("", "query_instructions.tsv", path=FILE, source=GET_MBEIR)
    image_path_prefix: str = flag(DATA_PATH, "folder that picture paths start from", path=FOLDER, source=GET_MBEIR)
    ret_query_data_path: str = flag("", "..._query_names.json of eval_mbeir.py", path=FILE)
    ret_cand_data_path: str = flag("", "..._cand_names.json of eval_mbeir.py", path=FILE)
    rank_num: int = flag(0, "candidates of each query; default: 50, listwise 10", low=0)
    save_name: str = flag("", "such as cirr_task7_top50, listwise cirr_task7_top5_all")
    seed: int = flag(0, "draws each query's instruction", low=0, high=LARGEST_SEED)
    output_dir: str | None = flag(None, "answers; default: results/<model>/<save_name>", path=OUT_FOLDER)

    def __post_init__(self):
        super().__post_init__()
        given = (self.ret_query_data_path, self.ret_cand_data_path)
        if tuple(map(Path, given)) != ranking_files(self.ret_query_data_path)[:2]:
            raise UserError(
                f"--ret_query_data_path {given[0]} and --ret_cand_data_path {given[1]}: expected the two files "
                f"..{QUERY_NAMES} and .._cand_names.json of one ranking, as eval/eval_mbeir.py writes them"
            )

    def check_paths(self) -> None:
        super().check_paths()
        output_folder(self, self.save_name)
        require_path("save_name", upstream_files.RERANKED / self.save_name, OUT_FOLDER)


def write_answers(style: str) -> None:
    """Parse the command line, compute the answers, and write upstream's file of them."""
    (args,) = upstream.parse(upstream.RERANKING, AnswerArguments)
    from lamra.eval.cache.manifest import provenance_of  # torch and transformers, which --help does not wait for
    from lamra.eval.inference import start
    from lamra.eval.rerank.answers import answers_of
    from lamra.eval.rerank.judge import load_judge

    start(args)
    folder = output_folder(args, args.save_name) / style
    with folder_lock(folder):
        with first_process_first("the first process reads M-BEIR's files"):  # and writes the indexes
            task, ranking = open_ranking(args)
        judge = load_judge(args)
        files = {name: file_sha256(path) for name, path in vars(args).items() if name.endswith("_path") and path}
        provenance = {**provenance_of(args, judge.settings, judge.model), "rank_style": judge.settings.rank_style}
        manifest, depth = provenance | files | {"seed": args.seed}, args.rank_num or DEPTHS[style]
        found = answers_of(judge, task, ranking, style, depth, folder / "answers", manifest, args.save_name)
        if is_first_process():
            listwise = style == "listwise"
            answers = [listwise_answer(answer[0] + 1) if listwise else answer for answer in found]
            path = upstream_files.RERANKED / f"{args.save_name}_{ANSWERS[style][1]}.json"
            qids = [task.queries.id(ranked.query) for ranked in ranking]
            upstream_files.write_json(path, dict(zip(qids, answers)))
            print(f"answers about {len(qids)} queries in {path}")


def open_ranking(args: AnswerArguments) -> tuple[RetrievalTask, Ranking]:
    """Everything but the pictures, so that a mistake in the files is told before a model is loaded."""
    root, pool = args.image_path_prefix, Rows(args.cand_pool_path, args.image_path_prefix, CANDIDATE)
    of_file, _ = task_of_file(args.query_data_path)
    candidate = of_file.candidate
    if candidate is None:
        queries = Rows(args.query_data_path, root, QUERY)
        listed = [queries.record(row).get("pos_cand_list") or [] for row in range(len(queries))]
        candidate = modality_of(queries, pool, [[row for row in pool.find(dids) if row >= 0] for dids in listed])
    instructions = Instructions(args.instructions_path)
    instructed = InstructedQueries(args.query_data_path, root, instructions, candidate, args.seed)
    task = RetrievalTask(of_file.name, instructed, pool, answers=[[]] * len(instructed))
    return task, read_ranking(args.ret_query_data_path, instructed, pool)


@dataclass
class ReportArguments(Flags):
    task_name: str = flag(MISSING, "such as cirr_task7", one_of=[task.upstream_name for task in TASKS])
    retriever: str = flag("qwen2-vl-7b_LamRA-Ret", "whose rankings: its folder's name")
    data_path: str = flag(DATA_PATH, "M-BEIR's folder", path=FOLDER, source=GET_MBEIR)


def report(style: str) -> None:
    """Parse the command line, and print the recall that follows from upstream's files."""
    (args,) = parse(ReportArguments)
    files = [task.files(args.data_path, "test", "local") for task in TASKS if task.upstream_name == args.task_name]
    (task,) = open_tasks(files, args.data_path, Path(args.data_path, INSTRUCTIONS), ks=KS)
    retrieved = upstream_files.RETRIEVED / f"mbeir_{args.task_name}_test_{args.retriever}{QUERY_NAMES}"
    ranking = read_ranking(retrieved, task.queries, task.gallery)
    depth, kind = ANSWERS[style]
    path = upstream_files.RERANKED / f"{args.task_name}_{depth}_{kind}.json"
    said = upstream_files.read_json(path, dict, f"eval/eval_mbeir_rerank_{style}.py")
    answers = []
    for query, candidates, _ in ranking:
        qid, most = task.queries.id(query), len(candidates)
        if qid not in said:
            raise UserError(f"{path} has no answer about the query {qid} of {retrieved}: answer that ranking again")
        answers.append(said[qid][:most] if style == "pointwise" else order_of(said[qid], most, path))
    after = measures(task, rerank(ranking, answers, style, task.weight))
    before = measures(task, ranking)
    for k in PRINTED[style]:
        print(f"recall_at_{k} = {after[f'recall@{k}']} (retrieved: {before[f'recall@{k}']})")


def order_of(answer: str, candidates: int, path: Path) -> list[int]:
    """The candidate that an answer names first, then the others as they were.

    Raises:
        UserError: it names none.
    """
    for position in range(candidates):
        if answer == listwise_answer(position + 1):
            return [position, *(other for other in range(candidates) if other != position)]
    raise UserError(f"{path}: {answer!r} names none of {candidates} candidates: answer that ranking again")
