"""Flags of the training entrypoints. Every bad value is a UserError that names the flag.

Nothing here imports torch: --help and a mistake are told at once. What only torch and transformers can check is checked
in train/arguments.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lamra.collators.messages import RANK_STYLES
from lamra.common.cli import NONE, flag, require, require_finite
from lamra.common.errors import UserError
from lamra.common.processes import TIMEOUT
from lamra.datasets.mbeir.layout import DATA_PATH, INSTRUCTIONS, TRAIN_POOL, TRAIN_QUERIES
from lamra.datasets.pairs import DATA_FORMATS
from lamra.models.settings import POSITION_IDS, SPECIAL_TOKENS_IN_TEXT
from lamra.train.inherited import REFUSED, InheritedFlags, with_help

MEASURES = ("recall@1", "accuracy")  # what an evaluation during training gives
FOLLOW_A_FALLING_MEASURE = ("reduce_lr_on_plateau", "greedy")
SMALLEST_FLOAT32 = 2.0**-126  # of full precision


@dataclass
class ModelArguments:
    model_id: str = flag("qwen2-vl-7b", "base model, see models/folders.py")
    model_local_path: str | None = flag(None, "its folder, if not checkpoints/hf_models/")
    train_vision_encoder: bool = flag(False, "train the vision tower in full")
    use_vision_lora: bool = flag(False, "LoRA on the vision tower")
    train_vision_projector: bool = flag(False, "train the projector in full")
    use_lora: bool = flag(True, "LoRA on the language model; False trains all of it")
    q_lora: bool = flag(False, "4-bit base weights under the LoRA (CUDA, bitsandbytes)")
    lora_r: int = 64
    lora_alpha: int = 128
    lora_dropout: float = 0.05
    position_ids: str | None = flag(None, "sequential or mrope; default by model kind")
    attn_implementation: str | None = flag(
        None, "flash_attention_2, sdpa, eager; of packed text: chosen by models/packing.py"
    )
    padding_free: bool = flag(True, "one row of tokens instead of a padded rectangle")
    last_token_only: bool = flag(True, "the last layer computes pooled tokens only")
    min_pixels: int | None = flag(None, "smallest area of a picture; default 4*28*28")
    max_pixels: int | None = flag(None, "largest area of a picture; default 300*28*28")
    special_tokens_in_text: str | None = flag(
        None,
        "read them as plain letters, or as special; default: plain, or as the model was trained",
    )
    exif_rotation: bool | None = flag(None, "turn pictures as EXIF says; default: False, or as the model was trained")

    def __post_init__(self):
        require_finite(self)
        require(self.position_ids in (None, *POSITION_IDS), "position_ids", self.position_ids, "sequential or mrope")
        special = self.special_tokens_in_text
        require(special in (None, *SPECIAL_TOKENS_IN_TEXT), "special_tokens_in_text", special, "plain or special")
        require(self.lora_r > 0, "lora_r", self.lora_r, "a positive rank")
        require(self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "a positive number: 0 would train nothing")
        require(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "a value from 0 to below 1")
        if self.q_lora and not self.use_lora:
            raise UserError("--q_lora True needs --use_lora True: 4-bit weights cannot be trained themselves")
        if self.use_vision_lora and self.train_vision_encoder:
            raise UserError("--use_vision_lora True and --train_vision_encoder True exclude each other: choose one")
        if self.use_vision_lora and not self.use_lora:
            raise UserError("--use_vision_lora True needs --use_lora True")


@dataclass
class DataArguments:
    data_path: str = flag("data/nli_for_simcse.csv", "csv with sent0,sent1,hard_neg; several files: A,B,C")
    data_format: str = flag("nli", f"{', '.join(DATA_FORMATS)} (datasets/pairs.py); one, or one for each file")
    image_root: str | None = flag(None, "folder of all pictures; default: each file's own")
    max_train_samples: float | None = flag(None, "train on so many rows, or below 1 on this share of each file")
    eval_data_path: str | None = flag(None, "an nli csv to measure after each epoch")
    use_hard_negatives: bool = flag(False, "hard negatives as further targets (LamRA: no)")

    def __post_init__(self):
        require_finite(self)
        formats, files = self.data_format.split(","), self.data_path.split(",")
        require(set(formats) <= set(DATA_FORMATS), "data_format", self.data_format, f"of {', '.join(DATA_FORMATS)}")
        require(
            len(formats) in (1, len(files)), "data_format", self.data_format, f"one format, or one for each of {files}"
        )
        limit = self.max_train_samples
        require(
            limit is None or 0 < limit < 1 or (limit >= 1 and limit == int(limit)),
            "max_train_samples",
            limit,
            "a number of rows, or a share below 1",
        )
        if self.eval_data_path in NONE:  # EVAL_DATA_PATH=None in the practice's script
            self.eval_data_path = None


@dataclass
class MBEIRDataArguments:
    data_path: str = flag(DATA_PATH, "M-BEIR's folder; the paths below are inside it")
    queries: str = flag(TRAIN_QUERIES, "to train on")
    pool: str = flag(TRAIN_POOL, "candidates")
    instructions: str = flag(INSTRUCTIONS, "what to retrieve")
    eval_queries: str | None = flag(None, "queries to measure after each epoch")
    eval_pool: str | None = flag(None, "their candidates; default: those of the training")
    hard_negatives: int = flag(0, "of each query, from its neg_cand_list (LamRA: 0)")

    def __post_init__(self):
        require(self.hard_negatives >= 0, "hard_negatives", self.hard_negatives, "0 or more")
        if self.eval_queries in NONE:
            self.eval_queries = None


@with_help
@dataclass
class TrainingFlags(InheritedFlags):
    """Hugging Face's training arguments with LamRA's defaults, and this project's own."""

    output_dir: str | None = flag("checkpoints/run", "where adapter and checkpoints go")
    model_max_length: int = flag(1024, "longest prompt in tokens")
    text_max_tokens: int | None = flag(None, "cut instruction and text after so many tokens (LamRA: 480 in stage 2)")
    temperature: float = flag(0.05, "divides the similarities")
    mixture_weights: str | None = flag(None, "share of each of several data sources, 1,1,2; default: their sizes")
    mixture_batches: str = flag("mixed", "mixed, or homogeneous: every step's rows come from one source")
    grad_cache_chunk: int = flag(0, "embed so many prompts at a time and recompute them: constant memory; 0: off")
    selective_checkpointing: bool = flag(
        False, "with --gradient_checkpointing: keep matrix products, recompute the rest"
    )
    warmup_ratio: float | None = flag(None, "share of the steps that warm up")
    force: bool = flag(False, "start again in an output folder that holds a run")
    resume: str | None = flag(None, "auto, or a checkpoint-N folder to go on from")
    allow_changes: bool = flag(False, "go on although settings or data changed")
    on_nonfinite: str = flag("stop", "stop, or skip the update, if loss or gradient is not finite")
    max_nonfinite: int = flag(10, "with --on_nonfinite skip: so many updates at most")
    mask_duplicates: bool = flag(False, "equal items of a step are no negatives of one another (LamRA: they are)")
    max_skipped_share: float = flag(
        0.001, "stop if more pairs than this share of the data cannot be used; one always may"
    )
    early_stopping_patience: int = flag(
        0, "stop after so many evaluations without a better one, and keep the best; 0: off"
    )
    dry_run: bool = flag(False, "build everything, print what would run, and stop")

    # Upstream's values where they differ from Hugging Face's defaults.
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = flag(0.0, "0: no clipping, as upstream")
    logging_steps: float = 1
    save_strategy: Literal["no", "steps", "epoch", "best"] = "epoch"
    save_total_limit: int | None = 2
    per_device_train_batch_size: int = 72
    num_train_epochs: float = 2.0
    dataloader_num_workers: int = 4
    dataloader_drop_last: bool = flag(True, "a wrapped last batch would make rows their own negatives")
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = flag(False, "True shows a NaN loss as 0.0")
    ddp_timeout: int = flag(int(TIMEOUT.total_seconds()), "seconds that processes wait for each other")
    report_to: None | str | list[str] = "tensorboard"

    def __post_init__(self):
        require_finite(self)
        for name, value in self.set_by_user().items():
            if name in REFUSED:
                raise UserError(f"--{name} {value}: {REFUSED[name]}; leave the flag out")
        for name, holds, wanted in (
            ("temperature", self.temperature > 0, "a positive value"),
            ("per_device_train_batch_size", self.per_device_train_batch_size > 0, "1 or more"),
            ("per_device_eval_batch_size", self.per_device_eval_batch_size > 0, "1 or more"),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps > 0, "1 or more"),
            ("num_train_epochs", self.num_train_epochs > 0, "more than 0; to see what would run: --dry_run True"),
            ("max_steps", self.max_steps == -1 or self.max_steps > 0, "1 or more, or -1: as the epochs have"),
            ("learning_rate", self.learning_rate > 0, "a positive value"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("adam_beta1", 0 <= self.adam_beta1 < 1, "a value from 0 to below 1"),
            ("adam_beta2", 0 <= self.adam_beta2 < 1, "a value from 0 to below 1"),
            ("adam_epsilon", self.adam_epsilon >= SMALLEST_FLOAT32, "a positive float32 value"),
            ("max_grad_norm", self.max_grad_norm >= 0, "0 (off) or more"),
            ("model_max_length", self.model_max_length > 0, "1 or more"),
            ("max_skipped_share", 0 <= self.max_skipped_share < 1, "a share from 0 to below 1"),
            ("save_total_limit", (self.save_total_limit or 0) >= 0, "a number of checkpoints, or 0 to keep all"),
            ("text_max_tokens", self.text_max_tokens is None or self.text_max_tokens > 0, "1 or more"),
            ("on_nonfinite", self.on_nonfinite in ("stop", "skip"), "stop or skip"),
            ("max_nonfinite", self.max_nonfinite >= 0, "0 or more"),
            ("early_stopping_patience", self.early_stopping_patience >= 0, "0 (off) or a number of evaluations"),
            ("grad_cache_chunk", self.grad_cache_chunk >= 0, "0 (off) or a number of prompts"),
            ("mixture_batches", self.mixture_batches in ("mixed", "homogeneous"), "mixed or homogeneous"),
            ("lr_scheduler_type", self.lr_scheduler_type not in FOLLOW_A_FALLING_MEASURE, "another, such as cosine"),
            ("metric_for_best_model", self._measure() in (None, *MEASURES), " or ".join(MEASURES)),
            ("greater_is_better", self.greater_is_better is not False, f"True: {' and '.join(MEASURES)} are"),
        ):
            require(holds, name, getattr(self, name), wanted)
        if self.mixture_weights is not None:
            numbers = self.mixture_weights.split(",")
            is_number = all(re.fullmatch(r"\d+(\.\d*)?|\.\d+", number) for number in numbers)
            require(is_number, "mixture_weights", self.mixture_weights, "numbers with commas, such as 1,1,2")
        if self.warmup_ratio is not None:
            require(0 <= self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio, "a share from 0 to below 1")
            self.warmup_steps = self.warmup_ratio  # transformers 5: below 1 it is a ratio
        if self.resume_from_checkpoint is not None:
            same = "auto" if self.resume_from_checkpoint.lower() == "true" else self.resume_from_checkpoint
            require(self.resume in (None, same), "resume_from_checkpoint", same, f"the same as --resume {self.resume}")
            self.resume = same
        self._check_best_checkpoint()
        config = deepspeed_config(self.deepspeed)
        if (config or {}).get("bf16", {}).get("check_grad_overflow") is False:
            raise UserError(
                f'--deepspeed {self.deepspeed}: "check_grad_overflow": false in "bf16" writes gradients that are not '
                "finite into the weights; set it to true"
            )

    def _measure(self) -> str | None:
        return self.metric_for_best_model and self.metric_for_best_model.removeprefix("eval_")

    def _check_best_checkpoint(self) -> None:
        """The best evaluation must have a checkpoint, or the best weights are gone when they are wanted."""
        if self.early_stopping_patience:
            self.load_best_model_at_end = True
        if not self.load_best_model_at_end and self.save_strategy != "best":
            return
        self.metric_for_best_model = self._measure() or MEASURES[0]
        wish = "--load_best_model_at_end True" if self.load_best_model_at_end else "--save_strategy best"
        if self.early_stopping_patience:
            wish = f"--early_stopping_patience {self.early_stopping_patience}"
        if self.eval_strategy == "no":
            raise UserError(f"{wish} needs --eval_strategy steps or epoch beside it")
        evaluates, saves = (
            f"{strategy} {steps or self.logging_steps:g}" if strategy == "steps" else str(strategy)
            for strategy, steps in ((self.eval_strategy, self.eval_steps), (self.save_strategy, self.save_steps))
        )
        if saves not in (evaluates, "best"):
            raise UserError(
                f"{wish}: it evaluates every {evaluates} and saves every {saves}; make them equal, so that the best "
                "evaluation has a checkpoint, or use --save_strategy best"
            )
        if self.save_only_model and self.deepspeed and self.load_best_model_at_end:
            raise UserError(f"{wish} with DeepSpeed needs --save_only_model False")


@dataclass
class RerankDataArguments(MBEIRDataArguments):
    mined: str = flag("", "files of mine.sh, or upstream's json; several: A,B,C")
    init: str = flag("base", "start from the base model, or from a merged model's folder")
    rank_style: str = flag("released", "prompts of the published weights, or clean")
    train_position_ids: str | None = flag(
        None, "to train with; default, as upstream: sequential for Qwen2-VL; --position_ids: to ask with"
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
class RerankModelArguments(ModelArguments):
    def __post_init__(self):
        super().__post_init__()
        given = self.last_token_only
        require(given, "last_token_only", given, "no value: a reranker asks for the tokens of its answers")


@with_help
@dataclass
class RerankTrainingFlags(TrainingFlags):
    """The practice's values for LamRA-Rank."""

    learning_rate: float = 2e-5
    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 4
    num_train_epochs: float = 1.0
    model_max_length: int = 2048
    text_max_tokens: int | None = flag(256, "cut each query and each candidate after so many tokens")

    def __post_init__(self):
        for name in ("grad_cache_chunk", "mask_duplicates"):
            require(not getattr(self, name), name, getattr(self, name), "no value: it is for in-batch negatives")
        same = self.temperature == TrainingFlags.temperature
        require(same, "temperature", self.temperature, "no value: a reranker's loss has none")
        super().__post_init__()


def deepspeed_config(deepspeed: str | dict | None) -> dict | None:
    """The content of --deepspeed: a json file, or json itself; None without it.

    Raises:
        UserError: the file does not exist or is no json.
    """
    if not deepspeed or isinstance(deepspeed, dict):
        return deepspeed or None
    inline = deepspeed.startswith("{")
    require(inline or Path(deepspeed).is_file(), "deepspeed", deepspeed, "a file, such as ds_configs/zero2.json")
    try:
        return json.loads(deepspeed if inline else Path(deepspeed).read_text())
    except ValueError as error:
        raise UserError(f"--deepspeed {deepspeed} is no json: {error}") from None
