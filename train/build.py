"""From flags and settings to a processor, and an Embedder or a Reranker ready for training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from lamra.collators.processing import Processor
from lamra.common.errors import UserError
from lamra.models.embedder import Embedder
from lamra.models.loading import attention_implementation, load_model
from lamra.models.lora import VISION_PROJECTOR_MODULES, add_lora, freeze, vision_encoder_modules
from lamra.models.reranker import Reranker
from lamra.models.settings import Settings
from lamra.train.arguments import TrainingArguments
from lamra.train.flags import ModelArguments


def build_processor(folder: Path, settings: Settings, args: TrainingArguments) -> Processor:
    """The processor of the model in `folder`, with the settings that its checkpoints will remember."""
    return Processor(
        folder,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        max_length=args.model_max_length,
        text_max_tokens=settings.text_max_tokens,
    )


def build_embedder(
    folder: Path, model_args: ModelArguments, training_args: TrainingArguments, position_ids: str
) -> Embedder:
    return Embedder(
        load_to_train(folder, model_args, training_args),
        position_ids,
        padding_free=model_args.padding_free,
        last_token_only=model_args.last_token_only,
        grad_cache_chunk=training_args.grad_cache_chunk,
        selective_checkpointing=training_args.selective_checkpointing,
    )


def build_reranker(
    folder: Path, model_args: ModelArguments, training_args: TrainingArguments, position_ids: str
) -> Reranker:
    return Reranker(
        load_to_train(folder, model_args, training_args, lm_head=True),
        position_ids,
        padding_free=model_args.padding_free,
        selective_checkpointing=training_args.selective_checkpointing,
    )


def load_to_train(
    folder: Path, model_args: ModelArguments, training_args: TrainingArguments, lm_head: bool = False
) -> nn.Module:
    """Load the base model of `folder` and leave gradients on exactly where the flags say.

    Raises:
        UserError: as load_model, or --q_lora under ZeRO-3.
    """
    if model_args.q_lora and is_deepspeed_zero3_enabled():
        raise UserError(
            f"--q_lora True cannot be used with --deepspeed {training_args.deepspeed}: ZeRO-3 shares weights out and "
            "NF4 packs them, neither knows the other; set DS_STAGE=zero2, or Q_LORA=False"
        )
    dtype = torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32
    model = load_model(
        folder,
        dtype=dtype,
        attn_implementation=attention_implementation(model_args.attn_implementation, training_args.device, dtype),
        quantize=model_args.q_lora,
    )
    if model_args.use_lora:
        trained = vision_encoder_modules(model) if model_args.train_vision_encoder else ()
        trained += VISION_PROJECTOR_MODULES if model_args.train_vision_projector else ()
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
    if not training_args.deepspeed:  # DeepSpeed keeps float32 master weights itself
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    # A batch of text leaves trained vision weights without a gradient; DistributedDataParallel must be told.
    training_args.ddp_find_unused_parameters = (
        model_args.use_vision_lora or model_args.train_vision_encoder or model_args.train_vision_projector
    )
    return model
