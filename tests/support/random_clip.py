"""A random CLIP as sentence-transformers saves it."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer


def build_clip(folder: Path) -> Path:
    """Two layers, pictures of 64 x 64 and texts of 77 letters; returns the folder."""
    from sentence_transformers import SentenceTransformer

    plain = folder / "plain"
    plain.mkdir(parents=True)
    letters = [*string.ascii_lowercase, *string.digits, *".,'!?-"]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (plain / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (plain / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(plain / "vocab.json"), str(plain / "merges.txt"), model_max_length=77)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=dict(sizes, vocab_size=len(tokenizer), **special),
            vision_config=dict(sizes, image_size=64, patch_size=16),
            projection_dim=24,
        )
    )
    for weight in model.parameters():  # as drawn, the layers do next to nothing
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(plain)
    square = {"height": 64, "width": 64}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=square), tokenizer).save_pretrained(plain)
    SentenceTransformer(str(plain), device="cpu").save_pretrained(str(folder / "clip"), create_model_card=False)
    return folder / "clip"
