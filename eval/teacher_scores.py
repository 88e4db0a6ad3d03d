"""What LamRA-Rank says of each training query's positives and mined negatives, for the retriever to learn from.

Started from lamra_ret/teacher_scores.sh. Writes <output_dir>/teacher.arrow, a ranking in columns whose scores are
log P(Yes) - log P(No), which --teacher of stage 2 reads. A restarted run asks nothing twice. Queries without a mined
negative are not asked about: there is nothing to learn from one candidate.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from lamra.common.cli import parse, run
from lamra.common.flags import FILE, OUT_FOLDER, flag, listed, require
from lamra.common.lock import folder_lock
from lamra.common.processes import first_process_first, is_first_process
from lamra.datasets.columns import SUFFIX, Piece, RankedQuery, columns_file, read_columns, rows_of
from lamra.datasets.rankings import write_lines
from lamra.eval.flags import RetrieverArguments, output_folder
from lamra.eval.reporting.results import write_json
from lamra.eval.training_files import JSONL, SeededTrainingFiles
from lamra.models.digests import file_sha256


@dataclass
class TeacherArguments(SeededTrainingFiles, RetrieverArguments):
    mined: str | None = flag(None, "what mine_negatives.sh or mine.sh wrote; several: A,B,C", path=FILE, several=True)
    output_dir: str | None = flag(None, "default: results/<model>/teacher", path=OUT_FOLDER)
    jsonl: bool = flag(False, JSONL)

    def __post_init__(self):
        super().__post_init__()
        require(self.mined is not None, "mined", "", FILE)

    def check_paths(self) -> None:
        super().check_paths()
        output_folder(self, "teacher")


def main() -> None:
    (args,) = parse(TeacherArguments)
    import numpy as np  # and torch and transformers, which --help does not wait for

    from lamra.datasets.mbeir.mined import MinedCandidates
    from lamra.eval.inference import start
    from lamra.eval.mining import QUERIES_TOGETHER, open_training_queries
    from lamra.eval.rerank.asking import Asking

    start(args)
    folder = output_folder(args, "teacher")
    with folder_lock(folder):
        queries = open_training_queries(args)
        pairs = queries.pairs
        with first_process_first("the first process reads what was mined"):
            mined = MinedCandidates(pairs, listed(args.mined or ""))
        files = {path.name: file_sha256(path) for path in (pairs.queries.path, pairs.pool.path)}
        asking = Asking.of(args, queries, folder / "answers", files)
        numbers = np.searchsorted(queries.rows, mined.queries)  # of the queries that have a mined negative
        path = folder / f"teacher{SUFFIX}"
        with columns_file(path, rows_of(pairs.queries, pairs.pool)) if is_first_process() else nullcontext() as write:
            for start_row in range(0, len(numbers), QUERIES_TOGETHER):
                ranking = []
                for query in numbers[start_row : start_row + QUERIES_TOGETHER].tolist():
                    row = int(queries.rows[query])
                    ranking.append(RankedQuery(query, pairs.answers(row) + mined.of(row), []))
                answers = asking.about(ranking, "log_odds", f"{start_row // QUERIES_TOGETHER:05d}")
                if write:
                    piece = Piece.of(map(best_first, ranking, answers))
                    write(piece._replace(queries=queries.rows[piece.queries], scores=piece.scores.astype(np.float32)))
        if is_first_process():
            found = read_columns(path)
            if args.jsonl:
                write_lines(path.with_suffix(".jsonl"), pairs.queries, pairs.pool, found)
            write_json(folder / "made_by.json", {**asking.provenance, "mined": list(map(file_sha256, mined.files))})
            print(f"{found.lines:,} candidates of {len(numbers):,} of {len(queries):,} queries in {path}")


def best_first(ranked: RankedQuery, scores: list[float]) -> RankedQuery:
    """The candidates in the order of new scores; ties stay as they were."""
    order = sorted(range(len(scores)), key=lambda position: -scores[position])
    return RankedQuery(
        ranked.query, [ranked.candidates[position] for position in order], [scores[position] for position in order]
    )


if __name__ == "__main__":
    run(main)
