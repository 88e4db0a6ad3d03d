"""From flags and settings to a processor, an Embedder or a Reranker ready for training, and the rest of a trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from lamra.collators.processing import Processor
from lamra.collators.rerank import RerankCollator
from lamra.collators.retrieval import RetrievalCollator
from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.datasets.communities import Communities
from lamra.datasets.items import Indexed
from lamra.datasets.usable import UsablePairs
from lamra.models.embedder import Embedder
from lamra.models.inspect import inspect_weights
from lamra.models.loading import attention_implementation, load_model
from lamra.models.lora import (
    add_lora,
    freeze,
    leave_casts_to_autocast,
    vision_encoder_modules,
    vision_projector_modules,
)
from lamra.models.reranker import Reranker
from lamra.models.settings import Settings, settings_to_train
from lamra.models.temperature import Temperature
from lamra.train.arguments import TrainingArguments
from lamra.train.flags import ModelArguments
from lamra.train.guards.skipped import SkippedPairs
from lamra.train.guards.stopping import EarlyStopping, Preemption
from lamra.train.sampling import SetEpoch, mixture_sampler


def retriever_settings(folder: Path, model_args: ModelArguments, args: TrainingArguments) -> Settings:
    """What the checkpoints of stages 1 and 2 remember; raises as `settings_to_train`."""
    settings = settings_to_train(
        folder,
        position_ids=model_args.position_ids,
        min_pixels=model_args.min_pixels,
        max_pixels=model_args.max_pixels,
        special_tokens_in_text=model_args.special_tokens_in_text,
        exif_rotation=model_args.exif_rotation,
        attention=model_args.attention,
        pooling=model_args.pooling,
        prompt_style=model_args.prompt_style,
        text_max_tokens=args.text_max_tokens,
        temperature=args.temperature,
        matryoshka_dims=args.matryoshka_sizes,
    )
    before = Settings.read(folder)
    if before and before.temperature != args.temperature:
        note(f"{folder} was trained to a temperature of {before.temperature:.4g}, here it is {args.temperature:.4g}")
    if before and before.matryoshka_dims and not settings.matryoshka_dims:
        sizes = ",".join(map(str, before.matryoshka_dims))
        note(f"{folder} was trained with --matryoshka_dims {sizes}: without it these sizes are trained no longer")
    return replace(settings, quantized=model_args.q_lora)


def build_processor(folder: Path, settings: Settings, args: TrainingArguments) -> Processor:
    """The processor of the model in `folder`, with the settings that its checkpoints will remember."""
    inspect_weights(folder)  # now, and not after the data
    return Processor(
        folder,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        max_length=args.model_max_length,
        text_max_tokens=settings.text_max_tokens,
        special_tokens_in_text=settings.special_tokens_in_text,
        exif_rotation=settings.exif_rotation,
        prompt_style=settings.prompt_style,
    )


def build_embedder(
    folder: Path, model_args: ModelArguments, args: TrainingArguments, settings: Settings, prefix: int = 0
) -> Embedder:
    """The Embedder that the flags ask for; every prompt begins with the same `prefix` tokens.

    Raises:
        UserError: as load_to_train, or --share_prefix True where a prefix depends on what follows.
    """
    for name, default in (("attention", "causal"), ("pooling", "last_token"), ("prompt_style", "lamra")):
        if model_args.share_prefix and (given := getattr(settings, name)) != default:
            raise UserError(f"--share_prefix True needs --{name} {default}, and the model has {given}")
    temperature = None
    if args.learn_temperature:
        temperature = Temperature(settings.temperature, args.temperature_min, args.temperature_max)
    return Embedder(
        load_to_train(folder, model_args, args),
        settings.position_ids,
        attention=settings.attention,
        pooling=settings.pooling,
        padding_free=model_args.padding_free,
        last_token_only=model_args.last_token_only,
        grad_cache_chunk=args.grad_cache_chunk,
        selective_checkpointing=args.selective_checkpointing,
        shared_prefix=prefix if model_args.share_prefix else 0,
        temperature=temperature,
    )


def build_reranker(folder: Path, model_args: ModelArguments, args: TrainingArguments, settings: Settings) -> Reranker:
    return Reranker(
        load_to_train(folder, model_args, args, lm_head=True),
        settings.train_position_ids or settings.position_ids,
        padding_free=model_args.padding_free,
        selective_checkpointing=args.selective_checkpointing,
    )


def load_to_train(folder: Path, model_args: ModelArguments, args: TrainingArguments, lm_head=False) -> nn.Module:
    """Load the base model of `folder` and leave gradients on exactly where the flags say.

    Raises:
        UserError: as load_model, or --q_lora under ZeRO-3.
    """
    if model_args.q_lora and is_deepspeed_zero3_enabled():
        raise UserError(
            f"--q_lora True cannot be used with --deepspeed {args.deepspeed}: ZeRO-3 shares weights out and "
            "NF4 packs them, neither knows the other; set DS_STAGE=zero2, or Q_LORA=False"
        )
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    model = load_model(
        folder,
        dtype=dtype,
        attn_implementation=attention_implementation(model_args.attn_implementation, args.device, dtype),
        quantize=model_args.q_lora,
    )
    if model_args.use_lora:
        trained = vision_encoder_modules(model) if model_args.train_vision_encoder else ()
        trained += vision_projector_modules(model) if model_args.train_vision_projector else ()
        model = add_lora(
            model,
            r=model_args.lora_r,
            alpha=model_args.lora_alpha,
            dropout=model_args.lora_dropout,
            vision=model_args.use_vision_lora,
            trained=trained,
        )
    else:
        freeze(
            model,
            language=True,
            vision_encoder=model_args.train_vision_encoder,
            vision_projector=model_args.train_vision_projector,
            lm_head=lm_head,
        )
    if not args.deepspeed:  # DeepSpeed keeps float32 master weights itself
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        leave_casts_to_autocast(model)
    # A batch of text leaves trained vision weights without a gradient; DistributedDataParallel must be told.
    args.ddp_find_unused_parameters = (
        model_args.use_vision_lora or model_args.train_vision_encoder or model_args.train_vision_projector
    )
    return model


def trainer_parts(
    pairs: Indexed,
    collator: RetrievalCollator | RerankCollator,
    args: TrainingArguments,
    checkpoint: str | None,
    communities: Communities | None = None,
) -> dict[str, Any]:
    """Arguments of LamRATrainer for training on `pairs`; made before the model, a mistake is told before it is loaded.

    Args:
        checkpoint: to go on from; None begins anew.
        communities: of which every step is made; None: of single rows.
    """
    preemption, sampler = Preemption(), mixture_sampler(pairs, args, communities)
    smallest = min(map(len, getattr(pairs, "groups", {}).values()), default=None)
    skipped = SkippedPairs(
        args.output_dir, len(pairs), args.max_skipped_share, resume=bool(checkpoint), smallest=smallest
    )
    return {
        "args": args,
        "preemption": preemption,
        "skipped": skipped,
        "sampler": sampler,
        "processing_class": collator.processor,
        "data_collator": collator,
        "train_dataset": UsablePairs(pairs, collator.encode, skipped.most),
        "callbacks": [preemption, SetEpoch(sampler, pairs), EarlyStopping()],
    }
