"""Merge an adapter into its base model: a folder that any tool loads without PEFT. Started by scripts/merge_lora.sh."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch

from lamra.collators.processing import Processor
from lamra.common.cli import parse, require, run
from lamra.common.lock import folder_lock
from lamra.models.base_model import base_under
from lamra.models.folders import is_adapter, is_model, local_folder
from lamra.models.loading import load_trained
from lamra.models.saving import whole_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class MergeArguments:
    model_id: str = field(metadata={"help": "adapter folder"})
    save_path: str = field(metadata={"help": "folder of the merged model"})
    original_model_id: str | None = field(
        default=None, metadata={"help": "base model, where the remembered one is gone"}
    )
    dtype: str = field(default="bf16", metadata={"help": "bf16 or fp32"})

    def __post_init__(self):
        require(self.dtype in DTYPES, "dtype", self.dtype, " or ".join(DTYPES))
        self.model_id = local_folder(self.model_id, "model_id")
        require(is_adapter(self.model_id), "model_id", self.model_id, "a folder with adapter_config.json")
        require(not is_model(self.save_path), "save_path", self.save_path, "a folder without a model")
        self.original_model_id = base_under(self.model_id, self.original_model_id)


def main() -> None:
    if int(os.environ.get("RANK", 0)) > 0:
        return  # upstream's script starts it with accelerate, on as many processes as there are GPUs
    (args,) = parse(MergeArguments)
    with folder_lock(args.save_path, "save_path"):
        # Added in float32 and rounded once, whatever the folder is written in.
        model, settings = load_trained(args.model_id, args.original_model_id, dtype=torch.float32, merge=True)
        processor = Processor(settings.base_model, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)
        model = model.to(DTYPES[args.dtype])
        with whole_model(args.save_path) as unfinished:
            settings.write(unfinished)
            model.save_pretrained(unfinished)
            processor.save_pretrained(unfinished)
    print(f"merged {args.model_id} into {settings.base_model}, {args.dtype}: {args.save_path}/")


if __name__ == "__main__":
    run(main)
