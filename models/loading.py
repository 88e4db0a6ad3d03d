"""From a folder to a model, on disk only: nothing here reaches for a hub."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import BitsAndBytesConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

from lamra.common.errors import UserError
from lamra.common.processes import process_rank
from lamra.models.digests import model_sha256
from lamra.models.embedder import Embedder
from lamra.models.folders import is_adapter, is_model, local_folder
from lamra.models.lora import adapter_base_model, load_adapter
from lamra.models.reranker import Reranker
from lamra.models.settings import FILE_NAME as SETTINGS_FILE
from lamra.models.settings import Settings

ARCHITECTURES = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}

# LamRA's published Qwen2-VL checkpoints were trained with plain positions, its Qwen2.5-VL ones with M-RoPE. Its
# rerankers alike, but all are asked with M-RoPE: upstream asks by generate(), which computes it.
DEFAULT_POSITION_IDS = {"qwen2_vl": "sequential", "qwen2_5_vl": "mrope"}
RERANKER_POSITION_IDS = "mrope"


def architecture(folder: str | Path) -> str:
    """The model type of a folder: "qwen2_vl" or "qwen2_5_vl"."""
    try:
        model_type = json.loads((Path(folder) / "config.json").read_text())["model_type"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{folder} is not a model folder: its config.json cannot be read ({error!r})") from None
    if model_type not in ARCHITECTURES:
        raise UserError(f"{folder} holds a {model_type!r} model: only {' and '.join(ARCHITECTURES)} are supported")
    return model_type


def settings_to_train(
    folder: str | Path, *, text_max_tokens: int | None, temperature: float, **flags: int | str | None
) -> Settings:
    """Settings for training on top of the model in `folder`: a merged LamRA model goes on with what it remembers.

    Args:
        flags: position_ids, min_pixels and max_pixels; None takes the model's, or for a bare base model the default.

    Raises:
        UserError: a flag contradicts the model, min_pixels exceeds max_pixels, or the model is a reranker.
    """
    settings = Settings.read(folder)
    if settings:
        settings.require_role(folder, "retriever")
        settings.with_flags(folder, **flags)
    else:
        given = {name: value for name, value in flags.items() if value is not None}
        settings = Settings(str(folder), **({"position_ids": DEFAULT_POSITION_IDS[architecture(folder)]} | given))
    if not 0 < settings.min_pixels <= settings.max_pixels:
        raise UserError(f"--min_pixels {settings.min_pixels}: expected 1 to --max_pixels ({settings.max_pixels})")
    base = dict(base_model=str(folder), base_sha256=model_sha256(folder))
    return replace(settings, **base, text_max_tokens=text_max_tokens, temperature=temperature)


def settings_to_rerank(
    folder: str | Path,
    *,
    rank_style: str,
    position_ids: str | None,
    train_position_ids: str | None,
    text_max_tokens: int | None,
    **pixels: int | None,
) -> Settings:
    """Settings for training a reranker on top of the model in `folder`: a LamRA model's pictures keep their sizes.

    Positions do not follow a retriever: upstream trains LamRA-Rank with those of its family (sequential for Qwen2-VL)
    and asks it with M-RoPE.

    Args:
        position_ids, train_position_ids: to ask and to train with; None takes upstream's.
        pixels: min_pixels and max_pixels; None takes the model's, or for a bare base model the default.

    Raises:
        UserError: a flag contradicts the model, or min_pixels exceeds max_pixels.
    """
    position_ids = position_ids or RERANKER_POSITION_IDS
    trained = train_position_ids or DEFAULT_POSITION_IDS[architecture(folder)]
    before = Settings.read(folder)
    settings = settings_to_train(
        folder,
        position_ids=before.position_ids if before else position_ids,
        text_max_tokens=text_max_tokens,
        temperature=Settings.temperature,
        **pixels,
    )
    trained = None if trained == position_ids else trained
    return replace(
        settings, position_ids=position_ids, train_position_ids=trained, role="reranker", rank_style=rank_style
    )


def attention_implementation(requested: str | None, device: torch.device | str, dtype: torch.dtype) -> str:
    """`requested`, or flash-attn 2 where it is installed and can run (CUDA, half precision), else PyTorch's SDPA."""
    usable = torch.device(device).type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    installed = importlib.util.find_spec("flash_attn") is not None
    if requested == "flash_attention_2" and not (usable and installed):
        reason = "flash-attn is not installed" if usable else "it needs CUDA and bf16"
        print(f"note: --attn_implementation flash_attention_2 is ignored, {reason}; sdpa computes the same")
        return "sdpa"
    return requested or ("flash_attention_2" if usable and installed else "sdpa")


def load_model(
    folder: str | Path, *, dtype: torch.dtype, attn_implementation: str = "sdpa", quantize: bool = False
) -> nn.Module:
    """The stock model in `folder`, every weight of it read from safetensors.

    Args:
        quantize: 4-bit NF4 linears in the language model for QLoRA (arXiv 2305.14314); needs CUDA and bitsandbytes.
            The vision tower and lm_head keep `dtype`: they may be trained, and answers are read from lm_head.

    Raises:
        UserError: the folder holds no such model, weights are missing from it, or its config has no place for some.
    """
    model_class = ARCHITECTURES[architecture(folder)]
    kwargs = {}
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
    except OSError as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from None
    # transformers fills missing weights with random numbers and exits 0: a model nobody trained.
    if info["missing_keys"] or info["mismatched_keys"]:
        names = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["mismatched_keys"]))
        raise UserError(
            f"{folder} lacks {len(names)} weights of a {model_class.__name__}, for example {names[0]}: "
            "it is incomplete or was written by another version; download or merge it again"
        )
    # It leaves out those that the config does not ask for, too: a model of fewer layers than were trained. Rotary
    # frequencies are computed, whether or not a file holds them.
    unused = [name for name in info["unexpected_keys"] if not name.endswith(".inv_freq")]
    if unused:
        raise UserError(
            f"{folder} holds {len(unused)} weights that its config.json has no place for, for example {min(unused)}: "
            "config and weights are of different models; download or merge it again"
        )
    return model


def freeze(
    model: nn.Module, *, language: bool, vision_encoder: bool, vision_projector: bool, lm_head: bool = False
) -> None:
    """Leave gradients on for the named parts of a stock model only; an embedder has no use for its lm_head."""
    model.requires_grad_(False)
    if language:
        model.model.language_model.requires_grad_(True)
    if lm_head:  # only then: it may be the token embeddings themselves
        model.lm_head.requires_grad_(True)
    if vision_encoder:
        model.model.visual.requires_grad_(True)
    model.model.visual.merger.requires_grad_(vision_projector)


def vision_encoder_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the vision tower's modules without its projector, as PEFT's modules_to_save wants them."""
    return ("visual.patch_embed", *(f"visual.blocks.{i}" for i in range(len(model.model.visual.blocks))))


VISION_PROJECTOR_MODULES = ("visual.merger",)


def load_embedder(
    folder: str | Path, original_model: str | Path | None = None, *, padding_free: bool = True, **options
) -> tuple[Embedder, Settings]:
    """An Embedder for evaluation from an adapter folder, a merged folder or a bare base model.

    Args and Raises: see `load_trained`; a reranker is refused.
    """
    model, settings = load_trained(folder, original_model, role="retriever", **options)
    embedder = Embedder(model, settings.position_ids, padding_free=padding_free)
    return embedder.eval().requires_grad_(False), settings


def load_reranker(
    folder: str | Path, original_model: str | Path | None = None, *, padding_free: bool = True, **options
) -> tuple[Reranker, Settings]:
    """A Reranker for evaluation, as `load_embedder`; a retriever is refused, a bare base model is asked as it is."""
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
    merge: bool = True,
) -> tuple[nn.Module, Settings]:
    """The stock or PEFT model of an adapter folder, a merged folder or a bare base model, and how it is to be used.

    Args:
        role: what it must be, "retriever" or "reranker"; None takes either.
        original_model: the base model under an adapter, see base_under.
        merge: add an adapter to the weights in memory, which then cost nothing more; False keeps it apart.
        position_ids, max_pixels: None takes the checkpoint's, or for a bare base model the default of its kind.

    Raises:
        UserError: a folder is not there or does not fit, an adapter's base model is no base of it, or a flag
            contradicts the checkpoint.
    """
    folder = Path(folder)
    if not is_model(folder):
        hint = "has the training finished?" if folder.is_dir() else "it does not exist"
        raise UserError(f"--model_id {folder}: no adapter_config.json and no config.json there ({hint})")
    base = folder
    settings = Settings.read(folder)
    if is_adapter(folder):
        base = Path(base_under(folder, original_model))
        if not (base / "config.json").is_file():
            raise UserError(
                f"{folder} is an adapter and its base model is not in {base}: name it with --original_model_id, "
                "or download it with bash scripts/download.sh"
            )
    elif original_model:
        raise UserError(
            f"--original_model_id {original_model}: {folder} is a whole model, not an adapter on another: "
            "leave the flag out, or give the adapter's folder as --model_id"
        )
    if settings:
        if role:
            settings.require_role(folder, role)
        settings.with_flags(folder, position_ids=position_ids, max_pixels=max_pixels)
        if is_adapter(folder):
            check_base(folder, base, settings)
            settings = replace(settings, base_model=str(base))
    else:
        settings = default_settings(base, role, position_ids)
        settings = replace(settings, max_pixels=max_pixels) if max_pixels else settings

    attn = attention_implementation(attn_implementation, device, dtype)
    model = load_model(base, dtype=dtype, attn_implementation=attn)
    if is_adapter(folder):
        model = load_adapter(model, folder)
        model = model.merge_and_unload() if merge else model
    return model.to(device), settings


def base_under(adapter: str | Path, original_model: str | Path | None) -> str:
    """The folder of an adapter's base model: the one that it was trained on, or where that is gone `original_model`.

    Upstream's commands name Qwen2-VL for every model and read the tokenizer from it; the adapter of stage 2 belongs on
    the merged model of stage 1 all the same.

    Raises:
        UserError: `original_model` has an adapter merged into it that `adapter` was not trained on top of.
    """
    settings = Settings.read(adapter)
    remembered = (settings.base_model if settings else adapter_base_model(adapter)) or ""
    if not original_model:
        return local_folder(remembered, "original_model_id")
    original_model = local_folder(str(original_model), "original_model_id")
    _require_base(Path(adapter), Path(original_model), Path(remembered))
    if not is_model(remembered):
        return original_model
    if Path(original_model).resolve() != Path(remembered).resolve() and process_rank() == 0:
        print(f"note: {adapter} was trained on {remembered}, which is used, not --original_model_id {original_model}")
    return remembered


def check_base(folder: Path, base: Path, settings: Settings) -> None:
    """Refuse a base model that is not the one that an adapter was trained on, whatever its folder is called.

    Raises:
        UserError: its files have another digest than the adapter remembers.
    """
    if settings.base_sha256 is None:
        if process_rank() == 0:
            print(f"note: {folder} does not say what its base model held when it was trained; {base} is used as it is")
        return
    found = model_sha256(base)
    if found != settings.base_sha256:
        raise UserError(
            f"{folder} was trained on a base model with the digest {settings.base_sha256[:16]}, and {base} has "
            f"{found[:16]}: its weights, config or tokenizer are others; name the right one with --original_model_id, "
            f"or remove base_sha256 from {folder / SETTINGS_FILE} if this one is meant"
        )


def _require_base(adapter: Path, base: Path, own_base: Path) -> None:
    """Refuse a base model that an adapter was merged into, unless `adapter` was trained on top of that one.

    Raises:
        UserError: the adapter would be added to this or to another adapter.
    """
    if is_adapter(base):
        raise UserError(f"--original_model_id {base} holds an adapter itself: give the base model of {adapter}")
    merged = Settings.read(base)
    if merged is None or not own_base.name or base.resolve() == own_base.resolve():
        return
    if own_base.is_dir():
        refused = Settings.read(own_base) != merged  # a copy says the same
    else:  # moved away, or named as on the hub: at least no model that was merged from it
        refused = Path(merged.base_model).name == own_base.name
    if refused:
        raise UserError(
            f"--original_model_id {base} has an adapter merged into it already, and {adapter} was trained on "
            f"{own_base}: give that model, or leave the flag out"
        )


def default_settings(base: Path, role: str | None, position_ids: str | None) -> Settings:
    """Of a published model, which remembers none: those that LamRA's published checkpoints were trained with."""
    if role == "reranker":
        return Settings(str(base), position_ids or RERANKER_POSITION_IDS, role=role, rank_style="released")
    return Settings(str(base), position_ids or DEFAULT_POSITION_IDS[architecture(base)])
