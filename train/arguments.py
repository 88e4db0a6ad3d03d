"""Flags of the training entrypoints. Every bad value is a ValueError that names the flag."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
import transformers
from transformers import HfArgumentParser

from lamra.datasets.pairs import DATA_FORMATS
from lamra.models.backbone import POSITION_IDS


@dataclass
class ModelArguments:
    model_id: str = field(default="qwen2-vl-7b", metadata={"help": "base model, see models/loading.py"})
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
        require(self.position_ids in (None, *POSITION_IDS), "position_ids", self.position_ids, "sequential or mrope")
        require(self.lora_r > 0, "lora_r", self.lora_r, "a positive rank")
        require(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "a value from 0 to below 1")
        if self.q_lora and not self.use_lora:
            raise ValueError("--q_lora True needs --use_lora True: 4-bit weights cannot be trained themselves")
        if self.use_vision_lora and self.train_vision_encoder:
            raise ValueError("--use_vision_lora True and --train_vision_encoder True exclude each other: choose one")
        if self.use_vision_lora and not self.use_lora:
            raise ValueError("--use_vision_lora True needs --use_lora True")


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
    report_to: None | str | list[str] = "tensorboard"

    def __post_init__(self):
        require(self.temperature > 0, "temperature", self.temperature, "a positive value")
        require(
            self.per_device_train_batch_size > 0,
            "per_device_train_batch_size",
            self.per_device_train_batch_size,
            "1 or more",
        )
        require(self.model_max_length > 0, "model_max_length", self.model_max_length, "1 or more")
        require(
            0 <= self.max_skipped_share < 1, "max_skipped_share", self.max_skipped_share, "a share from 0 to below 1"
        )
        cut = self.text_max_tokens
        require(cut is None or cut > 0, "text_max_tokens", cut, "1 or more")
        require(self.on_nonfinite in ("stop", "skip"), "on_nonfinite", self.on_nonfinite, "stop or skip")
        require(self.grad_cache_chunk >= 0, "grad_cache_chunk", self.grad_cache_chunk, "0 (off) or a number of prompts")
        if self.use_liger_kernel:  # the Trainer would only log that it cannot
            raise ValueError(
                "--use_liger_kernel True: Liger 0.8.5 cannot patch Qwen2-VL in transformers 5.23; leave the flag out"
            )
        require(
            self.mixture_batches in ("mixed", "homogeneous"),
            "mixture_batches",
            self.mixture_batches,
            "mixed or homogeneous",
        )
        if self.mixture_weights is not None:
            numbers = self.mixture_weights.split(",")
            is_number = all(re.fullmatch(r"\d+(\.\d*)?|\.\d+", number) for number in numbers)
            require(is_number, "mixture_weights", self.mixture_weights, "numbers with commas, such as 1,1,2")
        if self.warmup_ratio is not None:
            require(0 <= self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio, "a share from 0 to below 1")
            self.warmup_steps = self.warmup_ratio  # transformers 5: below 1 it is a ratio
        if self.deepspeed and not str(self.deepspeed).startswith("{"):
            require(
                Path(self.deepspeed).is_file(), "deepspeed", self.deepspeed, "a file, such as ds_configs/zero2.json"
            )
        self._fit_to_this_machine()
        super().__post_init__()

    def _fit_to_this_machine(self) -> None:
        """Drop what means nothing without CUDA, and refuse what this CUDA machine cannot do."""
        if torch.cuda.is_available() and not self.use_cpu:
            check_devices(self.bf16)
            return
        self.use_cpu = True
        if self.deepspeed:
            start_deepspeed_on_cpu()
        if self.tf32:
            note("--tf32 True is ignored: it means nothing without CUDA")
        self.tf32 = None
        self.dataloader_pin_memory = False
        self.dataloader_num_workers = min(self.dataloader_num_workers, default_workers())


def check_devices(bf16: bool) -> None:
    """Refuse more processes than GPUs, and bf16 on a GPU without it."""
    processes, found = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > found:
        raise ValueError(f"NUM_GPUS={processes}, but this machine has {found}: set NUM_GPUS={found}")
    if bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("--bf16 True: this GPU has no bf16; use --bf16 False")


def default_workers() -> int:
    """Data workers for each process: this machine's cores shared out, one left to the process itself, at most 8."""
    return max(0, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


def start_deepspeed_on_cpu() -> None:
    """Bring DeepSpeed up on gloo; ZeRO-3 wants that done before the model is built."""
    if "RANK" not in os.environ:
        raise ValueError("--deepspeed needs a launcher: start with torchrun --nproc_per_node 1 instead of python")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # slow to import, and optional without --deepspeed

    # Its shared-memory all-reduce would be compiled at the first start, for minutes; gloo does the same without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")


def require(condition: bool, flag: str, value, wanted: str) -> None:
    if not condition:
        raise ValueError(f"--{flag} {value}: expected {wanted}")


def note(message: str) -> None:
    """One line for the user, from the first process of the first machine only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"note: {message}", flush=True)


def parse(*dataclasses):
    """Parse sys.argv into one instance of each dataclass; abbreviated and unknown flags are errors."""
    parser = HfArgumentParser(dataclasses, allow_abbrev=False, usage="%(prog)s [--flag value ...]  (--help lists them)")
    parser.error = _raise  # one sentence for what argparse refuses, too
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    except ValueError as error:  # also a library's word on a bad value
        raise ValueError(str(error)) from None
    if unknown:
        raise ValueError(f"unknown flag {' '.join(unknown)}: --help lists the flags")
    return parsed


def _raise(message: str) -> NoReturn:
    raise ValueError(message)
