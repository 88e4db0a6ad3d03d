"""From the flags to a model on its device, ready to embed or to answer."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from lamra.collators.processing import Processor
from lamra.collators.texts import ToldTexts
from lamra.common.errors import UserError
from lamra.common.processes import check_devices, default_workers, start_processes
from lamra.datasets.items import Indexed, Item, picture_or_video
from lamra.datasets.jsonl import read_item
from lamra.eval.cache.manifest import provenance_of
from lamra.eval.encode import encode
from lamra.eval.flags import GuestArguments, RetrieverArguments
from lamra.eval.search import Embeddings, top_k
from lamra.eval.stored import Stored
from lamra.models.embedder import Embedder
from lamra.models.folders import is_adapter
from lamra.models.inspect import inspect_folder
from lamra.models.loading import load_embedder
from lamra.models.settings import Settings

if TYPE_CHECKING:
    from lamra.eval.index.index import Index

Entry = str | Path | Image.Image | dict[str, Any] | Item  # see as_item

# One call at a time in a process: while pictures are decoded and products are exact, the warnings, Pillow's largest
# picture and TF32 of the whole process are others.
ONE_AT_A_TIME = threading.RLock()


@dataclass
class Retriever(ABC):
    """A model that embeds texts, pictures, and both together into one space, on as many processes as there are.

    Where torch.distributed has started, all processes must call a method with the same arguments: they share the work,
    and each receives all of the result. Threads of a process may call at the same time; one after the other is served.
    """

    max_tokens_per_batch: int
    num_workers: int
    exif_rotation: bool
    # The flags that chose it; load_retriever sets them.
    args: RetrieverArguments = field(kw_only=True, default=None)

    @abstractmethod
    def _encode(self, items: list[Item], **options: Any) -> Tensor:
        """(N, D) embeddings; options as encode_items takes them."""

    @abstractmethod
    def provenance(self, args: RetrieverArguments, protocol: str | None = None) -> dict[str, Any]:
        """What decides the embeddings; see manifest.provenance_of. All processes must call this."""

    @property
    def for_metrics(self) -> dict[str, str]:
        """What metrics.json says of a model that is not LamRA's."""
        return {}

    def encode(
        self,
        entries: Indexed[Entry],
        description: str | None = "encode",
        *,
        instruction: str | None = None,
        max_tokens_per_batch: int | None = None,
        texts: ToldTexts | None = None,
        truncate_dim: int | None = None,
        everywhere: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Embed texts (str), pictures (a Path or a PIL image), videos (a Path), and dicts and Items of several of them.

        Args:
            description: of the progress bar, which a few entries do not have; None shows none.
            instruction: what to retrieve, for entries that have none of their own: queries of an instruction-tuned
                model.
            max_tokens_per_batch: bound on the tokens of a forward; None takes the model's own.
            texts, everywhere, dtype: see eval.encode.
            truncate_dim: keep so many of the first dimensions, of unit norm again; None: all.

        Returns:
            (N, D) embeddings of unit norm on the CPU, in order: their products are cosines.

        Raises:
            UserError: a picture cannot be read, a dict has another key, there is nothing to embed, or there are fewer
                dimensions.
            TypeError: an entry is none of these, or alone instead of in a list.
        """
        items = as_items(entries, instruction)
        if not items:
            raise UserError("there is nothing to embed: give a text, a picture or an item")
        budget = self.max_tokens_per_batch if max_tokens_per_batch is None else max_tokens_per_batch
        with ONE_AT_A_TIME:
            found = self._encode(
                items,
                max_tokens_per_batch=budget,
                num_workers=self.num_workers,
                description=description,
                texts=texts,
                everywhere=everywhere,
                dtype=dtype,
            )
        return found if truncate_dim is None else Stored(found, truncate_dim)[:]

    def search(
        self,
        queries: Indexed[Entry],
        gallery: Sequence[Entry] | Embeddings,
        top: int = 10,
        *,
        instruction: str | None = None,
        truncate_dim: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The entries of a gallery that are nearest to each of Q queries, best first; ties go to the lower row.

        Args:
            gallery: entries, or what `encode` made of them: (N, D), in memory or a numpy.memmap.
            top: how many, at most N.
            instruction: of the queries, as in `encode`.
            truncate_dim: of queries and gallery, as in `encode`.

        Returns:
            (Q, top) float32 cosines and (Q, top) int64 rows of the gallery.

        Raises:
            UserError, TypeError: as `encode`.
            ValueError: the gallery's embeddings have another size.
        """
        found = self.encode(queries, "queries", instruction=instruction, truncate_dim=truncate_dim)  # (Q, D)
        with ONE_AT_A_TIME:
            embeddings = self.encode(gallery, "gallery") if isinstance(gallery, Sequence) else gallery
            return top_k(found, embeddings if truncate_dim is None else Stored(embeddings, truncate_dim), top)

    def index(self, source: str | Path, output_dir: str | Path | None = None, **options: Any) -> Index:
        """Make an index of a folder or a jsonl on disk, or bring an earlier one up to date, to search it.

        Args:
            output_dir: of the index; default: as scripts/index.sh.
            options: of eval.index.make.make_index.

        Raises:
            UserError: as make_index; or LanceDB, an optional extra, is not installed.
        """
        from lamra.eval.index.extra import default_folder
        from lamra.eval.index.make import make_index  # LanceDB

        folder = default_folder(self.args.model_id, source) if output_dir is None else output_dir
        return make_index(self, source, folder, **options)


@dataclass
class LamRA(Retriever):
    """An Embedder with its processor: an adapter, a merged model or a base model."""

    embedder: Embedder
    processor: Processor
    settings: Settings
    share_prefix: bool

    def _encode(self, items: list[Item], **options: Any) -> Tensor:
        return encode(self.embedder, self.processor, items, share_prefix=self.share_prefix, **options)

    def provenance(self, args: RetrieverArguments, protocol: str | None = None) -> dict[str, Any]:
        return provenance_of(args, self.settings, self.embedder, protocol)


def as_items(entries: Indexed[Entry], instruction: str | None = None) -> list[Item]:
    """Entries as items; those without an instruction of their own get this one."""
    if isinstance(entries, str | Path | Image.Image | dict | Item):
        raise TypeError(f"{type(entries).__name__}: give a list, also of a single text, picture or item")
    return [as_item(entries[row], str(row), instruction) for row in range(len(entries))]


def as_item(entry: Entry, identifier: str, instruction: str | None = None) -> Item:
    """A text, a picture, a video or an item as an item; a dict has the keys of a line of jsonl.

    A dict may hold a PIL image. Whether a Path leads to a picture or to a video is told by its suffix.

    Args:
        identifier: of an entry that has no id.
        instruction: of an entry that has none.

    Raises:
        UserError: a dict is not of that form; see datasets.jsonl.read_parts.
        TypeError: it is none of these.
    """
    match entry:
        case Item():
            item = entry
        case str():
            item = Item(identifier, entry)
        case Path():
            item = Item(identifier, parts=(picture_or_video(entry),))
        case Image.Image():
            item = Item(identifier, images=(entry,))
        case dict():
            item = read_item(entry, str(entry.get("id", identifier)), f"entry {identifier}")
        case _:
            raise TypeError(
                f"{type(entry).__name__}: a text is a str, a picture a Path or a PIL image, a video a Path, and "
                "several of them a dict or an Item"
            )
    return replace(item, instruction=instruction) if item.instruction is None and instruction is not None else item


def load_retriever(
    args: RetrieverArguments, device: torch.device | None = None, *, max_pixels: int | None = None
) -> Retriever:
    """The model that the flags choose, on a device.

    Args:
        device: None takes this process's own, and starts the process group if a launcher asked for it.
        max_pixels: of an evaluation that reads larger pictures than the checkpoint was trained with.
    """
    device = device or start(args).device
    if isinstance(args, GuestArguments) and args.library:
        from lamra.eval.guests import load_guest  # an optional extra

        return load_guest(args, device)
    embedder, processor, settings, budget, workers = load_with_processor(args, load_embedder, device, max_pixels)
    return LamRA(budget, workers, settings.exif_rotation, embedder, processor, settings, args.share_prefix, args=args)


def start(args: RetrieverArguments) -> PartialState:
    """This process among those that a launcher started, each on a device of its own.

    Raises:
        UserError: there are more processes than GPUs, or bf16 is asked of a GPU without it.
    """
    if torch.cuda.is_available():
        check_devices(bool(args.bf16))
    return start_processes()


def load_with_processor(
    args: RetrieverArguments, load: Callable, device: torch.device | None, max_pixels: int | None = None
) -> tuple[Any, Processor, Settings, int, int]:
    """What `load` (load_embedder or load_reranker) makes of the flags, its processor, settings, budget and workers."""
    device = device or start(args).device
    inspect_folder(Path(args.model_id), args.original_model_id)
    model, settings = load(
        args.model_id,
        args.original_model_id,
        dtype=dtype_of(args, device),
        device=device,
        attn_implementation=args.attn_implementation,
        position_ids=args.position_ids,
        max_pixels=None if max_pixels else args.max_pixels,
        special_tokens_in_text=args.special_tokens_in_text,
        exif_rotation=args.exif_rotation,
        prompt_style=args.prompt_style,
        padding_free=args.padding_free,
    )
    if max_pixels:
        settings = replace(settings, max_pixels=max_pixels)
    processor = Processor(
        settings.base_model if is_adapter(args.model_id) else args.model_id,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        special_tokens_in_text=settings.special_tokens_in_text,
        exif_rotation=settings.exif_rotation,
        prompt_style=settings.prompt_style,
    ).for_evaluation(model.context_length)
    return model, processor, settings, *budget_of(args, device)


def dtype_of(args: RetrieverArguments, device: torch.device) -> torch.dtype:
    """What --bf16 says, by default bfloat16 where the GPU has it."""
    in_hardware = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if (in_hardware if args.bf16 is None else args.bf16) else torch.float32


def budget_of(args: RetrieverArguments, device: torch.device) -> tuple[int, int]:
    """Tokens in a forward, and processes that prepare inputs."""
    workers = default_workers() if args.num_workers is None else args.num_workers
    return args.max_tokens_per_batch or (32768 if device.type == "cuda" else 4096), workers
