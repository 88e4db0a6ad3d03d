"""Flags of the training entrypoints. Every bad value is a UserError that names the flag.

Nothing here imports torch: --help and a mistake are told at once. What only torch and transformers can check is checked
in train/arguments.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from lamra.collators.messages import RANK_STYLES
from lamra.common.cli import NONE
from lamra.common.errors import UserError
from lamra.common.flags import (
    FILE,
    FILE_OR_FOLDER,
    FOLDER,
    OUT_FOLDER,
    Flags,
    flag,
    listed,
    require,
    require_path,
    shown,
)
from lamra.common.processes import TIMEOUT
from lamra.common.secrets import is_secret
from lamra.datasets.mbeir.layout import TrainingFiles
from lamra.datasets.pairs import DATA_FORMATS
from lamra.models.folders import local_folder
from lamra.models.settings import (
    ATTENTION,
    ATTENTION_IMPLEMENTATIONS,
    POOLING,
    POSITION_IDS,
    PROMPT_STYLES,
    RERANKER_TEXT_MAX_TOKENS,
    SPECIAL_TOKENS_IN_TEXT,
)
from lamra.models.shapes import vector_size
from lamra.train.inherited import REFUSED, InheritedFlags, with_help

AUTO, IF_ANY = "auto", "if_any"  # of --resume, beside a folder
MEASURES = ("recall@1", "accuracy")  # what an evaluation during training gives
FOLLOW_A_FALLING_MEASURE = ("reduce_lr_on_plateau", "greedy")
OF_A_LEARNT_TEMPERATURE = ("temperature_min", "temperature_max", "temperature_lr")
# Of the loss of stages 1 and 2, beside the temperature.
CONTRASTIVE = (
    *("learn_temperature", *OF_A_LEARNT_TEMPERATURE, "symmetric_loss"),
    *("false_negative_margin", "false_negative_above", "hardness_weight"),
)


@dataclass
class ModelArguments(Flags):
    model_id: str = flag("qwen2-vl-7b", "base model, see models/folders.py")
    model_local_path: str | None = flag(None, "its folder, if not checkpoints/hf_models/", path=FOLDER)
    train_vision_encoder: bool = flag(False, "train the vision tower in full")
    use_vision_lora: bool = flag(False, "LoRA on the vision tower")
    train_vision_projector: bool = flag(False, "train the projector in full")
    use_lora: bool = flag(True, "LoRA on the language model; False trains all of it")
    q_lora: bool = flag(False, "4-bit base weights under the LoRA (CUDA, bitsandbytes)")
    lora_r: int = flag(64, "rank of each weight's two matrices", low=1, high=2**14)
    lora_alpha: int = flag(128, "divided by the rank, it multiplies what the matrices add", low=1, high=2**20)
    lora_dropout: float = flag(0.05, "of the matrices' input", low=0, below=1)
    position_ids: str | None = flag(None, "default by model kind", one_of=POSITION_IDS)
    attention: str | None = flag(None, "default: causal, or as the model was trained", one_of=ATTENTION)
    pooling: str | None = flag(None, "default: last_token, or as the model was trained", one_of=POOLING)
    prompt_style: str | None = flag(None, "default: lamra, or as the model was trained", one_of=PROMPT_STYLES)
    attn_implementation: str | None = flag(
        None, "of packed text: chosen by models/packing.py", one_of=ATTENTION_IMPLEMENTATIONS
    )
    padding_free: bool = flag(True, "one row of tokens instead of a padded rectangle")
    last_token_only: bool = flag(True, "the last layer computes pooled tokens only")
    share_prefix: bool = flag(
        False, "compute the prompts' constant beginning once a step; its dropout is then drawn once for all rows"
    )
    min_pixels: int | None = flag(None, "smallest area of a picture; default: of 4 tokens, 28*28 or 32*32 each", low=1)
    max_pixels: int | None = flag(None, "largest area of a picture; default: of 300 tokens", low=1)
    special_tokens_in_text: str | None = flag(
        None,
        "read them as plain letters, or as special; default: plain, or as the model was trained",
        one_of=SPECIAL_TOKENS_IN_TEXT,
    )
    exif_rotation: bool | None = flag(None, "turn pictures as EXIF says; default: False, or as the model was trained")

    def __post_init__(self):
        super().__post_init__()
        if self.model_local_path:
            self.model_local_path = local_folder(self.model_local_path, "model_local_path")
        if self.share_prefix and not self.padding_free:
            raise UserError("--share_prefix True needs --padding_free True")
        if self.q_lora and not self.use_lora:
            raise UserError("--q_lora True needs --use_lora True: 4-bit weights cannot be trained themselves")
        if self.use_vision_lora and self.train_vision_encoder:
            raise UserError("--use_vision_lora True and --train_vision_encoder True exclude each other: choose one")
        if self.use_vision_lora and not self.use_lora:
            raise UserError("--use_vision_lora True needs --use_lora True")


@dataclass
class DataArguments(Flags):
    data_path: str = flag(
        "data/nli_for_simcse.csv",
        "csv with sent0,sent1,hard_neg; several files: A,B,C",
        path=FILE_OR_FOLDER,
        several=True,
        source="bash scripts/download.sh nli gets it",
    )
    data_format: str = flag("nli", f"{', '.join(DATA_FORMATS)} (datasets/pairs.py); one, or one for each file")
    image_root: str | None = flag(None, "folder of all pictures; default: each file's own", path=FOLDER)
    max_train_samples: float | None = flag(None, "train on so many rows, or below 1 on this share of each", above=0)
    eval_data_path: str | None = flag(None, "an nli csv to measure after each epoch", path=FILE)
    use_hard_negatives: bool = flag(False, "hard negatives as further targets (LamRA: no)")

    def __post_init__(self):
        if self.eval_data_path in NONE:  # EVAL_DATA_PATH=None in the practice's script
            self.eval_data_path = None
        super().__post_init__()
        formats, files = self.data_format.split(","), listed(self.data_path)
        require(set(formats) <= set(DATA_FORMATS), "data_format", self.data_format, f"of {', '.join(DATA_FORMATS)}")
        require(
            len(formats) in (1, len(files)), "data_format", self.data_format, f"one format, or one for each of {files}"
        )
        limit = self.max_train_samples
        whole = limit is None or limit < 1 or limit == int(limit)
        require(whole, "max_train_samples", limit, "a number of rows, or a share below 1")


@dataclass
class MBEIRDataArguments(TrainingFiles):
    eval_queries: str | None = flag(None, "queries to measure after each epoch", path=FILE, inside="data_path")
    eval_pool: str | None = flag(
        None, "their candidates; default: those of the training", path=FILE, inside="data_path"
    )
    batches: str | None = flag(
        None,
        "a file of mine_batches.sh: steps of rows that are hard for one another",
        path=FILE,
        source="bash scripts/lamra_ret/mine_batches.sh makes it",
    )
    hard_negatives: int = flag(0, "of each query, from its neg_cand_list or --mined (LamRA: 0)", low=0, high=1000)
    mined: str | None = flag(
        None,
        "wrong candidates that mine_negatives.sh or mine.sh wrote, or upstream's json; several: A,B,C",
        path=FILE,
        several=True,
    )
    teacher: str | None = flag(None, "what teacher_scores.sh wrote about --mined, to be learnt beside", path=FILE)
    distill_weight: float = flag(1.0, "of the loss of --teacher", above=0, high=1e4)
    distill_temperature: float = flag(1.0, "divides the scores of --teacher", low=1e-4, high=1e4)

    def __post_init__(self):
        if self.eval_queries in NONE:
            self.eval_queries = None
        super().__post_init__()
        self.check_negatives()

    def check_negatives(self) -> None:
        """Refuse flags that say nothing without another."""
        for name, needed, there in (
            ("mined", "--hard_negatives 1 or more", self.hard_negatives > 0),
            ("teacher", "--mined: it scores those candidates", self.mined is not None),
            ("distill_weight", "--teacher", self.teacher is not None),
            ("distill_temperature", "--teacher", self.teacher is not None),
        ):
            given = getattr(self, name)
            if given != getattr(MBEIRDataArguments, name) and not there:
                raise UserError(f"--{name} {shown(given)} needs {needed}")


@with_help
@dataclass
class TrainingFlags(InheritedFlags):
    """Hugging Face's training arguments with LamRA's defaults, and this project's own."""

    output_dir: str | None = flag("checkpoints/run", "where adapter and checkpoints go", path=OUT_FOLDER)
    model_max_length: int = flag(1024, "longest prompt in tokens", low=1, high=2**20)
    text_max_tokens: int | None = flag(
        None, "cut instruction and text after so many tokens (LamRA: 480 in stage 2)", low=1
    )
    temperature: float = flag(0.05, "divides the similarities", low=1e-4, high=1e4)
    learn_temperature: bool = flag(False, "train it, from --temperature on; lamra.json then has what was learnt")
    temperature_min: float = flag(0.01, "--learn_temperature True goes no lower", low=1e-4, high=1e4)
    temperature_max: float = flag(1.0, "and no higher", low=1e-4, high=1e4)
    temperature_lr: float | None = flag(None, "its learning rate; default: --learning_rate", above=0, high=100)
    symmetric_loss: bool = flag(False, "mean of queries against targets and targets against queries (LamRA: no)")
    false_negative_margin: float | None = flag(
        None, "drop negatives that score so much above the positive (Qwen3-Embedding: 0.1)", low=0, high=2
    )
    false_negative_above: float | None = flag(None, "drop negatives whose cosine is more", above=0, below=1)
    hardness_weight: float = flag(
        0.0, "alpha: a negative of cosine s counts exp(alpha * s) times (LLaVE: 9)", low=0, high=100
    )
    matryoshka_dims: str | None = flag(
        None, "the vectors' first 64,32,16 dimensions are trained to be vectors themselves, beside the whole"
    )
    mixture_weights: str | None = flag(None, "share of each of several data sources, 1,1,2; default: their sizes")
    mixture_batches: str = flag(
        "mixed", "homogeneous: every step's rows come from one source", one_of=("mixed", "homogeneous")
    )
    grad_cache_chunk: int = flag(
        0, "embed so many prompts at a time and recompute them: constant memory; 0: off", low=0
    )
    selective_checkpointing: bool = flag(
        False, "with --gradient_checkpointing: keep matrix products, recompute the rest"
    )
    warmup_ratio: float | None = flag(None, "share of the steps that warm up", low=0, below=1)
    force: bool = flag(False, "start again in an output folder that holds a run")
    resume: str | None = flag(
        None,
        "auto, or a checkpoint-N folder to go on from; if_any: as auto, or anew where a run ended before a checkpoint",
        path=FOLDER,
    )
    allow_changes: bool = flag(False, "go on although settings or data changed")
    on_nonfinite: str = flag(
        "stop", "what to do if loss or gradient is not finite; skip: the update", one_of=("stop", "skip")
    )
    max_nonfinite: int = flag(10, "with --on_nonfinite skip: so many updates at most", low=0)
    mask_duplicates: bool = flag(False, "equal items of a step are no negatives of one another (LamRA: they are)")
    max_skipped_share: float = flag(
        0.001, "stop if more pairs than this share of the data cannot be used; one always may", low=0, below=1
    )
    early_stopping_patience: int = flag(
        0, "stop after so many evaluations without a better one, and keep the best; 0: off", low=0
    )
    dry_run: bool = flag(False, "build everything, print what would run, and stop")

    # Upstream's values where they differ from Hugging Face's defaults.
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = flag(0.0, "0: no clipping, as upstream", low=0)
    logging_steps: float = 1
    save_strategy: Literal["no", "steps", "epoch", "best"] = "epoch"
    save_total_limit: int | None = 2
    per_device_train_batch_size: int = 72
    num_train_epochs: float = 2.0
    dataloader_num_workers: int = 4
    dataloader_drop_last: bool = flag(True, "a wrapped last batch would make rows their own negatives")
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = flag(False, "True shows a NaN loss as 0.0")
    ddp_timeout: int = flag(
        int(TIMEOUT.total_seconds()), "seconds that processes wait for each other", low=1, high=10**7
    )
    report_to: None | str | list[str] = "tensorboard"

    def __post_init__(self):
        for argument in fields(self):
            if argument.name in REFUSED and getattr(self, argument.name) == "":  # as if it were not given
                setattr(self, argument.name, argument.default)
        for name, value in self.set_by_user().items():
            if name in REFUSED:
                given = "" if is_secret(name) else f" {shown(value)}"
                raise UserError(f"--{name}{given}: {REFUSED[name]}; leave the flag out")
        super().__post_init__()
        for name, holds, wanted in (
            ("lr_scheduler_type", self.lr_scheduler_type not in FOLLOW_A_FALLING_MEASURE, "another, such as cosine"),
            ("metric_for_best_model", self._measure() in (None, *MEASURES), " or ".join(MEASURES)),
            ("greater_is_better", self.greater_is_better is not False, f"True: {' and '.join(MEASURES)} are"),
        ):
            require(holds, name, getattr(self, name), wanted)
        if self.mixture_weights is not None:
            numbers = self.mixture_weights.split(",")
            is_number = all(re.fullmatch(r"\d{1,12}(\.\d*)?|\.\d+", number) for number in numbers)
            require(is_number, "mixture_weights", self.mixture_weights, "numbers with commas, such as 1,1,2")
        if self.matryoshka_dims is not None:
            sizes = self.matryoshka_dims.split(",")
            are_sizes = all(re.fullmatch(r"[1-9]\d{0,8}", size) for size in sizes) and len(set(sizes)) == len(sizes)
            wanted = "different numbers of dimensions with commas, such as 64,32,16"
            require(are_sizes, "matryoshka_dims", self.matryoshka_dims, wanted)
        if self.warmup_ratio is not None:
            self.warmup_steps = self.warmup_ratio  # transformers 5: below 1 it is a ratio
        if self.resume_from_checkpoint is not None:
            same = AUTO if self.resume_from_checkpoint.lower() == "true" else self.resume_from_checkpoint
            require(self.resume in (None, same), "resume_from_checkpoint", same, f"the same as --resume {self.resume}")
            self.resume = same
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = json_object("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        self._check_best_checkpoint()
        config = deepspeed_config(self.deepspeed)
        self._check_temperature(has_optimizer="optimizer" in (config or {}))
        for section in ("bf16", "fp16", "zero_optimization", "optimizer", "scheduler"):
            given = (config or {}).get(section, {})
            require(isinstance(given, dict), "deepspeed", self.deepspeed, f'an object for "{section}", not {given}')
        if (config or {}).get("bf16", {}).get("check_grad_overflow") is False:
            raise UserError(
                f'--deepspeed {self.deepspeed}: "check_grad_overflow": false in "bf16" writes gradients that are not '
                "finite into the weights; set it to true"
            )

    @property
    def matryoshka_sizes(self) -> list[int] | None:
        return [int(size) for size in self.matryoshka_dims.split(",")] if self.matryoshka_dims else None

    def check_vectors(self, base: Path) -> None:
        """Refuse sizes that the vectors of a base model do not have beside the whole."""
        if self.matryoshka_sizes:
            dimensions = vector_size(base)
            wanted = f"less than {dimensions} each, the size of this model's vectors, which is always trained"
            require(max(self.matryoshka_sizes) < dimensions, "matryoshka_dims", self.matryoshka_dims, wanted)

    def unread(self) -> Collection[str]:
        return ["resume"] if self.resume in (AUTO, IF_ANY) else []

    def _check_temperature(self, has_optimizer: bool) -> None:
        """A temperature that is trained begins between its bounds; has_optimizer: the one of --deepspeed is used."""
        low, start, high = self.temperature_min, self.temperature, self.temperature_max
        if not self.learn_temperature:
            for name in OF_A_LEARNT_TEMPERATURE:
                if (given := getattr(self, name)) != getattr(TrainingFlags, name):
                    raise UserError(f"--{name} {given} needs --learn_temperature True")
            return
        require(low < high, "temperature_min", low, f"less than --temperature_max {high}")
        require(low <= start <= high, "temperature", start, f"{low} to {high}, --temperature_min and --temperature_max")
        if has_optimizer:
            raise UserError(
                f'--learn_temperature True: --deepspeed {self.deepspeed} has an "optimizer" of its own, which knows no '
                "--temperature_lr; take it out of that file"
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
    init: str = flag("base", "start from the base model, or from a merged model's folder", path=FOLDER)
    rank_style: str | None = flag(
        None,
        "default: released, the prompts of the published weights, or a published reranker's own",
        one_of=RANK_STYLES,
    )
    train_position_ids: str | None = flag(
        None,
        "to train with; default, as upstream: sequential for Qwen2-VL; --position_ids: to ask with",
        one_of=POSITION_IDS,
    )

    def __post_init__(self):
        super().__post_init__()
        require(not self.batches, "batches", self.batches, "no value: a reranker's loss has no in-batch negatives")
        require(not self.eval_queries, "eval_queries", self.eval_queries, "None: measure with rerank_mbeir.sh")
        if self.init != "base":
            self.init = local_folder(self.init, "init")

    def check_negatives(self) -> None:
        require(self.mined is not None, "mined", "", FILE)
        require(not self.hard_negatives, "hard_negatives", self.hard_negatives, "0: the mined candidates are those")
        for name in ("teacher", "distill_weight", "distill_temperature"):
            given = getattr(self, name)
            require(given == getattr(MBEIRDataArguments, name), name, given, "no value: it is for a retriever")

    def unread(self) -> Collection[str]:
        return ["init"] if self.init == "base" else []


@dataclass
class RerankModelArguments(ModelArguments):
    def __post_init__(self):
        super().__post_init__()
        defaults = {"last_token_only": True, "share_prefix": False, "attention": None, "pooling": None}
        for name, default in defaults.items():
            given = getattr(self, name)
            require(given == default, name, given, "no value: only the embedders of stages 1 and 2 have it")


@with_help
@dataclass
class RerankTrainingFlags(TrainingFlags):
    """The practice's values for LamRA-Rank."""

    learning_rate: float = 2e-5
    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 4
    num_train_epochs: float = 1.0
    model_max_length: int = 2048
    text_max_tokens: int | None = flag(
        RERANKER_TEXT_MAX_TOKENS, "cut each query and each candidate after so many tokens", low=1
    )

    def __post_init__(self):
        for name in ("grad_cache_chunk", "mask_duplicates", "matryoshka_dims"):
            require(not getattr(self, name), name, getattr(self, name), "no value: it is for in-batch negatives")
        for name in CONTRASTIVE:
            same = getattr(self, name) == getattr(TrainingFlags, name)
            require(same, name, getattr(self, name), "no value: only the loss of stages 1 and 2 has it")
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
    if not inline:
        require_path("deepspeed", deepspeed, FILE, "expected a file, such as ds_configs/zero2.json")
    return json_object("deepspeed", deepspeed, deepspeed if inline else Path(deepspeed).read_bytes())


def json_object(flag: str, value: str, text: str | bytes | None = None) -> dict:
    """The json object that a flag's value is, or that stands in its file as `text`; raises UserError if it is none."""
    try:
        content = json.loads(value if text is None else text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--{flag} {shown(value)} is no json: {error}") from None
    require(isinstance(content, dict), flag, value, "a json object")
    return content
