"""This project against stage 1's values: upstream_golden.safetensors, a tiny model of any shape, and its collator's."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import torch
from comparison import Comparison, gradients, real_tokens, rotary_positions
from safetensors.torch import load_file, save_file
from stage2_inputs import Values, attempts, compare_inputs
from torch import Tensor, nn

from lamra.collators.processing import Processor
from lamra.collators.retrieval import RetrievalCollator
from lamra.datasets.items import Item, Pair
from lamra.models.embedder import Embedder
from lamra.models.loading import load_model
from lamra.models.lora import load_adapter
from lamra.models.losses import info_nce

TEMPERATURE = 0.05
LR = 3e-4
TAIL = 4  # tokens from upstream's <emb> to the end of a row of upstream_golden
DEFAULTS = {  # what the weights' shapes do not say
    "model_type": "qwen2_vl",
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]},
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vision_start_token_id": 505,
    "vision_end_token_id": 506,
    "image_token_id": 507,
    "video_token_id": 508,
    "vision_config": {"model_type": "qwen2_vl", "num_heads": 2, "spatial_merge_size": 2},
    "lora_alpha": 16,
}


class Stage1:
    """upstream_golden.safetensors, whole or as model.safetensors and values.safetensors.

    Args:
        given: a configuration in the layout of config.json that goes before DEFAULTS and what the shapes say.
        model: a folder to load instead of the weights of the file.
    """

    def __init__(self, comparison: Comparison, tensors: dict[str, Tensor], given: dict, work: Path, model):
        self.comparison, self.values, self.tensors = comparison, Values("upstream_golden", tensors), tensors
        self.config = configuration(tensors, given)
        self.model_folder, self.adapter_folder = Path(model or work / "stage1"), work / "stage1_adapter"
        if not model:
            self.model_folder.mkdir()
            save_file(_part(tensors, "weight."), self.model_folder / "model.safetensors", metadata={"format": "pt"})
            (self.model_folder / "config.json").write_text(json.dumps(self.config))

    def model(self) -> nn.Module:
        return load_model(self.model_folder, dtype=torch.float32)

    def compare(self) -> None:
        for group in ("text", "hardneg", "image"):
            for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"):
                if f"{group}.{name}" in self.tensors:
                    self.comparison.leave_out(self.values.key(f"{group}.{name}"), "made up, the input of the others")
        for part, prefixes in (
            (self.weights, ["weight."]),
            (self.text, ["text."]),
            (self.hard_negatives, ["hardneg."]),
            (self.images, ["image."]),
            (self.curve, ["curve.", "lora_init."]),
        ):
            keys = self.values.keys(*prefixes)
            with self.comparison.computing(*keys):
                part()
        self.comparison.require_all(self.values.keys())

    def weights(self) -> None:
        found = _published(self.model().state_dict())
        for name, tensor in _part(self.tensors, "weight.").items():
            self.comparison.equal(self.values.key(f"weight.{name}"), "read by load_model", found[name], tensor)

    def prompts(self, group: str) -> dict[str, Tensor]:
        """Upstream's left-padded rows up to <emb>, as right-padded input_ids and attention_mask; pictures."""
        rows = [torch.tensor(ids[:-TAIL]) for ids in real_tokens(self.tensors, group)]
        pad = torch.nn.utils.rnn.pad_sequence
        pictures = {name: self.tensors.get(f"{group}.{name}") for name in ("pixel_values", "image_grid_thw")}
        return {
            "input_ids": pad(rows, batch_first=True),
            "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
            **{name: tensor for name, tensor in pictures.items() if tensor is not None},
        }

    def loss(self, embeds: Tensor, parts: int) -> Tensor:
        """info_nce of rows that are queries, then targets, then hard negatives, equally many each."""
        count = len(embeds) // parts
        return info_nce(embeds[:count], embeds[count:], TEMPERATURE).loss

    def text(self) -> None:
        embedder, batch = Embedder(self.model(), "sequential"), self.prompts("text")
        with torch.no_grad():
            self.close("text.embeds", "before <emb>", embedder.hidden_state(**batch))
        loss = self.loss(embedder(**batch), parts=2)
        self.close("text.loss", "info_nce", loss)
        loss.backward()
        found = gradients(embedder.stock)
        for name in self.tensors:
            if name.startswith("text.grad."):
                gradient = found[name.removeprefix("text.grad.")].flatten()
                key, expected = self.values.key(name), self.tensors[name].flatten()
                self.comparison.close(key, "gradient of the loss", gradient, expected)

    def hard_negatives(self) -> None:
        embeds = Embedder(self.model(), "sequential")(**self.prompts("hardneg"))
        self.close("hardneg.loss", "info_nce", self.loss(embeds, parts=3))

    def images(self) -> None:
        batch = self.prompts("image")
        for position_ids in ("sequential", "mrope"):
            embedder = Embedder(self.model(), position_ids)
            with torch.no_grad(), rotary_positions(embedder.stock) as received:
                self.close(f"image.embeds_{position_ids}", "before <emb>", embedder.hidden_state(**batch))
        mask = self.tensors["image.attention_mask"].bool()
        rows = [self.tensors["image.mrope_position_ids"][:, i, row][:, :-TAIL] for i, row in enumerate(mask)]
        key = self.values.key("image.mrope_position_ids")
        self.comparison.equal(key, "what the rotary embedding received", received[0][:, 0], torch.cat(rows, dim=1))

    def curve(self) -> None:
        model = self.adapted()
        expected = _part(self.tensors, "lora_init.")
        found = _published({n.replace(".default", ""): t for n, t in model.get_base_model().state_dict().items()})
        for name, tensor in expected.items():
            self.comparison.equal(self.values.key(f"lora_init.{name}"), "read by load_adapter", found[name], tensor)
        embedder, batch = Embedder(model, "sequential"), self.prompts("text")
        trained = [p.requires_grad_() for name, p in embedder.named_parameters() if ".lora_" in name]
        optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        losses = []
        for step in range(len(self.tensors["curve.losses"])):
            loss = self.loss(embedder(**batch), parts=2)
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained])
                self.close("curve.grad_norm_step0", "norm of all gradients", norm)
            optimizer.step()
            losses.append(loss.detach())
        key, expected = self.values.key("curve.losses"), self.tensors["curve.losses"].unsqueeze(-1)
        self.comparison.close(key, "AdamW, step by step", torch.stack(losses).unsqueeze(-1), expected)
        with torch.no_grad():
            self.close("curve.embeds_after", "before <emb>", embedder.hidden_state(**batch))

    def adapted(self) -> nn.Module:
        """The model with the file's LoRA, written as transformers 4 and PEFT wrote it."""
        state = {f"base_model.model.{name}": tensor for name, tensor in _part(self.tensors, "lora_init.").items()}
        self.adapter_folder.mkdir()
        save_file(state, self.adapter_folder / "adapter_model.safetensors", metadata={"format": "pt"})
        targets = sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name in state})
        rank = next(len(tensor) for name, tensor in state.items() if ".lora_A" in name)
        config = dict(peft_type="LORA", r=rank, lora_alpha=self.config["lora_alpha"], lora_dropout=0.0, bias="none")
        (self.adapter_folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))
        return load_adapter(self.model(), self.adapter_folder)

    def close(self, name: str, what: str, found: Tensor) -> None:
        self.comparison.close(self.values.key(name), what, found, self.tensors[name].squeeze())


def configuration(tensors: dict[str, Tensor], given: dict) -> dict:
    """config.json of the model whose weights these are.

    What is given goes first; then sizes from the weights' shapes, special tokens from the rows with pictures, DEFAULTS.
    """
    weights = _part(tensors, "weight.")
    layer, block = "model.layers.0.", "visual.blocks.0."
    rope = DEFAULTS["rope_scaling"] | given.get("rope_scaling", {})
    head = 2 * sum(rope["mrope_section"])
    if len(weights[f"{layer}self_attn.k_proj.weight"]) % head:
        raise ValueError(f"heads of {head} dimensions (mrope_section) do not fit: lay a config.json beside the file")
    vocabulary, hidden = weights["model.embed_tokens.weight"].shape
    embed, channels, temporal, patch, _ = weights["visual.patch_embed.proj.weight"].shape
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": len(weights[f"{layer}mlp.gate_proj.weight"]),
        "num_hidden_layers": _count(weights, "model.layers."),
        "num_attention_heads": len(weights[f"{layer}self_attn.q_proj.weight"]) // head,
        "num_key_value_heads": len(weights[f"{layer}self_attn.k_proj.weight"]) // head,
    }
    vision_sizes = {
        "depth": _count(weights, "visual.blocks."),
        "embed_dim": embed,
        "hidden_size": hidden,
        "mlp_ratio": len(weights[f"{block}mlp.fc1.weight"]) // embed,
        "in_channels": channels,
        "temporal_patch_size": temporal,
        "patch_size": patch,
    }
    vision = DEFAULTS["vision_config"] | vision_sizes | given.get("vision_config", {})
    return DEFAULTS | sizes | _picture_tokens(tensors) | given | {"rope_scaling": rope, "vision_config": vision}


def _picture_tokens(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Ids around a picture: its own token is the one that occurs as often as its grid says."""
    if "image.input_ids" not in tensors:
        return {}
    ids = real_tokens(tensors, "image")[0]
    image = max(set(ids), key=ids.count)
    first, count = ids.index(image), ids.count(image)
    return {"image_token_id": image, "vision_start_token_id": ids[first - 1], "vision_end_token_id": ids[first + count]}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _count(weights: dict[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state in the names of transformers 4, as in the files."""
    rename = (("model.language_model.", "model."), ("model.visual.", "visual."))
    return {name.replace(*rename[0]).replace(*rename[1]): tensor for name, tensor in state.items()}


def compare_collate(comparison: Comparison, tensors: dict[str, Tensor], processor: Path, data: Path) -> None:
    """upstream_collate.safetensors: the first rows of data/nli_sample.csv and the first pictures of data/flickr8k."""
    values, processor = Values("upstream_collate", tensors), Processor(processor)
    emb = len(processor.tokenizer)  # upstream added it to the tokenizer
    for part, compare in (("nli", _compare_nli), ("flickr", _compare_flickr)):
        with comparison.computing(*values.keys(f"{part}.")):
            compare(comparison, values, processor, data, emb)
    comparison.require_all(values.keys())


def _compare_nli(comparison: Comparison, values: Values, processor: Processor, data: Path, emb: int) -> None:
    count = len(values.tensors["nli.input_ids"]) // 2
    frame = pd.read_csv(data / "nli_sample.csv", dtype=str, keep_default_na=False)[:count]
    pairs = [Pair(Item(f"q{i}", row.sent0), Item(f"t{i}", row.sent1)) for i, row in frame.iterrows()]
    encoded = attempts(RetrievalCollator(processor).encode, pairs)
    rows = [pair[part] for part in range(2) for pair in encoded]
    compare_inputs(comparison, values, "nli", rows, "a training batch", tail=emb, processor=processor)


def _compare_flickr(comparison: Comparison, values: Values, processor: Processor, data: Path, emb: int) -> None:
    count, folder = len(values.tensors["flickr.input_ids"]), data / "flickr8k"
    images = json.loads((folder / "dataset_flickr8k.json").read_text())["images"][:count]
    items = [Item(image["filename"], images=(folder / "images" / image["filename"],)) for image in images]
    encoded = attempts(processor.encode, items)
    compare_inputs(comparison, values, "flickr", encoded, "an evaluation batch", tail=emb, processor=processor)


def tensors_of(paths: list[Path]) -> dict[str, Tensor]:
    return {name: tensor for path in paths for name, tensor in load_file(path).items()}
