"""What differs between the families of base models; nothing else in the project asks which family a model is of.

A new family is an entry here and a run of tests/models/test_families.py (docs/backbones.md). Imports nothing slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamra.common.errors import UserError
from lamra.models.folders import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Keys of vision_config that a published config may lack, as transformers fills them in, in every family.
VISION_DEFAULTS = {"num_heads": 16, "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2}


@dataclass(frozen=True)
class Vision:
    """A vision tower and its projector, as config.json and the weights name their parts.

    Attributes:
        width, out: keys of vision_config: how wide the tower is, and what it gives to the language model.
        hidden: keys whose product is the width of the MLP's hidden layer.
        defaults: of keys that a published config may lack, as transformers fills them in.
        norm_bias: normalisations are LayerNorms, with a bias, not RMSNorms.
        mlp: linears of a block's MLP, the last of which leads back to the tower's width.
        merger: the projector's normalisation, first and second linear.
        patch_bias: the embedding of patches has a bias.
        window: some blocks attend within windows (keys window_size and fullatt_block_indexes).
        position_table: patches also have a learned embedding for each position (key num_position_embeddings).
        deepstack: features of some blocks (key deepstack_visual_indexes) go through projectors of their own to the
            language model's first layers (DeepStack, arXiv 2406.04334).
        encoder, projectors: modules of the tower itself, and those between it and the language model.
    """

    width: str
    hidden: tuple[str, ...]
    out: str
    defaults: dict[str, Any]
    norm_bias: bool
    mlp: tuple[str, ...]
    merger: tuple[str, str, str] = ("ln_q", "mlp.0", "mlp.2")
    patch_bias: bool = False
    window: bool = False
    position_table: bool = False
    deepstack: bool = False
    encoder: tuple[str, ...] = ("visual.patch_embed", "visual.blocks")
    projectors: tuple[str, ...] = ("visual.merger",)


@dataclass(frozen=True)
class Family:
    """A family of base models.

    Attributes:
        name: as its makers write it.
        model_type: of config.json; the key of FAMILIES.
        architecture: class in transformers.
        position_ids: with which a retriever of this family is trained, unless a flag or the checkpoint says otherwise
            (see backbone.Backbone).
        flat: config.json may have the language model's values outside of text_config, as transformers 4 wrote them.
        head_dim: size of an attention head where config.json does not say it; None: always hidden_size / heads.
        qkv_bias: the projections to queries, keys and values have a bias.
        qk_norm: queries and keys are normalised in every head.
        token_side: pixels; a square of this side is a token, and a picture's sides are its multiples.
        frames_apart: a video's frames stand in the prompt two and two, each pair after its time in words and with
            vision tokens of its own, as if each were a picture.
    """

    name: str
    model_type: str
    architecture: str
    position_ids: str
    vision: Vision
    flat: bool = False
    head_dim: int | None = None
    qkv_bias: bool = True
    qk_norm: bool = False
    token_side: int = 28
    frames_apart: bool = False

    @cached_property
    def model_class(self) -> type[PreTrainedModel]:
        import transformers

        return getattr(transformers, self.architecture)

    @property
    def parts(self) -> tuple[str, ...]:
        """Model types that config.json may state for text_config and vision_config; published ones repeat its own."""
        return (self.model_type, f"{self.model_type}_text", f"{self.model_type}_vision")

    @property
    def vision_linears(self) -> str:
        """A pattern of the names of all linears in the vision tower's blocks."""
        return rf"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.({'|'.join(self.vision.mlp)}))"

    @property
    def min_pixels(self) -> int:
        """Smallest area of a picture, unless a flag or the checkpoint says otherwise: 4 tokens."""
        return 4 * self.token_side**2

    @property
    def max_pixels(self) -> int:
        """Largest area of a picture, likewise: 300 tokens, as LamRA is trained."""
        return 300 * self.token_side**2


# LamRA's published Qwen2-VL checkpoints were trained with sequential positions, its Qwen2.5-VL checkpoints with M-RoPE.
# There is none of Qwen3-VL: it keeps the positions that it was made with.
QWEN2_VL = Family(
    name="Qwen2-VL",
    model_type="qwen2_vl",
    architecture="Qwen2VLForConditionalGeneration",
    position_ids="sequential",
    flat=True,
    vision=Vision(
        width="embed_dim",
        hidden=("embed_dim", "mlp_ratio"),
        out="hidden_size",
        defaults={"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 3584, "patch_size": 14}
        | {"hidden_act": "quick_gelu"},
        norm_bias=True,
        mlp=("fc1", "fc2"),
    ),
)
QWEN2_5_VL = Family(
    name="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    position_ids="mrope",
    flat=True,
    vision=Vision(
        width="hidden_size",
        hidden=("intermediate_size",),
        out="out_hidden_size",
        defaults={"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "out_hidden_size": 3584}
        | {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu"},
        norm_bias=False,
        mlp=("gate_proj", "up_proj", "down_proj"),
        window=True,
    ),
)
QWEN3_VL = Family(
    name="Qwen3-VL (dense)",
    model_type="qwen3_vl",
    architecture="Qwen3VLForConditionalGeneration",
    position_ids="mrope",
    head_dim=128,
    qkv_bias=False,
    qk_norm=True,
    token_side=32,
    frames_apart=True,
    vision=Vision(
        width="hidden_size",
        hidden=("intermediate_size",),
        out="out_hidden_size",
        defaults={"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 3584}
        | {"patch_size": 16, "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]}
        | {"hidden_act": "gelu_pytorch_tanh"},
        norm_bias=True,
        mlp=("linear_fc1", "linear_fc2"),
        merger=("norm", "linear_fc1", "linear_fc2"),
        patch_bias=True,
        position_table=True,
        deepstack=True,
        encoder=("visual.patch_embed", "visual.pos_embed", "visual.blocks"),
        projectors=("visual.merger", "visual.deepstack_merger_list"),
    ),
)
FAMILIES = {family.model_type: family for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)}


def family_of(folder: str | Path) -> Family:
    """The family of the model in `folder`.

    Raises:
        UserError: there is no config.json that can be read, or it is of another family; names those that there are.
    """
    model_type = read_object(Path(folder) / "config.json").get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(f"{family.name} ({family.model_type})" for family in FAMILIES.values())
        raise UserError(f"{folder} holds a {model_type!r} model: supported are {supported}")
    return FAMILIES[model_type]
