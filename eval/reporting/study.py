"""The study's results: read from the metrics.json of its runs, as a table, conclusions, figures and hparams.

A run is a kind of pre-training data, a share of it in percent, and a seed. A frame has one row a recall, with columns
kind, percent, seed, data (the gallery), direction, k, recall.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pandas as pd

from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.eval.reporting.figures import COLOURS, bar_positions, figure_of, save_figure
from lamra.eval.reporting.results import DIRECTIONS, read_result

KINDS = {"none": "base model", "text": "text", "image": "image", "image-text": "image-text", "mixture": "mixture"}
RUN = re.compile(r"(?P<kind>.+)-(?P<percent>\d+)-seed(?P<seed>\d+)")
RUN_KEYS = ["kind", "percent", "seed"]
RECALL = re.compile(r"(?P<direction>.+_recall)@(?P<k>\d+)")  # metrics.json has more
AGAIN = "delete it, and start the study again"
GALLERIES = ("flickr", "coco")  # the folders that scripts/study/env.sh makes, in the order to show


def read_results(folder: Path) -> pd.DataFrame:
    """Read <folder>/KIND-PERCENT-seedN/GALLERY/metrics.json of all runs into a frame, in the order to show.

    Raises:
        UserError: there is no finished run, a file cannot be read, or no gallery has all runs.
    """
    rows = []
    for path in sorted(folder.glob("*/*/metrics.json")):
        if run := RUN.fullmatch(path.parts[-3]):
            settings: dict[str, Any] = dict(
                kind=run["kind"], percent=int(run["percent"]), seed=int(run["seed"]), data=path.parts[-2]
            )
            result = read_result(path, AGAIN)
            for name in result.content:
                if recall := RECALL.fullmatch(name):
                    value = result.number(name)
                    if not 0 <= value <= 1 or settings["percent"] > 100:
                        raise UserError(f"{path}: {name} is {value:g} of a run on {run['percent']} percent: {AGAIN}")
                    rows.append(settings | recall.groupdict() | {"recall": value})
    if not rows:
        raise UserError(f"{folder} holds no finished run (KIND-PERCENT-seedN/DATA/metrics.json)")
    frame = pd.DataFrame(rows).astype({"k": int})
    if not common_galleries(frame):
        raise UserError(f"{folder}: no gallery ({', '.join(GALLERIES)}) has all runs; measure them on the same ones")
    galleries = set(frame["data"])
    kinds = [*KINDS, *sorted(set(frame["kind"]) - set(KINDS))]
    frame["kind"] = pd.Categorical(frame["kind"], kinds, ordered=True)
    frame["data"] = pd.Categorical(frame["data"], [name for name in GALLERIES if name in galleries], ordered=True)
    return frame.sort_values([*RUN_KEYS, "data", "direction", "k"], ignore_index=True)


def spread(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean, standard deviation (NaN of one run) and number of the recalls of each group over its seeds."""
    return frame.groupby(by, observed=True)["recall"].agg(["mean", "std", "count"])


def common_galleries(frame: pd.DataFrame) -> list[str]:
    """The galleries that every run was measured on."""
    runs = frame.groupby("data", observed=True)[RUN_KEYS].apply(lambda part: len(part.drop_duplicates()))
    return list(runs.index[runs == len(frame[RUN_KEYS].drop_duplicates())])


def overall(frame: pd.DataFrame) -> pd.DataFrame:
    """Each run's R@1, averaged over the galleries that all runs have and over directions, as column `recall`."""
    first = frame[(frame["k"] == 1) & frame["data"].isin(common_galleries(frame))]
    return first.groupby(RUN_KEYS, observed=True)["recall"].mean().reset_index()


def conclusions(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """What the practice concluded, and what these runs show of it: "held", "did not hold", or why neither can be said.

    A difference counts when it exceeds the larger standard deviation over seeds of the two means. One seed has none.
    """
    groups = spread(overall(frame), ["kind", "percent"])
    means = {key: (row["mean"], row["std"], row["count"]) for key, row in groups.iterrows()}

    def exceeds(a: tuple, b: tuple) -> str:
        (mean_a, std_a, seeds_a), (mean_b, std_b, seeds_b) = means[a], means[b]
        if min(seeds_a, seeds_b) < 2:
            return "needs 2 seeds"
        if abs(mean_a - mean_b) <= max(std_a, std_b):
            return "within the spread"
        return "held" if mean_a > mean_b else "did not hold"

    def verdict(*pairs: tuple) -> str:
        found = [exceeds(a, b) for a, b in pairs if a in means and b in means]
        order = ("did not hold", "needs 2 seeds", "within the spread", "held")
        return next((word for word in order if word in found), "not run")

    text, mixture = ("text", 100), ("mixture", 100)
    sizes = sorted(key for key in means if key[0] == "text")
    return [
        ("text alone is the best data", verdict((text, ("image", 100)), (text, ("image-text", 100)), (text, mixture))),
        ("text alone rises steadily with its size", verdict(*((b, a) for a, b in itertools.pairwise(sizes)))),
        ("mixing lowers the result of text alone", verdict((text, mixture))),
    ]


def write_table(path: Path, frame: pd.DataFrame) -> str:
    """table.md: R@1 of every kind and size in each gallery and direction, mean ± standard deviation over seeds."""
    columns = [(data, direction) for data in frame["data"].cat.categories for direction in DIRECTIONS]
    cells = spread(frame[frame["k"] == 1], ["kind", "percent", "data", "direction"])
    mean = spread(overall(frame), ["kind", "percent"])
    heads = [f"{data}, {DIRECTIONS[direction]}" for data, direction in columns]
    lines = ["| data | size | seeds | " + " | ".join(heads) + " | mean |", "|---" * (len(columns) + 4) + "|"]
    for (kind, percent), row in mean.iterrows():
        keys = [(kind, percent, *column) for column in columns]
        found = [cells.loc[key] if key in cells.index else None for key in keys]
        values = " | ".join(map(_cell, [*found, row]))
        size = f"{percent} %" if kind != "none" else "-"
        lines.append(f"| {KINDS.get(kind, kind)} | {size} | {int(row['count'])} | {values} |")
    left_out = sorted(set(frame["data"].cat.categories) - set(common_galleries(frame)))
    not_all = f" The mean leaves out {', '.join(left_out)}, which not every run has." if left_out else ""
    lines += ["", f"R@1, mean ± standard deviation over seeds.{not_all}", ""]
    lines += ["| the practice's conclusion | here |", "|---|---|"]
    lines += [f"| {statement} | {verdict} |" for statement, verdict in conclusions(frame)]
    with whole_file(path) as file:
        file.write("\n".join(lines) + "\n")
    return path.read_text()


def _cell(row: pd.Series | None) -> str:
    if row is None:
        return "-"
    return f"{row['mean']:.3f}" + (f" ± {row['std']:.3f}" if row["count"] > 1 else "")


def plot_kinds(path: Path, frame: pd.DataFrame) -> None:
    """R@1 of each kind at full size: a panel a direction, a colour a gallery, error bars and dots over seeds."""
    frame = frame[(frame["k"] == 1) & frame["percent"].isin([0, 100])]
    kinds = [kind for kind in frame["kind"].cat.categories if kind in set(frame["kind"])]
    galleries = frame["data"].cat.categories
    figure, panels = figure_of(len(DIRECTIONS))
    positions, width = bar_positions(len(kinds), len(galleries), share=0.8)
    for panel, (direction, title) in zip(panels, DIRECTIONS.items()):
        for left, colour, data in zip(positions, COLOURS, galleries):
            part = frame[(frame["direction"] == direction) & (frame["data"] == data)]
            groups = spread(part, ["kind"]).reindex(kinds)
            panel.bar(left, groups["mean"], 0.94 * width, color=colour, label=data)
            panel.errorbar(left, groups["mean"], groups["std"], fmt="none", ecolor="black", elinewidth=1, capsize=2)
            for x, kind in zip(left, kinds):
                runs = part[part["kind"] == kind]["recall"]
                panel.plot([x] * len(runs), runs, ".", color="black", markersize=3, alpha=0.5)
        panel.set(title=title, xlabel="pre-training data")
        panel.set_xticks(range(len(kinds)), [KINDS.get(kind, kind) for kind in kinds], fontsize=8)
        panel.set_ylim(0, 1.02)
    panels[0].set_ylabel("recall@1")
    save_figure(path, figure, panels[0])


def plot_sizes(path: Path, frame: pd.DataFrame) -> None:
    """R@1 against data size: a panel a gallery and kind, a line a direction, error bars over seeds."""
    frame = frame[(frame["k"] == 1) & (frame["percent"] > 0)]
    sizes = frame.groupby("kind", observed=True)["percent"].nunique()
    shown = [(kind, data) for kind in sizes.index[sizes > 1] for data in frame["data"].unique()]
    if not shown:
        return
    figure, panels = figure_of(len(shown))
    for panel, (kind, data) in zip(panels, shown):
        for colour, (direction, title) in zip(COLOURS, DIRECTIONS.items()):
            part = frame[(frame["kind"] == kind) & (frame["data"] == data) & (frame["direction"] == direction)]
            groups = spread(part, ["percent"])
            panel.errorbar(
                groups.index, groups["mean"], groups["std"], color=colour, marker="o", capsize=3, label=title
            )
        panel.set(title=f"{KINDS.get(kind, kind)}, {data}", xlabel="share of the data (%)", xscale="log")
        ticks = sorted(frame["percent"].unique())
        panel.set_xticks(ticks, ticks)
        panel.minorticks_off()
        panel.set_ylim(0, 1.02)
    panels[0].set_ylabel("recall@1")
    save_figure(path, figure, panels[0])


def write_hparams(checkpoints: Path, frame: pd.DataFrame) -> None:
    """What a run was and what it reached, beside its curve in TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    for (kind, percent, seed), part in frame.groupby(RUN_KEYS, observed=True):
        folder = checkpoints / f"{kind}-{percent}-seed{seed}" / "runs"
        if folder.is_dir():
            recalls = {f"{row.data}/{row.direction}@{row.k}": row.recall for row in part.itertuples()}
            with SummaryWriter(str(folder / "hparams")) as writer:
                writer.add_hparams({"kind": kind, "percent": percent, "seed": seed}, recalls, run_name=".")
