"""LamRA-Rank: train a reranker on mined candidates. Started by torchrun from scripts/lamra_rank/train_rerank.sh."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.utils.data import Dataset

from lamra.collators.messages import RANK_STYLES
from lamra.collators.rerank import RerankTrainingCollator
from lamra.common import upstream
from lamra.common.cli import note, require, run
from lamra.common.files import sha256
from lamra.datasets.mbeir.pairs import open_pairs
from lamra.datasets.rerank import RerankExamples
from lamra.models.folders import local_folder
from lamra.models.settings import POSITION_IDS, RERANKER_TEXT_MAX_TOKENS, Settings, settings_to_rerank
from lamra.train.arguments import ModelArguments, TrainingArguments
from lamra.train.build import build_reranker
from lamra.train.rerank_trainer import RerankTrainer
from lamra.train.stage import Stage, alone_in_output
from lamra.train.train_mbeir import MBEIRDataArguments

DONE = "the reranker is done; measure it: MODEL_ID={output_dir} bash scripts/eval/rerank_mbeir.sh"


@dataclass
class RerankDataArguments(MBEIRDataArguments):
    mined: str = field(default="", metadata={"help": "files of mine.sh, or upstream's json; several: A,B,C"})
    init: str = field(default="base", metadata={"help": "start from the base model, or from a merged model's folder"})
    rank_style: str = field(default="released", metadata={"help": "prompts of the published weights, or clean"})
    train_position_ids: str | None = field(
        default=None,
        metadata={"help": "to train with; default, as upstream: sequential for Qwen2-VL; --position_ids: to ask with"},
    )

    def __post_init__(self):
        super().__post_init__()
        require(bool(self.mined), "mined", self.mined, "a file that scripts/lamra_rank/mine.sh wrote")
        require(self.rank_style in RANK_STYLES, "rank_style", self.rank_style, " or ".join(RANK_STYLES))
        positions = self.train_position_ids
        require(positions in (None, *POSITION_IDS), "train_position_ids", positions, " or ".join(POSITION_IDS))
        require(not self.hard_negatives, "hard_negatives", self.hard_negatives, "0: the mined candidates are those")
        require(not self.eval_queries, "eval_queries", self.eval_queries, "None: measure with rerank_mbeir.sh")


@dataclass
class RerankTrainingArguments(TrainingArguments):
    """The practice's values for LamRA-Rank."""

    contrastive = False
    learning_rate: float = 2e-5
    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 4
    num_train_epochs: float = 1.0
    model_max_length: int = 2048
    text_max_tokens: int | None = RERANKER_TEXT_MAX_TOKENS

    def __post_init__(self):
        for flag in ("grad_cache_chunk", "mask_duplicates"):
            require(not getattr(self, flag), flag, getattr(self, flag), "no value: it is for in-batch negatives")
        same = self.temperature == TrainingArguments.temperature
        require(same, "temperature", self.temperature, "no value: a reranker's loss has none")
        super().__post_init__()


class RerankStage(Stage):
    trainer_class = RerankTrainer
    build = staticmethod(build_reranker)

    def __init__(self, model_args: ModelArguments, data_args: RerankDataArguments, args: RerankTrainingArguments):
        given = model_args.last_token_only
        require(given, "last_token_only", given, "no value: a reranker asks for the tokens of its answers")
        self.rank_style, self.train_position_ids = data_args.rank_style, data_args.train_position_ids
        if data_args.init != "base":
            model_args.model_local_path = local_folder(data_args.init, "init")
        super().__init__(model_args, args)

    def settings_to_train(self) -> Settings:
        return settings_to_rerank(
            self.folder,
            rank_style=self.rank_style,
            position_ids=self.model_args.position_ids,
            train_position_ids=self.train_position_ids,
            text_max_tokens=self.args.text_max_tokens,
            min_pixels=self.model_args.min_pixels,
            max_pixels=self.model_args.max_pixels,
        )

    def collator(self, pairs: Dataset, most_faults: int) -> RerankTrainingCollator:
        return RerankTrainingCollator(self.processor, pairs, most_faults, style=self.rank_style)


def main() -> None:
    model_args, data_args, args = upstream.parse(
        upstream.RERANK_TRAINING, ModelArguments, RerankDataArguments, RerankTrainingArguments
    )
    with alone_in_output(args):
        stage = RerankStage(model_args, data_args, args)
        mined = data_args.mined.split(",")
        with args.main_process_first(local=False, desc="index of M-BEIR's files"):
            pairs = open_pairs(
                data_args.data_path,
                data_args.queries,
                data_args.pool,
                data_args.instructions,
                seed=args.seed,
                tell=note,
            )
        examples = RerankExamples(pairs, mined)
        if len(examples) < len(pairs):
            note(f"{len(pairs) - len(examples)} of {len(pairs)} rows have no mined negative and are left out")
        files = [pairs.queries.path, pairs.pool.path, pairs.instructions.path, *mined]
        data = {"path": data_args.data_path, "sha256": [sha256(file) for file in files], "pairs": len(examples)}
        stage.train(examples, None, data_args, data, DONE)


if __name__ == "__main__":
    run(main)
