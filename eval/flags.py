"""The flags that choose a model, which every evaluation entrypoint has. Imports nothing slow: --help needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lamra.common.cli import flag, note, require
from lamra.models.folders import is_adapter, local_folder
from lamra.models.settings import POSITION_IDS, SPECIAL_TOKENS_IN_TEXT, Settings


@dataclass
class RetrieverArguments:
    model_id: str = field(metadata={"help": "folder, or published name, of an adapter or a whole model"})
    original_model_id: str | None = flag(None, "base model under an adapter, where the one it was trained on is gone")
    max_tokens_per_batch: int | None = flag(None, "tokens in a forward; default: 32768 on CUDA, 4096 elsewhere")
    padding_free: bool = flag(True, "one row of tokens instead of a padded rectangle")
    share_prefix: bool = flag(True, "compute the prompts' constant beginning once")
    bf16: bool | None = flag(None, "default: True where the GPU has it, else float32")
    model_max_length: int | None = flag(None, "ignored with a note: nothing is cut")
    position_ids: str | None = flag(None, "default: what the checkpoint was trained with")
    max_pixels: int | None = flag(None, "default: what the checkpoint was trained with")
    special_tokens_in_text: str | None = flag(
        None,
        "read them as plain letters, or as special; default: what the checkpoint was trained with",
    )
    exif_rotation: bool | None = flag(
        None, "turn pictures as EXIF says; default: as the checkpoint was trained, else False"
    )
    attn_implementation: str | None = flag(
        None, "flash_attention_2, sdpa, eager; of packed text: chosen by models/packing.py"
    )
    num_workers: int | None = flag(None, "processes that prepare inputs")

    def __post_init__(self):
        self.model_id = local_folder(self.model_id, "model_id")
        if self.original_model_id and is_adapter(self.model_id):
            from lamra.models.base_model import base_under  # torch, peft: seconds

            self.original_model_id = base_under(self.model_id, self.original_model_id)
        elif self.original_model_id:  # upstream's commands name it for every model
            note(f"--original_model_id {self.original_model_id} is ignored: {self.model_id} is a whole model")
            self.original_model_id = None
        budget, pixels = self.max_tokens_per_batch, self.max_pixels
        require(budget is None or budget > 0, "max_tokens_per_batch", budget, "1 or more")
        require(self.position_ids in (None, *POSITION_IDS), "position_ids", self.position_ids, "sequential or mrope")
        special = self.special_tokens_in_text
        require(special in (None, *SPECIAL_TOKENS_IN_TEXT), "special_tokens_in_text", special, "plain or special")
        least = (Settings.read(self.model_id) or Settings).min_pixels
        require(pixels is None or pixels >= least, "max_pixels", pixels, f"{least} (--min_pixels) or more")
        if self.model_max_length is not None:
            note(f"--model_max_length {self.model_max_length} is ignored: evaluation cuts nothing, as LamRA's does not")


@dataclass
class SkippingArguments(RetrieverArguments):
    skip_unreadable: int = flag(
        0, "go on without so many items whose pictures cannot be read, each listed; default: 0, the first one stops"
    )

    def __post_init__(self):
        super().__post_init__()
        require(self.skip_unreadable >= 0, "skip_unreadable", self.skip_unreadable, "0 or more")


def output_folder(args, *default: str | Path) -> Path:
    """--output_dir, or its default: results/<model>/..."""
    return Path(args.output_dir or Path("results", run_name(args.model_id), *default))


def run_name(model_id: str) -> Path:
    """The model's folder below checkpoints/ (run, run/checkpoint-478), or the last part of another path."""
    path, ours = Path(model_id).resolve(), Path("checkpoints").resolve()
    return path.relative_to(ours) if path.is_relative_to(ours) else Path(path.name)
