"""The study's report: which pre-training data, and how much of it. Read from the metrics.json of its runs.

python eval/study.py --study NAME writes results/NAME/{results.csv, table.md, data_types.png, data_scale.png}, and each
run's settings and recalls as hparams into its TensorBoard folder. --titles names the galleries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lamra.common.cli import parse, run
from lamra.common.files import whole_file
from lamra.common.flags import FOLDER, OUT_FOLDER, Flags, flag, require, require_path


@dataclass
class StudyArguments(Flags):
    study: str = flag("study", "name below results/ and checkpoints/")
    titles: list[str] = field(
        default_factory=lambda: ["Flickr30K", "COCO"], metadata={"help": "of the galleries flickr and coco", "nargs": 2}
    )

    def __post_init__(self):
        super().__post_init__()
        own = len({*self.titles, ""}) == 3
        require(own, "titles", " ".join(self.titles), "a title of its own for each gallery")

    def check_paths(self) -> None:
        super().check_paths()
        require_path("study", self.results, FOLDER, "scripts/study/data_types.sh makes it")
        require_path("study", self.results, OUT_FOLDER)

    @property
    def results(self) -> Path:
        return Path("results", self.study)


def main() -> None:
    (args,) = parse(StudyArguments, epilog=__doc__)

    from lamra.eval.reporting import study  # pandas and matplotlib: after --help

    folder = args.results
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
