"""Guests: models of sentence-transformers in our evaluations, in our protocol. --library sentence-transformers.

CLIP and its like, models that chat (Qwen3-VL-Embedding), LamRA's own exports, anybody's fine-tune. They come with their
own length, pixels and chat template. Ours stay the items and instructions, the decoding of pictures, the dealing to
processes, and all that follows the embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lamra.collators.pictures import open_image
from lamra.collators.texts import TextNotes
from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.datasets.items import Item, Part, Picture, Text, Video
from lamra.eval.cache.manifest import VERSION
from lamra.eval.encode import encode_items
from lamra.eval.flags import GET_LIBRARY, LIBRARY, GuestArguments, RetrieverArguments
from lamra.eval.inference import Retriever, budget_of, dtype_of
from lamra.models.digests import model_sha256
from lamra.models.folders import is_adapter, read_object

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# What an item costs, near enough to form batches by; both of CLIP's and Qwen's order.
BYTES_A_TOKEN, PICTURE_TOKENS = 3, 300
WORDS = {"text": "a text", "image": "a picture"}  # what a guest may be given, by the library's names
OTHERS = r"MultiVector|Col(BERT|Pali|Qwen|Idefics|Smol|ModernVBert)|CrossEncoder|SparseEncoder"


@dataclass
class Guest(Retriever):
    """A SentenceTransformer, and the Encoder around it."""

    model: SentenceTransformer
    device: torch.device
    version: str
    padding_free: bool = False

    def __post_init__(self):
        self.takes_messages = self.model.supports("message")
        self.told = False

    @property
    def for_metrics(self) -> dict[str, str]:
        return {"library": self.version}

    def provenance(self, args: RetrieverArguments, protocol: str | None = None) -> dict[str, Any]:
        return {
            "version": VERSION,
            "library": self.version,
            "model": model_sha256(args.model_id, ["**/*"]),
            "protocol": protocol,
            "exif_rotation": self.exif_rotation,
            "dtype": str(self.model.dtype),
        }

    def _encode(self, items: list[Item], **options: Any) -> Tensor:
        for item in items:
            self._require_taken(item)
        if not self.takes_messages and not self.told and any(item.images and item.instruction for item in items):
            note("this guest does not see the instructions of pictures")
            self.told = True
        return encode_items(self, items, **options)

    def _require_taken(self, item: Item) -> None:
        """Refuse an item that the model cannot embed, before any is."""
        kinds = [_named(part)[0] for part in item.parts]
        different = tuple(sorted(set(kinds)))
        taken = WORDS.keys() >= set(kinds) and self.model.supports(different if len(different) > 1 else different[0])
        if not taken or (len(kinds) > len(different) and not self.takes_messages):
            what = " and ".join(WORDS.get(kind, f"a {kind}") for kind in kinds)
            takes = " or ".join(WORDS[kind] for kind in self.model.modalities if kind in WORDS)
            raise UserError(
                f"item {item.id} is {what}, and this model of {LIBRARY} takes {takes}"
                f"{'' if self.takes_messages else ' alone'}: leave this task out, or give another model"
            )

    def length(self, item: Item) -> int:
        texts = (item.instruction or "", *item.texts)
        size = sum(len(text.encode(errors="replace")) for text in texts)
        return 1 + size // BYTES_A_TOKEN + PICTURE_TOKENS * len(item.images)

    def prepare(self, items: Sequence[Item]) -> tuple[list[Item], list[tuple[str, TextNotes]]]:
        """The same items with open pictures."""
        return [self._opened(item) for item in items], []

    def _opened(self, item: Item) -> Item:
        def opened(part: Part) -> Part:
            if not isinstance(part, Picture):
                return part
            return Picture(open_image(part.image, f"picture of item {item.id!r}", exif_rotation=self.exif_rotation))

        return replace(item, parts=tuple(map(opened, item.parts)))

    def embed(self, inputs: list[Item]) -> Tensor:
        """The library takes items of one kind, with one instruction, at a time."""
        rows_of: dict[tuple, list[int]] = {}
        for row, item in enumerate(inputs):
            rows_of.setdefault((item.instruction, *map(type, item.parts)), []).append(row)
        found = [self._embedded([inputs[row] for row in rows]) for rows in rows_of.values()]
        order = torch.tensor([row for rows in rows_of.values() for row in rows], device=self.device)
        return torch.cat(found)[order.argsort()]  # (b, D)

    def _embedded(self, items: Sequence[Item]) -> Tensor:
        prompt = items[0].instruction
        if prompt and not self.takes_messages:  # else it is a message of its own, and the chat template joins them
            prompt += " "
        vectors = self.model.encode(
            [self._input(item) for item in items],
            prompt=prompt,
            batch_size=len(items),
            convert_to_tensor=True,
            show_progress_bar=False,
            device=str(self.device),
        )  # (n, D), in the library's inference mode
        return F.normalize(vectors.clone().float(), dim=-1)

    def _input(self, item: Item) -> Any:
        """An item as the library takes it; in a dict a text that is a path or an address stays a text."""
        if not self.model.supports("image"):
            return item.text
        parts = [_named(part) for part in item.parts]
        if len(dict(parts)) == len(parts):
            return dict(parts)
        return [{"role": "user", "content": [{"type": kind, kind: value} for kind, value in parts]}]


def _named(part: Part) -> tuple[str, Any]:
    """The library's name of a part's kind, and the part."""
    match part:
        case Text():
            return "text", part.text
        case Picture():
            return "image", part.image
        case Video():
            return "video", part.path


def load_guest(args: GuestArguments, device: torch.device) -> Guest:
    """The guest that the flags choose; raises as load_library_model."""
    model = load_library_model(args.model_id, device, dtype_of(args, device), args.trust_remote_code)
    budget, workers = budget_of(args, device)
    return Guest(budget, workers, bool(args.exif_rotation), model, device, library_version(), args=args)


def library_version() -> str:
    import sentence_transformers

    return f"{LIBRARY} {sentence_transformers.__version__}"


def load_library_model(
    model_id: str, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> SentenceTransformer:
    """A folder as a model of the library, ready to embed.

    Raises:
        UserError: it is no model of this library, has a vector for each token, or needs its own code, and
            `trust_remote_code` does not allow that; or the library is too old, or lacks what it needs for pictures.
    """
    folder = Path(model_id)
    _inspect(folder)
    import sentence_transformers

    version = library_version()
    if not hasattr(sentence_transformers.SentenceTransformer, "supports"):
        raise UserError(f"{version} is too old, it does not say what a model takes: --library needs {GET_LIBRARY}")
    try:
        model = sentence_transformers.SentenceTransformer(
            str(folder),
            device=str(device),
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            model_kwargs={"dtype": dtype},
        )
    except ImportError as error:  # torchvision
        raise UserError(f"{folder}: {_words(error)}: --library needs {GET_LIBRARY}") from None
    except OSError as error:  # a file that is not there
        raise UserError(f"{folder} cannot be loaded by {version}: {_words(error)}") from None
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(f"{folder} runs its own code: read it, and give --trust_remote_code True") from None
    model.eval().requires_grad_(False)
    pooling = "" if (folder / "modules.json").is_file() else "; it has no modules.json, the library chooses its pooling"
    note(f"{folder}: a guest of {version}, takes {', '.join(map(str, model.modalities))}{pooling}")
    return model


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def _inspect(folder: Path) -> None:
    """Refuse a folder of which this library would make something else than an embedding an item."""
    if is_adapter(folder) or not any((folder / name).is_file() for name in ("modules.json", "config.json")):
        raise UserError(
            f"--model_id {folder} is no whole model of {LIBRARY}, which has a modules.json or a config.json: download "
            "or merge it first, nothing is fetched from a hub here"
        )
    for name in ("config_sentence_transformers.json", "config.json"):
        described = read_object(folder / name) if (folder / name).is_file() else {}
        for kind in (described.get("model_type"), *(described.get("architectures") or ())):
            if re.search(OTHERS, str(kind), re.IGNORECASE):
                raise UserError(f"{folder} is a {kind}: it does not have one dense vector for an item, which is needed")
