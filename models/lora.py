"""What of a stock Qwen2-VL is trained: LoRA on its linears, and modules that are trained in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lamra.common.errors import UserError
from lamra.models.families import FAMILIES
from lamra.models.folders import read_object
from lamra.models.inspect import ADAPTER_WEIGHTS, inspect_adapter
from lamra.models.shapes import todays_name

PATTERNS = ("rank_pattern", "alpha_pattern")
# Matched against whole module names. "model" as a substring would match the vision tower too.
LANGUAGE_LINEARS = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def add_lora(
    model: PreTrainedModel, *, r: int, alpha: int, dropout: float, vision: bool = False, trained: tuple[str, ...] = ()
) -> PeftModel:
    """Wrap a stock model with LoRA on every linear of the language model (q k v o gate up down).

    Args:
        vision: also on every linear of the vision tower.
        trained: names of modules that are trained in full and saved with the adapter.
    """
    targets = f"({LANGUAGE_LINEARS}|{FAMILIES[model.config.model_type].vision_linears})" if vision else LANGUAGE_LINEARS
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, modules_to_save=list(trained) or None
    )
    return get_peft_model(model, config)


def leave_casts_to_autocast(model: nn.Module) -> None:
    """Let LoRA with float32 weights take its input in the dtype it comes in: autocast casts the weights instead.

    PEFT would copy the input of each product to float32, and autocast would copy it back: the same numbers, and a
    seventh of a stage-1 step of the 7B on a GPU (benchmarks/README.md).
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Put the LoRA adapter of `folder` on a stock model; adapters written under transformers 4 load too.

    Raises:
        UserError: as inspect_adapter.
    """
    folder = Path(folder)
    modules = inspect_adapter(folder, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    config = read_object(folder / "adapter_config.json")
    by_name = {key: {todays_name(name): value for name, value in (config.get(key) or {}).items()} for key in PATTERNS}
    state = {todays_name(name): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    if not all(map(is_finite, state.values())):
        raise UserError(
            f"{folder / ADAPTER_WEIGHTS} holds values that are not finite (NaN or infinity): train it again"
        )
    _take_embeddings(model, state)
    peft_model = get_peft_model(
        model,
        LoraConfig(
            r=config["r"],
            lora_alpha=config["lora_alpha"],
            lora_dropout=config.get("lora_dropout", 0.0),
            use_rslora=config.get("use_rslora", False),
            target_modules=modules,
            modules_to_save=[todays_name(name) for name in config.get("modules_to_save") or []] or None,
            inference_mode=True,
            **by_name,
        ),
    )
    result = set_peft_model_state_dict(peft_model, state)
    lacking = [name for name in result.missing_keys if ".lora_" in name or ".modules_to_save." in name]
    assert not lacking and not result.unexpected_keys, (lacking, result.unexpected_keys)
    return peft_model


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are; one pass without a copy, a second for 7 B weights."""
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _take_embeddings(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Move an adapter's copy of the token embeddings into the model, and drop its lm_head, which embeds nothing.

    PEFT adds both when the vocabulary was resized, as upstream's was for <emb>; rows that the other lacks are unused.
    """
    state.pop("base_model.model.lm_head.weight", None)
    rows = state.pop("base_model.model.model.language_model.embed_tokens.weight", None)
    if rows is not None:
        weight = model.get_input_embeddings().weight.data
        common = min(len(rows), len(weight))
        weight[:common] = rows[:common]


def freeze(
    model: PreTrainedModel, *, language: bool, vision_encoder: bool, vision_projector: bool, lm_head: bool = False
) -> None:
    """Leave gradients on for the named parts of a stock model only; an embedder has no use for its lm_head."""
    model.requires_grad_(False)
    if language:
        model.model.language_model.requires_grad_(True)
    if lm_head:  # only then: it may be the token embeddings themselves
        model.lm_head.requires_grad_(True)
    if vision_encoder:
        model.model.visual.requires_grad_(True)
    for name in vision_projector_modules(model):
        model.model.get_submodule(name).requires_grad_(vision_projector)


def vision_encoder_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the vision tower's modules without its projectors, as PEFT's modules_to_save wants them."""
    return _without_lists(model, FAMILIES[model.config.model_type].vision.encoder)


def vision_projector_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the projectors between vision tower and language model, likewise."""
    return _without_lists(model, FAMILIES[model.config.model_type].vision.projectors)


def _without_lists(model: PreTrainedModel, names: Sequence[str]) -> tuple[str, ...]:
    """Module names, of a list the names of its modules: PEFT takes no list."""
    found: list[str] = []
    for name in names:
        module = model.model.get_submodule(name)
        found += [f"{name}.{i}" for i in range(len(module))] if isinstance(module, nn.ModuleList) else [name]
    return tuple(found)
