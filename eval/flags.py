"""The flags that choose a model, which every evaluation entrypoint has. Imports nothing slow: --help needs no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.flags import FOLDER, MOST_WORKERS, OUT_FOLDER, Flags, flag, require, require_path
from lamra.models.base_model import base_under
from lamra.models.folders import is_adapter, local_folder
from lamra.models.settings import (
    ATTENTION_IMPLEMENTATIONS,
    POSITION_IDS,
    PROMPT_STYLES,
    SPECIAL_TOKENS_IN_TEXT,
    Settings,
)
from lamra.models.shapes import vector_size

DEPTH = 50  # candidates of each query in the rankings, where no flag says more
VECTORS = ("float32", "int8", "binary")  # see models/vectors.py
LIBRARY = "sentence-transformers"
GET_LIBRARY = 'it installed: pip install "sentence-transformers[image]"'
# Flags that decide what a model of LamRA's computes, and nothing of another library's.
OURS_ALONE = ["original_model_id", "padding_free", "share_prefix", "position_ids", "max_pixels"]
OURS_ALONE += ["special_tokens_in_text", "attn_implementation", "prompt_style"]


@dataclass
class RetrieverArguments(Flags):
    model_id: str = flag(MISSING, "folder, or published name, of an adapter or a whole model", path=FOLDER)
    original_model_id: str | None = flag(
        None, "base model under an adapter, where the one it was trained on is gone", path=FOLDER
    )
    max_tokens_per_batch: int | None = flag(None, "tokens in a forward; default: 32768 on CUDA, 4096 elsewhere", low=1)
    padding_free: bool = flag(True, "one row of tokens instead of a padded rectangle")
    share_prefix: bool = flag(True, "compute the prompts' constant beginning once")
    bf16: bool | None = flag(None, "default: True where the GPU has it, else float32")
    model_max_length: int | None = flag(None, "ignored with a note: nothing is cut", low=1)
    position_ids: str | None = flag(None, "default: what the checkpoint was trained with", one_of=POSITION_IDS)
    max_pixels: int | None = flag(None, "default: what the checkpoint was trained with", low=1)
    special_tokens_in_text: str | None = flag(
        None,
        "read them as plain letters, or as special; default: what the checkpoint was trained with",
        one_of=SPECIAL_TOKENS_IN_TEXT,
    )
    exif_rotation: bool | None = flag(
        None, "turn pictures as EXIF says; default: as the checkpoint was trained, else False"
    )
    prompt_style: str | None = flag(None, "of a published embedder; a checkpoint remembers it", one_of=PROMPT_STYLES)
    attn_implementation: str | None = flag(
        None, "of packed text: chosen by models/packing.py", one_of=ATTENTION_IMPLEMENTATIONS
    )
    num_workers: int | None = flag(None, "processes that prepare inputs", low=0, high=MOST_WORKERS)

    def __post_init__(self):
        super().__post_init__()
        self.model_id = local_folder(self.model_id, "model_id")
        if self.original_model_id and is_adapter(self.model_id):
            self.original_model_id = base_under(self.model_id, self.original_model_id)
        elif self.original_model_id:  # upstream's commands name it for every model
            note(f"--original_model_id {self.original_model_id} is ignored: {self.model_id} is a whole model")
            self.original_model_id = None
        pixels, least = self.max_pixels, (Settings.read(self.model_id) or Settings).min_pixels
        require(pixels is None or pixels >= least, "max_pixels", pixels, f"{least} (--min_pixels) or more")
        if self.model_max_length is not None:
            note(f"--model_max_length {self.model_max_length} is ignored: evaluation cuts nothing, as LamRA's does not")


@dataclass
class GuestArguments(RetrieverArguments):
    """Flags of what takes models of another library, too: its guests (eval/guests.py)."""

    library: str | None = flag(None, f"whose model it is: {LIBRARY}; default: LamRA's own kind")
    trust_remote_code: bool = flag(False, "run the Python files of a guest's folder: read them first")

    def __post_init__(self):
        super().__post_init__()
        if self.library is None:
            require(not self.trust_remote_code, "trust_remote_code", True, "--library beside it")
            return
        if re.match("col|pylate", self.library, re.IGNORECASE):
            raise UserError(
                f"--library {self.library}: its models have a vector for each token, and here an item has one vector: "
                f"give a model that embeds so, with --library {LIBRARY}"
            )
        require(self.library == LIBRARY, "library", self.library, LIBRARY)
        if importlib.util.find_spec("sentence_transformers") is None:
            raise UserError(f"--library {LIBRARY} needs {GET_LIBRARY}")
        for name in OURS_ALONE:
            if getattr(self, name) != getattr(RetrieverArguments, name):
                raise UserError(
                    f"--{name} {getattr(self, name)} is a setting of LamRA's models, and a guest of --library "
                    f"{LIBRARY} has its own: leave it out"
                )

    @property
    def dimensions(self) -> int | None:
        """Of the model's vectors; None for a guest, and where the folder does not say it: whoever loads it tells."""
        base = Path(base_under(self.model_id, self.original_model_id) if is_adapter(self.model_id) else self.model_id)
        return None if self.library or not (base / "config.json").is_file() else vector_size(base)

    @property
    def matryoshka_dims(self) -> list[int]:
        """The sizes that the model was trained for beside the whole; none where nothing is known of it."""
        settings = None if self.library else Settings.read(self.model_id)
        return (settings and settings.matryoshka_dims) or []


@dataclass
class SkippingArguments(GuestArguments):
    skip_unreadable: int = flag(
        0,
        "go on without so many items whose pictures cannot be read, each listed; default: 0, the first one stops",
        low=0,
    )
    truncate_dim: int | None = flag(
        None, "keep so many of the vectors' first dimensions, see --matryoshka_dims; default: all", low=1
    )

    def __post_init__(self):
        super().__post_init__()
        size = self.truncate_dim
        if size is None or (dimensions := self.dimensions) is None:
            return
        require(size <= dimensions, "truncate_dim", size, f"at most {dimensions}, the size of this model's vectors")
        if size not in (dimensions, *self.matryoshka_dims):
            trained = ",".join(map(str, self.matryoshka_dims))
            how = f"with --matryoshka_dims {trained}" if trained else "without --matryoshka_dims"
            note(f"--truncate_dim {size}: {self.model_id} was trained {how}, not for vectors of this size")


@dataclass
class SearchArguments(SkippingArguments):
    """Flags of what measures how well a gallery is searched."""

    vectors: str = flag("float32", "what the gallery is searched in; the query stays float32", one_of=VECTORS)
    rescore: int = flag(
        0,
        "with --vectors or --truncate_dim: score so many of each query's best once more with the whole float32 vectors",
        low=DEPTH,
        also=(0,),
    )

    def __post_init__(self):
        super().__post_init__()
        smaller = self.vectors != "float32" or self.truncate_dim is not None
        require(smaller or not self.rescore, "rescore", self.rescore, "--vectors int8, binary, or --truncate_dim too")

    @property
    def stored_as(self) -> dict[str, Any]:
        """What of the gallery's vectors is not as usual, for evaluate() and for the files of a result."""
        names = ("truncate_dim", "vectors", "rescore")
        return {name: value for name in names if (value := getattr(self, name)) != getattr(SearchArguments, name)}


@dataclass
class ShardFlags:
    """Of what keeps embeddings in files, see eval/cache/embeddings.py."""

    shard_size: int = flag(100_000, "items encoded between two writes", low=1)
    store: str = flag("float32", "of embeddings in files; float16 takes half the space", one_of=("float32", "float16"))

    @property
    def kept_as(self) -> dict[str, str]:
        """What of the files is not as usual; files of before there was a choice are still good."""
        return {} if self.store == "float32" else {"store": self.store}


def output_folder(args, *default: str | Path) -> Path:
    """--output_dir, or its default: results/<model>/...

    Raises:
        UserError: it cannot be written.
    """
    folder = Path(args.output_dir or Path("results", run_name(args.model_id), *default))
    require_path("output_dir", folder, OUT_FOLDER)
    return folder


def run_name(model_id: str) -> Path:
    """The model's folder below checkpoints/ (run, run/checkpoint-478); of another path the last part and a digest.

    The digest, of the path, keeps apart the results of two models whose folders have one name.
    """
    path, ours = Path(model_id).resolve(), Path("checkpoints").resolve()
    if path.is_relative_to(ours):
        return path.relative_to(ours)
    return Path(f"{path.name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:6]}")
