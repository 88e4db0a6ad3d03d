"""What is compared with upstream's values, key by key, and how the files of values are read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

TOLERANCE = 1e-5  # relative, of float32 values
SECTIONS = ("script", "recall", "flickr", "model")  # entries of a json that are no records but have fields of their own


class Comparison:
    """Counts keys, prints a line for each, and remembers the worst.

    Attributes:
        results: key -> error of what was compared: relative, or the share of entries that differ.
        failed: keys whose error is too large, or that could not be computed.
        left_out: key, or key and row -> why it is not compared.
    """

    def __init__(self):
        self.results: dict[str, float] = {}
        self.failed: list[str] = []
        self.left_out: dict[str, str] = {}

    def equal(self, key: str, what: str, found, expected) -> None:
        """Lists (nested, with anything in them), tensors or plain values that must be equal."""
        found, expected = _plain(found), _plain(expected)
        self._add(key, what, share_of_differences(found, expected), 0.0, first_difference(found, expected))

    def close(self, key: str, what: str, found: Tensor, expected: Tensor) -> None:
        """The norm of the difference by the norm of what is expected: of each row of the last dimension, the worst."""
        found, expected = torch.atleast_1d(found.detach().double()), torch.atleast_1d(expected.double())
        if found.shape != expected.shape:
            shapes = f"shape {tuple(found.shape)} / {tuple(expected.shape)}"
            return self._add(key, what, 1.0, TOLERANCE, shapes)
        errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)
        row = int(errors.argmax())
        error = float(errors.max()) if errors.isfinite().all() else 1.0
        self._add(key, what, error, TOLERANCE, f"row {row}" if errors.dim() else "")

    def close_as_a_whole(self, key: str, what: str, found: Tensor, expected: Tensor) -> None:
        """As `close`, one norm over all entries: a gradient's rows may be nearly 0."""
        self.close(key, what, found.flatten(), expected.flatten())

    def leave_out(self, key: str, reason: str) -> None:
        self.left_out[key] = reason
        print(f"{key}: left out, {reason}")

    def fail(self, key: str, reason: str) -> None:
        self.results[key] = 1.0
        self.failed.append(key)
        print(f"{key}: FAIL {reason}")

    @contextmanager
    def computing(self, *keys: str) -> Iterator[None]:
        """Whatever goes wrong inside fails those of the keys that it did not come to."""
        try:
            yield
        except Exception as error:
            for key in keys:
                if key not in self.results and key not in self.left_out:
                    self.fail(key, f"{type(error).__name__}: {error}")

    def require_all(self, keys: Collection[str]) -> None:
        """Every key of the files must have been compared or left out."""
        for key in keys:
            if key not in self.results and key not in self.left_out:
                self.fail(key, "this program does not know the key: teach it, or leave it out with a reason")

    def summary(self) -> dict:
        return {
            "worst": max(self.results.values(), default=0.0),
            "compared": len(self.results),
            "left_out": [f"{key}: {reason}" for key, reason in self.left_out.items()],
            "failed": self.failed,
        }

    def _add(self, key: str, what: str, error: float, most: float, detail: str) -> None:
        if key in self.results:
            raise KeyError(f"{key} is compared twice")
        self.results[key] = error
        passed = error <= most
        if not passed:
            self.failed.append(key)
        print(f"{key}: {what}, {error:.2e}, " + ("ok" if passed else f"FAIL ({detail})"))


def _plain(values):
    """Tensors and tuples to nested lists, exceptions to their sentences."""
    if isinstance(values, Tensor):
        return values.tolist()
    if isinstance(values, Mapping):
        return {str(name): _plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return f"{type(values).__name__}: {values}" if isinstance(values, Exception) else values


def share_of_differences(found, expected) -> float:
    """Share of the entries that differ; 1 where there are more or fewer of them."""
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys() and expected:
        return sum(found[name] != value for name, value in expected.items()) / len(expected)
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected) and expected:
        return sum(one != other for one, other in zip(found, expected)) / len(expected)
    return float(found != expected)


def first_difference(found, expected) -> str:
    """Where two nested values first differ, and how: found / expected."""
    where = []
    while True:
        if isinstance(found, list) and isinstance(expected, list):
            pairs = list(zip(found, expected))
            if len(found) != len(expected):
                same = next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
                return f"at {where}: {len(found)} / {len(expected)} entries, equal up to {same}"
        elif isinstance(found, dict) and isinstance(expected, dict):
            if found.keys() != expected.keys():
                names = sorted(found.keys() ^ expected.keys())
                return f"at {where}: only one has {names[:3]}"
            pairs = [(found[name], expected[name]) for name in expected]
        else:
            break
        different = [i for i, (one, other) in enumerate(pairs) if one != other]
        if not different:
            break
        where.append(different[0] if isinstance(expected, list) else list(expected)[different[0]])
        found, expected = pairs[different[0]]
    if isinstance(found, str) and isinstance(expected, str):
        same = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
        found, expected = found[max(0, same - 20) : same + 60], expected[max(0, same - 20) : same + 60]
    return f"at {where}: {found!r} / {expected!r}"


def json_fields(name: str, value) -> dict[str, list]:
    """Paths of the fields of a json value -> their values, in order. Records of one kind share a path: name[].field."""
    if name in SECTIONS:
        parts = [json_fields(f"{name}.{key}", one) for key, one in value.items()]
    elif _is_records(value):
        records = value.values() if isinstance(value, dict) else value
        parts = [json_fields(f"{name}[].{key}", one) for record in records for key, one in record.items()]
    else:
        return {name: [value]}
    fields: dict[str, list] = {}
    for part in parts:
        for path, values in part.items():
            fields.setdefault(path, []).extend(values)
    return fields


def _is_records(value) -> bool:
    """Whether this is a list of objects, or an object of objects."""
    records = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return bool(records) and all(isinstance(one, dict) for one in records)


def recipe_weights(tensors: Mapping[str, Sequence], seed: int, lm_head_seed: int) -> dict[str, Tensor]:
    """The weights of a reference model, drawn as the README of the reference values says.

    Args:
        tensors: name -> [shape, ...].
    """
    state = {}
    for name, (shape, *_) in tensors.items():
        number = zlib.crc32(name.encode()) + (lm_head_seed if name == "lm_head.weight" else seed)
        draw = np.random.RandomState(number % 2**32).standard_normal(shape).astype(np.float32)
        if name.endswith("bias"):
            draw = np.float32(0.1) * draw
        elif "norm" in name or "ln_q" in name:
            draw = 1 + np.float32(0.1) * draw
        elif "embed_tokens" in name:
            draw = np.float32(0.5) * draw
        elif "lm_head" in name:
            draw = np.float32(0.4) * draw
        else:
            draw = np.float32(1.2 / np.sqrt(np.prod(shape[1:]))) * draw
        state[name] = torch.from_numpy(draw)
    return state


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of a stock model's parameters by their published names, those of transformers 4."""
    named = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): gradient
        for name, gradient in named
        if gradient is not None
    }


@contextmanager
def rotary_positions(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the positions (3, 1, T) that the language model's rotary embedding of a stock model receives."""
    received: list[Tensor] = []
    rotary = model.model.language_model.rotary_emb
    hook = rotary.register_forward_pre_hook(lambda _module, args: received.append(args[1]))
    try:
        yield received
    finally:
        hook.remove()


def real_tokens(tensors: Mapping[str, Tensor], key: str) -> list[list[int]]:
    """The rows of `key` without their padding, on whichever side it is."""
    ids, mask = tensors[f"{key}.input_ids"], tensors[f"{key}.attention_mask"].bool()
    return [row[kept].tolist() for row, kept in zip(ids, mask)]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
