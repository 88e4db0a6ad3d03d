"""Stage 2: instruction tuning on M-BEIR. Started by torchrun from scripts/lamra_ret/finetune.sh."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lamra.datasets.mbeir import CANDIDATE, QUERY, Instructions, MBEIRPairs, Rows
from lamra.train import upstream
from lamra.train.arguments import ModelArguments, TrainingArguments, note, require
from lamra.train.checkpoints import sha256
from lamra.train.entrypoint import run
from lamra.train.stage import Stage, alone_in_output

DONE = "stage 2 is done; measure it: MODEL_ID={output_dir} bash scripts/eval/eval_mbeir.sh"


@dataclass
class MBEIRDataArguments:
    data_path: str = field(default="data/M-BEIR", metadata={"help": "M-BEIR's folder; the paths below are inside it"})
    queries: str = field(default="query/union_train/mbeir_union_up_train.jsonl", metadata={"help": "to train on"})
    pool: str = field(default="cand_pool/global/mbeir_union_train_cand_pool.jsonl", metadata={"help": "candidates"})
    instructions: str = field(default="instructions/query_instructions.tsv", metadata={"help": "what to retrieve"})
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
            pairs = load_pairs(data_args, data_args.queries, data_args.pool, args.seed, data_args.hard_negatives)
            eval_pairs = None
            if data_args.eval_queries:
                eval_pairs = load_pairs(
                    data_args, data_args.eval_queries, data_args.eval_pool or data_args.pool, args.seed
                )
        files = [pairs.queries.path, pairs.pool.path, pairs.instructions.path]
        data = {"path": data_args.data_path, "sha256": [sha256(file) for file in files], "pairs": len(pairs)}
        stage.train(pairs, eval_pairs, data_args, data, DONE)


def load_pairs(
    data_args: MBEIRDataArguments, queries: str, pool: str, seed: int, hard_negatives: int = 0
) -> MBEIRPairs:
    root = Path(data_args.data_path)
    pairs = MBEIRPairs(
        Rows(root / queries, root, QUERY),
        Rows(root / pool, root, CANDIDATE),
        Instructions(root / data_args.instructions),
        seed=seed,
        hard_negatives=hard_negatives,
    )
    for sentence in pairs.notes:
        note(sentence)
    return pairs


if __name__ == "__main__":
    run(main)
