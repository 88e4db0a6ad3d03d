"""Folders of models, each a good one with one thing changed: base models, adapters, checkpoints to go on from.

Each is loaded as evaluation, merging or resuming loads it. What is not refused must embed a text and a picture.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lamra.collators.processing import Processor
from lamra.common.errors import UserError
from lamra.datasets.items import Item
from lamra.eval.encode import encode
from lamra.models.inspect import inspect_folder
from lamra.models.loading import load_embedder
from lamra.models.shapes import todays_name
from lamra.train.checkpoints import checkpoint_to_resume

from . import Case

Change = Callable[[Path], object]
CONFIG, PREPROCESSOR, TOKENIZER = "config.json", "preprocessor_config.json", "tokenizer_config.json"
WEIGHTS, INDEX, TEMPLATE = "model.safetensors", "model.safetensors.index.json", "chat_template.jinja"
ADAPTER, LORA = "adapter_config.json", "adapter_model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
NORM = "model.norm.weight"  # as published models name it
Q_PROJ = "model.language_model.layers.1.self_attn.q_proj"
DEEP = "[" * 100_000
RAN = "ran"  # a file that code from a folder would make


@dataclass(frozen=True)
class Folders:
    """Good folders, which each case copies from."""

    base: Path
    adapter: Path
    checkpoint: Path


def remove(name: str, folder: Path) -> None:
    (folder / name).unlink()


def write(name: str, content: str | bytes, folder: Path) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(name: str, size: int, folder: Path) -> None:
    os.truncate(folder / name, size if size >= 0 else (folder / name).stat().st_size + size)


def as_folder(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def as_fifo(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


SEEN_SO = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")  # of every picture


def put(name: str, keys: str, value: Any, folder: Path) -> None:
    """Set a value of a json file; `keys` are a path with dots; a function gets the old value."""
    document = json.loads((folder / name).read_text())
    *path, last = keys.split(".")
    inner = document
    for key in path:
        inner = inner[key]
    if value is None:
        inner.pop(last, None)
    else:
        inner[last] = value(inner[last]) if callable(value) else value
    (folder / name).write_text(json.dumps(document))


def null(name: str, key: str, folder: Path) -> None:
    document = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(document | {key: None}))


def weights(change: Callable[[dict], object], name: str, folder: Path) -> None:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def fill(name: str, value: float) -> Callable[[dict], object]:
    return lambda tensors: tensors[name].view(-1)[:1].fill_(value)


def header(change: Callable[[dict], object], name: str, folder: Path) -> None:
    """Change what a safetensors file says of itself."""
    content = (folder / name).read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def sharded(change: Callable[[dict, Path], object], folder: Path) -> None:
    """Two files and an index, which is changed."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / part, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: part for part, held in parts.items() for name in held}}
    change(index, folder)
    (folder / INDEX).write_text(json.dumps(index))


def point_all(target: str, index: dict, _folder: Path) -> None:
    index["weight_map"] = dict.fromkeys(index["weight_map"], target)


class Code:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def with_bin(index: dict, folder: Path) -> None:
    """Weights that run code as they are read."""
    torch.save({"weight": Code(folder / RAN)}, folder / "pytorch_model.bin")
    point_all("pytorch_model.bin", index, folder)


def elsewhere(index: dict, folder: Path) -> None:
    part = "model-00001-of-00002.safetensors"
    shutil.move(folder / part, folder.parent / part)
    index["weight_map"] = {name: f"../{part}" if of == part else of for name, of in index["weight_map"].items()}


def only_bin(name: str, without: str, folder: Path) -> None:
    (folder / without).unlink()
    torch.save({"weight": Code(folder / RAN)}, folder / name)


def no_template(folder: Path) -> None:
    (folder / TEMPLATE).unlink()
    put(TOKENIZER, "chat_template", None, folder)


def template(change: Callable[[str], str], folder: Path) -> None:
    (folder / TEMPLATE).write_text(change((folder / TEMPLATE).read_text()))


def template_json(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": (folder / TEMPLATE).read_text()}))
    (folder / TEMPLATE).unlink()


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)


def of_transformers_5(tensors: dict) -> None:
    for name in list(tensors):
        tensors[todays_name(name)] = tensors.pop(name)


def add(name: str, tensor: torch.Tensor) -> Callable[[dict], object]:
    return lambda tensors: tensors.update({name: tensor})


def drop(part: str) -> Callable[[dict], object]:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name]


def base_changes() -> Iterator[tuple[str, Change, str | None]]:
    """What is changed, how, and what the sentence must name."""
    yield "nothing", lambda _folder: None, None
    for name in (CONFIG, WEIGHTS, PREPROCESSOR, TOKENIZER, "tokenizer.json", TEMPLATE):
        says = "chat template" if name == TEMPLATE else "tokenizer" if name == "tokenizer.json" else name
        if name == CONFIG:
            says = "config.json"
        yield f"{name} missing", partial(remove, name), says
        yield f"{name} empty", partial(write, name, b""), name
        yield f"{name} a pointer of git-lfs", partial(write, name, POINTER), name
        yield f"{name} cut in two", lambda folder, n=name: cut(n, (folder / n).stat().st_size // 2, folder), name
        yield f"{name} a folder", partial(as_folder, name), says
        yield f"{name} zeros", partial(write, name, bytes(4096)), name
        yield f"{name} a fifo", partial(as_fifo, name), says
        if name.endswith(".json"):
            yield f"{name} a list", partial(write, name, "[1]"), name
            yield f"{name} a number", partial(write, name, "7"), name
            yield f"{name} UTF-16", lambda f, n=name: write(n, (f / n).read_text().encode("utf-16"), f), name
            yield f"{name} deep", partial(write, name, DEEP), name
            yield f"{name} html", partial(write, name, "<html>404</html>"), name
    yield "generation_config.json no json", partial(write, "generation_config.json", "{"), "generation_config.json"
    yield "generation_config.json a list", partial(write, "generation_config.json", "[]"), "generation_config.json"

    for key, value in (
        *(("model_type", "llama"), ("model_type", 3), ("model_type", "qwen2_5_vl"), ("model_type", None)),
        *(("text_config", None), ("text_config", []), ("vision_config", None), ("vision_config", "x")),
        *(("text_config.vocab_size", value) for value in (7, 0, -1, "512", 10**12, 1.5, None, True)),
        *(("text_config.hidden_size", value) for value in (64, 0, "128", None, [128])),
        *(("text_config.num_hidden_layers", value) for value in (1, 5, 0, 10**9, None, "4")),
        *(("text_config.num_attention_heads", value) for value in (3, 0, 1000, None)),
        *(("text_config.num_key_value_heads", value) for value in (3, 4, 0, "2")),
        *(("text_config.intermediate_size", value) for value in (7, None, -5)),
        *(("text_config.rms_norm_eps", value) for value in (-1, 2, "x", [])),
        *(("text_config.max_position_embeddings", value) for value in (0, "x", -3)),
        *(("text_config.hidden_act", "nothing"), ("text_config.hidden_act", 5), ("text_config.head_dim", 7)),
        *(("text_config.use_sliding_window", True), ("text_config.layer_types", ["full_attention"])),
        *(("text_config.pad_token_id", 10**6), ("text_config.eos_token_id", "x"), ("text_config.attention_dropout", 2)),
        *(("text_config.initializer_range", "x"), ("text_config.dtype", "int4"), ("dtype", "float8"), ("dtype", [])),
        *(
            ("text_config.rope_parameters", None),
            ("text_config.rope_parameters", []),
            ("text_config.rope_parameters", {}),
        ),
        *(
            ("text_config.rope_parameters.mrope_section", value)
            for value in ([1, 2, 3], None, "x", [4, 6, 6, 0], [-1, 1, 16])
        ),
        *(("text_config.rope_parameters.rope_theta", value) for value in (0, -1, "x")),
        *(("text_config.rope_parameters.rope_type", "yarn"), ("text_config.rope_parameters.rope_type", 5)),
        *(("vision_config.depth", value) for value in (1, 3, -1, 10**9, "2")),
        *(("vision_config.embed_dim", value) for value in (32, 0, 65, "64")),
        *(("vision_config.num_heads", 0), ("vision_config.num_heads", 7), ("vision_config.hidden_size", 64)),
        *(("vision_config.mlp_ratio", 2), ("vision_config.mlp_ratio", 0), ("vision_config.in_channels", 1)),
        *(("vision_config.patch_size", value) for value in (16, 0, -14, "14", 10**9)),
        *(("vision_config.spatial_merge_size", 1), ("vision_config.spatial_merge_size", 0)),
        *(("vision_config.temporal_patch_size", 1), ("vision_config.hidden_act", "x")),
        *(("image_token_id", 3), ("image_token_id", 10**6), ("image_token_id", "x"), ("vision_start_token_id", 0)),
        *(("tie_word_embeddings", "yes"), ("transformers_weights", "pytorch_model.bin")),
        *(
            ("quantization_config", {"quant_method": "gptq", "bits": 4}),
            ("quantization_config", {"quant_method": "awq"}),
        ),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ):
        says = "model: supported are Qwen2-VL" if key == "model_type" and value != "qwen2_5_vl" else CONFIG
        yield f"config.json {key} {value!r}", partial(put, CONFIG, key, value), says
    yield "config.json Infinity", partial(put, CONFIG, "text_config.rms_norm_eps", math.inf), CONFIG

    for name, change, says in (
        ("a norm missing", drop(NORM), "lacks 1 weights"),
        ("a layer missing", drop("layers.3."), "lacks 12 weights"),
        ("no vision tower", drop("visual"), "weights that its config.json asks for"),
        ("a layer more", add("model.language_model.layers.9.mlp.up_proj.weight", torch.ones(2, 2)), "no place"),
        ("another shape", add(NORM, torch.ones(7)), f"{WEIGHTS} holds model.language_model.norm.weight as [7]"),
        ("int8", add(NORM, torch.ones(128, dtype=torch.int8)), "I8"),
        ("float64", add(NORM, torch.ones(128, dtype=torch.float64)), "F64"),
        ("NaN", fill(NORM, math.nan), "not finite"),
        ("infinity", fill("visual.patch_embed.proj.weight", -math.inf), "not finite"),
        ("names of transformers 5", of_transformers_5, None),
        ("half precision", lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}), None),
        ("frequencies", add("model.rotary_emb.inv_freq", torch.ones(8)), None),
        ("twice", add("model.language_model.norm.weight", torch.ones(128)), "twice"),
        ("an adapter's", lambda t: [t.update({f"base_model.model.{n}": t.pop(n)}) for n in list(t)], "lacks"),
        ("nothing in it", dict.clear, "lacks"),
    ):
        yield f"weights: {name}", partial(weights, change, WEIGHTS), says
    for name, change in (
        ("no shape", lambda entries: entries[NORM].pop("shape")),
        ("a shape of text", lambda entries: entries[NORM].update(shape="128")),
        ("a negative shape", lambda entries: entries[NORM].update(shape=[-128])),
        ("a huge shape", lambda entries: entries[NORM].update(shape=[2**62, 2**62])),
        ("places beyond the file", lambda entries: entries[NORM].update(data_offsets=[0, 2**50])),
        ("places that overlap", lambda entries: entries[NORM].update(data_offsets=[0, 512])),
        ("a number for a tensor", lambda entries: entries.update({NORM: 7})),
        ("another format", lambda entries: entries.update(__metadata__={"format": "tf"})),
        ("metadata of text", lambda entries: entries.update(__metadata__="pt")),
        ("float8", lambda entries: entries[NORM].update(dtype="F8_E4M3")),
    ):
        yield f"header: {name}", partial(header, change, WEIGHTS), WEIGHTS
    yield "weights with something behind", lambda f: write(WEIGHTS, (f / WEIGHTS).read_bytes() + b"x", f), WEIGHTS
    yield "weights cut by a byte", partial(cut, WEIGHTS, -1), WEIGHTS
    yield "weights of 7 bytes", partial(cut, WEIGHTS, 7), WEIGHTS
    yield "weights a huge header", partial(write, WEIGHTS, b"\xff" * 4096), WEIGHTS
    yield "weights a zip", partial(write, WEIGHTS, b"PK\x03\x04" + bytes(64)), WEIGHTS
    yield "pickled weights only", partial(only_bin, "pytorch_model.bin", WEIGHTS), "pytorch_model.bin"

    yield "shards", partial(sharded, lambda _index, _folder: None), None
    yield "shards: a .bin that runs code", partial(sharded, with_bin), "pytorch_model.bin"
    yield "shards: outside of the folder", partial(sharded, elsewhere), "../model-00001"
    for target in ("/etc/passwd", "../x.safetensors", "a/../../x.safetensors", "", ".safetensors", "a\0.safetensors"):
        yield f"shards: {target!r}", partial(sharded, partial(point_all, target)), INDEX
    yield "shards: one that is not there", partial(sharded, partial(point_all, "x.safetensors")), "x.safetensors"
    yield "shards: no map", partial(sharded, lambda index, _folder: index.pop("weight_map")), INDEX
    yield "shards: a list", partial(sharded, lambda index, _folder: index.update(weight_map=[1])), INDEX
    yield "shards: numbers", partial(sharded, lambda i, _f: i["weight_map"].update({NORM: 3})), INDEX
    yield "shards: one tensor less", partial(sharded, lambda i, _f: i["weight_map"].pop(NORM)), INDEX
    yield (
        "shards: one tensor more",
        partial(sharded, lambda i, _f: i["weight_map"].update(x="model-00001-of-00002.safetensors")),
        INDEX,
    )
    yield (
        "shards: one cut",
        lambda f: (sharded(lambda _i, _f: None, f), cut("model-00002-of-00002.safetensors", -9, f)),
        "00002",
    )

    for key, value, says in (
        *(("patch_size", value, "patch_size") for value in (16, 0, "14", 10**9, [14])),
        *(("merge_size", value, "merge_size") for value in (1, 0, "2")),
        *(("temporal_patch_size", value, "temporal_patch_size") for value in (1, -1, "x")),
        *(("image_mean", value, "image_mean") for value in ([0.5], "x", ["a", "b", "c"], 0.5)),
        *(("image_std", value, "image_std") for value in ([0, 0, 0], [0.5, 0.5], "x")),
        *(("rescale_factor", 0, "rescale_factor"), ("rescale_factor", "x", "rescale_factor")),
        *((key, False, key) for key in SEEN_SO),
        *(("resample", 99, "resample"), ("resample", "bicubic", "resample"), ("size", 7, "size")),
        *(
            ("min_pixels", "x", "min_pixels"),
            ("max_pixels", -1, "max_pixels"),
            ("max_pixels", 17, "contradicts itself"),
        ),
        *(("image_processor_type", "CLIPImageProcessor", "image_processor_type"), ("image_processor_type", 3, "type")),
    ):
        yield f"{PREPROCESSOR} {key} {value!r}", partial(put, PREPROCESSOR, key, value), says
    for key in (*SEEN_SO, "image_mean", "image_std", "rescale_factor", "resample"):
        yield f"{PREPROCESSOR} {key} null", partial(null, PREPROCESSOR, key), key
    nested = {"image_processor": {"patch_size": 16}}
    yield "processor_config.json", partial(write, "processor_config.json", json.dumps(nested)), "processor_config.json"
    yield "processor_config.json a list", partial(write, "processor_config.json", "[]"), "processor_config.json"
    yield (
        "processor_config.json no object",
        partial(write, "processor_config.json", '{"image_processor": 3}'),
        "processor_config",
    )

    yield "no tokenizer", no_tokenizer, "no tokenizer"
    for key, value in (
        *(("tokenizer_class", "LlamaTokenizer"), ("tokenizer_class", 5), ("tokenizer_class", "no.such.Tokenizer")),
        *(("pad_token", None), ("pad_token", "<no such>"), ("pad_token", 3), ("model_max_length", "x")),
        *(("vocab_file", "/etc/passwd"), ("tokenizer_file", "../x/tokenizer.json"), ("fast_tokenizer_files", ["x"])),
        *(("added_tokens_decoder", {"9": 3}), ("added_tokens_decoder", {"x": {"content": "<x>"}})),
        *(("added_tokens_decoder", {"99999": {"content": "<x>"}}), ("added_tokens_decoder", [])),
    ):
        yield f"{TOKENIZER} {key} {value!r}", partial(put, TOKENIZER, key, value), "tokenizer"
    for key, value in (
        *(("model", None), ("model", 3), ("model.vocab", None), ("model.vocab", [1]), ("model.type", "WordPiece")),
        *(("added_tokens", [3]), ("added_tokens", [{"content": "x"}])),
        *(("normalizer", {"type": "Lowercase"}), ("normalizer", 3), ("model.merges", 3), ("pre_tokenizer", 3)),
        *(("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10**6}), ("decoder", "x")),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}),
        ("post_processor", {"type": "TemplateProcessing"}),
    ):
        yield f"tokenizer.json {key} {str(value)[:40]}", partial(put, "tokenizer.json", key, value), "tokenizer"
    yield (
        "tokenizer.json another id",
        partial(put, "tokenizer.json", "added_tokens", lambda a: [x | {"id": x["id"] + 1} for x in a]),
        "tokenizer",
    )
    yield (
        "tokenizer.json a word of id 9999",
        partial(put, "tokenizer.json", "model.vocab", lambda v: v | {"x y": 9999}),
        "vocabulary",
    )
    yield (
        "tokenizer.json a word of id -1",
        partial(put, "tokenizer.json", "model.vocab", lambda v: v | {"x y": -1}),
        "tokenizer",
    )

    yield "no chat template", no_template, "chat template"
    yield "chat_template.json", template_json, None
    yield (
        "chat_template.json without it",
        lambda f: (remove(TEMPLATE, f), write("chat_template.json", "{}", f)),
        "chat_template",
    )
    for name, change in (
        ("no picture", lambda t: t.replace("<|vision_start|><|image_pad|><|vision_end|>", "")),
        ("a bare picture", lambda t: t.replace("<|vision_start|><|image_pad|>", "<|image_pad|>")),
        ("two pictures", lambda t: t.replace("<|image_pad|>", "<|image_pad|><|image_pad|>")),
        ("no generation prompt", lambda t: t.split("{%- if add_generation_prompt")[0]),
        ("trimmed texts", lambda t: t.replace("part['text']", "part['text'] | trim")),
        ("upper texts", lambda t: t.replace("part['text']", "part['text'] | upper")),
        ("no texts", lambda t: t.replace("{{ part['text'] }}", "")),
        ("another assistant", lambda t: t.replace("'<|im_start|>assistant\\n'", "'<|im_start|>bot\\n'")),
        ("no jinja", lambda t: t + "{% endif %}"),
        ("an unknown name", lambda t: t + "{{ nobody.home }}"),
        ("a huge text", lambda _t: "{{ 'a' * 10**10 }}"),
        ("99 MB", lambda t: "{% for i in range(99000) %}{{ 'a' * 1000 }}{% endfor %}" + t),
        ("endless", lambda t: 5 * "{% for i in range(99999) %}" + 5 * "{% endfor %}" + t),
        ("endless by macros", lambda t: "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}" + t),
        ("doubling", lambda t: "{% set x = 'aa' %}" + 99 * "{% set x = x + x %}" + t),
        ("doubling with ~", lambda t: "{% set n = namespace(x='aa') %}" + 99 * "{% set n.x = n.x ~ n.x %}" + t),
        (
            "doubling in blocks",
            lambda t: "{% set x %}aa{% endset %}" + 99 * "{% set x %}{{ x }}{{ x }}{% endset %}" + t,
        ),
        ("doubling quotes", lambda t: "{% set x = '\"' %}" + 99 * "{% set x = x | tojson %}" + t),
        ("quotes of quotes", lambda t: "{{ messages" + 99 * " | tojson" + " }}" + t),
        ("a wide field", lambda t: "{{ '%9999999999d' % 7 }}" + t),
        ("a format", lambda t: "{{ '{:9999999999}'.format(7) }}" + t),
        ("a filter", lambda t: "{{ 'a' | center(9999999999) }}" + t),
        ("joins", lambda t: "{{ 'a'.join('b'.ljust(9999999)) }}" + t),
        ("powers", lambda t: "{{ 9 ** 9 ** 9 }}" + t),
        ("loops in loops", lambda t: 9 * "{% for m in messages[0].content[0].text %}" + 9 * "{% endfor %}" + t),
        ("recursion", lambda t: "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}" + t),
        ("classes", lambda t: "{{ ''.__class__.__mro__[1].__subclasses__() }}" + t),
        ("an import", lambda t: "{% include '/etc/passwd' %}" + t),
        ("deep", lambda t: "{{ " + 20_000 * "(" + t),
        ("long", lambda t: t + 10**6 * "a"),
        ("exceptions", lambda t: "{{ raise_exception('no') }}" + t),
        ("latin-1", lambda t: t + "\udce4"),
    ):
        if name == "latin-1":
            yield "template latin-1", lambda f: write(TEMPLATE, (f / TEMPLATE).read_bytes() + b"\xe4", f), TEMPLATE
        else:
            yield f"template: {name}", partial(template, change), "chat template"
    yield "a system turn of its own", partial(template, lambda t: t.replace("a helpful assistant", "kind")), None
    yield "lamra.json no json", partial(write, "lamra.json", "{"), "lamra.json"
    yield "adapter and model", partial(write, ADAPTER, '{"peft_type": "LORA"}'), "adapter"


def adapter_changes() -> Iterator[tuple[str, Change, str | None]]:
    """The same of an adapter."""
    yield "nothing", lambda _folder: None, None
    yield "without lamra.json", partial(remove, "lamra.json"), None
    for name in (ADAPTER, LORA):
        if name == LORA:
            yield f"{name} missing", partial(remove, name), name
        yield f"{name} empty", partial(write, name, b""), name
        yield f"{name} a pointer of git-lfs", partial(write, name, POINTER), name
        yield f"{name} cut in two", lambda folder, n=name: cut(n, (folder / n).stat().st_size // 2, folder), name
        yield f"{name} zeros", partial(write, name, bytes(4096)), name
    yield "a list", partial(write, ADAPTER, "[]"), ADAPTER
    for key, value in (
        *(("peft_type", value) for value in ("IA3", "LOHA", "PREFIX_TUNING", 3, None)),
        *(("r", value) for value in (0, -8, "8", 4, 10**9, 1.5, None, True)),
        *(("lora_alpha", value) for value in (0, "16", [], None)),
        *(("lora_dropout", value) for value in (1, -1, "x")),
        *(("bias", "all"), ("bias", 3), ("use_dora", True), ("fan_in_fan_out", True), ("lora_bias", True)),
        *(("init_lora_weights", "pissa"), ("layer_replication", [[0, 2]]), ("use_rslora", "x")),
        *(("target_modules", value) for value in (3, [], [3], ["q_proj"], ["nothing"], [".*"], {"a": 1}, "")),
        *(("modules_to_save", value) for value in (3, ["lm_head.x("], ["visual.merger"])),
        *(("rank_pattern", value) for value in ({"(a+)+$": 3}, {"q_proj": 4}, {"q_proj": "x"}, 3)),
        *(("alpha_pattern", value) for value in ({"(a+)+$": 3}, {"q_proj": "x"}, [1])),
        *(("trainable_token_indices", [1]), ("target_parameters", ["x"]), ("alora_invocation_tokens", [1])),
    ):
        says = "adapter"
        yield f"{key} {value!r}", partial(put, ADAPTER, key, value), says
    endless = r"((((((([a-z._0-9]+)*)*)*)*)*)*)*X"
    yield "an endless pattern", partial(put, ADAPTER, "target_modules", endless), None
    yield "a broken pattern", partial(put, ADAPTER, "target_modules", "("), None
    yield (
        "base_model_name_or_path 3",
        lambda f: (remove("lamra.json", f), put(ADAPTER, "base_model_name_or_path", 3, f)),
        ADAPTER,
    )
    yield (
        "another base",
        lambda f: (remove("lamra.json", f), put(ADAPTER, "base_model_name_or_path", "/no/where", f)),
        "/no/where",
    )
    yield "no base", lambda f: (remove("lamra.json", f), null(ADAPTER, "base_model_name_or_path", f)), "adapter"
    for name, change, says in (
        ("a layer missing", drop("layers.3."), "tensors are missing"),
        ("an A missing", lambda t: t.pop(f"base_model.model.{Q_PROJ}.lora_A.weight"), "1 tensors are missing"),
        ("another shape", add(f"base_model.model.{Q_PROJ}.lora_B.weight", torch.ones(3, 3)), "no place"),
        (
            "a layer more",
            add("base_model.model.model.language_model.layers.9.mlp.up_proj.lora_A.weight", torch.ones(8, 128)),
            "no place",
        ),
        ("DoRA", add(f"base_model.model.{Q_PROJ}.lora_magnitude_vector", torch.ones(128)), "no place"),
        ("a weight of the base", add(f"base_model.model.{NORM}", torch.ones(128)), "no place"),
        ("nothing in it", dict.clear, "no LoRA weights"),
        ("NaN", fill(f"base_model.model.{Q_PROJ}.lora_A.weight", math.nan), "not finite"),
        ("int8", add(f"base_model.model.{Q_PROJ}.lora_A.weight", torch.ones(8, 128, dtype=torch.int8)), "I8"),
        ("an lm_head", add("base_model.model.lm_head.weight", torch.ones(9, 128)), None),
        (
            "embeddings of another width",
            add("base_model.model.model.embed_tokens.weight", torch.ones(9, 7)),
            "no place",
        ),
        (
            "names of transformers 4",
            lambda t: [t.update({n.replace("language_model.", ""): t.pop(n)}) for n in list(t)],
            None,
        ),
    ):
        yield f"weights: {name}", partial(weights, change, LORA), says
    yield "pickled weights only", partial(only_bin, "adapter_model.bin", LORA), "adapter_model.bin"


def resealed(change: Change, folder: Path) -> None:
    """Change a checkpoint and let its manifest say so, as a stranger would."""
    from lamra.train.checkpoints import MANIFEST, sha256

    change(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        if (path := folder / name).is_file():
            manifest["files"][name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def checkpoint_changes() -> Iterator[tuple[str, Change, str | None]]:
    """The same of a checkpoint to go on from."""
    yield "nothing", lambda _folder: None, None
    for content in ("", "[]", "{}", '{"files": 3}', '{"files": {"x": 3}}', '{"files": {"../x": {}}}', DEEP):
        yield f"manifest {content[:20]}", partial(write, "manifest.json", content), "manifest.json"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        yield f"{name} cut", partial(cut, name, 100), name
        for how, content in (
            *(("empty", b""), ("zeros", bytes(4096)), ("a zip", b"PK\x03\x04" + bytes(64)), ("text", b"hello")),
            ("code", pickle.dumps(Code(Path("/tmp/lamra_ran")))),
        ):
            yield f"{name} {how}, sealed", partial(resealed, partial(write, name, content)), name
        yield f"{name} runs code, sealed", partial(resealed, lambda f, n=name: torch.save(Code(f / RAN), f / n)), name
    for name in (LORA, "trainer_state.json", "lamra.json"):
        yield f"{name} cut, sealed", partial(resealed, partial(cut, name, 20)), name
        yield f"{name} missing", partial(remove, name), name
    yield (
        "NaN, sealed",
        partial(resealed, partial(weights, fill(f"base_model.model.{Q_PROJ}.lora_A.weight", math.nan), LORA)),
        LORA,
    )


PICTURE = Image.fromarray(np.full((56, 56, 3), 99, np.uint8))
ITEMS = [Item("text", "A dog."), Item("picture", images=(PICTURE,)), Item("both", "A dog.", images=(PICTURE,))]


def use(folder: Path) -> None:
    """As evaluation does it. The inspection alone says the same, but for values of weights, which it does not read."""
    try:
        inspect_folder(folder, None)
        found = None
    except UserError as error:
        found = error
    try:
        embedder, settings = load_embedder(folder, dtype=torch.float32)
        processor = Processor(settings.base_model, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)
    except UserError as error:
        assert found or "not finite" in str(error), error
        raise
    assert not found, found
    vectors = encode(embedder, processor, ITEMS, max_tokens_per_batch=4096, description=None)
    assert vectors.isfinite().all() and len(set(vectors[:, 0].tolist())) == len(ITEMS)


def tried(good: Path, change: Change, load: Callable[[Path], object], folder: Path) -> None:
    model = shutil.copytree(good, folder / "model")
    try:
        change(model)
        load(model)
    finally:
        assert not (model / RAN).exists() and not Path("/tmp/lamra_ran").exists(), "code was run"
        shutil.rmtree(model)


def cases(good: Folders) -> list[Case]:
    found = []
    for kind, folder, changes, load in (
        ("base", good.base, base_changes(), use),
        ("adapter", good.adapter, adapter_changes(), use),
        ("checkpoint", good.checkpoint, checkpoint_changes(), lambda model: checkpoint_to_resume(model, str(model))),
    ):
        for name, change, refused in changes:
            found.append(Case(f"{kind}: {name}", partial(tried, folder, change, load), refused))
    return found
