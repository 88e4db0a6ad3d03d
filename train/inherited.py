"""The flags that training inherits from transformers.TrainingArguments, and what becomes of each.

docs/flags.md is made from it: `.venv/bin/python -m lamra.train.inherited > docs/flags.md`.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

HUB = "nothing here writes to a hub; upload the output folder yourself"
OWN_EVALUATION = "evaluation here embeds all pairs and measures recall@1 and accuracy"
PACKED = "packed batches have another shape in every step"
CHECKPOINTING = "layers are recomputed as models/backbone.py does it; see --selective_checkpointing"
ONE_FOLDER = "checkpoints need one folder that all machines see"

# Passed on to the Trainer, or read by this project. Words only where the name does not say all.
HONOURED = {
    "output_dir": "",
    "per_device_train_batch_size": "times the processes: the batch in which targets are negatives of one another",
    "num_train_epochs": "more than 0",
    "max_steps": "1 or more; -1: as many as the epochs have",
    "learning_rate": "more than 0",
    "lr_scheduler_type": "all but reduce_lr_on_plateau and greedy, which follow a measure that falls",
    "lr_scheduler_kwargs": "tried before a model is loaded",
    "warmup_steps": "below 1 a share of the steps, as --warmup_ratio",
    "optim": "what torch or an installed package has; tried before a model is loaded",
    "optim_args": "",
    "weight_decay": "0 or more",
    "adam_beta1": "from 0 to below 1",
    "adam_beta2": "from 0 to below 1",
    "adam_epsilon": "more than 0 in float32: without it a weight that has no gradient becomes NaN",
    "gradient_accumulation_steps": "1 or more; it does not add in-batch negatives, --grad_cache_chunk does",
    "max_grad_norm": "0: no clipping",
    "bf16": "",
    "fp16": "an overflow that lowers the loss scale is noted and does not stop the run",
    "tf32": "ignored with a note where there is no CUDA",
    "activation_checkpointing": "",
    "gradient_checkpointing": "",
    "torch_empty_cache_steps": "",
    "logging_strategy": "",
    "logging_steps": "",
    "logging_first_step": "",
    "log_on_each_node": "",
    "include_num_input_tokens_seen": "",
    "log_level": "",
    "log_level_replica": "",
    "disable_tqdm": "",
    "report_to": "what is installed",
    "run_name": "",
    "project": "",
    "trackio_space_id": "",
    "trackio_bucket_id": "",
    "trackio_static_space_id": "",
    "eval_strategy": "needs --eval_data_path (stage 1) or --eval_queries (stage 2); else ignored with a note",
    "eval_steps": "",
    "eval_delay": "",
    "eval_on_start": "as --eval_strategy",
    "per_device_eval_batch_size": "bounds the tokens of an evaluation's forward, at 64 a prompt",
    "save_only_model": "a run cannot go on from such a checkpoint; not with DeepSpeed and --load_best_model_at_end",
    "save_strategy": "best: with --metric_for_best_model",
    "save_steps": "",
    "save_total_limit": "the best checkpoint is kept beside them",
    "load_best_model_at_end": "the final weights are those of the best checkpoint",
    "metric_for_best_model": "recall@1 (default) or accuracy",
    "greater_is_better": "True: both are",
    "full_determinism": "",
    "skip_memory_metrics": "",
    "seed": "",
    "data_seed": "the order of rows, of a mixture too; default: --seed",
    "use_cpu": "",
    "dataloader_drop_last": "",
    "dataloader_num_workers": "",
    "dataloader_pin_memory": "",
    "dataloader_persistent_workers": "",
    "dataloader_prefetch_factor": "",
    "dataloader_multiprocessing_context": "",
    "dataloader_in_order": "",
    "ddp_bucket_cap_mb": "",
    "ddp_broadcast_buffers": "",
    "ddp_backend": "",
    "ddp_timeout": "",
    "deepspeed": "a json file, such as ds_configs/zero2.json",
    "resume_from_checkpoint": "another name of --resume; True: auto",
}

# Without a meaning here: one line says so, and the run is the same as without it.
NOTED = {
    "average_tokens_across_devices": "the loss is a mean over rows, not over tokens",
    "use_cache": "training keeps no keys and values",
    "prediction_loss_only": OWN_EVALUATION,
    "eval_do_concat_batches": OWN_EVALUATION,
    "eval_use_gather_object": OWN_EVALUATION,
    "eval_accumulation_steps": OWN_EVALUATION,
    "include_for_metrics": OWN_EVALUATION,
    "batch_eval_metrics": OWN_EVALUATION,
    "label_names": OWN_EVALUATION,
    "remove_unused_columns": "the data have no columns",
    "length_column_name": "the data have no columns",
    "do_train": "this command trains",
    "do_eval": "--eval_strategy says when to evaluate",
    "do_predict": "the commands in scripts/eval/ do that",
    "restore_callback_states_from_checkpoint": "a resumed run goes on exactly without it",
    "local_rank": "the launcher's LOCAL_RANK counts",
}

# Would break the run, or change it in silence: refused if set to anything but the default.
REFUSED = {
    "optim_target_modules": "optimizers that work on some modules only are not tried here",
    "label_smoothing_factor": "the losses here do not smooth labels",
    "bf16_full_eval": "evaluation during training runs as training does, --bf16 True",
    "fp16_full_eval": "evaluation during training runs as training does, --fp16 True",
    "activation_checkpointing_kwargs": CHECKPOINTING,
    "gradient_checkpointing_kwargs": CHECKPOINTING,
    "torch_compile": PACKED,
    "torch_compile_backend": PACKED,
    "torch_compile_mode": PACKED,
    "use_liger_kernel": "Liger 0.8.5 cannot patch Qwen2-VL in transformers 5.23",
    "liger_kernel_config": "Liger 0.8.5 cannot patch Qwen2-VL in transformers 5.23",
    "neftune_noise_alpha": "noise on token embeddings is not built in",
    "auto_find_batch_size": "a smaller batch has fewer in-batch negatives; --grad_cache_chunk needs less memory",
    "logging_nan_inf_filter": "it shows a loss that is not finite as a mean of others; see --on_nonfinite",
    "save_on_each_node": ONE_FOLDER,
    "enable_jit_checkpoint": "SIGTERM is followed by a checkpoint without it",
    "push_to_hub": HUB,
    "hub_token": HUB,
    "hub_private_repo": HUB,
    "hub_model_id": HUB,
    "hub_strategy": HUB,
    "hub_always_push": HUB,
    "hub_revision": HUB,
    "ignore_data_skip": "a resumed run would see other rows than an unbroken one",
    "accelerator_config": "it would divide the rows among the processes in another way",
    "parallelism_config": "data parallelism and DeepSpeed's ZeRO are what is built and tested",
    "train_sampling_strategy": "rows are shuffled; which of them share a step decides their negatives",
    "ddp_find_unused_parameters": "it follows from what is trained",
    "ddp_static_graph": "a step with pictures has another graph than one without",
    "fsdp": "use --deepspeed ds_configs/zero3.json",
    "fsdp_config": "use --deepspeed ds_configs/zero3.json",
    "debug": "--on_nonfinite stop names the rows of a loss that is not finite",
}


LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")


def choice(default: str | None, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


def switch() -> Any:
    """A flag that may stand alone, which means True."""
    return field(default=None, metadata={"nargs": "?", "const": True})


@dataclass
class InheritedFlags:
    """The arguments of transformers.TrainingArguments, without the five seconds that its import takes.

    A test holds types and defaults equal to transformers'.
    """

    output_dir: str | None = None
    per_device_train_batch_size: int = 8
    num_train_epochs: float = 3.0
    max_steps: int = -1
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: dict | str | None = None
    warmup_steps: float = 0
    optim: str = "adamw_torch_fused"
    optim_args: str | None = None
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    optim_target_modules: None | str | list[str] = None
    gradient_accumulation_steps: int = 1
    average_tokens_across_devices: bool = True
    max_grad_norm: float = 1.0
    label_smoothing_factor: float = 0.0
    bf16: bool = False
    fp16: bool = False
    bf16_full_eval: bool = False
    fp16_full_eval: bool = False
    tf32: bool | None = None
    activation_checkpointing: bool | None = switch()
    activation_checkpointing_kwargs: dict[str, Any] | str | None = None
    gradient_checkpointing: bool | None = switch()
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = None
    torch_compile: bool = False
    torch_compile_backend: str | None = None
    torch_compile_mode: str | None = None
    use_liger_kernel: bool = False
    liger_kernel_config: dict[str, bool] | None = None
    use_cache: bool = False
    neftune_noise_alpha: float | None = None
    torch_empty_cache_steps: int | None = None
    auto_find_batch_size: bool = False
    logging_strategy: Literal["no", "steps", "epoch"] = "steps"
    logging_steps: float = 500
    logging_first_step: bool = False
    log_on_each_node: bool = True
    logging_nan_inf_filter: bool = True
    include_num_input_tokens_seen: str | bool = "no"
    log_level: str = choice("passive", *LOG_LEVELS)
    log_level_replica: str = choice("warning", *LOG_LEVELS)
    disable_tqdm: bool | None = None
    report_to: None | str | list[str] = "none"
    run_name: str | None = None
    project: str = "huggingface"
    trackio_space_id: str | None = None
    trackio_bucket_id: str | None = None
    trackio_static_space_id: str | None = None
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    eval_steps: float | None = None
    eval_delay: float = 0
    per_device_eval_batch_size: int = 8
    prediction_loss_only: bool = False
    eval_on_start: bool = False
    eval_do_concat_batches: bool = True
    eval_use_gather_object: bool = False
    eval_accumulation_steps: int | None = None
    include_for_metrics: list[str] = field(default_factory=list)
    batch_eval_metrics: bool = False
    save_only_model: bool = False
    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    save_steps: float = 500
    save_on_each_node: bool = False
    save_total_limit: int | None = None
    enable_jit_checkpoint: bool = False
    push_to_hub: bool = False
    hub_token: str | None = None
    hub_private_repo: bool | None = None
    hub_model_id: str | None = None
    hub_strategy: str = "every_save"
    hub_always_push: bool = False
    hub_revision: str | None = None
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    ignore_data_skip: bool = False
    restore_callback_states_from_checkpoint: bool = False
    full_determinism: bool = False
    seed: int = 42
    data_seed: int | None = None
    use_cpu: bool = False
    accelerator_config: dict | str | None = None
    parallelism_config: str | None = None
    dataloader_drop_last: bool = False
    dataloader_num_workers: int = 0
    dataloader_pin_memory: bool = True
    dataloader_persistent_workers: bool = False
    dataloader_prefetch_factor: int | None = None
    dataloader_multiprocessing_context: str | None = choice(None, "fork", "spawn", "forkserver")
    dataloader_in_order: bool = True
    remove_unused_columns: bool = True
    label_names: list[str] | None = None
    train_sampling_strategy: str = choice("random", "random", "sequential", "group_by_length", "batch_rebalance")
    length_column_name: str = "length"
    ddp_find_unused_parameters: bool | None = None
    ddp_bucket_cap_mb: int | None = None
    ddp_broadcast_buffers: bool | None = None
    ddp_static_graph: bool | None = None
    ddp_backend: str | None = choice(None, "nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl")
    ddp_timeout: int = 1800
    fsdp: str | None = switch()
    fsdp_config: dict[str, Any] | str | None = None
    deepspeed: dict | str | None = None
    debug: str = ""
    skip_memory_metrics: bool = True
    do_train: bool = False
    do_eval: bool = False
    do_predict: bool = False
    resume_from_checkpoint: str | None = None
    local_rank: int = -1

    def set_by_user(self) -> dict[str, Any]:
        """The flags that have another value than their default."""
        set_by_user = {}
        for flag in fields(self):
            default = flag.default_factory() if flag.default_factory is not MISSING else flag.default
            value = getattr(self, flag.name)
            if value != default and value not in (None, ""):  # the parser has None for an empty default
                set_by_user[flag.name] = value
        return set_by_user


def with_help(flags: type) -> type:
    """Give the inherited fields of a dataclass their words here as --help."""
    ignored = {name: f"ignored: {reason}" for name, reason in NOTED.items()}
    refused = {name: f"refused: {reason}" for name, reason in REFUSED.items()}
    words = {name: word or "as in transformers" for name, word in HONOURED.items()} | ignored | refused
    for flag in fields(flags):
        if flag.name in words:
            flag.metadata = {"help": words[flag.name], **flag.metadata}
    return flags


def table() -> str:
    """docs/flags.md: every inherited argument in one of three tables."""
    parts = [
        "# Arguments inherited from transformers",
        "",
        "Made from `train/inherited.py` by `.venv/bin/python -m lamra.train.inherited > docs/flags.md`.",
        "The project's own flags: `.venv/bin/python train/train_nli.py --help`.",
    ]
    for title, flags in (
        ("Honoured", HONOURED),
        ("Without a meaning here: ignored with a note", NOTED),
        ("Refused when set to other than the default", REFUSED),
    ):
        parts += ["", f"## {title}", "", "| flag | |", "|---|---|"]
        parts += [f"| `--{name}` | {words} |" for name, words in sorted(flags.items())]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(table(), end="")
