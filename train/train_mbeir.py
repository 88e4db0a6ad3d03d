"""Stage 2: instruction tuning on M-BEIR. Started by torchrun from scripts/lamra_ret/finetune.sh."""

from __future__ import annotations

from dataclasses import dataclass, field

from lamra.common import upstream
from lamra.common.cli import note, require, run
from lamra.common.files import sha256
from lamra.datasets.mbeir.layout import DATA_PATH, INSTRUCTIONS, TRAIN_POOL, TRAIN_QUERIES
from lamra.datasets.mbeir.pairs import open_pairs
from lamra.train.arguments import ModelArguments, TrainingArguments
from lamra.train.stage import Stage, alone_in_output

DONE = "stage 2 is done; measure it: MODEL_ID={output_dir} bash scripts/eval/eval_mbeir.sh"


@dataclass
class MBEIRDataArguments:
    data_path: str = field(default=DATA_PATH, metadata={"help": "M-BEIR's folder; the paths below are inside it"})
    queries: str = field(default=TRAIN_QUERIES, metadata={"help": "to train on"})
    pool: str = field(default=TRAIN_POOL, metadata={"help": "candidates"})
    instructions: str = field(default=INSTRUCTIONS, metadata={"help": "what to retrieve"})
    eval_queries: str | None = field(default=None, metadata={"help": "queries to measure after each epoch"})
    eval_pool: str | None = field(default=None, metadata={"help": "their candidates; default: those of the training"})
    hard_negatives: int = field(default=0, metadata={"help": "of each query, from its neg_cand_list (LamRA: 0)"})

    def __post_init__(self):
        require(self.hard_negatives >= 0, "hard_negatives", self.hard_negatives, "0 or more")
        if self.eval_queries in ("None", "none", ""):  # as the scripts spell it
            self.eval_queries = None


def main() -> None:
    model_args, data_args, args = upstream.parse(
        upstream.TRAINING, ModelArguments, MBEIRDataArguments, TrainingArguments
    )
    with alone_in_output(args):
        stage = Stage(model_args, args)
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
        stage.train(pairs, eval_pairs, data_args, data, DONE)


if __name__ == "__main__":
    run(main)
