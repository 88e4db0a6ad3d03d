"""Stage 1: contrastive pre-training on text alone, or on other pairs. Started by scripts/lamra_ret/pretrain.sh."""

from __future__ import annotations

from pathlib import Path

from lamra.common.cli import note, parse, run
from lamra.common.errors import UserError
from lamra.common.flags import listed, require
from lamra.datasets.items import Indexed, Pair
from lamra.datasets.pairs import Mixture, Subset, load_source
from lamra.models.digests import file_sha256
from lamra.models.folders import model_folder
from lamra.train.flags import DataArguments, ModelArguments, TrainingFlags

DONE = "stage 1 is done; measure it: MODEL_ID={} bash scripts/eval/eval_pretrained.sh"


def main() -> None:
    model_args, data_args, flags = parse(ModelArguments, DataArguments, TrainingFlags)
    folder = model_folder(model_args.model_id, model_args.model_local_path)
    flags.check_vectors(folder)

    # Here and not above: torch and transformers take seconds, and --help or a mistake in the flags needs neither.
    from transformers import set_seed

    from lamra.collators.retrieval import RetrievalCollator
    from lamra.train.arguments import training_arguments
    from lamra.train.build import build_embedder, build_processor, retriever_settings, trainer_parts
    from lamra.train.checks import check_evaluation, check_pairs
    from lamra.train.contrastive_trainer import ContrastiveTrainer
    from lamra.train.dry_run import print_dry_run
    from lamra.train.output import begin_output, output_folder
    from lamra.train.record import run_record

    args = training_arguments(flags)
    with output_folder(args, folder) as checkpoint:
        set_seed(args.seed)
        settings = retriever_settings(folder, model_args, args)
        processor = build_processor(folder, settings, args)

        pairs = load_pairs(data_args, args.seed)
        eval_pairs = load_and_note(data_args.eval_data_path, "nli") if data_args.eval_data_path else None
        data = describe(data_args.data_path, pairs)
        check_pairs(pairs, args, data_args.data_path, in_batch_negatives=True)
        check_evaluation(eval_pairs, args)
        record = run_record(settings, data, model_args, data_args, args, checkpoint=checkpoint)

        parts = trainer_parts(pairs, RetrievalCollator(processor, args.mask_duplicates), args, checkpoint)
        model = build_embedder(folder, model_args, args, settings, len(processor.prefix_ids))
        trainer = ContrastiveTrainer(model=model, settings=settings, record=record, eval_dataset=eval_pairs, **parts)
        if args.dry_run:
            print_dry_run(trainer, {"query": 0, "target": args.per_device_train_batch_size})
            return
        begin_output(args, checkpoint, settings, data, model_args, data_args)
        trainer.fit(checkpoint)
        note(DONE.format(args.output_dir))


def load_pairs(args: DataArguments, seed: int) -> Indexed[Pair]:
    """All sources of the data flags, cut to --max_train_samples; several become a Mixture."""
    paths = listed(args.data_path)
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


def load_and_note(path: str, format: str, root: str | None = None, use_hard_negatives: bool = False) -> Indexed[Pair]:
    pairs = load_source(path, format, root, use_hard_negatives)
    if dropped := getattr(pairs, "dropped", 0):
        note(f"{path}: {dropped} rows with an empty sentence are left out, {len(pairs)} remain")
    if folded := getattr(pairs, "folded", 0):
        note(f"{path}: {folded} rows go over several lines; if they should not, a quote is not closed")
    return pairs


def describe(data_path: str, pairs: Indexed[Pair]) -> dict:
    """What a run records of its data; of a folder the names that are in it."""
    digests = [
        file_sha256(path) if Path(path).is_file() else " ".join(sorted(p.name for p in Path(path).iterdir()))
        for path in listed(data_path)
    ]
    return {"path": data_path, "sha256": ",".join(digests), "pairs": len(pairs)}


if __name__ == "__main__":
    run(main)
