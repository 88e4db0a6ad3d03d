"""The weighted mean of models as a model: of adapters as an adapter, of whole models as a whole model.

Tensors are read one by one; of whole models one file of the result is in memory, never a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lamra.common.errors import UserError
from lamra.models.folders import AGAIN, read_object
from lamra.models.inspect import ADAPTER_WEIGHTS, BYTES, INDEX, WEIGHTS, inspect_weights, scaling_of
from lamra.models.lora import PATTERNS, is_finite
from lamra.models.shapes import todays_name

SHARD = 4 * 2**30  # bytes of tensors in a file
BLOCK = 2**20  # numbers that are added at a time
FORMAT = {"format": "pt"}


class Tensors:
    """The tensors of a model's files by today's names, each read when it is asked for.

    Attributes:
        stored_names: today's name -> the name in its file.
    """

    def __init__(self, files: Iterable[Path]):
        self.stored_names: dict[str, str] = {}
        self._files: dict[str, tuple[Path, Any]] = {}
        for path in files:
            file = safe_open(path, "pt")
            for name in file.keys():  # noqa: SIM118
                self.stored_names[todays_name(name)] = name
                self._files[todays_name(name)] = path, file

    def __getitem__(self, name: str) -> Tensor:
        """Raises UserError where a value is not finite."""
        path, file = self._files[name]
        tensor = file.get_tensor(self.stored_names[name])
        if not is_finite(tensor):
            raise UserError(f"{path} holds values that are not finite (NaN or infinity) in {name}: {AGAIN}")
        return tensor


def mean(name: str, parts: Sequence[Tensors], weights: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
    """The weighted sum of a tensor of several models, added in float64: of equal tensors it is that tensor.

    Args:
        weights: sum to 1.
        dtype: of the result; None: that of the first model's tensor.
    """
    tensors = [part[name] for part in parts]
    result = torch.empty(tensors[0].shape, dtype=dtype or tensors[0].dtype)
    # A block at a time: a copy in float64 of the embeddings of tokens would take 4 GiB.
    blocks = zip(result.view(-1).split(BLOCK), *(tensor.view(-1).split(BLOCK) for tensor in tensors))
    for into, *block in blocks:
        into.copy_(sum(weight * of.double() for weight, of in zip(weights, block, strict=True)))
    return result


def write_mean_adapter(folder: Path, adapters: Sequence[Path], weights: Sequence[float]) -> None:
    """Write the adapter that stands for the mean of the weights that LoRA adapters stand for.

    The mean of w0 + s_i B_i A_i, weighted with w_i, is w0 + sum_i w_i s_i B_i A_i: one product of matrices, whose rank
    is the sum of the ranks. A has the rows of all A_i, B the columns of all w_i s_i B_i, and the new scaling is 1. The
    mean of the B_i times the mean of the A_i would be another matrix. Modules that were trained in full are averaged.
    All in float32.

    Args:
        adapters: folders of LoRA adapters with the same tensors; scalings may differ.
        weights: sum to 1.

    Raises:
        UserError: a value is not finite.
    """
    parts = [Tensors([adapter / ADAPTER_WEIGHTS]) for adapter in adapters]
    configs = [read_object(adapter / "adapter_config.json") for adapter in adapters]
    tensors: dict[str, Tensor] = {}
    for name in parts[0].stored_names:
        module, _, factor = name.removeprefix("base_model.model.").rpartition(".lora_")
        if factor == "A.weight":
            tensors[name] = torch.cat([part[name].float() for part in parts])  # (sum of r_i, in)
        elif factor == "B.weight":
            factors = [weight * scaling_of(config, module) for weight, config in zip(weights, configs, strict=True)]
            scaled = [part[name].double() * factor for part, factor in zip(parts, factors)]
            tensors[name] = torch.cat(scaled, dim=1).float()  # (out, sum of r_i)
        else:
            tensors[name] = mean(name, parts, weights, torch.float32)
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata=FORMAT)
    (folder / "adapter_config.json").write_text(json.dumps(stacked_config(configs), indent=2) + "\n")


def stacked_config(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The adapter_config.json of adapters of equal ranks on top of one another: every alpha is the rank."""
    number = len(configs)
    ranks = {todays_name(name): number * rank for name, rank in (configs[0].get("rank_pattern") or {}).items()}
    rank = number * configs[0]["r"]
    plain = {"r": rank, "lora_alpha": rank, "use_rslora": False, "init_lora_weights": True}
    return configs[0] | plain | dict.fromkeys(PATTERNS, ranks)


def write_mean_model(folder: Path, models: Sequence[Path], weights: Sequence[float]) -> None:
    """Write the safetensors files of the mean of whole models, each tensor rounded once, to the dtype it has in them.

    Args:
        models: folders of whole models with the same names, shapes and dtypes.
        weights: sum to 1.

    Raises:
        UserError: a value is not finite.
    """
    stored = [inspect_weights(model).tensors for model in models]
    parts = [Tensors(sorted({of.file for of in tensors.values()})) for tensors in stored]
    shards = shards_of({name: BYTES[of.dtype] * math.prod(of.shape) for name, of in stored[0].items()}, SHARD)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {parts[0].stored_names[name]: mean(name, parts, weights) for name in names}
        save_file(tensors, folder / file, metadata=FORMAT)
        weight_map |= dict.fromkeys(tensors, file)
        # Before the next file's are made.
        del tensors
    if len(shards) > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2) + "\n")


def shards_of(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names of tensors, in order, in groups of at most so many bytes, or of a single larger tensor."""
    shards: list[list[str]] = []
    size = 0
    for name, nbytes in sizes.items():
        if not shards or size + nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards
