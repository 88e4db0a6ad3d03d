"""What a checkpoint remembers of its training, so that evaluation cannot differ from it, and what a new training takes.

Imports nothing slow: flags are checked before a model is.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lamra.common.errors import UserError
from lamra.common.flags import check_values, limited
from lamra.models.digests import model_sha256
from lamra.models.families import family_of
from lamra.models.published import is_published_embedder, is_published_reranker

FILE_NAME = "lamra.json"
RUN_FILE = "run.json"  # what a training writes before its first step

POSITION_IDS = ("sequential", "mrope")  # see backbone.Backbone
# LamRA's rerankers were trained with the positions of their family, but all of them answer with M-RoPE: upstream calls
# generate(), which computes it.
RERANKER_POSITION_IDS = "mrope"
ATTENTION = ("causal", "bidirectional")  # see embedder.Embedder
POOLING = ("last_token", "mean")
SPECIAL_TOKENS_IN_TEXT = ("plain", "special")
PROMPT_STYLES = ("lamra", "qwen3_embedding")  # see collators.messages
ATTENTION_IMPLEMENTATIONS = ("flash_attention_2", "sdpa", "eager")  # transformers can also fetch others from a hub
RERANKER_TEXT_MAX_TOKENS = 256  # of each query and each candidate, in training


@dataclass(frozen=True)
class Settings:
    """Settings that training fixes and evaluation reads back.

    Raises:
        UserError: a value is of another type or outside of its limits, min_pixels exceeds max_pixels, or a reranker has
            an embedder's prompts.

    Attributes:
        base_model: folder of the base model under an adapter; for a merged model, the folder it was merged from.
        position_ids: one of POSITION_IDS; a reranker answers with them.
        min_pixels, max_pixels: a picture is resized to sides that are multiples of 28 (Qwen3-VL: 32) with an area
            between these.
        text_max_tokens: in training instruction and text together were cut after so many tokens; evaluation does not
            cut.
        temperature: of the contrastive loss, if it was trained the learnt one; scales scores and changes no ranking.
        role: "retriever" embeds (models.embedder), "reranker" answers (models.reranker).
        rank_style: a reranker's prompts, see collators.messages.RANK_STYLES; None for a retriever.
        train_position_ids: a reranker was trained with these where they differ from position_ids; else None.
        base_sha256: digests.model_sha256 of `base_model`; None in checkpoints that were written before it was kept.
        quantized: the base model's linears were in 4 bits (NF4) while the adapter was trained.
        special_tokens_in_text: a text that spells a special token is read as its letters ("plain"), or as that token
            ("special"): so LamRA's released checkpoints were trained, and those that do not say it.
        attention, pooling: one of ATTENTION and of POOLING; a reranker is causal and pools nothing.
        exif_rotation: pictures are turned as their EXIF says; upstream shows them as they are stored.
        prompt_style: a retriever's prompts, one of PROMPT_STYLES.
        matryoshka_dims: so many of an embedding's first dimensions were trained to be an embedding themselves, see
            losses.matryoshka; None: none were.
    """

    base_model: str
    position_ids: str = limited(MISSING, one_of=POSITION_IDS)
    min_pixels: int = limited(4 * 28 * 28, low=1)
    max_pixels: int = limited(300 * 28 * 28, low=1)
    temperature: float = limited(0.05, above=0)
    text_max_tokens: int | None = limited(None, low=1)
    role: str = limited("retriever", one_of=("retriever", "reranker"))
    rank_style: str | None = None
    train_position_ids: str | None = limited(None, one_of=POSITION_IDS)
    base_sha256: str | None = None
    quantized: bool = False
    special_tokens_in_text: str = limited("special", one_of=SPECIAL_TOKENS_IN_TEXT)
    exif_rotation: bool = False
    attention: str = limited("causal", one_of=ATTENTION)
    pooling: str = limited("last_token", one_of=POOLING)
    prompt_style: str = limited("lamra", one_of=PROMPT_STYLES)
    matryoshka_dims: list[int] | None = None

    def __post_init__(self) -> None:
        check_values(self, "--")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise UserError(f"--min_pixels {self.min_pixels}: expected 1 to --max_pixels ({self.max_pixels})")
        if self.role == "reranker" and self.prompt_style != "lamra":
            raise UserError(
                f"--prompt_style {self.prompt_style}: {self.base_model} is an embedder, which answers nothing; start a "
                "reranker from its base model"
            )

    def write(self, folder: str | Path) -> None:
        (Path(folder) / FILE_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> Settings | None:
        """The settings in `folder`, or None for a folder that LamRA did not write (a published base model).

        Raises:
            UserError: the file is not what `write` writes, or is not there in the folder of a training.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            if (Path(folder) / RUN_FILE).is_file():
                raise UserError(
                    f"{folder} is half-written: its {RUN_FILE} says that a training began, and its {FILE_NAME} is not "
                    "there: take one of its checkpoint-N, or train again with --force True"
                )
            return None
        try:
            return cls(**json.loads(path.read_bytes()))
        except (ValueError, TypeError, RecursionError) as error:  # a UserError is a ValueError
            raise UserError(
                f"{path} is not a checkpoint's settings ({error}); write it again with merge_lora.sh"
            ) from None

    def require_role(self, folder: str | Path, role: str) -> None:
        """Refuse a checkpoint of the other role.

        Raises:
            UserError: it has that role; says what takes it.
        """
        if self.role != role:
            way_out = {
                "retriever": "give a retriever here, and this folder to scripts/eval/rerank_mbeir.sh",
                "reranker": "train one with scripts/lamra_rank/train_rerank.sh, or give the base model",
            }
            raise UserError(f"{folder} is a {self.role}, and a {role} is needed: {way_out[role]}")

    def with_flags(self, folder: str | Path, **flags: Any) -> Settings:
        """Check flags of the command line against this checkpoint's settings; None means "as the checkpoint says".

        Raises:
            UserError: a flag contradicts the checkpoint; names both values.
        """
        for name in (field.name for field in fields(self) if field.name in flags):
            flag, remembered = flags[name], getattr(self, name)
            if flag is not None and flag != remembered:
                raise UserError(
                    f"--{name} {flag} contradicts the checkpoint {folder}, which was trained with {remembered}: "
                    f"leave the flag out to use {remembered}"
                )
        return self


def default_settings(folder: str | Path, role: str | None = None, **flags: Any) -> Settings:
    """Of a published model, which remembers none: what LamRA's published checkpoints were trained with.

    Args:
        role: "reranker"; anything else is a retriever.
        flags: values of the command line; None takes the default.

    Raises:
        UserError: it is an embedder, and no flag says with which prompts.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if role == "reranker":
        given = {"position_ids": RERANKER_POSITION_IDS, "role": role, "rank_style": own_rank_style(folder)} | given
    family = family_of(folder)
    if "prompt_style" not in given and is_published_embedder(folder):
        raise UserError(
            f"{folder} is a published embedder, which has prompts of its own: --prompt_style qwen3_embedding keeps "
            "those of Qwen3-VL-Embedding, lamra begins with LamRA's"
        )
    defaults = {name: getattr(family, name) for name in ("position_ids", "min_pixels", "max_pixels")}
    return Settings(str(folder), **defaults | given)


def own_rank_style(folder: str | Path) -> str:
    """The prompts of a published model that answers: its maker's of a reranker, else those of LamRA-Rank's weights."""
    return "qwen3_reranker" if is_published_reranker(folder) else "released"


def settings_to_train(
    folder: str | Path,
    *,
    text_max_tokens: int | None,
    temperature: float,
    special_tokens_in_text: str | None = None,
    matryoshka_dims: list[int] | None = None,
    **flags: Any,
) -> Settings:
    """Settings for training on top of the model in `folder`: a merged LamRA model goes on with what it remembers.

    Args:
        special_tokens_in_text: None takes the model's, or for a bare base model "plain".
        flags: position_ids, min_pixels, max_pixels, exif_rotation, attention, pooling, prompt_style; None takes the
            model's, or for a bare base model the default.
        text_max_tokens, temperature, matryoshka_dims: of this training, whatever the model's were.

    Raises:
        UserError: a flag contradicts the model, min_pixels exceeds max_pixels, or the model is a reranker.
    """
    settings = Settings.read(folder)
    if settings:
        settings.require_role(folder, "retriever")
        settings.with_flags(folder, special_tokens_in_text=special_tokens_in_text, **flags)
    else:
        settings = default_settings(folder, **flags | {"special_tokens_in_text": special_tokens_in_text or "plain"})
    return replace(
        settings,
        base_model=str(folder),
        base_sha256=model_sha256(folder),
        text_max_tokens=text_max_tokens,
        temperature=temperature,
        matryoshka_dims=matryoshka_dims,
    )


def settings_to_rerank(
    folder: str | Path,
    *,
    rank_style: str | None,
    position_ids: str | None,
    train_position_ids: str | None,
    text_max_tokens: int | None,
    **shown: Any,
) -> Settings:
    """Settings for training a reranker on top of the model in `folder`: a LamRA model's pictures keep their sizes.

    Positions do not follow a retriever: upstream trains LamRA-Rank with the positions of its family (sequential for
    Qwen2-VL), and LamRA-Rank answers with M-RoPE.

    Args:
        rank_style: of the prompts; None takes the model's own.
        position_ids, train_position_ids: to answer and to train with; None takes upstream's.
        shown: min_pixels, max_pixels, exif_rotation, special_tokens_in_text and prompt_style, as for settings_to_train.

    Raises:
        UserError: a flag contradicts the model, or min_pixels exceeds max_pixels.
    """
    position_ids = position_ids or RERANKER_POSITION_IDS
    trained = train_position_ids or family_of(folder).position_ids
    temperature = Settings.temperature  # no flag: a reranker has no contrastive loss
    settings = settings_to_train(folder, text_max_tokens=text_max_tokens, temperature=temperature, **shown)
    return replace(
        settings,
        attention=Settings.attention,
        pooling=Settings.pooling,
        position_ids=position_ids,
        train_position_ids=None if trained == position_ids else trained,
        role="reranker",
        rank_style=rank_style or own_rank_style(folder),
    )
