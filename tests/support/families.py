"""Small models of every family with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from lamra.models.families import FAMILIES

IMAGE, VIDEO, START, END = 507, 508, 505, 506
TEXT: dict[str, Any] = dict(
    **dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4),
    **dict(num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=2048),
)
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the language model and of the vision tower
    "qwen2_vl": (
        dict(mrope_section=[2, 3, 3]),
        dict(depth=2, embed_dim=32, hidden_size=64, mlp_ratio=2, patch_size=14),
    ),
    "qwen2_5_vl": (
        dict(mrope_section=[2, 3, 3]),
        dict(depth=2, hidden_size=32, intermediate_size=48, out_hidden_size=64, patch_size=14)
        | dict(fullatt_block_indexes=[1], tokens_per_second=2),
    ),
    "qwen3_vl": (  # heads wider than hidden_size / heads, as in the published 4B; positions between those of the table
        dict(mrope_section=[4, 4, 4], mrope_interleaved=True),
        dict(depth=3, hidden_size=32, intermediate_size=48, out_hidden_size=64, patch_size=16)
        | dict(num_position_embeddings=25, deepstack_visual_indexes=[0, 2]),
    ),
}


def config_of(family: str) -> PreTrainedConfig:
    rope, vision = PARTS[family]
    text = dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6, **rope})
    if FAMILIES[family].head_dim:
        text["head_dim"] = 2 * sum(rope["mrope_section"])
    return FAMILIES[family].model_class.config_class(
        text_config=TEXT | text,
        vision_config=dict(num_heads=2, **vision),
        **dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END),
        tie_word_embeddings=False,
    )


def random_model(family: str) -> PreTrainedModel:
    """Random everywhere, also where a fresh model has zeros and ones."""
    torch.manual_seed(0)
    model = FAMILIES[family].model_class(config_of(family))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name or "ln_q" in name), std=0.2)
    return model.requires_grad_(True)
