"""A model soup (arXiv 2203.05482): the mean of several models' weights, one model. Started by scripts/soup.sh.

Of adapters on one base model it makes an adapter, of whole models a whole model. It evaluates, merges, exports and is
trained on like any other. soup.json in its folder says what it is made of.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lamra.common.cli import parse, run
from lamra.common.errors import UserError
from lamra.common.flags import FILE_OR_FOLDER, FOLDER, OUT_FOLDER, Flags, flag, require, require_path, shown
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process, on_first_process, start_processes
from lamra.eval.reporting.results import write_json
from lamra.export.greedy import EVALUATIONS, RECIPE, TRIAL, Recall, Rows, choose
from lamra.models.base_model import base_under
from lamra.models.digests import MODEL_FILES, model_sha256
from lamra.models.folders import CHECKPOINTS, is_adapter, is_model, local_folder, read_object
from lamra.models.inspect import ADAPTER_WEIGHTS, inspect_folder, inspect_weights, read_header
from lamra.models.saving import whole_model
from lamra.models.settings import Settings
from lamra.models.shapes import todays_name

# Of the first model, beside its weights: all that decides what its inputs are.
COPIED = [pattern for pattern in MODEL_FILES if "safetensors" not in pattern and pattern != "adapter_config.json"]
COPIED += ["generation_config.json", "video_preprocessor_config.json"]
SAYS_NOTHING = {"transformers_version", "_name_or_path"}  # of a config.json


@dataclass
class SoupArguments(Flags):
    output_dir: str | None = flag(None, "default: the first model's folder with _soup behind", path=OUT_FOLDER)
    weights: str | None = flag(None, "numbers above 0 with commas, one for each model; default: all the same")
    original_model_id: str | None = flag(
        None, "base model under the adapters, where the one they were trained on is gone", path=FOLDER
    )
    greedy: bool = flag(False, "best first, add a model where the recall on validation data does not get worse")
    eval: str | None = flag(None, "of --greedy: pictures with captions, or M-BEIR's val files", one_of=EVALUATIONS)
    image_data_path: str | None = flag(None, "of --eval captions: folder of pictures", path=FOLDER)
    text_data_path: str | None = flag(None, "of --eval captions: their captions", path=FILE_OR_FOLDER)
    mode: str | None = flag(
        None, "of --eval captions: finetuned instructs, default: pretrained", one_of=("pretrained", "finetuned")
    )
    data_path: str | None = flag(None, "of --eval mbeir: M-BEIR's folder", path=FOLDER)
    tasks: str | None = flag(None, "of --eval mbeir: all (default), or names separated by commas")
    bf16: bool | None = flag(None, "of --greedy's evaluation; default: True where the GPU has it, else float32")
    max_tokens_per_batch: int | None = flag(None, "of --greedy's evaluation: tokens in a forward", low=1)

    def __post_init__(self):
        super().__post_init__()
        for name, value in self.of_greedy().items():
            require(self.greedy, name, value, "--greedy True beside it")
        require(
            self.eval is not None or not self.greedy, "greedy", True, f"--eval {' or '.join(EVALUATIONS)} beside it"
        )
        require(not (self.weights and self.greedy), "weights", self.weights, "no --greedy True: its weights are equal")
        for other, names in EVALUATIONS.items():
            for name in names if other != self.eval else ():
                require(getattr(self, name) is None, name, getattr(self, name), f"--eval {other} beside it")

    def of_greedy(self) -> dict[str, Any]:
        """The flags given that only --greedy reads."""
        names = ["eval", *(name for of in EVALUATIONS.values() for name in of), "bf16", "max_tokens_per_batch"]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Part:
    """A model of a soup: an adapter and its base model's folder, or a whole model, whose `base` is None."""

    folder: Path
    settings: Settings | None
    base: Path | None

    @property
    def kind(self) -> str:
        return "an adapter" if self.base else "a whole model"


def main() -> None:
    args, words = parse(SoupArguments, words="MODEL")
    if not args.greedy and not is_first_process():
        return
    parts = parts_of(words, args.original_model_id)
    weights = weights_of(args.weights, len(parts))
    folder = output_of(args, parts[0])
    recall = None
    if args.greedy:
        recall = recall_of(args, parts, folder)
        start_processes()
    with folder_lock(folder):
        recipe: dict[str, Any] = {}
        if recall:
            recall.start(parts[0].base)
            trials = choose(len(parts), recall)
            recipe = recall.recipe(trials)
            parts = [parts[row] for row in next(trial.rows for trial in reversed(trials) if trial.kept)]
            weights = weights_of(None, len(parts))
        models = [
            {"folder": str(part.folder), "sha256": model_sha256(part.folder), "weight": weight}
            for part, weight in zip(parts, weights)
        ]
        on_first_process(lambda: write_soup(folder, parts, weights, {"models": models, **recipe}))
        if recall:
            on_first_process(recall.clear)
    if is_first_process():
        if recall:
            recall.print(trials)
        told = " + ".join(f"{weight:.4g} {part.folder}" for weight, part in zip(weights, parts))
        print(f"{told}: {parts[0].kind} in {folder}/")


def recall_of(args: SoupArguments, parts: Sequence[Part], folder: Path) -> Recall:
    """What measures the soups of a greedy recipe.

    Raises:
        UserError: they are rerankers, or a flag of the evaluation is wrong.
    """
    if (settings := parts[0].settings) and settings.role == "reranker":
        raise UserError(f"--greedy True measures the recall of retrievers, and {parts[0].folder} is a reranker")

    def write(trial: Path, rows: Rows) -> None:
        write_soup(trial, [parts[row] for row in rows], weights_of(None, len(rows)), {})

    return Recall(args, [part.folder for part in parts], folder, write)


def parts_of(words: Sequence[str], original_model: str | None) -> list[Part]:
    """The models of a command line: folders, or names of runs below checkpoints/.

    Raises:
        UserError: there are fewer than two, one of them is no model, or they do not make a soup.
    """
    if len(words) < 2:
        raise UserError(f"a soup is of two models or more, and {len(words)} given: name their folders")
    parts = [read_part(word, original_model) for word in words]
    seen: dict[Path, str] = {}
    for word, part in zip(words, parts):
        if other := seen.get(part.folder.resolve()):
            raise UserError(f"{other} and {word} are the same folder: name each model once, and weigh it by --weights")
        seen[part.folder.resolve()] = word
    for part in parts[1:]:
        require_alike(parts[0], part)
    return parts


def read_part(word: str, original_model: str | None) -> Part:
    run_folder = CHECKPOINTS / word
    folder = Path(str(run_folder) if not is_model(word) and is_model(run_folder) else local_folder(word, "MODEL"))
    if not is_model(folder):
        hint = (
            "has its training finished?" if folder.is_dir() else f"there is no such folder, here or in {CHECKPOINTS}/"
        )
        raise UserError(f"{shown(word)} is no model, neither adapter_config.json nor config.json is there: {hint}")
    base = None
    if is_adapter(folder):
        base = Path(base_under(folder, original_model))
    elif original_model:
        raise UserError(f"--original_model_id {original_model}: {folder} is a whole model: leave the flag out")
    inspect_folder(folder, str(base) if base else None)
    return Part(folder, Settings.read(folder), base)


def require_alike(ours: Part, theirs: Part) -> None:
    """Refuse two models whose weights have no mean: of different bases, settings, ranks or shapes.

    Raises:
        UserError: says in what they differ.
    """
    a, b = ours.folder, theirs.folder
    if ours.kind != theirs.kind:
        raise UserError(f"{a} is {ours.kind} and {b} {theirs.kind}: merge the adapters first, by scripts/merge_lora.sh")
    require_same_settings(ours, theirs)
    if not have_one_base(ours, theirs):
        raise UserError(f"{a} and {b} were trained on different base models: a soup is of models of one base")
    if ours.base:
        require_same_ranks(a, b)
    else:
        require_same_files(a, b)
    tensors, others = tensors_of(ours), tensors_of(theirs)
    for name in sorted(tensors.keys() | others.keys()):
        if tensors.get(name) != others.get(name):
            found = " and ".join(of.get(name, "not there") for of in (tensors, others))
            raise UserError(f"{a} and {b} have not the same weights: {name} is {found}; train or merge them alike")


def require_same_settings(ours: Part, theirs: Part) -> None:
    """All but the folder and digest of the base model, and a temperature, which may be learnt and ranks nothing."""
    if ours.settings is None or theirs.settings is None:
        if ours.settings is not theirs.settings:
            trained, other = (ours, theirs) if ours.settings else (theirs, ours)
            raise UserError(f"{trained.folder} was trained by LamRA and {other.folder} was not: it has no lamra.json")
        return
    values, others = asdict(ours.settings), asdict(theirs.settings)
    for name in values:
        if name not in ("base_model", "base_sha256", "temperature") and values[name] != others[name]:
            raise UserError(
                f"{ours.folder} has {name} {values[name]} and {theirs.folder} {others[name]}: a soup is of models "
                "trained with the same settings"
            )


def have_one_base(ours: Part, theirs: Part) -> bool:
    """Of whole models that do not say what they were trained on: True."""
    known = [part.settings.base_sha256 if part.settings else None for part in (ours, theirs)]
    if all(known):
        return known[0] == known[1]
    if not (ours.base and theirs.base) or ours.base.resolve() == theirs.base.resolve():
        return True
    return model_sha256(ours.base) == model_sha256(theirs.base)


def require_same_ranks(a: Path, b: Path) -> None:
    configs = [read_object(folder / "adapter_config.json") for folder in (a, b)]
    for key in ("r", "rank_pattern"):
        ours, theirs = (config.get(key) or {} for config in configs)
        if ours != theirs:
            raise UserError(
                f"{a} has LoRA of {key} {ours} and {b} of {theirs}: a soup is of adapters of the same rank; or merge "
                "them by scripts/merge_lora.sh, and name the merged models"
            )


def require_same_files(a: Path, b: Path) -> None:
    """Refuse whole models that differ in their config.json, tokenizer, chat template or image settings."""
    ours, theirs = (read_object(folder / "config.json") for folder in (a, b))
    for key in sorted((ours.keys() | theirs.keys()) - SAYS_NOTHING):
        if ours.get(key) != theirs.get(key):
            raise UserError(f"{a} and {b} have not the same {key} in config.json: a soup is of models of one base")
    for name in sorted({path.name for folder in (a, b) for path in copied(folder)} - {"config.json"}):
        contents = [(folder / name).read_bytes() if (folder / name).is_file() else None for folder in (a, b)]
        if contents[0] != contents[1]:
            raise UserError(
                f"{a} and {b} have not the same {name}: copy that of the base model to both, or merge them again by "
                "scripts/merge_lora.sh"
            )


def copied(folder: Path) -> list[Path]:
    return sorted({path for pattern in COPIED for path in folder.glob(pattern) if path.is_file()})


def tensors_of(part: Part) -> dict[str, str]:
    """Today's name -> dtype and shape of each tensor; of an adapter, whose soup is float32, the shape alone."""
    if part.base:
        header = read_header(part.folder / ADAPTER_WEIGHTS)
        return {todays_name(name): str(list(of.shape)) for name, of in header.items()}
    return {name: f"{of.dtype} {list(of.shape)}" for name, of in inspect_weights(part.folder).tensors.items()}


def weights_of(listed: str | None, number: int) -> list[float]:
    """The weights of --weights, or equal ones; their sum is 1.

    Raises:
        UserError: they are not as many positive numbers as there are models.
    """
    if listed is None:
        return [1 / number] * number
    wanted = f"{number} numbers above 0 with commas between, one for each model"
    try:
        weights = [float(word) for word in listed.split(",")]
    except ValueError:
        raise UserError(f"--weights {shown(listed)}: expected {wanted}") from None
    fits = len(weights) == number and all(0 < weight < math.inf for weight in weights)
    total = sum(weights)
    require(fits and 0 < total < math.inf, "weights", listed, wanted)
    return [weight / total for weight in weights]


def output_of(args: SoupArguments, first: Part) -> Path:
    """Where the soup is written; what an unfinished greedy soup left there may stand there.

    Raises:
        UserError: something else stands there, or it cannot be written.
    """
    folder = Path(args.output_dir or f"{first.folder}_soup")
    require_path("output_dir", folder, OUT_FOLDER)
    there = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    left = [name for name in there if args.greedy and (name == RECIPE or name.startswith(TRIAL))]
    if is_model(folder) or sorted(left) != sorted(there):
        raise UserError(f"--output_dir {folder} is not empty: choose another folder")
    return folder


def write_soup(folder: Path, parts: Sequence[Part], weights: Sequence[float], recipe: dict[str, Any]) -> None:
    """Write a soup's folder as a whole.

    Args:
        recipe: for soup.json.
    """
    from lamra.models.averaging import write_mean_adapter, write_mean_model  # torch, which --help does not wait for

    with whole_model(folder) as unfinished:
        for path in copied(parts[0].folder):
            shutil.copyfile(path, unfinished / path.name)
        if settings := parts[0].settings:
            base = parts[0].base or settings.base_model
            replace(settings, base_model=str(base)).write(unfinished)
        write = write_mean_adapter if parts[0].base else write_mean_model
        write(unfinished, [part.folder for part in parts], weights)
        write_json(unfinished / RECIPE, recipe)


if __name__ == "__main__":
    run(main)
