"""Ways to rerank side by side: `python eval/compare_rerank.py --output_dir DIR "name=folder of eval_rerank.py" ...`

Prints recall@1 of each task before and after, and the cost of a query; draws DIR/rerank.png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.datasets.mbeir.layout import TASKS
from lamra.eval.reporting.results import Parser, Result, named_paths, print_table, read_result

WAY_OUT = "name a folder that rerank_mbeir.sh or rerank_zeroshot.sh wrote"


def main() -> None:
    parser = Parser(__doc__, "folder")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    from lamra.eval.reporting.figures import COLOURS, plot_percent, require_colours  # matplotlib: after --help

    folders = named_paths(args.runs, "folder")
    require_colours(len(folders), len(COLOURS) - 1)  # the rankings before have one
    results = {name: read_result(folder / "metrics.json", WAY_OUT) for name, folder in folders.items()}
    tasks = common_tasks(results)
    columns = recall_at_1(results, tasks)
    names = [*tasks, "average"]
    rows = [[name, *(f"{100 * recalls[i]:.1f}" for recalls in columns.values())] for i, name in enumerate(names)]
    costs = [read_cost(folder) for folder in folders.values()]
    for title, key, digits in (("tokens a query", "tokens_per_query", 0), ("seconds a query", "seconds_per_query", 4)):
        rows.append([title, "", *(f"{cost.number(key):.{digits}f}" if cost else "-" for cost in costs)])
    print_table(["R@1 in percent", *columns], rows, name_width=20, cell_width=12)
    if left_out := sorted({task for result in results.values() for task in result.content} - set(tasks)):
        print(f"left out, also of the average, because not every run has them: {', '.join(left_out)}")
    figure = args.output_dir / "rerank.png"
    plot_percent(figure, columns, names)
    print(f"\n{figure}")


def read_cost(folder: Path) -> Result | None:
    """Of a query; None of a run that computed no answer, because an earlier run had kept them all."""
    path = folder / "cost.json"
    return read_result(path, WAY_OUT) if path.exists() else None


def common_tasks(results: Mapping[str, Result]) -> list[str]:
    """The tasks that all runs have, M-BEIR's in their order, then others; raises UserError if there is none."""
    first, *others = (result.content for result in results.values())
    shared = [task for task in first if all(task in other for other in others)]
    if not shared:
        raise UserError(f"{', '.join(results)} have no task in common")
    order = {task.name: i for i, task in enumerate(TASKS)}
    return sorted(shared, key=lambda name: order.get(name, len(order)))


def recall_at_1(results: Mapping[str, Result], tasks: Sequence[str]) -> dict[str, list[float]]:
    """Recall@1 of each task, then their average: of the rankings before, as "retrieved", and after each run.

    Raises:
        UserError: the runs did not rerank the same rankings, or a recall is missing.
    """

    def recalls(result: Result, when: str) -> list[float]:
        found = [result.number(task, when, "recall@1") for task in tasks]
        return [*found, sum(found) / len(found)]

    retrieved, *_ = [recalls(result, "before") for result in results.values()]
    before = [[result.content[task]["before"] for task in tasks] for result in results.values()]
    if any(other != before[0] for other in before):
        raise UserError(f"{', '.join(results)} reranked different rankings: their recall before differs")
    return {"retrieved": retrieved} | {name: recalls(result, "after") for name, result in results.items()}


if __name__ == "__main__":
    run(main)
