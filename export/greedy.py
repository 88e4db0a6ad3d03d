"""Which models go into a greedy soup (arXiv 2203.05482, recipe 1): the recall of soups on validation data decides.

The recall is the project's own evaluation. It is kept in soup.json: a restarted run measures no soup twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import remove
from lamra.common.processes import on_first_process
from lamra.eval.eval_mbeir import MBEIRArguments, evaluate_mbeir, files_of
from lamra.eval.reporting.results import DIRECTIONS, METRICS, print_table, read_result, write_json
from lamra.eval.zeroshot import ZeroshotArguments, evaluate_captions_of
from lamra.models.digests import file_sha256, model_sha256

if TYPE_CHECKING:
    from lamra.export.soup import SoupArguments

# --eval -> the flags that only it reads, by the names that they have in its evaluation.
EVALUATIONS = {"captions": ("image_data_path", "text_data_path", "mode"), "mbeir": ("data_path", "tasks")}
SHARED = ("bf16", "max_tokens_per_batch")
RECIPE = "soup.json"
TRIAL = "trial-"  # how the folder of a soup that is measured begins
AGAIN = "delete it, and the recalls are measured again"

Rows = tuple[int, ...]  # of the models in a soup, in the order in which they came into it


class Trial(NamedTuple):
    """A soup that was measured, and whether it was better than, or as good as, all before it."""

    rows: Rows
    recall: float
    kept: bool


def choose(number: int, recall: Callable[[Rows], float]) -> list[Trial]:
    """Best model first, add each of the others, in the order of their own recalls, where the recall does not get worse.

    Args:
        number: of models.
        recall: of the mean of some of them.

    Returns:
        The trials in order; the last that was kept is the soup. The first is the best model alone.
    """
    alone = [recall((row,)) for row in range(number)]
    first, *others = sorted(range(number), key=lambda row: -alone[row])
    kept: Rows = (first,)
    best = alone[first]
    trials = [Trial(kept, best, True)]
    for row in others:
        soup = (*kept, row)
        found = recall(soup)
        if found >= best:
            kept, best = soup, found
        trials.append(Trial(soup, found, kept == soup))
    return trials


class Recall:
    """The recall of soups of some models on validation data. All processes must call it together.

    Of captions the mean of recall@1 of both directions; of M-BEIR the mean of its tasks, as in the paper's table.

    Args:
        args: the command line's.
        models: their folders.
        folder: of the soup; the recalls are kept there, and trials are written there.
        write: writes the soup of some models into a folder.

    Raises:
        UserError: a flag of the evaluation is wrong, or soup.json is damaged.
    """

    def __init__(self, args: SoupArguments, models: Sequence[Path], folder: Path, write: Callable[[Path, Rows], None]):
        self.args, self.models, self.folder, self.write = args, models, folder, write
        self._flags(models[0], folder / f"{TRIAL}0").check_paths()
        self._found: dict[str, float] = {}

    def start(self, base: Path | None) -> None:
        """Find what an earlier run measured with the same data, settings and base model.

        Pictures are taken to be the same where their captions, or the files of M-BEIR, are.
        """
        self._digests = [model_sha256(model) for model in self.models]
        self._measured_on = {
            "eval": self.args.eval,
            **{name: str(value) for name in self._names() if (value := getattr(self.args, name)) is not None},
            "base": model_sha256(base) if base else None,
            "files": on_first_process(self._files),
        }
        self._found = on_first_process(self._earlier)

    def __call__(self, rows: Rows) -> float:
        key = self._key(rows)
        if key not in self._found:
            trial = self.folder / f"{TRIAL}{key[:8]}"
            model = self.models[rows[0]] if len(rows) == 1 else trial / "model"
            if len(rows) > 1:
                on_first_process(lambda: self.write(model, rows))
            flags = self._flags(model, trial)
            evaluate_mbeir(flags) if isinstance(flags, MBEIRArguments) else evaluate_captions_of(flags, "validation")
            self._found[key] = on_first_process(lambda: self._measured(trial))
            on_first_process(lambda: self._keep(trial))
        recall = self._found[key]
        note(f"recall {recall:.4f}: {self.told(rows)}")
        return recall

    def told(self, rows: Rows) -> str:
        return " + ".join(str(self.models[row]) for row in rows)

    def recipe(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """For soup.json: what was tried, in order, and what came of it."""
        tried = [
            {"models": [str(self.models[row]) for row in rows], "recall": recall, "kept": kept}
            for rows, recall, kept in trials
        ]
        alone = {str(model): self._found[self._key((row,))] for row, model in enumerate(self.models)}
        return {"greedy": {"measured_on": self._measured_on, "alone": alone, "tried": tried}}

    def print(self, trials: Sequence[Trial]) -> None:
        rows = [[self.told(of), f"{100 * recall:.2f}", "kept" if kept else "left out"] for of, recall, kept in trials]
        print_table(["soup, recall in percent on the validation data", "recall", ""], rows)

    def clear(self) -> None:
        """Remove what runs left that were stopped while they measured something else."""
        for trial in self.folder.glob(f"{TRIAL}*"):
            remove(trial)

    def _names(self) -> tuple[str, ...]:
        return (*EVALUATIONS[self.args.eval], *SHARED)

    def _flags(self, model: Path, folder: Path) -> ZeroshotArguments | MBEIRArguments:
        """The command line of the evaluation of a model into a folder."""
        given = {name: value for name in self._names() if (value := getattr(self.args, name)) is not None}
        given |= {"model_id": str(model), "output_dir": str(folder), "original_model_id": self.args.original_model_id}
        return MBEIRArguments(split="val", **given) if self.args.eval == "mbeir" else ZeroshotArguments(**given)

    def _files(self) -> dict[str, str]:
        """Path -> digest of the files that say what is asked and what answers it."""
        flags = self._flags(self.models[0], self.folder)
        if isinstance(flags, MBEIRArguments):
            paths = [path for of in files_of(flags, "local") for path in (of.queries, of.pool, of.qrels)]
            paths.append(Path(flags.data_path, flags.instructions))
        else:
            path = Path(flags.text_data_path)
            paths = [path] if path.is_file() else sorted(path.iterdir())
        # The evaluation tells what is missing.
        return {str(path): file_sha256(path) for path in paths if path.is_file()}

    def _measured(self, trial: Path) -> float:
        if self.args.eval == "mbeir":
            return read_result(trial / "val_local" / METRICS, AGAIN).number("average")
        metrics = read_result(trial / METRICS, AGAIN)
        return sum(metrics.number(f"{direction}@1") for direction in DIRECTIONS) / len(DIRECTIONS)

    def _key(self, rows: Rows) -> str:
        """Of a soup by what is in it: the order makes no difference but for rounding."""
        return hashlib.sha256(json.dumps(sorted(self._digests[row] for row in rows)).encode()).hexdigest()

    def _earlier(self) -> dict[str, float]:
        path = self.folder / RECIPE
        if not path.exists():
            return {}
        content = read_result(path, AGAIN).content
        if content.get("measured_on") != self._measured_on:
            note(f"{path} is of other data or settings: its recalls are measured again")
            return {}
        found = content.get("recalls")
        if not isinstance(found, dict) or not all(isinstance(recall, float) for recall in found.values()):
            raise UserError(f"{path} has no recalls: {AGAIN}")
        return found

    def _keep(self, trial: Path) -> None:
        write_json(self.folder / RECIPE, {"measured_on": self._measured_on, "recalls": self._found})
        remove(trial)
