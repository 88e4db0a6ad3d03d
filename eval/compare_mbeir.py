"""M-BEIR runs side by side: `python eval/compare_mbeir.py "name of a run=its metrics.json" ...`

The average is over the tasks that all runs have.
"""

from __future__ import annotations

import argparse

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.datasets.mbeir.layout import TASKS
from lamra.eval.report import read_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="name=metrics.json")
    rows = read_runs(parser.parse_args().runs)
    tasks = [task for task in TASKS if all(task.name in row for row in rows.values())]
    if not tasks:
        raise UserError(f"{', '.join(rows)} have no task of M-BEIR in common")
    width = max(map(len, rows))
    print(" " * width + "".join(f"  {task.name} @{task.k}" for task in tasks) + "  average")
    for name, row in rows.items():
        counted = [(f"{task.name} @{task.k}", row[task.name][f"recall@{task.k}"]) for task in tasks]
        counted.append(("average", sum(recall for _, recall in counted) / len(counted)))
        print(f"{name:<{width}}" + "".join(f"  {100 * value:{len(title)}.1f}" for title, value in counted))
    left_out = [task.name for task in TASKS if task not in tasks and any(task.name in row for row in rows.values())]
    if left_out:
        print(f"left out, also of the average, because not every run has them: {', '.join(left_out)}")


if __name__ == "__main__":
    run(main)
