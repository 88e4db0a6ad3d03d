"""Stage 2: instruction tuning on M-BEIR. Started by torchrun from scripts/lamra_ret/finetune.sh."""

from __future__ import annotations

from dataclasses import replace

from lamra.common import upstream
from lamra.common.cli import note, run
from lamra.common.files import sha256
from lamra.models.folders import model_folder
from lamra.train.flags import MBEIRDataArguments, ModelArguments, TrainingFlags

DONE = "stage 2 is done; measure it: MODEL_ID={} bash scripts/eval/eval_mbeir.sh"


def main() -> None:
    model_args, data_args, flags = upstream.parse(upstream.TRAINING, ModelArguments, MBEIRDataArguments, TrainingFlags)
    folder = model_folder(model_args.model_id, model_args.model_local_path)

    # Here and not above: torch and transformers take seconds, and --help or a mistake in the flags needs neither.
    from transformers import set_seed

    from lamra.collators.retrieval import RetrievalCollator
    from lamra.datasets.mbeir.pairs import open_pairs
    from lamra.datasets.usable import UsablePairs
    from lamra.models.settings import settings_to_train
    from lamra.train.arguments import training_arguments
    from lamra.train.build import build_embedder, build_processor
    from lamra.train.checks import check_batch, check_evaluation, check_negatives
    from lamra.train.contrastive_trainer import ContrastiveTrainer
    from lamra.train.dry_run import print_dry_run
    from lamra.train.fit import fit
    from lamra.train.guards.early_stopping import EarlyStopping
    from lamra.train.guards.preemption import Preemption
    from lamra.train.guards.skipped import count_skipped
    from lamra.train.output import alone_in_output, begin_output, start_or_resume
    from lamra.train.record import check_unchanged, run_record
    from lamra.train.sampling import SetEpoch, mixture_sampler

    args = training_arguments(flags)
    with alone_in_output(args):
        set_seed(args.seed)
        checkpoint = start_or_resume(args, folder)
        settings = settings_to_train(
            folder,
            position_ids=model_args.position_ids,
            min_pixels=model_args.min_pixels,
            max_pixels=model_args.max_pixels,
            text_max_tokens=args.text_max_tokens,
            temperature=args.temperature,
        )
        settings = replace(settings, quantized=model_args.q_lora)
        processor = build_processor(folder, settings, args)

        with args.main_process_first(local=False, desc="index of M-BEIR's files"):
            root, instructions = data_args.data_path, data_args.instructions
            pairs = open_pairs(
                root,
                data_args.queries,
                data_args.pool,
                instructions,
                seed=args.seed,
                hard_negatives=data_args.hard_negatives,
                tell=note,
            )
            eval_pairs = None
            if data_args.eval_queries:
                eval_pool = data_args.eval_pool or data_args.pool
                eval_pairs = open_pairs(
                    root, data_args.eval_queries, eval_pool, instructions, seed=args.seed, tell=note
                )
        files = [pairs.queries.path, pairs.pool.path, pairs.instructions.path]
        data = {"path": data_args.data_path, "sha256": [sha256(file) for file in files], "pairs": len(pairs)}
        check_batch(pairs, args, data_args.data_path)
        check_negatives(pairs, args, data_args.data_path)
        check_evaluation(eval_pairs, args)
        record = run_record(settings, data, model_args, data_args, args)
        if checkpoint:
            check_unchanged(checkpoint, record, allow_changes=args.allow_changes)

        preemption = Preemption()
        skipped, sampler = count_skipped(pairs, args, checkpoint), mixture_sampler(pairs, args)
        collator = RetrievalCollator(processor, args.mask_duplicates)
        trainer = ContrastiveTrainer(
            model=build_embedder(folder, model_args, args, settings.position_ids),
            args=args,
            settings=settings,
            record=record,
            skipped=skipped,
            processing_class=processor,
            data_collator=collator,
            train_dataset=UsablePairs(pairs, collator.encode, skipped.most),
            eval_dataset=eval_pairs,
            sampler=sampler,
            callbacks=[preemption, SetEpoch(sampler, pairs), EarlyStopping()],
        )
        if args.dry_run:
            print_dry_run(trainer, {"query": 0, "target": args.per_device_train_batch_size})
            return
        begin_output(args, checkpoint, settings, data, model_args, data_args)
        fit(trainer, checkpoint, preemption)
        note(DONE.format(args.output_dir))


if __name__ == "__main__":
    run(main)
