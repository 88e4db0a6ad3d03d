"""Ways to rerank side by side: `python eval/compare_rerank.py --output_dir DIR "name=folder of eval_rerank.py" ...`

Prints recall@1 of each task before and after, and what a query cost; draws DIR/rerank.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.datasets.mbeir.layout import TASKS
from lamra.eval.report import COLOURS, figure_of, named_paths, save_figure

RETRIEVED = "retrieved"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("runs", nargs="+", metavar="name=folder")
    args = parser.parse_args()
    folders = named_paths(args.runs, "folder")
    if len(folders) >= len(COLOURS):
        raise UserError(f"{len(folders)} runs: the figure tells at most {len(COLOURS) - 1} apart; name fewer")
    found = {name: read_metrics(folder) for name, folder in folders.items()}
    order = {task.name: place for place, task in enumerate(TASKS)}
    shared = set.intersection(*map(set, found.values()))
    if not shared:
        raise UserError(f"{', '.join(found)} have no task in common")
    names = sorted(shared, key=lambda name: order.get(name, len(order)))
    columns = recall_at_1(found, names)
    print_table(columns, names, {name: read_cost(folder) for name, folder in folders.items()})
    if left_out := sorted(set().union(*found.values()) - shared):
        print(f"left out, also of the average, because not every run has them: {', '.join(left_out)}")
    plot(args.output_dir / "rerank.png", columns, names)
    print(f"\n{args.output_dir / 'rerank.png'}")


def recall_at_1(found: dict[str, dict], names: list[str]) -> dict[str, list[float]]:
    """Of what was retrieved and of each run, for each task and on average.

    Raises:
        UserError: the runs did not rerank the same rankings.
    """
    before = [[metrics[task]["before"] for task in names] for metrics in found.values()]
    if any(one != before[0] for one in before):
        raise UserError(f"{', '.join(found)} reranked different rankings: their recall before differs")
    columns = {RETRIEVED: [recalls["recall@1"] for recalls in before[0]]}
    columns |= {name: [metrics[task]["after"]["recall@1"] for task in names] for name, metrics in found.items()}
    return {name: [*recalls, sum(recalls) / len(recalls)] for name, recalls in columns.items()}


def read_metrics(folder: Path) -> dict[str, dict]:
    """What eval_rerank.py measured; raises UserError if nothing is there."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a folder that rerank_mbeir.sh or rerank_zeroshot.sh wrote")
    return json.loads(path.read_text())


def read_cost(folder: Path) -> dict[str, float]:
    """Of a query, where the run asked about any."""
    path = folder / "cost.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def print_table(columns: dict[str, list[float]], names: list[str], costs: dict[str, dict]) -> None:
    print(f"{'R@1 in percent':<20}" + "".join(f"{name:>12}" for name in columns))
    for i, task in enumerate([*names, "average"]):
        print(f"{task:<20}" + "".join(f"{100 * recalls[i]:12.1f}" for recalls in columns.values()))
    for title, key, digits in (("tokens a query", "tokens_per_query", 0), ("seconds a query", "seconds_per_query", 4)):
        cells = [f"{cost[key]:12.{digits}f}" if cost else f"{'-':>12}" for cost in costs.values()]
        print(f"{title:<20}{'':12}" + "".join(cells))


def plot(path: Path, columns: dict[str, list[float]], names: list[str]) -> None:
    """Recall@1 in percent as bars: a group a task, a colour a column."""
    figure, (panel,) = figure_of(1)
    figure.set_size_inches(7, 1.2 + 0.22 * len(columns) * (len(names) + 1))
    bar = 0.84 / len(columns)
    for i, (name, recalls) in enumerate(columns.items()):
        places = [place - 0.42 + (i + 0.5) * bar for place in range(len(recalls))]
        bars = panel.barh(places, [100 * recall for recall in recalls], 0.9 * bar, color=COLOURS[i], label=name)
        panel.bar_label(bars, fmt="%.1f", fontsize=8, padding=3)
    panel.set(xlabel="recall@1 in percent", xlim=(0, 108), ylim=(len(names) + 0.55, -0.55))  # the first task on top
    panel.set_yticks(range(len(names) + 1), [*names, "average"])
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure, panel)


if __name__ == "__main__":
    run(main)
