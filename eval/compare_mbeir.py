"""M-BEIR runs side by side: `python eval/compare_mbeir.py "name of a run=its metrics.json" ...`

The average is over the tasks that all runs have.
"""

from __future__ import annotations

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.datasets.mbeir.layout import TASKS
from lamra.eval.reporting.results import Parser, print_table, read_results


def main() -> None:
    arguments = Parser(__doc__, "metrics.json").parse_args().runs
    results = read_results(arguments, "name a file that eval_mbeir.py wrote")
    tasks = [task for task in TASKS if all(task.name in result.content for result in results.values())]
    if not tasks:
        raise UserError(f"{', '.join(results)} have no task of M-BEIR in common")
    rows = []
    for name, result in results.items():
        recalls = [result.number(task.name, f"recall@{task.k}") for task in tasks]
        rows.append([name, *(f"{100 * recall:.1f}" for recall in (*recalls, sum(recalls) / len(recalls)))])
    print_table(["", *(f"{task.name} @{task.k}" for task in tasks), "average"], rows)
    some = [task for task in TASKS if any(task.name in result.content for result in results.values())]
    if left_out := [task.name for task in some if task not in tasks]:
        print(f"left out, also of the average, because not every run has them: {', '.join(left_out)}")


if __name__ == "__main__":
    run(main)
