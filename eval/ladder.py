"""The ladder's report: what each rung adds to LamRA's stage 2. Read from what scripts/study/ladder.sh measured.

python eval/ladder.py --study NAME writes results/NAME/{results.csv, table.md, ladder.png}.
python eval/ladder.py --study NAME --choose A B prints the one of the runs A and B that is better on the val queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lamra.common.cli import parse, run
from lamra.common.files import whole_file
from lamra.common.flags import FOLDER, OUT_FOLDER, Flags, flag, require, require_path
from lamra.eval.reporting.results import METRICS


@dataclass
class LadderArguments(Flags):
    study: str = flag("ladder", "name below results/")
    choose: list[str] | None = flag(None, "runs below it, of which to print the best on val", nargs="+")

    def __post_init__(self):
        super().__post_init__()
        names = self.choose or []
        require(len({*names}) == len(names), "choose", " ".join(names), "runs with a name of their own")

    def check_paths(self) -> None:
        super().check_paths()
        require_path("study", self.results, FOLDER, "scripts/study/ladder.sh makes it")
        require_path("study", self.results, OUT_FOLDER)
        for name in self.choose or []:
            measured = bool(name) and (self.results / name / "val_local" / METRICS).is_file()
            require(measured, "choose", name, f"a run below {self.results} that was measured on val")

    @property
    def results(self) -> Path:
        return Path("results", self.study)


def main() -> None:
    (args,) = parse(LadderArguments, epilog=__doc__)

    from lamra.eval.reporting import ladder  # pandas and matplotlib: after --help

    folder = args.results
    if args.choose:
        print(ladder.best_on_val(folder, args.choose))
        return
    frame = ladder.read_rungs(folder)
    with whole_file(folder / "results.csv") as file:
        frame.to_csv(file, index=False)
    print("\n" + ladder.write_table(folder / "table.md", frame))
    ladder.plot_rungs(folder / "ladder.png", frame)
    print(f"written to {folder}/: results.csv, table.md, ladder.png")


if __name__ == "__main__":
    run(main)
