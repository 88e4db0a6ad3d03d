"""The study's report: which pre-training data, and how much of it. Read from the metrics.json of its runs.

python eval/study.py --study NAME writes results/NAME/{results.csv, table.md, data_types.png, data_scale.png}, and each
run's settings and recalls as hparams into its TensorBoard folder. --titles names the galleries.
"""

from __future__ import annotations

from pathlib import Path

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.eval.reporting.results import Parser


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--study", default="study", help="name below results/ and checkpoints/")
    parser.add_argument("--titles", nargs=2, default=["Flickr30K", "COCO"], help="of the galleries flickr and coco")
    args = parser.parse_args()
    if len(set(args.titles)) < 2:
        raise UserError(f"--titles {' '.join(args.titles)}: expected a title of its own for each gallery")

    from lamra.eval.reporting import study  # pandas and matplotlib: after --help

    folder = Path("results", args.study)
    frame = study.read_results(folder)
    with whole_file(folder / "results.csv") as file:
        frame.to_csv(file, index=False)
    frame["data"] = frame["data"].cat.rename_categories(dict(zip(study.GALLERIES, args.titles)))
    study.plot_kinds(folder / "data_types.png", frame)
    study.plot_sizes(folder / "data_scale.png", frame)
    study.write_hparams(Path("checkpoints", args.study), frame)
    print("\n" + study.write_table(folder / "table.md", frame))
    print(f"written to {folder}/: results.csv, table.md, data_types.png, data_scale.png")


if __name__ == "__main__":
    run(main)
