"""LamRA-Rank: train a reranker on mined candidates. Started by torchrun from scripts/lamra_rank/train_rerank.sh."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lamra.common import upstream
from lamra.common.cli import note, run
from lamra.common.flags import listed
from lamra.common.processes import first_process_first
from lamra.models.digests import file_sha256
from lamra.models.folders import model_folder
from lamra.train.flags import RerankDataArguments, RerankModelArguments, RerankTrainingFlags

DONE = "the reranker is done; measure it: MODEL_ID={} bash scripts/eval/rerank_mbeir.sh"


def main() -> None:
    model_args, data_args, flags = upstream.parse(
        upstream.RERANK_TRAINING, RerankModelArguments, RerankDataArguments, RerankTrainingFlags
    )
    if data_args.init != "base":
        model_args.model_local_path = data_args.init
    folder = model_folder(model_args.model_id, model_args.model_local_path)

    # Here and not above: torch and transformers take seconds, and --help or a mistake in the flags needs neither.
    from transformers import set_seed

    from lamra.collators.rerank import RerankCollator
    from lamra.datasets.mbeir.pairs import open_pairs
    from lamra.datasets.rerank import RerankExamples
    from lamra.models.settings import settings_to_rerank
    from lamra.train.arguments import training_arguments
    from lamra.train.build import build_processor, build_reranker, trainer_parts
    from lamra.train.checks import check_evaluation, check_pairs
    from lamra.train.dry_run import print_dry_run
    from lamra.train.output import begin_output, output_folder
    from lamra.train.record import run_record
    from lamra.train.rerank_trainer import RerankTrainer

    args = training_arguments(flags)
    with output_folder(args, folder) as checkpoint:
        set_seed(args.seed)
        settings = settings_to_rerank(
            folder,
            rank_style=data_args.rank_style,
            position_ids=model_args.position_ids,
            train_position_ids=data_args.train_position_ids,
            text_max_tokens=args.text_max_tokens,
            min_pixels=model_args.min_pixels,
            max_pixels=model_args.max_pixels,
            special_tokens_in_text=model_args.special_tokens_in_text,
            exif_rotation=model_args.exif_rotation,
            prompt_style=model_args.prompt_style,
        )
        settings = replace(settings, quantized=model_args.q_lora)
        processor = build_processor(folder, settings, args)

        mined = listed(data_args.mined or "")
        with first_process_first("the first process reads M-BEIR's files"):
            root, instructions = data_args.data_path, data_args.instructions
            pairs = open_pairs(root, data_args.queries, data_args.pool, instructions, seed=args.seed)
            examples = RerankExamples(pairs, mined)
        if len(examples) < len(pairs):
            note(f"{len(pairs) - len(examples)} of {len(pairs)} rows have no mined negative and are left out")
        files: list[str | Path] = [pairs.queries.path, pairs.pool.path, pairs.instructions.path, *mined]
        data = {"path": data_args.data_path, "sha256": [file_sha256(file) for file in files], "pairs": len(examples)}
        check_pairs(examples, args, data_args.data_path, in_batch_negatives=False)
        check_evaluation(None, args)
        record = run_record(settings, data, model_args, data_args, args, checkpoint=checkpoint)

        parts = trainer_parts(examples, RerankCollator(processor, settings.rank_style), args, checkpoint)
        model = build_reranker(folder, model_args, args, settings)
        trainer = RerankTrainer(model=model, settings=settings, record=record, **parts)
        if args.dry_run:
            print_dry_run(trainer, {"Yes": 0, "No": 1, "list": 2})
            return
        begin_output(args, checkpoint, settings, data, model_args, data_args)
        trainer.fit(checkpoint)
        note(DONE.format(args.output_dir))


if __name__ == "__main__":
    run(main)
