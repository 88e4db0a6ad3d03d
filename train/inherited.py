"""The flags that training inherits from transformers.TrainingArguments, and what becomes of each.

docs/flags.md is made from it: `.venv/bin/python -m lamra.train.inherited > docs/flags.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from lamra.common.flags import LARGEST_SEED, MOST_WORKERS, OUT_FOLDER, Flags, flag

AS_IN_TRANSFORMERS = "as in transformers"
IGNORED, REFUSAL = "ignored: ", "refused: "  # how the help of a flag that is not passed on begins

HUB = "nothing here writes to a hub; upload the output folder yourself"
OWN_EVALUATION = "evaluation here embeds all pairs and measures recall@1 and accuracy"
PACKED = "packed batches have another shape in every step"
CHECKPOINTING = "layers are recomputed as models/backbone.py does it; see --selective_checkpointing"
LIGER = "Liger 0.8.5 cannot patch Qwen2-VL in transformers 5.23"

LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
ORDERS = ("random", "sequential", "group_by_length", "batch_rebalance")
TOKENS_SEEN = ("no", "all", "non_padding", "True", "False", True, False)
EVERY = "so many steps, or below 1 this share of all"
SMALLEST_FLOAT32 = 2.0**-126  # of full precision
SWITCH: dict[str, Any] = {"nargs": "?", "const": True}  # a flag that may stand alone, which means True


def honoured(default: Any, words: str = AS_IN_TRANSFORMERS, **limits: Any) -> Any:
    """Passed on to the Trainer, or read by this project. Words only where name and limits do not say all."""
    return flag(default, words, **limits)


def ignored(default: Any, why: str) -> Any:
    """Without a meaning here: one line says so, and the run is the same as without it."""
    return flag(default, IGNORED + why, checked=False)


def refused(default: Any, why: str, **argument: Any) -> Any:
    """Would break the run, or change it in silence: an error if set to anything but the default."""
    return flag(default, REFUSAL + why, checked=False, **argument)


@dataclass
class InheritedFlags(Flags):
    """The arguments of transformers.TrainingArguments, without the five seconds that its import takes.

    A test holds types and defaults equal to transformers'.
    """

    output_dir: str | None = honoured(None, path=OUT_FOLDER)
    per_device_train_batch_size: int = honoured(
        8, "times the processes: the batch in which targets are negatives of one another", low=1
    )
    num_train_epochs: float = honoured(3.0, above=0, high=1e6)
    max_steps: int = honoured(-1, "-1: as many as the epochs have", low=1, also=(-1,))
    learning_rate: float = honoured(5e-5, above=0, high=100)
    lr_scheduler_type: str = honoured(
        "linear", "all but reduce_lr_on_plateau and greedy, which follow a measure that falls"
    )
    lr_scheduler_kwargs: dict | str | None = honoured(None, "tried before a model is loaded")
    warmup_steps: float = honoured(0, "below 1 a share of the steps, as --warmup_ratio", low=0, high=1e9)
    optim: str = honoured("adamw_torch_fused", "what torch or an installed package has; tried before a model is loaded")
    optim_args: str | None = honoured(None, "name=value,...; tried before a model is loaded")
    weight_decay: float = honoured(0.0, low=0, high=100)
    adam_beta1: float = honoured(0.9, low=0, below=1)
    adam_beta2: float = honoured(0.999, low=0, below=1)
    adam_epsilon: float = honoured(
        1e-8, "without it a weight that has no gradient becomes NaN", low=SMALLEST_FLOAT32, high=1
    )
    optim_target_modules: None | str | list[str] = refused(
        None, "optimizers that work on some modules only are not tried here"
    )
    gradient_accumulation_steps: int = honoured(
        1, "it does not add in-batch negatives, --grad_cache_chunk does", low=1, high=2**20
    )
    average_tokens_across_devices: bool = ignored(True, "the loss is a mean over rows, not over tokens")
    max_grad_norm: float = honoured(1.0, "0: no clipping", low=0)
    label_smoothing_factor: float = refused(0.0, "the losses here do not smooth labels")
    bf16: bool = honoured(False)
    fp16: bool = honoured(False, "an overflow that lowers the loss scale is noted and does not stop the run")
    bf16_full_eval: bool = refused(False, "evaluation during training runs as training does, --bf16 True")
    fp16_full_eval: bool = refused(False, "evaluation during training runs as training does, --fp16 True")
    tf32: bool | None = honoured(None, "ignored with a note where there is no CUDA")
    activation_checkpointing: bool | None = honoured(None, **SWITCH)
    activation_checkpointing_kwargs: dict[str, Any] | str | None = refused(None, CHECKPOINTING)
    gradient_checkpointing: bool | None = honoured(None, **SWITCH)
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = refused(None, CHECKPOINTING)
    torch_compile: bool = refused(False, PACKED)
    torch_compile_backend: str | None = refused(None, PACKED)
    torch_compile_mode: str | None = refused(None, PACKED)
    use_liger_kernel: bool = refused(False, LIGER)
    liger_kernel_config: dict[str, bool] | None = refused(None, LIGER)
    use_cache: bool = ignored(False, "training keeps no keys and values")
    neftune_noise_alpha: float | None = refused(None, "noise on token embeddings is not built in")
    torch_empty_cache_steps: int | None = honoured(None, low=1)
    auto_find_batch_size: bool = refused(
        False, "a smaller batch has fewer in-batch negatives; --grad_cache_chunk needs less memory"
    )
    logging_strategy: Literal["no", "steps", "epoch"] = honoured("steps")
    logging_steps: float = honoured(500, EVERY, above=0, high=1e9)
    logging_first_step: bool = honoured(False)
    log_on_each_node: bool = honoured(True)
    logging_nan_inf_filter: bool = refused(
        True, "it shows a loss that is not finite as a mean of others; see --on_nonfinite"
    )
    include_num_input_tokens_seen: str | bool = honoured("no", one_of=TOKENS_SEEN)
    log_level: str = honoured("passive", choices=LOG_LEVELS)
    log_level_replica: str = honoured("warning", choices=LOG_LEVELS)
    disable_tqdm: bool | None = honoured(None)
    report_to: None | str | list[str] = honoured("none", "what is installed")
    run_name: str | None = honoured(None)
    project: str = honoured("huggingface")
    trackio_space_id: str | None = honoured(None)
    trackio_bucket_id: str | None = honoured(None)
    trackio_static_space_id: str | None = honoured(None)
    eval_strategy: Literal["no", "steps", "epoch"] = honoured(
        "no", "needs --eval_data_path (stage 1) or --eval_queries (stage 2); else ignored with a note"
    )
    eval_steps: float | None = honoured(None, EVERY, above=0, high=1e9)
    eval_delay: float = honoured(0, "epochs or steps before the first evaluation", low=0, high=1e9)
    per_device_eval_batch_size: int = honoured(
        8, "bounds the tokens of an evaluation's forward, at 64 a prompt", low=1, high=2**20
    )
    prediction_loss_only: bool = ignored(False, OWN_EVALUATION)
    eval_on_start: bool = honoured(False, "as --eval_strategy")
    eval_do_concat_batches: bool = ignored(True, OWN_EVALUATION)
    eval_use_gather_object: bool = ignored(False, OWN_EVALUATION)
    eval_accumulation_steps: int | None = ignored(None, OWN_EVALUATION)
    include_for_metrics: list[str] = field(default_factory=list, metadata={"help": IGNORED + OWN_EVALUATION})
    batch_eval_metrics: bool = ignored(False, OWN_EVALUATION)
    save_only_model: bool = honoured(
        False, "a run cannot go on from such a checkpoint; not with DeepSpeed and --load_best_model_at_end"
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = honoured("steps", "best: with --metric_for_best_model")
    save_steps: float = honoured(500, EVERY, above=0, high=1e9)
    save_on_each_node: bool = refused(False, "checkpoints need one folder that all machines see")
    save_total_limit: int | None = honoured(None, "0: all; the best checkpoint is kept beside them", low=0)
    enable_jit_checkpoint: bool = refused(False, "SIGTERM is followed by a checkpoint without it")
    push_to_hub: bool = refused(False, HUB)
    hub_token: str | None = refused(None, HUB)
    hub_private_repo: bool | None = refused(None, HUB)
    hub_model_id: str | None = refused(None, HUB)
    hub_strategy: str = refused("every_save", HUB)
    hub_always_push: bool = refused(False, HUB)
    hub_revision: str | None = refused(None, HUB)
    load_best_model_at_end: bool = honoured(False, "the final weights are those of the best checkpoint")
    metric_for_best_model: str | None = honoured(None, "recall@1 (default) or accuracy")
    greater_is_better: bool | None = honoured(None, "True: both are")
    ignore_data_skip: bool = refused(False, "a resumed run would see other rows than an unbroken one")
    restore_callback_states_from_checkpoint: bool = ignored(False, "a resumed run goes on exactly without it")
    full_determinism: bool = honoured(False)
    seed: int = honoured(42, low=0, high=LARGEST_SEED)
    data_seed: int | None = honoured(
        None, "the order of rows, of a mixture too; default: --seed", low=0, high=LARGEST_SEED
    )
    use_cpu: bool = honoured(False)
    accelerator_config: dict | str | None = refused(None, "it would divide the rows among the processes in another way")
    parallelism_config: str | None = refused(None, "data parallelism and DeepSpeed's ZeRO are what is built and tested")
    dataloader_drop_last: bool = honoured(False)
    dataloader_num_workers: int = honoured(0, low=0, high=MOST_WORKERS)
    dataloader_pin_memory: bool = honoured(True)
    dataloader_persistent_workers: bool = honoured(False)
    dataloader_prefetch_factor: int | None = honoured(None, low=1, high=2**20)
    dataloader_multiprocessing_context: str | None = honoured(None, choices=("fork", "spawn", "forkserver"))
    dataloader_in_order: bool = honoured(True)
    remove_unused_columns: bool = ignored(True, "the data have no columns")
    label_names: list[str] | None = ignored(None, OWN_EVALUATION)
    train_sampling_strategy: str = refused(
        "random", "rows are shuffled; which of them share a step decides their negatives", choices=ORDERS
    )
    length_column_name: str = ignored("length", "the data have no columns")
    ddp_find_unused_parameters: bool | None = refused(None, "it follows from what is trained")
    ddp_bucket_cap_mb: int | None = honoured(None, low=1, high=2**20)
    ddp_broadcast_buffers: bool | None = honoured(None)
    ddp_static_graph: bool | None = refused(None, "a step with pictures has another graph than one without")
    ddp_backend: str | None = honoured(None, choices=("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"))
    ddp_timeout: int = honoured(1800, low=1, high=10**7)
    fsdp: str | None = refused(None, "use --deepspeed ds_configs/zero3.json", **SWITCH)
    fsdp_config: dict[str, Any] | str | None = refused(None, "use --deepspeed ds_configs/zero3.json")
    deepspeed: dict | str | None = honoured(None, "a json file, such as ds_configs/zero2.json")
    debug: str = refused("", "--on_nonfinite stop names the rows of a loss that is not finite")
    skip_memory_metrics: bool = honoured(True)
    do_train: bool = ignored(False, "this command trains")
    do_eval: bool = ignored(False, "--eval_strategy says when to evaluate")
    do_predict: bool = ignored(False, "the commands in scripts/eval/ do that")
    resume_from_checkpoint: str | None = honoured(None, "another name of --resume; True: auto")
    local_rank: int = ignored(-1, "the launcher's LOCAL_RANK counts")

    def set_by_user(self) -> dict[str, Any]:
        """The flags that have another value than their default."""
        set_by_user = {}
        for argument in fields(self):
            default = argument.default if argument.default_factory is MISSING else argument.default_factory()
            value = getattr(self, argument.name)
            if value != default and value not in (None, ""):  # the parser has None for an empty default
                set_by_user[argument.name] = value
        return set_by_user


HELP = {argument.name: argument.metadata["help"] for argument in fields(InheritedFlags)}
NOTED, REFUSED = (
    {name: words.removeprefix(fate) for name, words in HELP.items() if words.startswith(fate)}
    for fate in (IGNORED, REFUSAL)
)
HONOURED = {name: words for name, words in HELP.items() if name not in NOTED and name not in REFUSED}


def with_help(flags: type) -> type:
    """Give the fields of a dataclass that have no --help and no limits those of the dataclass that it extends."""
    for argument in fields(flags):
        inherited: Mapping[str, Any] = next(
            (vars(base)["__dataclass_fields__"][argument.name].metadata for base in flags.__mro__[1:]
             if argument.name in getattr(base, "__dataclass_fields__", ())), {}
        )  # fmt: skip
        argument.metadata = MappingProxyType({**inherited, **argument.metadata})
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
        parts += [
            f"| `--{name}` | {words.removeprefix(AS_IN_TRANSFORMERS).strip()} |"
            for name, words in sorted(flags.items())
        ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(table(), end="")
