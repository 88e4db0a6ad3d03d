"""Mine hard negatives for stage 2: wrong candidates that a retriever confuses, but for those that may be right.

Started from lamra_ret/mine_negatives.sh. Writes <output_dir>/negatives.arrow, a ranking in columns, which --mined of
both trainings reads. What was searched and judged stays beside it: a restarted run goes on from there, and other rules
need no other search.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np

from lamra.common.cli import parse, run
from lamra.common.flags import FOLDER, flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process
from lamra.datasets.columns import SUFFIX, Columns, read_columns
from lamra.datasets.rankings import write_lines
from lamra.eval.flags import RetrieverArguments, output_folder
from lamra.eval.reporting.results import print_table, write_json
from lamra.eval.training_files import MiningFlags
from lamra.models.folders import local_folder
from lamra.models.settings import Settings

MOST_RANKS = 10_000


@dataclass
class NegativesArguments(MiningFlags):
    ranks: str = flag("0:100", "of the wrong candidates, best first: leave out A, look at no more than B, as A:B")
    keep: int = flag(10, "candidates of each query, the best that are left", low=1, high=MOST_RANKS)
    below_share: float | None = flag(
        None, "keep scores below this share of the best positive's (NV-Retriever's PercPos: 0.95)", above=0, high=1
    )
    margin: float | None = flag(None, "keep scores below the best positive's minus this (MarginPos)", low=0, high=2)
    below: float | None = flag(None, "keep scores below this (Abs)", above=-1, high=1)
    judge: str | None = flag(None, "a LamRA-Rank's folder: ask it about each candidate that is kept", path=FOLDER)
    judge_above: float = flag(0.5, "with --judge: drop candidates with a higher P(Yes)", low=0, below=1)

    def __post_init__(self):
        super().__post_init__()
        ranks = re.fullmatch(r"(\d{1,5}):(\d{1,5})", self.ranks)
        self.first, self.last = (int(ranks[1]), int(ranks[2])) if ranks else (0, 0)
        wanted = f"A:B with 0 <= A < B <= {MOST_RANKS}, such as 10:60"
        require(self.first < self.last <= MOST_RANKS, "ranks", self.ranks, wanted)
        most = self.last - self.first
        require(self.keep <= most, "keep", self.keep, f"at most the {most} of --ranks {self.ranks}")
        depth = self.search_depth
        require(depth is None or depth >= self.last, "search_depth", depth, f"{self.last} (--ranks) or more")
        if self.judge is None:
            same = self.judge_above == NegativesArguments.judge_above
            require(same, "judge_above", self.judge_above, "--judge beside it")
            return
        self.judge = local_folder(self.judge, "judge")
        if settings := Settings.read(self.judge):
            settings.require_role(self.judge, "reranker")

    def check_paths(self) -> None:
        super().check_paths()
        output_folder(self, "negatives")


def main() -> None:
    (args,) = parse(NegativesArguments)
    from lamra.eval.inference import start  # torch and transformers, which --help does not wait for
    from lamra.eval.mining import embedded, mined_file, mined_pieces
    from lamra.eval.negatives import Rules, drop_judged
    from lamra.eval.rerank.asking import Asking

    state, folder = start(args), output_folder(args, "negatives")
    rules = Rules(args.first, args.last, args.keep, args.below_share, args.margin, args.below)
    with folder_lock(folder):
        of = embedded(args, folder)
        search = {name: getattr(args, name) for name in ("own_kind", "search_depth", "search_memory")}
        files = mined_pieces(of, folder / "mined", top=args.last, device=state.device, positives=True, **search)
        asking = None
        if args.judge:
            asking = Asking.of(judge_arguments(args), of.queries, folder / "answers", of.made_by["files"])
        dropped, found = Counter[str](), Counter[int]()
        path = folder / f"negatives{SUFFIX}"
        with mined_file(path, of.queries) if is_first_process() else nullcontext() as write:
            for file in files:
                columns = read_columns(file).require(of.queries, of.queries.pairs.pool)
                (piece,) = columns.pieces
                kept, why = rules.apply(piece, columns.about["passed"])
                if asking:
                    answers = asking.about(Columns([piece.only(kept)]), "pointwise", file.stem)
                    why[f"P(Yes) above {args.judge_above:g}"] = drop_judged(kept, answers, args.judge_above)
                dropped.update(why)
                found.update(np.bincount(piece.owners[kept], minlength=len(piece.queries)).tolist())
                if write:
                    write(piece.only(kept))
        if is_first_process():
            made_by = {**of.made_by, **asdict(rules), "judge": asking and asking.provenance}
            write_json(folder / "made_by.json", made_by)
            if args.jsonl:
                pairs = of.queries.pairs
                write_lines(path.with_suffix(".jsonl"), pairs.queries, pairs.pool, read_columns(path))
            print_counts(dropped, found, args.keep)
            print(f"written to {path}")


def judge_arguments(args: NegativesArguments) -> RetrieverArguments:
    """The flags of the reranker: those of the retriever that say how, not which."""
    how = ("max_tokens_per_batch", "padding_free", "share_prefix", "bf16", "attn_implementation", "num_workers")
    return RetrieverArguments(args.judge, **{name: getattr(args, name) for name in how})


def print_counts(dropped: Counter[str], found: Counter[int], keep: int) -> None:
    """How many candidates were left out and why, and how many each query has.

    Args:
        found: number of hard negatives -> queries that have so many.
    """
    kept = sum(number * queries for number, queries in found.items())
    print_table(["candidates", ""], [*((why, f"{count:,}") for why, count in dropped.items()), ("kept", f"{kept:,}")])
    few = sum(queries for number, queries in found.items() if 0 < number < keep)
    rows = {f"with {keep}": found[keep], "with fewer": few, "with none": found[0]}
    print()
    print_table(["queries", ""], [(what, f"{count:,}") for what, count in rows.items()])


if __name__ == "__main__":
    run(main)
