"""Merge an adapter into its base model: a folder that any tool loads without PEFT. Started by scripts/merge_lora.sh."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from lamra.collators.processing import Processor
from lamra.models.loading import is_adapter, load_trained
from lamra.train.arguments import parse, require
from lamra.train.entrypoint import run

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class MergeArguments:
    model_id: str = field(metadata={"help": "adapter folder"})
    save_path: str = field(metadata={"help": "folder of the merged model"})
    original_model_id: str | None = field(default=None, metadata={"help": "base model, if not the remembered one"})
    dtype: str = field(default="bf16", metadata={"help": "bf16 or fp32"})

    def __post_init__(self):
        require(self.dtype in DTYPES, "dtype", self.dtype, " or ".join(DTYPES))
        require(is_adapter(self.model_id), "model_id", self.model_id, "a folder with adapter_config.json")
        taken = (Path(self.save_path) / "config.json").exists() or is_adapter(self.save_path)
        require(not taken, "save_path", self.save_path, "a folder without a model and without an adapter")


def main() -> None:
    (args,) = parse(MergeArguments)
    # Added in float32 and rounded once, whatever the folder is written in.
    model, settings = load_trained(args.model_id, args.original_model_id, dtype=torch.float32, merge=True)
    processor = Processor(
        args.original_model_id or settings.base_model, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels
    )
    model = model.to(DTYPES[args.dtype])
    model.save_pretrained(args.save_path)
    processor.save_pretrained(args.save_path)
    settings.write(args.save_path)
    print(f"merged {args.model_id} into {settings.base_model}, {args.dtype}: {args.save_path}/")


if __name__ == "__main__":
    run(main)
