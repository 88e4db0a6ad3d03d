"""The ladder's results: read from the files of its runs, as a table and a figure.

A run is a rung and a seed. Runs of one seed begin with the same merged stage-1 model, so a rung's gain over the first
rung, LamRA's own recipe, is taken within each seed. A frame has one row a run, with columns rung, seed, flags, seconds
(of the training), average and one a task: recalls on test, each in its local pool, at the k that M-BEIR counts.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.datasets.mbeir.layout import TASKS
from lamra.eval.reporting.figures import COLOURS, figure_of, save_figure
from lamra.eval.reporting.results import METRICS, read_result

RECIPE = "recipe"  # the rung that the others are compared with
RUN_FILE = "rung.json"  # what scripts/study/ladder.sh says of a run: rung, seed, flags, seconds
AGAIN = "delete its folder, and start the ladder again"
RUN_KEYS = ["rung", "seed", "flags", "seconds"]

# What others report of a rung's technique: their model and data, no number of ours. Where not marked, M-BEIR's local
# pools; secondary sources are marked so.
REPORTED = {
    "temperature": "+1.2 (U-MARVEL, second hand)",
    "mined": "60.6 to 57.4 (U-MARVEL, unfiltered, second hand)",
    "mined-filtered": "60.6 to 61.7 (U-MARVEL, second hand)",
    "hardness": "+1.1 (LLaVE, other data)",
    "mined-batches": "+14 at batch 32 to 64, +2.5 at 1024 (B3, other data)",
    "distilled": "61.7 to 63.2 (U-MARVEL, second hand)",
    "soup": "71.5 to 73.2 (other data)",
    "bidirectional": "+0.6 (U-MARVEL, second hand); -1.0 (MoCa, other data)",
}

NOTE = """\
In percent, on test, each task in its local pool: {}. Average and gain: mean ± standard deviation over seeds; the gain
is over the recipe with the same seed and stage-1 model, and `gained` says of how many seeds it is above zero. Where a
rung has several settings, the val queries chose. The last column is of others' models and data, and of no run here."""


def read_rungs(folder: Path) -> pd.DataFrame:
    """Read <folder>/RUN/{rung.json, test_local/metrics.json} of all runs with both, in the order they were finished.

    Raises:
        UserError: there is no such run, a file cannot be read, a rung has a seed twice, or runs have other tasks.
    """
    rows = []
    for path in folder.glob(f"*/{RUN_FILE}"):
        if (path.parent / "test_local" / METRICS).exists():
            told, found = read_result(path, AGAIN), read_result(path.parent / "test_local" / METRICS, AGAIN)
            missing = [key for key in ("rung", "flags") if not isinstance(told.content.get(key), str)]
            if missing:
                raise UserError(f"{path} has no word for {' and '.join(missing)}: {AGAIN}")
            row = {key: told.content[key] for key in ("rung", "flags")}
            row |= {key: told.number(key) for key in ("number", "seed", "seconds")}
            tasks = [task for task in TASKS if task.name in found.content]
            row |= {"average": found.number("average")}
            rows.append(row | {task.name: found.number(task.name, f"recall@{task.k}") for task in tasks})
    if not rows:
        raise UserError(f"{folder} holds no finished run (RUN/{RUN_FILE} and RUN/test_local/{METRICS})")
    frame = pd.DataFrame(rows).astype({"seed": int})
    if frame.isna().any(axis=None):
        raise UserError(f"{folder}: its runs were measured on other tasks: {AGAIN}")
    if (twice := frame.duplicated(["rung", "seed"])).any():
        raise UserError(f"{folder} holds {frame[twice].iloc[0]['rung']} of one seed twice: delete one of them")
    if not len(frame[frame["rung"] == RECIPE]):
        raise UserError(f"{folder} holds no run of {RECIPE}, with which others are compared: make it")
    frame = frame.sort_values(["number", "seed"], ignore_index=True)
    frame["rung"] = pd.Categorical(frame["rung"], list(dict.fromkeys(frame["rung"])), ordered=True)
    return frame.drop(columns="number")


def best_on_val(folder: Path, names: list[str]) -> str:
    """The run with the highest average on the val queries, of several the first."""
    measured = {name: read_result(folder / name / "val_local" / METRICS, AGAIN).number("average") for name in names}
    return max(names, key=lambda name: measured[name])


def tasks_of(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if name not in (*RUN_KEYS, "average")]


def gains(frame: pd.DataFrame) -> pd.Series:
    """Each run's average less that of the recipe with the same seed; NaN where the recipe lacks that seed."""
    recipe = frame[frame["rung"] == RECIPE].set_index("seed")["average"]
    return frame["average"] - frame["seed"].map(recipe)


def write_table(path: Path, frame: pd.DataFrame) -> str:
    """table.md: each rung's recalls in percent over its seeds, its gain, what others report, and how it was made."""
    tasks = tasks_of(frame)
    heads = ["rung", "seeds", "average", "least to most", "gain", "gained", *tasks, "training", "reported by others"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    gain = gains(frame)
    for rung, runs in frame.groupby("rung", observed=True):
        over = gain[runs.index].dropna()
        average = 100 * runs["average"]
        least_to_most = f"{average.min():.1f} to {average.max():.1f}" if len(runs) > 1 else "-"
        cells = [rung, len(runs), mean_and_deviation(average), least_to_most]
        if rung == RECIPE or over.empty:
            cells += ["-", "-"]
        else:
            cells += [mean_and_deviation(100 * over, signed=True), f"{(over > 0).sum()} of {len(over)}"]
        cells += [f"{100 * runs[task].mean():.1f}" for task in tasks]
        cells += [f"{runs['seconds'].mean():.0f} s", REPORTED.get(rung, "-")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    ks = {task.name: task.k for task in TASKS}
    counted = ", ".join(f"{task} recall@{ks[task]}" for task in tasks)
    lines += ["", NOTE.format(counted), ""]
    lines += ["| rung | what it adds to the recipe |", "|---|---|"]
    flags = frame.drop_duplicates("rung")
    lines += [f"| {row.rung} | {f'`{row.flags}`' if row.flags else '-'} |" for row in flags.itertuples()]
    with whole_file(path) as file:
        file.write("\n".join(lines) + "\n")
    return path.read_text()


def mean_and_deviation(values: pd.Series, *, signed: bool = False) -> str:
    """ "41.2 ± 0.3", of one value without deviation."""
    mean = f"{values.mean():+.1f}" if signed else f"{values.mean():.1f}"
    return mean + (f" ± {values.std():.1f}" if len(values) > 1 else "")


def plot_rungs(path: Path, frame: pd.DataFrame) -> None:
    """A row a rung: a dot a seed, a line at their mean; the recipe's range as a band. Right: gains within each seed."""
    rungs = list(frame["rung"].cat.categories)
    figure, (panel, right) = figure_of(2)
    figure.set_size_inches(9.5, 1.6 + 0.34 * len(rungs))
    recipe = 100 * frame.loc[frame["rung"] == RECIPE, "average"]
    panel.axvspan(recipe.min(), recipe.max(), color=COLOURS[4], alpha=0.25, linewidth=0, label="the recipe's range")
    right.axvline(0, color="0.6", linewidth=1)
    for side, values in ((panel, 100 * frame["average"]), (right, 100 * gains(frame))):
        for y, rung in enumerate(rungs):
            of_rung = values[frame["rung"] == rung].dropna()
            if side is right and rung == RECIPE:
                continue
            side.plot(
                of_rung,
                [y] * len(of_rung),
                "o",
                color=COLOURS[0],
                markersize=5,
                alpha=0.65,
                label="a seed" if y == 0 else None,
            )
            side.plot(
                [of_rung.mean()],
                [y],
                "|",
                color="black",
                markersize=14,
                markeredgewidth=2,
                label="their mean" if y == 0 else None,
            )
        side.grid(axis="y", linewidth=0.4)
        side.set_axisbelow(True)
        side.set_ylim(len(rungs) - 0.4, -0.6)
    panel.set_yticks(range(len(rungs)), rungs)
    panel.tick_params(axis="y", length=0)
    right.tick_params(axis="y", length=0)
    panel.set(xlabel="average of the tasks on test, in percent")
    right.set(xlabel="gain over the recipe with the same seed, in points")
    save_figure(path, figure, panel)
