"""What every evaluation entrypoint needs first: the flags that choose a model, and the model on its device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lamra.collators.processing import Processor
from lamra.common.cli import note, require
from lamra.common.processes import check_devices, default_workers, start_processes
from lamra.eval.encode import encode
from lamra.models.base_model import base_under
from lamra.models.embedder import Embedder
from lamra.models.folders import is_adapter, local_folder
from lamra.models.loading import load_embedder
from lamra.models.settings import POSITION_IDS, Settings


@dataclass
class RetrieverArguments:
    model_id: str = field(metadata={"help": "folder, or published name, of an adapter or a whole model"})
    original_model_id: str | None = field(
        default=None, metadata={"help": "base model under an adapter, where the one it was trained on is gone"}
    )
    max_tokens_per_batch: int | None = field(
        default=None, metadata={"help": "tokens in a forward; default: 32768 on CUDA, 4096 elsewhere"}
    )
    padding_free: bool = field(default=True, metadata={"help": "one row of tokens instead of a padded rectangle"})
    share_prefix: bool = field(default=True, metadata={"help": "compute the prompts' constant beginning once"})
    bf16: bool | None = field(default=None, metadata={"help": "default: True where the GPU has it, else float32"})
    model_max_length: int | None = field(default=None, metadata={"help": "ignored with a note: nothing is cut"})
    position_ids: str | None = field(default=None, metadata={"help": "default: what the checkpoint was trained with"})
    max_pixels: int | None = field(default=None, metadata={"help": "default: what the checkpoint was trained with"})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "flash_attention_2, sdpa, eager; of packed text: chosen by models/packing.py"}
    )
    num_workers: int | None = field(default=None, metadata={"help": "processes that prepare inputs"})

    def __post_init__(self):
        self.model_id = local_folder(self.model_id, "model_id")
        if self.original_model_id and is_adapter(self.model_id):
            self.original_model_id = base_under(self.model_id, self.original_model_id)
        elif self.original_model_id:  # upstream's commands name it for every model
            note(f"--original_model_id {self.original_model_id} is ignored: {self.model_id} is a whole model")
            self.original_model_id = None
        budget = self.max_tokens_per_batch
        require(budget is None or budget > 0, "max_tokens_per_batch", budget, "1 or more")
        require(self.position_ids in (None, *POSITION_IDS), "position_ids", self.position_ids, "sequential or mrope")
        if self.model_max_length is not None:
            note(f"--model_max_length {self.model_max_length} is ignored: evaluation cuts nothing, as LamRA's does not")
        if torch.cuda.is_available():
            check_devices(bool(self.bf16))


@dataclass
class Retriever:
    """A model that embeds items, on as many processes as the launcher started."""

    embedder: Embedder
    processor: Processor
    settings: Settings
    max_tokens_per_batch: int
    num_workers: int
    share_prefix: bool

    def encode(self, items, description: str) -> torch.Tensor:
        """(N, D) float32 unit embeddings on the CPU; see eval.encode."""
        return encode(
            self.embedder,
            self.processor,
            items,
            max_tokens_per_batch=self.max_tokens_per_batch,
            num_workers=self.num_workers,
            share_prefix=self.share_prefix,
            description=description,
        )


def load_retriever(args: RetrieverArguments) -> Retriever:
    """The model that the flags choose; starts the process group if a launcher asked for one."""
    return Retriever(*load_with_processor(args, load_embedder), args.share_prefix)


def load_with_processor(args: RetrieverArguments, load: Callable) -> tuple:
    """What `load` (load_embedder or load_reranker) makes of the flags, its processor, settings, budget and workers."""
    state = start_processes()
    on_cuda = state.device.type == "cuda"
    in_hardware = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = in_hardware if args.bf16 is None else args.bf16
    model, settings = load(
        args.model_id,
        args.original_model_id,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        device=state.device,
        attn_implementation=args.attn_implementation,
        position_ids=args.position_ids,
        max_pixels=args.max_pixels,
        padding_free=args.padding_free,
    )
    processor = Processor(
        settings.base_model if is_adapter(args.model_id) else args.model_id,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
    ).for_evaluation(model.context_length)
    workers = default_workers() if args.num_workers is None else args.num_workers
    budget = args.max_tokens_per_batch or (32768 if on_cuda else 4096)
    return model, processor, settings, budget, workers
