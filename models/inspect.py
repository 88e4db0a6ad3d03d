"""What a model folder holds, and in one sentence what is wrong with it, from a few kilobytes before a weight is read.

    python -m lamra.models.inspect FOLDER

Loaders call the same functions. Nothing outside of the folder is read, nothing is run, and torch is not imported.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lamra.common.cli import parse, run
from lamra.common.errors import UserError
from lamra.common.flags import Flags, flag, shown
from lamra.models.base_model import base_under, require_base_there, require_model
from lamra.models.families import family_of
from lamra.models.folders import (
    AGAIN,
    LAMRA_TEMPLATE,
    LFS_POINTER,
    is_adapter,
    local_folder,
    read_object,
)
from lamra.models.published import ENDING, ending_id, is_published_embedder
from lamra.models.settings import Settings
from lamra.models.shapes import DTYPES, Shape, Sizes, is_number, is_whole, todays_name
from lamra.models.template import template_fault

LONGEST_HEADER = 100 * 2**20  # bytes; safetensors' own limit
BYTES = {"F32": 4, "BF16": 2, "F16": 2}  # of the dtypes that are weights here
WEIGHTS, INDEX, ADAPTER_WEIGHTS = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
TOKENIZER_CLASSES = {"Qwen2Tokenizer", "PreTrainedTokenizer", "TokenizersBackend"}  # or these with Fast at the end
IMAGE_PROCESSORS = re.compile(r"Qwen2(_5_)?VLImageProcessor(Fast|Pil)?")
NOTHING_ADDED = {  # what PreTrainedTokenizerFast writes where there is no post-processor
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
PLAIN_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")  # of modules
# What an adapter_config.json may say beside how it is called: another value is another kind of adapter.
ADAPTER_DEFAULTS: dict[str, tuple] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # others change the base model's weights
    **dict.fromkeys(("fan_in_fan_out", "use_dora", "use_qalora", "use_bdlora", "lora_bias"), (False, None)),
    **dict.fromkeys(("layer_replication", "target_parameters", "trainable_token_indices"), (None, [], {})),
    **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "velora_config", "kasa_config"), (None, [], {})),
}


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of its file describes it."""

    file: Path
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Weights:
    """A model's config.json and weights: they fit."""

    config: dict[str, Any]
    sizes: Sizes
    tensors: dict[str, Stored]

    def describe(self) -> str:
        numbers = Counter[str]()
        for stored in self.tensors.values():
            numbers[stored.dtype] += math.prod(stored.shape)
        names = {of: name for name, of in DTYPES.items()}
        held = " and ".join(f"{number / 1e6:,.1f} M weights in {names[dtype]}" for dtype, number in numbers.items())
        sizes = self.sizes
        return (
            f"{sizes.family.model_type}: {held}; {sizes.layers} layers, {sizes.hidden} wide, {sizes.vocabulary} tokens"
            f"; vision tower {sizes.depth} layers, {sizes.vision_width} wide, patch {sizes.patch}, merge {sizes.merge}"
        )


def read_header(path: Path) -> dict[str, Stored]:
    """Name -> tensor of a safetensors file.

    Raises:
        UserError: it is not there, no safetensors file, cut off, or quantised; names it.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: {AGAIN}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        begin = file.read(8)
        length = int.from_bytes(begin, "little")
        if LFS_POINTER.startswith(begin) and begin:
            raise UserError(f"{path} is a pointer of git-lfs, not the weights: run git lfs pull, or {AGAIN}")
        if len(begin) < 8 or length > min(size - 8, LONGEST_HEADER):
            raise UserError(f"{path} is no safetensors file, or is cut off ({size} bytes): {AGAIN}")
        text = file.read(length)
    tensors, held = {}, []
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", None) or {}
        for name, entry in entries.items():
            begin_at, end_at = entry["data_offsets"]
            stored = Stored(path, str(entry["dtype"]), tuple(entry["shape"]))
            numbers = (*stored.shape, begin_at, end_at)
            if not all(is_whole(number, 0, 2**60) for number in numbers) or begin_at > end_at:
                raise TypeError(f"{name} is described by {entry}")
            tensors[name] = stored
            held.append((begin_at, end_at, name))
        if metadata.get("format", "pt") != "pt":
            raise TypeError(f"its format is {metadata['format']!r}, not 'pt'")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has a damaged header ({error!r}): {AGAIN}") from None
    for name, stored in tensors.items():
        if stored.dtype not in BYTES:
            raise UserError(
                f"{path} holds {name} as {stored.dtype}: only float32, bfloat16 and float16 weights are supported, no "
                "quantised ones; take the model in bf16"
            )
    at = 0
    for begin_at, end_at, name in sorted(held):
        expected = BYTES[tensors[name].dtype] * math.prod(tensors[name].shape)
        if begin_at != at or end_at - begin_at != expected:
            raise UserError(f"{path} has a damaged header (the place of {name}): {AGAIN}")
        at = end_at
    if size != 8 + length + at:
        raise UserError(f"{path} has {size} bytes, and its header speaks of {8 + length + at}: {AGAIN}")
    return tensors


def inspect_weights(folder: str | Path) -> Weights:
    """Config and headers of the weights of a whole model.

    Raises:
        UserError: a file is missing or damaged, or they do not fit; names it.
    """
    folder = Path(folder)
    path = folder / "config.json"
    family_of(folder)
    config = read_object(path)
    if is_adapter(folder):
        raise UserError(f"{folder} has config.json and adapter_config.json: a folder is a whole model or an adapter")
    sizes = Sizes.read(path, config)
    if (folder / "generation_config.json").is_file():
        read_object(folder / "generation_config.json")
    tensors: dict[str, Stored] = {}
    for file in _weight_files(folder):
        for name, stored in read_header(file).items():
            if (today := todays_name(name)) in tensors:
                raise UserError(
                    f"{folder} holds the weights {name} twice, in {tensors[today].file.name} and {file.name}"
                )
            tensors[today] = stored
    _require_fit(folder, sizes, tensors)
    return Weights(config, sizes, tensors)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        other = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
        reason = f"{other[0]} is not read: it could run code" if other else AGAIN
        raise UserError(f"{folder} has no {WEIGHTS} and no {INDEX} (safetensors; {reason})")
    names = read_object(folder / INDEX).get("weight_map")
    named = isinstance(names, dict) and all(isinstance(name, str) for name in names.values())
    if not names or not named:
        raise UserError(f"{folder / INDEX} has no weight_map of tensors to files: {AGAIN}")
    for name in names.values():
        if not name.endswith(".safetensors") or not re.fullmatch(r"[\w-][\w.-]*", name):
            raise UserError(f"{folder / INDEX} names {name!r}: only safetensors files of the same folder are read")
    files = [folder / name for name in sorted(set(names.values()))]
    held = {name: file.name for file in files for name in read_header(file)}
    if wrong := sorted(held.items() ^ names.items()):
        raise UserError(f"{folder / INDEX} and its files disagree about {wrong[0][0]}: {AGAIN}")
    return files


def _require_fit(folder: Path, sizes: Sizes, tensors: dict[str, Stored]) -> None:
    expected = sizes.shapes()
    # Published embedders leave out what embeds nothing, though a config may not say so.
    optional = {"lm_head.weight"} if sizes.tied or is_published_embedder(folder) else set()
    if missing := sorted(expected.keys() - tensors.keys() - optional):
        raise UserError(
            f"{folder} lacks {len(missing)} weights that its config.json asks for, for example {missing[0]}: it is "
            "incomplete or was written by another version; download or merge it again"
        )
    # transformers computes rotary frequencies, whether or not a file holds them.
    unused = sorted(name for name in tensors.keys() - expected.keys() if not name.endswith(".inv_freq"))
    if unused:
        raise UserError(
            f"{folder} holds {len(unused)} weights that its config.json has no place for, for example {unused[0]}: "
            "config and weights are of different models; download or merge it again"
        )
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            raise UserError(
                f"{tensors[name].file} holds {name} as {list(tensors[name].shape)}, and config.json asks for "
                f"{list(shape)}: config and weights are of different models; download or merge it again"
            )


def inspect_adapter(folder: str | Path, expected: Mapping[str, Shape]) -> list[str]:
    """The modules of a base model with these tensors that the LoRA adapter in `folder` changes, by today's names.

    They are those that it has weights for. A pattern in its config is not run: it could run for ever.

    Raises:
        UserError: a file is missing or damaged, it is another kind of adapter, or does not fit the base model.
    """
    folder = Path(folder)
    path = folder / "adapter_config.json"
    config = read_object(path)
    kept = _check_adapter_config(path, config)
    if not (folder / ADAPTER_WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise UserError(f"{folder} has its weights in adapter_model.bin, which is not read: it could run code")
    tensors = {todays_name(name): stored for name, stored in read_header(folder / ADAPTER_WEIGHTS).items()}
    modules, saved, misfits = set[str](), set[str](), set[str]()
    hidden = expected["model.language_model.norm.weight"]
    for name, stored in tensors.items():
        inner = name.removeprefix("base_model.model.")
        module, _, part = inner.rpartition(".lora_")
        if module:
            linear, rank = expected.get(f"{module}.weight", ()), rank_of(config, module)
            shapes = {"A.weight": (rank, *linear[1:]), "B.weight": (*linear[:1], rank)}
            fits = len(linear) == 2 and shapes.get(part) == stored.shape
            modules |= {module} if fits else set()
        elif inner in ("lm_head.weight", "model.language_model.embed_tokens.weight"):  # upstream's, longer by <emb>
            fits = len(stored.shape) == 2 and stored.shape[1:] == hidden
            saved.add(inner)
        else:
            fits = expected.get(inner) == stored.shape and any(_within(inner, of) for of in kept)
            saved.add(inner)
        if not fits:
            misfits.add(f"{name} {list(stored.shape)}")
    if not modules and not misfits:
        raise UserError(f"{folder / ADAPTER_WEIGHTS} has no LoRA weights: {AGAIN}")
    meant = modules | _modules_meant(config, expected, modules)
    if isinstance(config["target_modules"], list):
        named = [todays_name(name) for name in config["target_modules"]]
        if other := sorted(of for of in modules if not any(_ends_with(of, name) for name in named)):
            raise UserError(
                f"{folder / ADAPTER_WEIGHTS} changes {other[0]}, which target_modules in {path} does not name"
            )
    wanted = {f"base_model.model.{module}.lora_{part}.weight" for module in meant for part in "AB"}
    wanted |= {f"base_model.model.{name}" for name in expected if any(_within(name, of) for of in kept)} - {
        f"base_model.model.{name}" for name in saved
    }
    missing = wanted - tensors.keys()
    if missing or misfits:
        raise UserError(
            f"the adapter in {folder} does not fit the base model: {len(missing)} tensors are missing and "
            f"{len(misfits)} have no place, for example {min(misfits or missing)}; give the base model it was trained "
            f"on, or {AGAIN}"
        )
    return sorted(modules)


def _check_adapter_config(path: Path, config: dict[str, Any]) -> list[str]:
    """Its modules_to_save, by today's names."""

    def require(condition: bool, key: str, wanted: str) -> None:
        if not condition:
            raise UserError(f"{path} has {key} {shown(config.get(key))}: expected {wanted}")

    require(config.get("peft_type") == "LORA", "peft_type", "LORA, no other kind of adapter is supported")
    require(is_whole(config.get("r"), 1, 100_000), "r", "a whole number of at least 1")
    alpha = config.get("lora_alpha")
    require(is_number(alpha) and alpha != 0, "lora_alpha", "a number that is not 0")
    dropout = config.get("lora_dropout", 0.0)
    require(is_number(dropout) and 0 <= dropout < 1, "lora_dropout", "a number from 0 to below 1")
    for key in ("use_rslora", "inference_mode"):
        require(isinstance(config.get(key, False), bool), key, "true or false")
    for key, allowed in ADAPTER_DEFAULTS.items():
        require(config.get(key, allowed[0]) in allowed, key, f"{allowed[0]}, plain LoRA; nothing else is supported")
    targets = config.get("target_modules")
    require(
        (isinstance(targets, str) and targets != "") or _are_names(targets),
        "target_modules",
        "a list of modules' names",
    )
    kept = config.get("modules_to_save") or []
    require(_are_names(kept, least=0), "modules_to_save", "a list of modules' names")
    for key, check in (("rank_pattern", is_whole), ("alpha_pattern", is_number)):
        pattern = config.get(key) or {}
        plain = isinstance(pattern, dict) and all(map(PLAIN_NAME.fullmatch, pattern))
        require(plain and all(check(value) and value for value in pattern.values()), key, "modules' names and numbers")
    return [todays_name(name) for name in kept]


def _are_names(names: object, least: int = 1) -> bool:
    return (
        isinstance(names, list)
        and least <= len(names) <= 10_000
        and all(isinstance(name, str) and PLAIN_NAME.fullmatch(name) for name in names)
    )


def _within(tensor: str, module: str) -> bool:
    """Whether a tensor belongs to a module that is named by the end of its path."""
    return f".{module}." in f".{tensor}"


def rank_of(config: dict[str, Any], module: str) -> int:
    """The rank of an adapter on a module; see _of_pattern."""
    return _of_pattern(config, "rank_pattern", module, config["r"])


def scaling_of(config: dict[str, Any], module: str) -> float:
    """What a module's product B A is multiplied by: alpha / r, with use_rslora alpha / sqrt(r) (arXiv 2312.03732)."""
    rank = rank_of(config, module)
    alpha = _of_pattern(config, "alpha_pattern", module, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(config: dict[str, Any], key: str, module: str, default: Any) -> Any:
    """What PEFT takes from a pattern of plain names: the value of the first that the module ends with."""
    named = (of for name, of in (config.get(key) or {}).items() if _ends_with(module, todays_name(name)))
    return next(named, default)


def _ends_with(module: str, name: str) -> bool:
    return f".{module}".endswith(f".{name}")


def _modules_meant(config: dict[str, Any], expected: Mapping[str, Shape], modules: set[str]) -> set[str]:
    """The linears that an adapter of these modules must have too: those that its config lists, or where it has a
    pattern, the same linear in every layer."""
    linears = {name.removesuffix(".weight") for name, shape in expected.items() if len(shape) == 2}
    linears -= {"lm_head", "model.language_model.embed_tokens"}
    if config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return set()
    if isinstance(targets := config["target_modules"], list):
        return {of for of in linears if any(_ends_with(of, todays_name(name)) for name in targets)}

    def kind(module: str) -> str:
        return re.sub(r"\.\d+\.", ".*.", module, count=1)

    kinds = set(map(kind, modules))
    return {of for of in linears if kind(of) in kinds}


def inspect_processor(folder: str | Path) -> str:
    """The chat template in `folder`; tokenizer, template and image settings fit each other, and config.json if there.

    Raises:
        UserError: a file is missing, damaged, names files elsewhere, or does not fit; names it.
    """
    folder = Path(folder)
    sizes = Sizes.read(folder / "config.json", read_object(folder / "config.json")) if _has_config(folder) else None
    config = _tokenizer_config(folder)
    _check_tokens(folder, config, sizes)
    _check_pictures(folder, sizes)
    path, template = _chat_template(folder, config)
    if reason := template_fault(template):
        raise UserError(f"the chat template in {path} {reason}: take that of the base model")
    return template


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file() and bool(family_of(folder))


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    config = read_object(path)
    for key, value in config.items():
        if key.endswith(("_file", "_files")) and value is not None:
            raise UserError(
                f"{path} names a file ({key} {value!r}): only the folder's own files are read; remove the key"
            )
    name = config.get("tokenizer_class")
    if not isinstance(name, str | None) or (name and name.removesuffix("Fast") not in TOKENIZER_CLASSES):
        raise UserError(f"{path} has tokenizer_class {name!r}: expected Qwen2Tokenizer, the only one that is supported")
    limit = config.get("model_max_length", 1)
    if not is_number(limit) or limit < 1:
        raise UserError(f"{path} has model_max_length {limit!r}: expected a number of at least 1")
    return config


def _check_tokens(folder: Path, config: dict[str, Any], sizes: Sizes | None) -> None:
    path = folder / "tokenizer.json"
    if path.is_file():
        ids = _tokenizer_ids(path)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        path = folder / "vocab.json"
        ids = read_object(path)
    else:
        raise UserError(f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt): {AGAIN}")
    if (folder / "added_tokens.json").is_file():
        ids = ids | read_object(folder / "added_tokens.json")
    decoder = config.get("added_tokens_decoder", {})
    try:
        ids = ids | {token["content"]: int(number) for number, token in decoder.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{folder / 'tokenizer_config.json'} has a damaged added_tokens_decoder: {AGAIN}") from None
    if not all(map(is_whole, ids.values())):
        raise UserError(f"{path} has token ids that are no numbers: {AGAIN}")
    needed = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    if missing := [token for token in needed if token not in ids]:
        raise UserError(f"{path} has no token {missing[0]}: take the tokenizer of the base model")
    padding = config.get("pad_token")
    padding = padding.get("content") if isinstance(padding, dict) else padding
    if not isinstance(padding, str) or padding not in ids:
        raise UserError(
            f"{folder / 'tokenizer_config.json'} has pad_token {padding!r}: expected a token of {path.name}"
        )
    if sizes is None:
        return
    if max(ids.values()) >= sizes.vocabulary:
        raise UserError(
            f"{path} has token ids up to {max(ids.values())}, and the model a vocabulary of {sizes.vocabulary}: config "
            "and tokenizer are of different models"
        )
    for token, number in sizes.token_ids.items():
        if token in ids and ids[token] != number:
            raise UserError(
                f"{folder / 'config.json'} has {number} for {token}, and {path.name} {ids[token]}: config and "
                "tokenizer are of different models"
            )


def _tokenizer_ids(path: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json of Qwen2's kind: byte-level pairs, no rules that rewrite texts."""
    tokenizer = read_object(path)
    model = tokenizer.get("model")
    splits = tokenizer.get("pre_tokenizer")
    splits = splits.get("pretokenizers") if isinstance(splits, dict) and splits.get("type") == "Sequence" else [splits]
    vocabulary: Any = model.get("vocab") if isinstance(model, dict) else None
    merges = model.get("merges") if isinstance(model, dict) else None
    added = tokenizer.get("added_tokens") or []
    fits = (
        isinstance(model, dict)
        and isinstance(vocabulary, dict)
        and isinstance(merges, list)
        and model.get("type", "BPE") == "BPE"
        and model.get("dropout") in (None, 0)
        and not model.get("byte_fallback")
        and all(_merges_tokens_of(vocabulary, merge) for merge in merges)
        and _is_kind(tokenizer.get("normalizer"), "NFC")
        and _is_kind(tokenizer.get("decoder"), "ByteLevel")
        and (
            _is_kind(tokenizer.get("post_processor"), "ByteLevel")
            or tokenizer["post_processor"] == NOTHING_ADDED
            or {"content": ENDING, "id": ending_id(tokenizer)}.items() <= _added_token(added, ENDING).items()
        )
        and isinstance(splits, list)
        and all(_is_kind(split, "ByteLevel") or _is_tame_split(split) for split in splits)
        and isinstance(added, list)
        and all(isinstance(token, dict) and isinstance(token.get("content"), str) and "id" in token for token in added)
    )
    if not fits:
        raise UserError(
            f"{path} is damaged, or no tokenizer of Qwen2's kind (pairs of bytes): take the tokenizer of the base model"
        )
    return {**vocabulary, **{token["content"]: token["id"] for token in added}}


def _added_token(added: object, content: str) -> dict[str, Any]:
    found = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return next((token for token in found if token.get("content") == content), {})


def _merges_tokens_of(vocabulary: dict[str, int], merge: object) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        return False
    return all(token in vocabulary for token in (*parts, "".join(parts)))


def _is_kind(part: object, kind: str) -> bool:
    return part is None or (isinstance(part, dict) and part.get("type") == kind)


def _is_tame_split(part: object) -> bool:
    """Whether it cuts texts by a short pattern that repeats no group, as Qwen2's does: it ends soon."""
    if not isinstance(part, dict) or part.get("type") != "Split" or not isinstance(part.get("pattern"), dict):
        return False
    pattern = part["pattern"].get("Regex")
    return isinstance(pattern, str) and len(pattern) <= 200 and not re.search(r"(?<!\\)\)[*+?{]", pattern)


def _check_pictures(folder: Path, sizes: Sizes | None) -> None:
    path = folder / "preprocessor_config.json"
    nested = read_object(folder / "processor_config.json") if (folder / "processor_config.json").is_file() else {}
    if "image_processor" in nested:  # transformers takes it first
        path, config = folder / "processor_config.json", nested["image_processor"]
    else:
        config = read_object(path)

    def require(condition: bool, key: str, wanted: str) -> None:
        if not condition:
            found = config.get(key) if isinstance(config, dict) else config
            raise UserError(f"{path} has {key} {found!r}: expected {wanted}")

    require(isinstance(config, dict), "image_processor", "an object")
    kind = config.get("image_processor_type", "Qwen2VLImageProcessor")
    require(
        isinstance(kind, str) and bool(IMAGE_PROCESSORS.fullmatch(kind)),
        "image_processor_type",
        "Qwen2VLImageProcessor",
    )
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        require(config.get(key, True) is True, key, "true: the models see pictures so")
    for key, default, attribute in (
        *(("patch_size", 14, "patch"), ("merge_size", 2, "merge"), ("temporal_patch_size", 2, "temporal")),
    ):
        expected = getattr(sizes, attribute) if sizes else config.get(key, default)
        wanted = f"{expected}, as config.json has it" if sizes else "a whole number of at least 1"
        require(is_whole(expected, 1, 1000) and config.get(key, default) == expected, key, wanted)
    for key in ("image_mean", "image_std"):
        values = config.get(key, [1, 1, 1])  # null is no value of the library's
        numbers = isinstance(values, list) and len(values) == 3 and all(map(is_number, values))
        require(numbers, key, "three numbers")
        require(key == "image_mean" or min(values) > 0, key, "three numbers above 0")
    factor = config.get("rescale_factor", 1 / 255)
    require(is_number(factor) and 0 < factor <= 1, "rescale_factor", "1/255")
    resample = config.get("resample", 3)
    require(is_whole(resample, 0, 5), "resample", "one of Pillow's filters, 0 to 5")
    require(isinstance(config.get("size") or {}, dict), "size", "an object")
    size = config.get("size") or {}
    for names in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        values = [of[name] for of in (config, size) for name in names if of.get(name) is not None]
        require(all(is_whole(value, 1, 10**12) for value in values), names[0], "a whole number of at least 1")
        if len(set(values)) > 1:
            listed = " and ".join(map(str, sorted(set(values))))
            raise UserError(
                f"{path} contradicts itself: {names[0]} and size's {names[1]} are {listed}; remove one of the two keys"
            )


def _chat_template(folder: Path, config: dict[str, Any]) -> tuple[Path, str]:
    """The chat template, and its file: an export's, what transformers takes, or a published chat_template.json."""
    path = folder / LAMRA_TEMPLATE
    path = path if path.is_file() else folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path, path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no text in UTF-8 ({error.reason}): {AGAIN}") from None
    path, template = folder / "tokenizer_config.json", config.get("chat_template")
    if isinstance(template, list):
        named = [
            entry.get("template") for entry in template if isinstance(entry, dict) and entry.get("name") == "default"
        ]
        template = named[0] if named else "{{ no template is called default }}"
    if template is None and (folder / "chat_template.json").is_file():
        path = folder / "chat_template.json"
        template = read_object(path).get("chat_template")
    elif template is None:
        raise UserError(f"{folder} has no chat template (chat_template.jinja or chat_template.json): {AGAIN}")
    if not isinstance(template, str):
        raise UserError(f"{path} has no chat_template that is a text: {AGAIN}")
    return path, template


@dataclass
class InspectArguments(Flags):
    original_model_id: str | None = flag(None, "base model under an adapter, where the one it was trained on is gone")


def inspect_folder(
    folder: Path, original_model: str | None, tell: Callable[[str], object] = lambda _line: None
) -> None:
    """All of the above for a whole model, or for an adapter and its base model.

    Args:
        tell: is called with each line for a user.

    Raises:
        UserError: what is wrong with it.
    """
    require_model(folder)
    settings = Settings.read(folder)
    base = folder
    if is_adapter(folder):
        base = Path(base_under(folder, original_model))
        require_base_there(folder, base)
    weights = inspect_weights(base)
    tell(f"{base}: {weights.describe()}")
    if is_adapter(folder):
        modules = inspect_adapter(folder, weights.sizes.shapes())
        config = read_object(folder / "adapter_config.json")
        tell(f"{folder}: LoRA of rank {config['r']}, alpha {config['lora_alpha']}, on {len(modules)} linears of {base}")
    inspect_processor(base)
    if settings is None:
        tell("settings: none, it is no model of LamRA's")
        return
    tell(f"settings ({folder / 'lamra.json'}):")
    for name, value in asdict(settings).items():
        tell(f"  {name}: {value}")


def main() -> None:
    args, words = parse(InspectArguments, words="FOLDER")
    if len(words) != 1:
        raise UserError(f"{len(words)} folders: give one, a whole model or an adapter")
    inspect_folder(Path(local_folder(words[0], "FOLDER")), args.original_model_id, print)
    print("nothing is wrong with it")


if __name__ == "__main__":
    run(main)
