"""From the flags to a model on its device, ready to embed or to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from lamra.collators.processing import Processor
from lamra.collators.texts import ToldTexts
from lamra.common.errors import UserError
from lamra.common.processes import check_devices, default_workers, start_processes
from lamra.datasets.items import Indexed, Item
from lamra.eval.encode import encode
from lamra.eval.flags import RetrieverArguments
from lamra.models.embedder import Embedder
from lamra.models.folders import is_adapter
from lamra.models.inspect import inspect_folder
from lamra.models.loading import load_embedder
from lamra.models.settings import Settings

FEW = 64  # items that are embedded before a worker or a progress bar is worth its start


@dataclass
class Retriever:
    """A model that embeds items, on as many processes as the launcher started."""

    embedder: Embedder
    processor: Processor
    settings: Settings
    max_tokens_per_batch: int
    num_workers: int
    share_prefix: bool

    def embed(self, items: Sequence[str | Path | Image.Image | Item]) -> Tensor:
        """Embed texts (str), pictures (Path or PIL image), and items, which may be both and have an instruction.

        Returns:
            (N, D) float32 embeddings of unit norm on the CPU, in order: their products are cosines.

        Raises:
            UserError: a picture cannot be read, or there is nothing to embed.
            TypeError: an entry is none of these.
        """
        if not items:
            raise UserError("there is nothing to embed: give a text, a picture or an item")
        few = len(items) <= FEW
        found = [as_item(entry, str(number)) for number, entry in enumerate(items)]
        return self.encode(found, None if few else "embed", num_workers=0 if few else None)

    def encode(
        self,
        items: Indexed[Item],
        description: str | None,
        num_workers: int | None = None,
        texts: ToldTexts | None = None,
    ) -> Tensor:
        """(N, D) float32 unit embeddings on the CPU; see eval.encode."""
        return encode(
            self.embedder,
            self.processor,
            [items[row] for row in range(len(items))],
            max_tokens_per_batch=self.max_tokens_per_batch,
            num_workers=self.num_workers if num_workers is None else num_workers,
            share_prefix=self.share_prefix,
            description=description,
            texts=texts,
        )


def as_item(entry: str | Path | Image.Image | Item, identifier: str) -> Item:
    """A text, a picture or an item as an item."""
    match entry:
        case Item():
            return entry
        case str():
            return Item(identifier, entry)
        case Path() | Image.Image():
            return Item(identifier, images=(entry,))
    raise TypeError(f"{type(entry).__name__}: a text is a str, a picture a Path or a PIL image, both together an Item")


def load_retriever(args: RetrieverArguments) -> Retriever:
    """The model that the flags choose; starts the process group if a launcher asked for it."""
    return Retriever(*load_with_processor(args, load_embedder), args.share_prefix)


def start(args: RetrieverArguments) -> PartialState:
    """This process among those that a launcher started, each on a device of its own.

    Raises:
        UserError: there are more processes than GPUs, or bf16 is asked of a GPU without it.
    """
    if torch.cuda.is_available():
        check_devices(bool(args.bf16))
    return start_processes()


def load_with_processor(args: RetrieverArguments, load: Callable) -> tuple[Any, Processor, Settings, int, int]:
    """What `load` (load_embedder or load_reranker) makes of the flags, its processor, settings, budget and workers."""
    state = start(args)
    on_cuda = state.device.type == "cuda"
    in_hardware = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = in_hardware if args.bf16 is None else args.bf16
    inspect_folder(Path(args.model_id), args.original_model_id)
    model, settings = load(
        args.model_id,
        args.original_model_id,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        device=state.device,
        attn_implementation=args.attn_implementation,
        position_ids=args.position_ids,
        max_pixels=args.max_pixels,
        special_tokens_in_text=args.special_tokens_in_text,
        exif_rotation=args.exif_rotation,
        padding_free=args.padding_free,
    )
    processor = Processor(
        settings.base_model if is_adapter(args.model_id) else args.model_id,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        special_tokens_in_text=settings.special_tokens_in_text,
        exif_rotation=settings.exif_rotation,
    ).for_evaluation(model.context_length)
    workers = default_workers() if args.num_workers is None else args.num_workers
    budget = args.max_tokens_per_batch or (32768 if on_cuda else 4096)
    return model, processor, settings, budget, workers
