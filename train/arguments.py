"""Flags of the training entrypoints. Every bad value is a UserError that names the flag."""

from __future__ import annotations

import json
import os
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import torch
import transformers
from transformers.integrations import get_available_reporting_integrations

from lamra.common.cli import note, require, require_finite
from lamra.common.errors import UserError
from lamra.common.processes import TIMEOUT, check_devices, default_workers
from lamra.datasets.pairs import DATA_FORMATS
from lamra.models.settings import POSITION_IDS
from lamra.train.inherited import NOTED, REFUSED

MEASURES = ("recall@1", "accuracy")  # what an evaluation during training gives
FOLLOW_A_FALLING_MEASURE = ("reduce_lr_on_plateau", "greedy")


@dataclass
class ModelArguments:
    model_id: str = field(default="qwen2-vl-7b", metadata={"help": "base model, see models/folders.py"})
    model_local_path: str | None = field(default=None, metadata={"help": "its folder, if not checkpoints/hf_models/"})
    train_vision_encoder: bool = field(default=False, metadata={"help": "train the vision tower in full"})
    use_vision_lora: bool = field(default=False, metadata={"help": "LoRA on the vision tower"})
    train_vision_projector: bool = field(default=False, metadata={"help": "train the projector in full"})
    use_lora: bool = field(default=True, metadata={"help": "LoRA on the language model; False trains all of it"})
    q_lora: bool = field(default=False, metadata={"help": "4-bit base weights under the LoRA (CUDA, bitsandbytes)"})
    lora_r: int = 64
    lora_alpha: int = 128
    lora_dropout: float = 0.05
    position_ids: str | None = field(default=None, metadata={"help": "sequential or mrope; default by model kind"})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "flash_attention_2, sdpa, eager; of packed text: chosen by models/packing.py"}
    )
    padding_free: bool = field(default=True, metadata={"help": "one row of tokens instead of a padded rectangle"})
    last_token_only: bool = field(default=True, metadata={"help": "the last layer computes pooled tokens only"})
    min_pixels: int | None = field(default=None, metadata={"help": "smallest area of a picture; default 4*28*28"})
    max_pixels: int | None = field(default=None, metadata={"help": "largest area of a picture; default 300*28*28"})

    def __post_init__(self):
        require_finite(self)
        require(self.position_ids in (None, *POSITION_IDS), "position_ids", self.position_ids, "sequential or mrope")
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
    data_path: str = field(
        default="data/nli_for_simcse.csv", metadata={"help": "csv with sent0,sent1,hard_neg; several files: A,B,C"}
    )
    data_format: str = field(
        default="nli", metadata={"help": f"{', '.join(DATA_FORMATS)} (datasets/pairs.py); one, or one for each file"}
    )
    image_root: str | None = field(default=None, metadata={"help": "folder of all pictures; default: each file's own"})
    max_train_samples: float | None = field(
        default=None, metadata={"help": "train on so many rows, or below 1 on this share of each file"}
    )
    eval_data_path: str | None = field(default=None, metadata={"help": "an nli csv to measure after each epoch"})
    use_hard_negatives: bool = field(default=False, metadata={"help": "hard negatives as further targets (LamRA: no)"})

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
        if self.eval_data_path in ("None", "none", ""):  # EVAL_DATA_PATH=None in the practice's script
            self.eval_data_path = None


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Hugging Face's training arguments with LamRA's defaults, and what stage 1 adds."""

    contrastive = True  # the loss is one over the whole gathered batch
    output_dir: str | None = field(default="checkpoints/run", metadata={"help": "where adapter and checkpoints go"})
    model_max_length: int = field(default=1024, metadata={"help": "longest prompt in tokens"})
    text_max_tokens: int | None = field(
        default=None, metadata={"help": "cut instruction and text after so many tokens (LamRA: 480 in stage 2)"}
    )
    temperature: float = field(default=0.05, metadata={"help": "divides the similarities"})
    mixture_weights: str | None = field(
        default=None, metadata={"help": "share of each of several data sources, 1,1,2; default: their sizes"}
    )
    mixture_batches: str = field(
        default="mixed", metadata={"help": "mixed, or homogeneous: every step's rows come from one source"}
    )
    grad_cache_chunk: int = field(
        default=0, metadata={"help": "embed so many prompts at a time and recompute them: constant memory; 0: off"}
    )
    selective_checkpointing: bool = field(
        default=False, metadata={"help": "with --gradient_checkpointing: keep matrix products, recompute the rest"}
    )
    warmup_ratio: float | None = field(default=None, metadata={"help": "share of the steps that warm up"})
    force: bool = field(default=False, metadata={"help": "start again in an output folder that holds a run"})
    resume: str | None = field(default=None, metadata={"help": "auto, or a checkpoint-N folder to go on from"})
    allow_changes: bool = field(default=False, metadata={"help": "go on although settings or data changed"})
    on_nonfinite: str = field(
        default="stop", metadata={"help": "stop, or skip the update, if loss or gradient is not finite"}
    )
    max_nonfinite: int = field(default=10, metadata={"help": "with --on_nonfinite skip: so many updates at most"})
    mask_duplicates: bool = field(
        default=False, metadata={"help": "equal items of a step are no negatives of one another (LamRA: they are)"}
    )
    max_skipped_share: float = field(
        default=0.001,
        metadata={"help": "stop if more pairs than this share of the data cannot be used; one always may"},
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "stop after so many evaluations without a better one, and keep the best; 0: off"}
    )
    dry_run: bool = field(default=False, metadata={"help": "build everything, print what would run, and stop"})

    # Upstream's values where they differ from Hugging Face's defaults.
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = field(default=0.0, metadata={"help": "0: no clipping, as upstream"})
    logging_steps: float = 1
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    per_device_train_batch_size: int = 72
    num_train_epochs: float = 2.0
    dataloader_num_workers: int = 4
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "a wrapped last batch would make rows their own negatives"}
    )
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "True shows a NaN loss as 0.0"})
    ddp_timeout: int = field(
        default=int(TIMEOUT.total_seconds()), metadata={"help": "seconds that processes wait for each other"}
    )
    report_to: None | str | list[str] = "tensorboard"

    def __post_init__(self):
        require_finite(self)
        self._check_inherited()
        for flag, holds, wanted in (
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
            ("adam_epsilon", self.adam_epsilon >= torch.finfo(torch.float32).tiny, "a positive float32 value"),
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
            require(holds, flag, getattr(self, flag), wanted)
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
        self._fit_to_this_machine()
        super().__post_init__()
        self._check_made()

    def _check_inherited(self) -> None:
        """Refuse inherited arguments that this training cannot honour, and note those that mean nothing here."""
        for argument in fields(self):
            name, value = argument.name, getattr(self, argument.name)
            default = argument.default if argument.default_factory is MISSING else argument.default_factory()
            if value == default or value in (None, ""):  # the parser has None for an empty default
                continue
            if name in REFUSED:
                raise UserError(f"--{name} {value}: {REFUSED[name]}; leave the flag out")
            if name in NOTED:
                note(f"--{name} {value} is ignored: {NOTED[name]}")

    def _measure(self) -> str | None:
        return self.metric_for_best_model and self.metric_for_best_model.removeprefix("eval_")

    def _check_best_checkpoint(self) -> None:
        """The best evaluation must have a checkpoint, or the best weights are gone when they are wanted."""
        if self.early_stopping_patience:
            self.load_best_model_at_end = True
        if not self.load_best_model_at_end and self.save_strategy != "best":
            return
        self.metric_for_best_model = self._measure() or MEASURES[0]
        wish = (
            f"--early_stopping_patience {self.early_stopping_patience}"
            if self.early_stopping_patience
            else "--load_best_model_at_end True"
            if self.load_best_model_at_end
            else "--save_strategy best"
        )
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

    def _check_made(self) -> None:
        """Make optimizer and schedule for one weight: what the libraries refuse is told before a model is loaded."""
        missing = set(self.report_to) - {"kubeflow", *get_available_reporting_integrations()}
        require(not missing, "report_to", ",".join(missing), "one that is installed, or none")
        flags = f"--optim {self.optim.value} --optim_args {self.optim_args}"
        try:
            make, options = transformers.Trainer.get_optimizer_cls_and_kwargs(self)
            optimizer = make([torch.nn.Parameter(torch.zeros(1))], **options)
            flags = (
                f"--lr_scheduler_type {self.lr_scheduler_type.value} --lr_scheduler_kwargs {self.lr_scheduler_kwargs}"
            )
            transformers.get_scheduler(
                self.lr_scheduler_type,
                optimizer,
                num_warmup_steps=1,
                num_training_steps=10,
                scheduler_specific_kwargs=self.lr_scheduler_kwargs,
            )
        except Exception as error:  # whatever a library says of a value or of itself
            raise UserError(f"{flags}: {' '.join(str(error).split())}; give others, or leave them out") from None

    def _fit_to_this_machine(self) -> None:
        """Drop what means nothing without CUDA, and refuse what this CUDA machine cannot do."""
        if torch.cuda.is_available() and not self.use_cpu:
            check_devices(self.bf16)
            return
        self.use_cpu = True
        if self.fp16:
            raise UserError("--fp16 True needs a CUDA GPU: use --bf16 True, or neither")
        if self.deepspeed:
            start_deepspeed_on_cpu()
        if self.tf32:
            note("--tf32 True is ignored: it means nothing without CUDA")
        self.tf32 = None
        self.dataloader_pin_memory = False
        self.dataloader_num_workers = min(self.dataloader_num_workers, default_workers())


def start_deepspeed_on_cpu() -> None:
    """Bring DeepSpeed up on gloo; ZeRO-3 wants that done before the model is built."""
    if "RANK" not in os.environ:
        raise UserError("--deepspeed needs a launcher: start with torchrun --nproc_per_node 1 instead of python")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # slow to import, and optional without --deepspeed

    # Its shared-memory all-reduce would be compiled at the first start, for minutes; gloo does the same without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", timeout=TIMEOUT)


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
