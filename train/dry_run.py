"""--dry_run True: what would be trained, on how much, before a GPU hour is spent."""

from __future__ import annotations

from lamra.common.processes import is_first_process
from lamra.models.backbone import Backbone
from lamra.train.trainer import LamRATrainer

GIB = 2**30


def print_dry_run(trainer: LamRATrainer, prompts: dict[str, int]) -> None:
    """Print global batch, steps, trainable parameters, the first batch and a memory estimate per process.

    Args:
        prompts: a name and the batch's row of each prompt to print.
    """
    if not is_first_process():
        return
    args = trainer.args
    parameters = list(trainer.model.parameters())
    size = {p: getattr(p, "ds_numel", p.numel()) for p in parameters}  # ZeRO-3 leaves empty tensors behind
    trained = sum(size[p] for p in parameters if p.requires_grad)
    total = sum(size.values())
    batches = len(trainer.get_train_dataloader())
    steps_per_epoch = -(-batches // args.gradient_accumulation_steps)
    steps = args.max_steps if args.max_steps > 0 else int(steps_per_epoch * args.num_train_epochs)
    in_batch = args.per_device_train_batch_size * args.world_size
    against = f", each against {in_batch} targets" if trainer.in_batch_negatives else ""
    batch = trainer.data_collator(trainer.train_dataset.__getitems__(range(args.per_device_train_batch_size)))
    print(
        f"global batch          {in_batch * args.gradient_accumulation_steps} pairs = "
        f"{args.per_device_train_batch_size} x {args.world_size} processes x {args.gradient_accumulation_steps} "
        f"accumulated{against}\n"
        f"steps                 {steps} = {steps_per_epoch} an epoch x {args.num_train_epochs:g} epochs, "
        f"{len(trainer.train_dataset)} pairs\n"
        f"trainable parameters  {trained:,} of {total:,} ({trained / total:.2%})\n"
        f"first batch           {tuple(batch['input_ids'].shape)} tokens, {int(batch['attention_mask'].sum())} useful\n"
        f"memory a process      about {memory_of(trainer, size, batch) / GIB:.2f} GiB, an estimate"
    )
    for name, row in prompts.items():
        ids = batch["input_ids"][row][: batch["attention_mask"][row].sum()]
        print(f"--- first {name}\n{trainer.processing_class.tokenizer.decode(ids)}")


def memory_of(trainer: LamRATrainer, size: dict, batch: dict) -> float:
    """`memory_estimate` of this run."""
    args, model = trainer.args, trainer.model
    tokens = int(batch["attention_mask"].sum()) if model.padding_free else batch["input_ids"].numel()
    if chunk := args.grad_cache_chunk:
        tokens *= min(1, chunk / len(batch["input_ids"]))
    return memory_estimate(
        model,
        tokens,
        size=size,
        shards=args.world_size if args.deepspeed else 1,
        recomputed=args.gradient_checkpointing,
    )


def memory_estimate(model: Backbone, tokens: float, *, size: dict, shards: int, recomputed: bool) -> float:
    """Bytes a process needs: weights, gradients and Adam's two moments, activations kept for the backward pass.

    Activations are counted as in Korthikanti et al. (arXiv 2205.05198) without the attention matrix that flash
    attention and SDPA never store: about 34 values a token and hidden unit in a layer, or 1 with recomputation. The
    vision tower's are not counted.

    Args:
        tokens: of a forward.
        size: number of values of each parameter.
        shards: processes that ZeRO spreads the optimizer's states over.
        recomputed: with activation checkpointing.
    """
    config = model.config.text_config
    weights = sum(count * p.element_size() for p, count in size.items())
    trained = sum(count for p, count in size.items() if p.requires_grad)
    states = trained * 12 / shards + trained * 4  # float32 master and moments; gradients
    layer = 34 * tokens * config.hidden_size * 2
    kept = config.num_hidden_layers * tokens * config.hidden_size * 2 + layer
    return weights + states + (kept if recomputed else config.num_hidden_layers * layer)
