"""Merge an adapter into its base model: a folder that any tool loads without PEFT. Started by scripts/merge_lora.sh."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamra.common.cli import parse, run
from lamra.common.flags import FOLDER, OUT_FOLDER, Flags, flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process
from lamra.models.folders import is_adapter, local_folder
from lamra.models.saving import MODEL_MARKS, whole_model
from lamra.models.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}  # as torch calls them


@dataclass
class MergeArguments(Flags):
    model_id: str = flag(MISSING, "adapter folder", path=FOLDER)
    save_path: str = flag(MISSING, "folder of the merged model", path=OUT_FOLDER)
    original_model_id: str | None = flag(None, "base model, where the remembered one is gone")
    dtype: str = flag("bf16", "of the merged weights", one_of=DTYPES)

    def __post_init__(self):
        super().__post_init__()
        self.model_id = local_folder(self.model_id, "model_id")
        require(is_adapter(self.model_id), "model_id", self.model_id, "a folder with adapter_config.json")
        is_model = any((Path(self.save_path) / mark).exists() for mark in MODEL_MARKS)
        require(not is_model, "save_path", self.save_path, "a folder without a model")


def main() -> None:
    if not is_first_process():
        return  # upstream's script starts it with accelerate, on as many processes as there are GPUs
    (args,) = parse(MergeArguments)

    import torch  # here and not above: --help or a mistake in the flags needs no seconds of imports

    from lamra.models.base_model import base_under
    from lamra.models.inspect import inspect_folder
    from lamra.models.loading import load_trained

    base_model = base_under(args.model_id, args.original_model_id)
    inspect_folder(Path(args.model_id), base_model)
    with folder_lock(args.save_path, "save_path"):
        # Added in float32 and rounded once, whatever the folder is written in.
        model, settings = load_trained(args.model_id, base_model, dtype=torch.float32, merge=True)
        with whole_model(args.save_path) as unfinished:
            write_model(unfinished, model.to(getattr(torch, DTYPES[args.dtype])), settings, settings.base_model)
    print(f"merged {args.model_id} into {settings.base_model}, {args.dtype}: {args.save_path}/")


def write_model(folder: Path, model: PreTrainedModel, settings: Settings, base: str | Path) -> None:
    """A whole model with its settings, and the tokenizer and image processor of the model in `base`."""
    from lamra.collators.processing import Processor

    settings.write(folder)
    model.save_pretrained(folder)
    processor = Processor(
        base, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels, prompt_style=settings.prompt_style
    )
    processor.save_pretrained(folder)


if __name__ == "__main__":
    run(main)
