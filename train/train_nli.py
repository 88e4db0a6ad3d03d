"""Stage 1: contrastive pre-training on text alone, or on other pairs. Started by scripts/lamra_ret/pretrain.sh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamra.common.cli import note, parse, require, run
from lamra.common.errors import UserError
from lamra.common.files import sha256
from lamra.datasets.items import Pair
from lamra.datasets.pairs import Mixture, Subset, load_source
from lamra.train.arguments import DataArguments, ModelArguments, TrainingArguments
from lamra.train.stage import Stage, alone_in_output

DONE = "stage 1 is done; measure it: MODEL_ID={output_dir} bash scripts/eval/eval_pretrained.sh"


def main() -> None:
    model_args, data_args, args = parse(ModelArguments, DataArguments, TrainingArguments)
    with alone_in_output(args):
        stage = Stage(model_args, args)
        pairs = load_pairs(data_args, args.seed)
        eval_path = data_args.eval_data_path
        eval_pairs = load_and_note(eval_path, "nli") if eval_path else None
        stage.train(pairs, eval_pairs, data_args, describe(data_args.data_path, pairs), DONE)


def load_pairs(args: DataArguments, seed: int) -> Sequence[Pair]:
    """All sources of the data flags, cut to --max_train_samples; several become a Mixture."""
    paths = args.data_path.split(",")
    formats = args.data_format.split(",")
    formats *= 1 if len(formats) == len(paths) else len(paths)
    sources = {
        path: load_and_note(path, format, args.image_root, args.use_hard_negatives)
        for path, format in zip(paths, formats)
    }
    require(len(sources) == len(paths), "data_path", args.data_path, "each file once; --mixture_weights weighs them")
    negatives = {path: len(source[0].negatives) for path, source in sources.items()}
    if len(set(negatives.values())) > 1:  # a step gathers one number of them
        counts = ", ".join(f"{count} in {path}" for path, count in negatives.items())
        raise UserError(f"--use_hard_negatives True: unequal numbers of hard negatives, {counts}; make them equal")
    if args.max_train_samples:
        rows = sum(map(len, sources.values()))
        share = args.max_train_samples if args.max_train_samples < 1 else args.max_train_samples / rows
        require(share <= 1, "max_train_samples", int(args.max_train_samples), f"at most the {rows} rows there are")
        sources = {path: Subset(source, round(share * len(source)), seed) for path, source in sources.items()}
        empty = [path for path, source in sources.items() if not len(source)]
        require(not empty, "max_train_samples", f"{args.max_train_samples:g}", f"more: it leaves no row of {empty}")
    return Mixture(sources) if len(sources) > 1 else next(iter(sources.values()))


def load_and_note(path: str, format: str, root: str | None = None, use_hard_negatives: bool = False) -> Sequence[Pair]:
    pairs = load_source(path, format, root, use_hard_negatives)
    if dropped := getattr(pairs, "dropped", 0):
        note(f"{path}: {dropped} rows with an empty sentence are left out, {len(pairs)} remain")
    return pairs


def describe(data_path: str, pairs: Sequence[Pair]) -> dict:
    """What a run records of its data; of a folder the names that are in it."""
    digests = [
        sha256(path) if Path(path).is_file() else " ".join(sorted(p.name for p in Path(path).iterdir()))
        for path in data_path.split(",")
    ]
    return {"path": data_path, "sha256": ",".join(digests), "pairs": len(pairs)}


if __name__ == "__main__":
    run(main)
