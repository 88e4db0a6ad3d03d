"""Runs of eval_flickr.py or eval_coco.py side by side: a table, DIR/metrics.json and DIR/recall.png.

python eval/report.py --output_dir DIR "name of a run=its metrics.json" ...
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from lamra.common.cli import run
from lamra.eval.reporting.results import Parser, read_results, write_json


def main() -> None:
    parser = Parser(__doc__, "metrics.json")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    from lamra.eval.reporting.figures import plot_recalls  # matplotlib: after --help
    from lamra.eval.reporting.results import DIRECTIONS, KS, print_recalls

    results = read_results(args.runs, "name a file that eval_flickr.py or eval_coco.py wrote")
    for result in results.values():
        for direction, k in product(DIRECTIONS, KS):
            result.number(f"{direction}@{k}")
    rows = {name: result.content for name, result in results.items()}
    print()
    print_recalls(rows)
    metrics = write_json(args.output_dir / "metrics.json", rows)
    figure = args.output_dir / "recall.png"
    plot_recalls(figure, rows)
    print(f"\n{metrics}\n{figure}")


if __name__ == "__main__":
    run(main)
