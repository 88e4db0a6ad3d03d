"""How results are shown and kept: a text table, metrics.json, and a figure.

python eval/report.py --output_dir DIR "name of a run=its metrics.json" ... puts runs side by side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.common.files import whole_file

Rows = Mapping[str, Mapping[str, float]]  # name of a run -> what metrics.retrieval_recalls returns

DIRECTIONS = {"image_retrieval_recall": "image retrieval", "text_retrieval_recall": "text retrieval"}
KS = (1, 5, 10)

# Qwen2-VL-7B after stage 1 on the Flickr30K 1K test split, zero-shot, as the practice this project starts from reports.
PRACTICE_STAGE1_FLICKR30K = {
    "image_retrieval_recall@1": 0.8056,
    "image_retrieval_recall@5": 0.9536,
    "image_retrieval_recall@10": 0.9732,
    "text_retrieval_recall@1": 0.9140,
    "text_retrieval_recall@5": 0.9910,
    "text_retrieval_recall@10": 0.9970,
}

# Okabe and Ito's palette, told apart with any colour vision: blue, orange, green, purple, sky blue, vermilion.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def print_table(rows: Rows) -> None:
    """Print one line a run: recall@1, 5 and 10 of image retrieval, then of text retrieval."""
    width = max(map(len, rows), default=0)
    group = 8 * len(KS)
    print(" " * width + "".join(f"  {title:>{group}}" for title in DIRECTIONS.values()))
    print(" " * width + ("  " + "".join(f"{f'R@{k}':>8}" for k in KS)) * len(DIRECTIONS))
    for name, metrics in rows.items():
        cells = ("".join(f"{metrics[f'{direction}@{k}']:8.4f}" for k in KS) for direction in DIRECTIONS)
        print(f"{name:<{width}}" + "".join(f"  {part}" for part in cells))


def write_metrics(folder: str | Path, metrics: Mapping[str, object]) -> Path:
    """Write metrics.json into `folder`: keys sorted, floats in full, so that equal results are equal files.

    Raises:
        UserError: a metric is NaN or infinite.
    """
    return _write_json(Path(folder) / "metrics.json", metrics)


def write_made_by(folder: str | Path, made_by: Mapping[str, object]) -> Path:
    """Write made_by.json beside rankings: the digests of what was really used (see shards.made_by)."""
    return _write_json(Path(folder) / "made_by.json", made_by)


def _write_json(path: Path, content: Mapping[str, object]) -> Path:
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with whole_file(path) as file:
        file.write(text)
    return path


def write_ranking(path: str | Path, rows: Iterable[tuple[str, Sequence[str], Sequence[float]]]) -> None:
    """One line {qid, did, score, rank} for each candidate of each query, rank 1 first.

    Args:
        rows: for each query its id, its candidates' ids, best first, and their scores.
    """
    with whole_file(path) as file:
        for qid, dids, scores in rows:
            for rank, (did, score) in enumerate(zip(dids, scores), start=1):
                line = {"qid": qid, "did": did, "score": score, "rank": rank}
                file.write(json.dumps(line, allow_nan=False) + "\n")


def plot_recalls(path: str | Path, rows: Rows) -> None:
    """Draw recall@1, 5 and 10 of up to six runs as a PNG: one panel a direction, one colour a run."""
    figure, panels = figure_of(len(DIRECTIONS))
    bar = 0.84 / max(len(rows), 1)
    for panel, (direction, title) in zip(panels, DIRECTIONS.items()):
        for i, (name, metrics) in enumerate(rows.items()):
            left = [x - 0.42 + (i + 0.5) * bar for x in range(len(KS))]
            bars = panel.bar(left, [metrics[f"{direction}@{k}"] for k in KS], 0.94 * bar, color=COLOURS[i], label=name)
            panel.bar_label(bars, fmt="%.3f", fontsize=8 if len(rows) < 3 else 6.5, padding=2)
        panel.set(
            title=f"{title}", xlabel="k (candidates looked at)", ylim=(0, 1.08), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1]
        )
        panel.set_xticks(range(len(KS)), KS)
        panel.tick_params(axis="x", length=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("recall@k")
    save_figure(path, figure, panels[0])


def figure_of(panels: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side that share their y axis."""
    figure = Figure(figsize=(4.5 * panels, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])


def save_figure(path: str | Path, figure: Figure, panel: Axes) -> None:
    """Write a PNG with one legend below all panels, that of `panel`."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def read_runs(arguments: Sequence[str]) -> dict[str, dict]:
    """Arguments "name=metrics.json" to name -> content of the file.

    Raises:
        UserError: an argument is not of that form, a name stands twice, or a file is not there or no metrics.
    """
    rows = {}
    for name, path in named_paths(arguments, "metrics.json").items():
        try:
            rows[name] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} of {name!r} cannot be read ({error}): an evaluation writes it") from None
    return rows


def named_paths(arguments: Sequence[str], kind: str) -> dict[str, Path]:
    """Arguments "name=path" to name -> path; raises UserError for another form or a name that stands twice."""
    paths: dict[str, Path] = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not name or not path or name in paths:
            raise UserError(f'{argument!r} is not "name={kind}" with a name of its own')
        paths[name] = Path(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare runs: a table, DIR/metrics.json and DIR/recall.png.")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("runs", nargs="+", metavar="name=metrics.json")
    args = parser.parse_args()
    if len(args.runs) > len(COLOURS):
        raise UserError(f"{len(args.runs)} runs: the figure tells at most {len(COLOURS)} apart; name fewer")
    rows = read_runs(args.runs)
    wanted = {f"{direction}@{k}" for direction in DIRECTIONS for k in KS}
    for name, row in rows.items():
        if missing := sorted(wanted - set(row)):
            raise UserError(f"the metrics of {name!r} lack {missing[0]}: name those of eval_flickr.py or eval_coco.py")
    print()
    print_table(rows)
    metrics = write_metrics(args.output_dir, rows)
    plot_recalls(args.output_dir / "recall.png", rows)
    print(f"\n{metrics}\n{args.output_dir / 'recall.png'}")


if __name__ == "__main__":
    run(main)
