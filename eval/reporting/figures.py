"""Figures of recall as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.eval.reporting.results import DIRECTIONS, KS, Recalls

# Okabe and Ito's palette, told apart with any colour vision: blue, orange, green, purple, sky blue, vermilion.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")

LARGEST_SIDE = 60_000  # pixels of a PNG that matplotlib can draw


def require_colours(runs: int, most: int = len(COLOURS)) -> None:
    """Refuse more runs than a figure has colours for."""
    if runs > most:
        raise UserError(f"{runs} runs: the figure tells at most {most} apart; name fewer")


def plot_recalls(path: str | Path, rows: Recalls) -> None:
    """Draw recall@1, 5 and 10: a panel a direction, a colour a run; of more runs than colours a line a run."""
    figure, panels = figure_of(len(DIRECTIONS))
    if len(rows) > len(COLOURS):
        figure.set_size_inches(10, 1.5 + 0.2 * len(rows))
        for panel, (direction, title) in zip(panels, DIRECTIONS.items()):
            for k, colour in zip(KS, COLOURS):
                of_runs = [row[f"{direction}@{k}"] for row in rows.values()]
                panel.plot(of_runs, range(len(rows)), "o", color=colour, label=f"recall@{k}")
            panel.set(title=title, xlabel="recall", xlim=(-0.02, 1.02), ylim=(len(rows) - 0.4, -0.6))
            panel.set_yticks(range(len(rows)), rows)
            panel.grid(axis="y", linewidth=0.4)
        save_figure(path, figure, panels[0])
        return
    for panel, (direction, title) in zip(panels, DIRECTIONS.items()):
        positions, width = bar_positions(len(KS), len(rows))
        for left, colour, (name, recalls) in zip(positions, COLOURS, rows.items()):
            bars = panel.bar(left, [recalls[f"{direction}@{k}"] for k in KS], 0.94 * width, color=colour, label=name)
            panel.bar_label(bars, fmt="%.3f", fontsize=8 if len(rows) < 3 else 6.5, padding=2)
        panel.set(title=title, xlabel="k (candidates looked at)", ylim=(0, 1.08), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
        panel.set_xticks(range(len(KS)), map(str, KS))
        panel.tick_params(axis="x", length=0)
    panels[0].set_ylabel("recall@k")
    save_figure(path, figure, panels[0])


def plot_percent(
    path: str | Path, columns: Mapping[str, Sequence[float]], names: Sequence[str], measure: str = "recall@1 in percent"
) -> None:
    """Draw shares in percent as horizontal bars: a group for each of `names`, a colour a column of up to six."""
    figure, (panel,) = figure_of(1)
    figure.set_size_inches(7, 1.2 + 0.22 * len(columns) * len(names))
    positions, width = bar_positions(len(names), len(columns))
    for left, colour, (name, recalls) in zip(positions, COLOURS, columns.items()):
        bars = panel.barh(left, [100 * recall for recall in recalls], 0.9 * width, color=colour, label=name)
        panel.bar_label(bars, fmt="%.1f", fontsize=8, padding=3)
    panel.set(xlabel=measure, xlim=(0, 108), ylim=(len(names) - 0.45, -0.55))  # the first name on top
    panel.set_yticks(range(len(names)), names)
    panel.tick_params(axis="y", length=0)
    save_figure(path, figure, panel)


def plot_recall_by_bytes(path: str | Path, rows: Sequence[tuple[str, int, int, Mapping[int, float]]]) -> None:
    """Draw recall over the bytes of a vector: a panel for each k, a colour a kind of vectors.

    Args:
        rows: kind of vectors, how many of the best were scored again (a dashed line), bytes, and recall at each k.
    """
    figure, panels = figure_of(len(KS))
    colours = dict(zip(dict.fromkeys(vectors for vectors, *_ in rows), COLOURS))
    for panel, k in zip(panels, KS):
        for vectors, again in dict.fromkeys(row[:2] for row in rows):
            points = sorted((row[2], row[3][k]) for row in rows if row[:2] == (vectors, again))
            panel.plot(
                *zip(*points),
                "--o" if again else "-o",
                color=colours[vectors],
                markersize=4,
                markerfacecolor="white" if again else colours[vectors],
                label=f"{vectors}, rescored" if again else vectors,
            )
        panel.set(title=f"recall@{k}", xlabel="bytes of a vector")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.grid(linewidth=0.4)
    save_figure(path, figure, panels[0])


def figure_of(panels: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side that share their y axis, without lines above and to the right."""
    figure = Figure(figsize=(4.5 * panels, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def bar_positions(groups: int, bars: int, share: float = 0.84) -> tuple[list[list[float]], float]:
    """For each bar its centre in each group, and a bar's width; a group is 1 wide, of which bars fill `share`."""
    width = share / max(bars, 1)
    return [[x - share / 2 + (i + 0.5) * width for x in range(groups)] for i in range(bars)], width


def save_figure(path: str | Path, figure: Figure, panel: Axes) -> None:
    """Write a PNG, whole or not at all, with one legend below all panels, that of `panel`."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=min(200, LARGEST_SIDE / max(figure.get_size_inches())))
