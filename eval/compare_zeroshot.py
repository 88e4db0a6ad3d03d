"""Models side by side on the zero-shot suite: `python eval/compare_zeroshot.py --output_dir DIR "name=folder" ...`

Each folder is one that eval_zeroshot.sh wrote, with a folder for each set. Prints what counts of each set that all
have, beside the chance level, and draws DIR/zeroshot.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.eval.reporting.results import METRICS, Parser, named_paths, print_table
from lamra.eval.zeroshot_sets import SETS
from lamra.eval.zeroshot_suite import read_set

WAY_OUT = "name a folder that eval_zeroshot.sh wrote, with a folder for each set"


def main() -> None:
    parser = Parser(__doc__, "folder")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    from lamra.eval.reporting.figures import COLOURS, plot_percent, require_colours  # matplotlib: after --help

    folders = named_paths(args.runs, "folder")
    require_colours(len(folders), len(COLOURS) - 1)  # chance has one
    sets = [name for name in SETS if all((folder / name / METRICS).exists() for folder in folders.values())]
    if not sets:
        raise UserError(f"{', '.join(map(str, folders.values()))} have no set in common: {WAY_OUT}")
    counted = {run: [row for name in sets for row in counted_of(folder / name)] for run, folder in folders.items()}
    first, *others = counted.values()
    if any([row[:-1] for row in other] != [row[:-1] for row in first] for other in others):
        raise UserError(f"{', '.join(counted)} measured different things: other tasks, protocols or galleries")
    columns = {"chance": [row.chance for row in first]}
    columns |= {run: [row.value for row in rows] for run, rows in counted.items()}
    print_table(
        ["in percent", "measure", *columns],
        ([row.name, row.measure, *(f"{100 * value:.1f}" for value in values)]
         for row, *values in zip(first, *columns.values())),
    )  # fmt: skip
    figure = args.output_dir / "zeroshot.png"
    plot_percent(figure, columns, [f"{row.name}, {row.measure}" for row in first], "percent")
    print(f"\n{figure}")


class Counted(NamedTuple):
    name: str
    measure: str
    chance: float
    value: float


def counted_of(folder: Path) -> list[Counted]:
    """What counts of each task of a set, and what rankings in random order have; of a set with a mean, that alone."""
    result = read_set(folder)
    title, measure = f"{result.content['set']} ({result.content['protocol']})", result.content["measure"]
    found = {
        task: (result.number("tasks", task, "chance"), result.number("tasks", task, values["counted"]))
        for task, values in result.content["tasks"].items()
        if values["counted"] in values  # else a server measures it
    }
    if "mean" not in result.content:
        return [Counted(f"{title} {task}", measure, *values) for task, values in found.items()]
    chance, value = (sum(values) / len(values) for values in zip(*found.values()))
    return [Counted(f"{title} mean", measure, chance, value)]


if __name__ == "__main__":
    run(main)
