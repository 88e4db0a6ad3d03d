"""From a folder to a model, on disk only: nothing here reaches for a hub."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.models.base_model import base_under, check_base, require_base_there, require_model
from lamra.models.embedder import Embedder
from lamra.models.folders import AGAIN, is_adapter
from lamra.models.inspect import inspect_weights
from lamra.models.lora import is_finite, load_adapter
from lamra.models.reranker import Reranker
from lamra.models.settings import Settings, default_settings


def attention_implementation(requested: str | None, device: torch.device | str, dtype: torch.dtype) -> str:
    """`requested`, or flash-attn 2 where it is installed and can run (CUDA, half precision), else PyTorch's SDPA."""
    usable = torch.device(device).type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    installed = importlib.util.find_spec("flash_attn") is not None
    if requested == "flash_attention_2" and not (usable and installed):
        reason = "flash-attn is not installed" if usable else "it needs CUDA and bf16"
        note(f"--attn_implementation flash_attention_2 is ignored, {reason}; sdpa computes the same")
        return "sdpa"
    return requested or ("flash_attention_2" if usable and installed else "sdpa")


def load_model(
    folder: str | Path, *, dtype: torch.dtype, attn_implementation: str = "sdpa", quantize: bool = False
) -> PreTrainedModel:
    """The stock model in `folder`, every weight of it read from safetensors.

    Args:
        quantize: 4-bit NF4 linears in the language model for QLoRA (arXiv 2305.14314); needs CUDA and bitsandbytes.
            The vision tower and lm_head keep `dtype`: they may be trained, and answers are read from lm_head.

    Raises:
        UserError: as inspect_weights; or a weight is not finite.
    """
    weights = inspect_weights(folder)
    model_class = weights.sizes.family.model_class
    kwargs: dict[str, Any] = {}
    if "lm_head.weight" not in weights.tensors:
        kwargs["tie_word_embeddings"] = True  # also where the config of an embedder asks for one
    if quantize:
        if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("--q_lora True needs a CUDA GPU and `pip install bitsandbytes`; set Q_LORA=False here")
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["model.visual", "lm_head"],  # the name says int8, NF4 reads it too
        )
    try:
        model, info = model_class.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **kwargs,
        )
    except StrictDataclassError as error:  # the type of a value that decides no shape
        reason = " ".join(str(error).split())
        raise UserError(f"{Path(folder) / 'config.json'} or generation_config.json: {reason}; {AGAIN}") from None
    # transformers fills missing weights with random numbers and exits 0: a model nobody trained.
    unused = [name for name in info["unexpected_keys"] if not name.endswith(".inv_freq")]
    assert not info["missing_keys"] and not info["mismatched_keys"] and not unused, info
    for name, tensor in model.state_dict().items():
        if not is_finite(tensor):
            raise UserError(
                f"{folder} holds values that are not finite (NaN or infinity) in {name}: download or merge it again"
            )
    return model


def load_embedder(
    folder: str | Path, original_model: str | Path | None = None, *, padding_free: bool = True, **options: Any
) -> tuple[Embedder, Settings]:
    """An Embedder for evaluation from an adapter folder, a merged folder or a bare base model.

    Args and Raises: see `load_trained`; a reranker is refused.
    """
    model, settings = load_trained(folder, original_model, role="retriever", **options)
    embedder = Embedder(
        model,
        settings.position_ids,
        attention=settings.attention,
        pooling=settings.pooling,
        padding_free=padding_free,
    )
    return embedder.eval().requires_grad_(False), settings


def load_reranker(
    folder: str | Path, original_model: str | Path | None = None, *, padding_free: bool = True, **options: Any
) -> tuple[Reranker, Settings]:
    """A Reranker for evaluation, as `load_embedder`; a retriever is refused, a bare base model answers untrained."""
    model, settings = load_trained(folder, original_model, role="reranker", **options)
    reranker = Reranker(model, settings.position_ids, padding_free=padding_free)
    return reranker.eval().requires_grad_(False), settings


def load_trained(
    folder: str | Path,
    original_model: str | Path | None = None,
    *,
    dtype: torch.dtype,
    role: str | None = None,
    device: torch.device | str = "cpu",
    attn_implementation: str | None = None,
    position_ids: str | None = None,
    max_pixels: int | None = None,
    special_tokens_in_text: str | None = None,
    exif_rotation: bool | None = None,
    prompt_style: str | None = None,
    merge: bool = True,
) -> tuple[PreTrainedModel | PeftModel, Settings]:
    """The stock or PEFT model of an adapter folder, a merged folder or a bare base model, and its settings.

    Args:
        role: what it must be, "retriever" or "reranker"; None takes either.
        original_model: the base model under an adapter, see base_under.
        merge: add an adapter to the weights in memory, which then cost nothing more; False keeps it apart.
        position_ids, max_pixels, special_tokens_in_text, exif_rotation, prompt_style: None takes the checkpoint's, or
            for a bare base model the default of its kind.

    Raises:
        UserError: a folder is not there or does not fit, an adapter's base model is no base of it, or a flag
            contradicts the checkpoint.
    """
    folder = Path(folder)
    require_model(folder)
    base = folder
    settings = Settings.read(folder)
    flags = {"position_ids": position_ids, "max_pixels": max_pixels, "exif_rotation": exif_rotation}
    flags |= {"special_tokens_in_text": special_tokens_in_text, "prompt_style": prompt_style}
    if is_adapter(folder):
        base = Path(base_under(folder, original_model))
        require_base_there(folder, base)
    elif original_model:
        raise UserError(
            f"--original_model_id {original_model}: {folder} is a whole model, not an adapter on another: "
            "leave the flag out, or give the adapter's folder as --model_id"
        )
    if settings:
        if role:
            settings.require_role(folder, role)
        settings.with_flags(folder, **flags)
        if is_adapter(folder):
            check_base(folder, base, settings)
            settings = replace(settings, base_model=str(base))
    else:
        settings = default_settings(base, role, **flags)

    attn = attention_implementation(attn_implementation, device, dtype)
    model = load_model(base, dtype=dtype, attn_implementation=attn)
    if is_adapter(folder):
        model = load_adapter(model, folder)
        model = model.merge_and_unload() if merge else model
    return model.to(device), settings
