"""Stage 1: contrastive pre-training on text alone. Started by torchrun from scripts/lamra_ret/pretrain.sh."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from transformers import set_seed

from lamra.collators.processing import Processor
from lamra.collators.retrieval import RetrievalCollator
from lamra.datasets.nli import NLIPairs
from lamra.models.loading import DEFAULT_POSITION_IDS, architecture, model_folder
from lamra.models.settings import Settings
from lamra.train.arguments import DataArguments, ModelArguments, TrainingArguments, note, parse, require
from lamra.train.build import build_embedder
from lamra.train.checkpoints import (
    PREEMPTED,
    check_unchanged,
    checkpoint_to_resume,
    prepare_output,
    run_record,
    sha256,
    write_run_record,
)
from lamra.train.dry_run import print_dry_run
from lamra.train.entrypoint import run
from lamra.train.preemption import EXIT_STATUS, Preemption
from lamra.train.trainer import ContrastiveTrainer


def main() -> None:
    model_args, data_args, args = parse(ModelArguments, DataArguments, TrainingArguments)
    set_seed(args.seed)

    # Everything cheap first: a mistake is told before any model is loaded.
    folder = model_folder(model_args.model_id, model_args.model_local_path)
    prepare_output(args.output_dir, force=args.force, resume=args.resume)
    resume = checkpoint_to_resume(args.output_dir, args.resume) if args.resume else None
    train_pairs = load_pairs(data_args.data_path, data_args.use_hard_negatives)
    global_batch = args.per_device_train_batch_size * args.world_size
    require(
        len(train_pairs) >= global_batch,
        "per_device_train_batch_size",
        f"{args.per_device_train_batch_size} on {args.world_size} processes",
        f"at most the {len(train_pairs)} pairs of {data_args.data_path} in a step",
    )
    eval_pairs = load_pairs(data_args.eval_data_path) if data_args.eval_data_path else None
    if eval_pairs is None and args.eval_strategy != "no":
        note(f"--eval_strategy {args.eval_strategy.value} is ignored: --eval_data_path is not set")
        args.eval_strategy = "no"

    settings = Settings(
        base_model=str(folder),
        position_ids=model_args.position_ids or DEFAULT_POSITION_IDS[architecture(folder)],
        min_pixels=model_args.min_pixels,
        max_pixels=model_args.max_pixels,
        temperature=args.temperature,
    )
    processor = Processor(
        folder, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels, max_length=args.model_max_length
    )
    data = {"path": data_args.data_path, "sha256": sha256(data_args.data_path), "pairs": len(train_pairs)}
    record = run_record(settings, data, model_args, data_args, args)
    if resume:
        check_unchanged(resume, record, allow_changes=args.allow_changes)
    preemption = Preemption()
    trainer = ContrastiveTrainer(
        model=build_embedder(folder, model_args, args, settings.position_ids),
        args=args,
        settings=settings,
        record=record,
        processing_class=processor,
        data_collator=RetrievalCollator(processor),
        train_dataset=train_pairs,
        eval_dataset=eval_pairs,
        callbacks=[preemption],
    )
    if args.dry_run:
        if args.process_index == 0:
            print_dry_run(trainer)
        return

    preempted = Path(args.output_dir, PREEMPTED)
    if args.process_index == 0:
        write_run_record(args.output_dir, {**asdict(model_args), **asdict(data_args), **args.to_dict()}, data)
        preempted.unlink(missing_ok=True)
    trainer.train(resume_from_checkpoint=resume)
    if preemption.happened:
        if args.process_index == 0:
            preempted.touch()
        note(f"asked to stop: checkpoint-{trainer.state.global_step} is complete; go on with --resume auto")
        sys.exit(EXIT_STATUS)
    trainer.save_model()
    note(f"stage 1 is done; measure it: MODEL_ID={args.output_dir} bash scripts/eval/eval_pretrained.sh")


def load_pairs(path: str, use_hard_negatives: bool = False) -> NLIPairs:
    pairs = NLIPairs(path, use_hard_negatives)
    if pairs.dropped:
        note(f"{path}: {pairs.dropped} rows with an empty sentence are left out, {len(pairs)} remain")
    return pairs


if __name__ == "__main__":
    run(main)
