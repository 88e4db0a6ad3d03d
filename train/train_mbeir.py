"""Stage 2: instruction tuning on M-BEIR. Started by torchrun from scripts/lamra_ret/finetune.sh."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lamra.common import upstream
from lamra.common.cli import note, run
from lamra.common.flags import listed
from lamra.common.processes import first_process_first
from lamra.models.digests import file_sha256
from lamra.models.folders import model_folder
from lamra.train.flags import MBEIRDataArguments, ModelArguments, TrainingFlags

DONE = "stage 2 is done; measure it: MODEL_ID={} bash scripts/eval/eval_mbeir.sh"


def main() -> None:
    model_args, data_args, flags = upstream.parse(upstream.TRAINING, ModelArguments, MBEIRDataArguments, TrainingFlags)
    folder = model_folder(model_args.model_id, model_args.model_local_path)
    flags.check_vectors(folder)

    # Here and not above: torch and transformers take seconds, and --help or a mistake in the flags needs neither.
    from transformers import set_seed

    from lamra.collators.retrieval import RetrievalCollator
    from lamra.datasets.communities import Communities
    from lamra.datasets.mbeir.pairs import open_pairs
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

        with first_process_first("the first process reads M-BEIR's files"):
            open_queries = partial(open_pairs, data_args.data_path, instructions=data_args.instructions, seed=args.seed)
            mined, teacher = listed(data_args.mined) if data_args.mined else [], data_args.teacher
            negatives = {"hard_negatives": data_args.hard_negatives, "mined": mined, "teacher": teacher}
            pairs = open_queries(data_args.queries, data_args.pool, **negatives)
            eval_pairs = None
            if data_args.eval_queries:
                eval_pairs = open_queries(data_args.eval_queries, data_args.eval_pool or data_args.pool)
        files: list[str | Path] = [pairs.queries.path, pairs.pool.path, pairs.instructions.path, *mined]
        files += [teacher] if teacher else []
        data = {"path": data_args.data_path, "sha256": [file_sha256(file) for file in files], "pairs": len(pairs)}
        check_pairs(pairs, args, data_args.data_path, in_batch_negatives=True)
        check_evaluation(eval_pairs, args)
        communities = None
        if data_args.batches:
            made_of = dict(zip(("queries", "pool"), data["sha256"]))
            communities = Communities.read(data_args.batches, made_of, len(pairs))
            data["sha256"].append(file_sha256(data_args.batches))
        record = run_record(settings, data, model_args, data_args, args, checkpoint=checkpoint)

        parts = trainer_parts(pairs, RetrievalCollator(processor, args.mask_duplicates), args, checkpoint, communities)
        model = build_embedder(folder, model_args, args, settings, len(processor.prefix_ids))
        distill = {name: getattr(data_args, name) for name in ("distill_weight", "distill_temperature")}
        trainer = ContrastiveTrainer(
            model=model, settings=settings, record=record, eval_dataset=eval_pairs, **distill, **parts
        )
        if args.dry_run:
            print_dry_run(trainer, {"query": 0, "target": args.per_device_train_batch_size})
            return
        begin_output(args, checkpoint, settings, data, model_args, data_args)
        trainer.fit(checkpoint)
        note(DONE.format(args.output_dir))


if __name__ == "__main__":
    run(main)
