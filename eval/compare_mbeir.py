"""M-BEIR runs side by side: `python eval/compare_mbeir.py "name of a run=its metrics.json" ...`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lamra.eval.mbeir_tasks import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="name=metrics.json")
    runs = dict(run.rsplit("=", 1) for run in parser.parse_args().runs)
    rows = {name: json.loads(Path(path).read_text()) for name, path in runs.items()}
    tasks = [task for task in TASKS if all(task.name in row for row in rows.values())]
    width = max(map(len, rows))
    print(" " * width + "".join(f"  {task.name} @{task.k}" for task in tasks) + "  average")
    for name, row in rows.items():
        counted = [(f"{task.name} @{task.k}", row[task.name][f"recall@{task.k}"]) for task in tasks]
        counted.append(("average", row["average"]))
        print(f"{name:<{width}}" + "".join(f"  {100 * value:{len(title)}.1f}" for title, value in counted))


if __name__ == "__main__":
    main()
