"""Stage 1: contrastive pre-training on text alone. Started by torchrun from scripts/lamra_ret/pretrain.sh."""

from __future__ import annotations

from lamra.datasets.nli import NLIPairs
from lamra.train.arguments import DataArguments, ModelArguments, TrainingArguments, note, parse
from lamra.train.checkpoints import sha256
from lamra.train.entrypoint import run
from lamra.train.stage import Stage

DONE = "stage 1 is done; measure it: MODEL_ID={output_dir} bash scripts/eval/eval_pretrained.sh"


def main() -> None:
    model_args, data_args, args = parse(ModelArguments, DataArguments, TrainingArguments)
    stage = Stage(model_args, args)
    pairs = load_pairs(data_args.data_path, data_args.use_hard_negatives)
    eval_pairs = load_pairs(data_args.eval_data_path) if data_args.eval_data_path else None
    data = {"path": data_args.data_path, "sha256": sha256(data_args.data_path), "pairs": len(pairs)}
    stage.train(pairs, eval_pairs, data_args, data, DONE)


def load_pairs(path: str, use_hard_negatives: bool = False) -> NLIPairs:
    pairs = NLIPairs(path, use_hard_negatives)
    if pairs.dropped:
        note(f"{path}: {pairs.dropped} rows with an empty sentence are left out, {len(pairs)} remain")
    return pairs


if __name__ == "__main__":
    run(main)
