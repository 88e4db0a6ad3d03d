"""Names and shapes of the tensors of a model of any family, from its config.json, without torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamra.common.errors import UserError
from lamra.models.families import FAMILIES, VISION_DEFAULTS, Family, family_of
from lamra.models.folders import read_object

Shape = tuple[int, ...]

TOKEN_IDS = {  # of config.json -> the token, and the id where the config does not say it
    "image_token_id": ("<|image_pad|>", 151655),
    "video_token_id": ("<|video_pad|>", 151656),
    "vision_start_token_id": ("<|vision_start|>", 151652),
    "vision_end_token_id": ("<|vision_end|>", 151653),
}
ACTIVATIONS = ("quick_gelu", "silu", "gelu", "gelu_pytorch_tanh")  # of vision towers
DTYPES = {None: "", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
MOST_LAYERS, MOST = 1000, 10**7


def todays_name(name: str) -> str:
    """A module path of transformers 4 (model.layers, visual) in today's names (model.language_model, model.visual)."""
    name = re.sub(r"(^|base_model\.model\.)model\.(layers|embed_tokens|norm)\b", r"\1model.language_model.\2", name)
    return re.sub(r"(^|base_model\.model\.)visual\b", r"\1model.visual", name)


@dataclass(frozen=True)
class Sizes:
    """What of a config.json decides shapes, and what the processor's files must agree with.

    Attributes:
        head: size of an attention head.
        positions: of the vision tower's table of positions, 0 without.
        deepstack: so many of the language model's first layers get features of the vision tower.
        vision_width, vision_hidden, vision_out: of the vision tower's stream, of its MLP, and of what it gives to the
            language model.
        patch, temporal, merge: an image patch is temporal x patch x patch pixels; merge x merge of them are a token.
        token_ids: id of each of TOKEN_IDS' tokens.
    """

    family: Family
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    tied: bool
    depth: int
    vision_width: int
    vision_hidden: int
    vision_out: int
    positions: int
    deepstack: int
    channels: int
    patch: int
    temporal: int
    merge: int
    token_ids: dict[str, int]

    @classmethod
    def read(cls, path: Path, config: dict[str, Any]) -> Sizes:
        """From the content of the config.json at `path`, whose model type is supported.

        Raises:
            UserError: a value is missing, out of its range, contradicts another, or asks for what is not supported.
        """
        reader = _Reader(path)
        reader.refuse_unsupported(config)
        family = FAMILIES[config["model_type"]]
        flat = family.flat and config.get("text_config") is None
        text = config if flat else reader.object(config, "text_config")
        vision = VISION_DEFAULTS | family.vision.defaults | reader.object(config, "vision_config")
        for part in (vision,) if flat else (text, vision):
            kind = part.get("model_type")
            reader.require(kind is None or kind in family.parts, f"a part that is a {kind!r} in a {family.model_type}")
        heads = reader.number(text, "num_attention_heads")
        hidden = reader.number(text, "hidden_size")
        kv_heads = heads if text.get("num_key_value_heads", 8) is None else reader.number(text, "num_key_value_heads")
        vocabulary = reader.number(text, "vocab_size")
        layers = reader.number(text, "num_hidden_layers", most=MOST_LAYERS)
        if family.head_dim:
            head = reader.number({"head_dim": family.head_dim} | text, "head_dim")
        else:
            head = hidden // heads
            reader.require(hidden % heads == 0 and head % 2 == 0, f"{hidden} hidden for {heads} heads")
        reader.require(heads % kv_heads == 0, f"{heads} attention heads for {kv_heads} key-value heads")
        reader.require(family.qkv_bias or text.get("attention_bias") in (None, False), "attention_bias True")
        reader.check_text(text, layers, head, vocabulary)
        reader.check_text(config, layers, head, vocabulary, optional=True)
        width = reader.number(vision, family.vision.width)
        vision_heads = reader.number(vision, "num_heads")
        reader.require(width % (4 * vision_heads) == 0, f"a vision tower {width} wide with {vision_heads} heads")
        activation = vision["hidden_act"]
        reader.require(activation in ACTIVATIONS, f"vision_config's hidden_act {activation!r}")
        depth = reader.number(vision, "depth", least=0, most=MOST_LAYERS)
        if family.vision.window:
            reader.number(vision, "window_size")
            blocks = vision["fullatt_block_indexes"]
            reader.require(_whole_numbers(blocks), f"fullatt_block_indexes {blocks!r}")
        positions = reader.number(vision, "num_position_embeddings") if family.vision.position_table else 0
        reader.require(math.isqrt(positions) ** 2 == positions, f"num_position_embeddings {positions}, no square")
        deepstack = vision["deepstack_visual_indexes"] if family.vision.deepstack else []
        fits = _whole_numbers(deepstack) and all(block < depth for block in deepstack)
        # The last layer computes the pooled tokens alone.
        fits = fits and len(set(deepstack)) == len(deepstack) < layers
        reader.require(fits, f"deepstack_visual_indexes {deepstack!r} for {depth} blocks and {layers} layers")
        tied = [part.get("tie_word_embeddings", False) for part in (config, text)]
        reader.require(all(isinstance(of, bool) for of in tied), f"tie_word_embeddings {tied[0]!r}")
        ids = {
            token: reader.number({name: default} | config, name, least=0)
            for name, (token, default) in TOKEN_IDS.items()
        }
        return cls(
            family=family,
            vocabulary=vocabulary,
            hidden=hidden,
            intermediate=reader.number(text, "intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head=head,
            tied=any(tied),
            depth=depth,
            vision_width=width,
            vision_hidden=math.prod(reader.number(vision, key) for key in family.vision.hidden),
            vision_out=reader.number(vision, family.vision.out),
            positions=positions,
            deepstack=len(deepstack),
            channels=reader.number(vision, "in_channels", most=16),
            patch=reader.number(vision, "patch_size", most=1000),
            temporal=reader.number(vision, "temporal_patch_size", most=16),
            merge=reader.number(vision, "spatial_merge_size", most=16),
            token_ids=ids,
        )

    def shapes(self) -> dict[str, Shape]:
        """Today's name -> shape of every tensor that the model has; lm_head too where it is tied."""
        hidden, inner, kv = self.hidden, self.head * self.heads, self.head * self.kv_heads
        tensors: dict[str, Shape] = {
            "lm_head.weight": (self.vocabulary, hidden),
            "model.language_model.embed_tokens.weight": (self.vocabulary, hidden),
            "model.language_model.norm.weight": (hidden,),
        }
        for layer in range(self.layers):
            block: dict[str, Shape] = {
                "input_layernorm.weight": (hidden,),
                "post_attention_layernorm.weight": (hidden,),
            }
            for name, size in (("q", inner), ("k", kv), ("v", kv)):
                block |= _linear(f"self_attn.{name}_proj", size, hidden, bias=self.family.qkv_bias)
            if self.family.qk_norm:
                block |= {f"self_attn.{name}_norm.weight": (self.head,) for name in "qk"}
            block |= _linear("self_attn.o_proj", hidden, inner, bias=False)
            block |= _linear("mlp.gate_proj", self.intermediate, hidden, bias=False)
            block |= _linear("mlp.up_proj", self.intermediate, hidden, bias=False)
            block |= _linear("mlp.down_proj", hidden, self.intermediate, bias=False)
            tensors |= {f"model.language_model.layers.{layer}.{name}": shape for name, shape in block.items()}
        return tensors | {f"model.visual.{name}": shape for name, shape in self._vision().items()}

    def _vision(self) -> dict[str, Shape]:
        width, vision = self.vision_width, self.family.vision
        norms = ("weight", "bias") if vision.norm_bias else ("weight",)
        patch = (width, self.channels, self.temporal, self.patch, self.patch)
        tensors: dict[str, Shape] = {"patch_embed.proj.weight": patch, **self._merger("merger", width)}
        if vision.patch_bias:
            tensors["patch_embed.proj.bias"] = (width,)
        if self.positions:
            tensors["pos_embed.weight"] = (self.positions, width)
        for number in range(self.deepstack):
            tensors |= self._merger(f"deepstack_merger_list.{number}", width * self.merge**2)
        for number in range(self.depth):
            block: dict[str, Shape] = {f"{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in norms}
            block |= _linear("attn.qkv", 3 * width, width) | _linear("attn.proj", width, width)
            for name in vision.mlp[:-1]:
                block |= _linear(f"mlp.{name}", self.vision_hidden, width)
            block |= _linear(f"mlp.{vision.mlp[-1]}", width, self.vision_hidden)
            tensors |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
        return tensors

    def _merger(self, name: str, normalised: int) -> dict[str, Shape]:
        """Args: normalised: the width of what it normalises."""
        wide = self.vision_width * self.merge**2
        norm, first, second = (f"{name}.{part}" for part in self.family.vision.merger)
        parts = ("weight", "bias") if self.family.vision.norm_bias else ("weight",)
        tensors: dict[str, Shape] = {f"{norm}.{part}": (normalised,) for part in parts}
        return tensors | _linear(first, wide, wide) | _linear(second, self.vision_out, wide)


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def is_whole(value: object, least: int = 0, most: int = MOST) -> bool:
    """A number without a fraction between these, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> bool:
    """A finite number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole_numbers(values: object) -> bool:
    return isinstance(values, list | tuple) and all(map(is_whole, values))


class _Reader:
    """Values of a config.json, each checked."""

    def __init__(self, path: Path):
        self.path = path

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"{self.path} has {what}, which no model here can have: take the file of the same download")

    def object(self, config: dict[str, Any], key: str) -> dict[str, Any]:
        self.require(isinstance(config.get(key), dict), f"{key} {config.get(key)!r}")
        return config[key]

    def number(self, config: dict[str, Any], key: str, *, least: int = 1, most: int = MOST) -> int:
        value: Any = config.get(key)
        if not is_whole(value, least, most):
            said = f"has {key} {value!r}" if key in config else f"lacks {key}"
            raise UserError(
                f"{self.path} {said}: expected a whole number from {least} to {most}; take the same download's"
            )
        return value

    def refuse_unsupported(self, config: dict[str, Any]) -> None:
        for part in (config, config.get("text_config")):
            for key in ("quantization_config", "compression_config"):
                if isinstance(part, dict) and part.get(key) is not None:
                    method = part[key].get("quant_method", "?") if isinstance(part[key], dict) else part[key]
                    raise UserError(
                        f"{self.path} has a {key} ({method}): quantised weights are not supported; take the model in "
                        "bf16, and train with --q_lora True where memory is short"
                    )
            if isinstance(part, dict):
                dtype = part.get("dtype", part.get("torch_dtype"))
                known = (dtype is None or isinstance(dtype, str)) and dtype in DTYPES
                self.require(known, f"dtype {dtype!r}")
        self.require(config.get("transformers_weights") is None, "transformers_weights, another name for the weights")

    def check_text(self, text: dict[str, Any], layers: int, head: int, vocabulary: int, optional: bool = False) -> None:
        """The language model's values that decide no shape, where they are there; at least what has no default."""
        activation = text.get("hidden_act", "silu")
        self.require(activation == "silu", f"hidden_act {activation!r}")
        self.require(text.get("head_dim") in (None, head), f"head_dim {text.get('head_dim')!r}, not {head}")
        self.require(text.get("use_sliding_window") in (None, False), "use_sliding_window True")
        kinds = text.get("layer_types")
        self.require(kinds in (None, layers * ["full_attention"]), f"layer_types other than {layers} full_attention")
        for key, least, most in (("rms_norm_eps", 0, 1), ("attention_dropout", 0, 1), ("initializer_range", 0, 10)):
            value = text.get(key, 0)
            self.require(is_number(value) and least <= value < most, f"{key} {value!r}")
        self.number({"max_position_embeddings": 32768} | text, "max_position_embeddings", most=10**9)
        ids = [text.get(key) for key in ("bos_token_id", "pad_token_id")]
        ids += end if isinstance(end := text.get("eos_token_id"), list) else [end]
        for value in ids:
            self.require(value is None or is_whole(value, 0, vocabulary - 1), f"the token id {value!r}")
        ropes = [text[key] for key in ("rope_parameters", "rope_scaling") if text.get(key) is not None]
        if optional and not ropes:
            return
        self.require(bool(ropes) and all(isinstance(rope, dict) for rope in ropes), f"rope_scaling {ropes!r}")
        for rope in ropes:
            kinds = {rope.get("rope_type"), rope.get("type")} - {None, "default", "mrope"}
            self.require(not kinds, f"rope_scaling of the type {min(map(str, kinds), default='')}")
            theta = rope.get("rope_theta", text.get("rope_theta", 1e6))
            self.require(is_number(theta) and theta > 0, f"rope_theta {theta!r}")
            section = rope.get("mrope_section")
            fits = _whole_numbers(section) and len(section) == 3 and 2 * sum(section) == head
            self.require(fits, f"mrope_section {section!r} for heads of {head}")


def vector_size(folder: str | Path) -> int:
    """How many dimensions the embeddings of the whole model in a folder have.

    Raises:
        UserError: its config.json is missing, or of no model that is supported.
    """
    family_of(folder)
    path = Path(folder, "config.json")
    return Sizes.read(path, read_object(path)).hidden
