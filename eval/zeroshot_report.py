"""One table of the sets of the zero-shot suite that a model has results of, the paper's numbers beside them.

python eval/zeroshot_report.py RESULTS/*/metrics.json
"""

from __future__ import annotations

from pathlib import Path

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.eval.reporting.results import Parser, read_result
from lamra.eval.zeroshot_suite import print_results


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="metrics.json")
    results = [read_result(path, "eval_zeroshot.sh writes it") for path in parser.parse_args().results]
    for result in results:
        if not {"set", "measure", "protocol", "tasks"} <= result.content.keys():
            raise UserError(f"{result.path} is not of a set of the zero-shot suite: eval_zeroshot.sh writes such files")
    print_results([result.content for result in results])


if __name__ == "__main__":
    run(main)
