"""What a checkpoint remembers about how its embeddings are made, so that evaluation cannot differ from training."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lamra.common.errors import UserError

FILE_NAME = "lamra.json"
RUN_FILE = "run.json"  # what a training writes before its first step

POSITION_IDS = ("sequential", "mrope")  # see backbone.Backbone


@dataclass(frozen=True)
class Settings:
    """Settings that training fixes and evaluation reads back.

    Attributes:
        base_model: folder of the base model under an adapter; for a merged model, the folder it was merged from.
        position_ids: "sequential" or "mrope", see backbone.Backbone; of a reranker those that it is asked with.
        min_pixels, max_pixels: a picture is resized to sides that are multiples of 28 with an area between these.
        text_max_tokens: in training instruction and text together were cut after so many tokens; evaluation does not
            cut.
        temperature: of the contrastive loss; scales scores and changes no ranking.
        role: "retriever" embeds (models.embedder), "reranker" answers (models.reranker).
        rank_style: a reranker's prompts, see collators.messages.RANK_STYLES; None for a retriever.
        train_position_ids: those that a reranker was trained with, where they are not those that it is asked with.
        base_sha256: digests.model_sha256 of `base_model`; None in checkpoints that were written before it was kept.
        quantized: the base model's linears were in 4 bits (NF4) while the adapter was trained.
    """

    base_model: str
    position_ids: str
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 300 * 28 * 28
    temperature: float = 0.05
    text_max_tokens: int | None = None
    role: str = "retriever"
    rank_style: str | None = None
    train_position_ids: str | None = None
    base_sha256: str | None = None
    quantized: bool = False

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
            return cls(**json.loads(path.read_text()))
        except (json.JSONDecodeError, TypeError) as error:
            raise UserError(
                f"{path} is not a checkpoint's settings ({error}); write it again with merge_lora.sh"
            ) from None

    def require_role(self, folder: str | Path, role: str) -> None:
        """Refuse a checkpoint of the other kind.

        Raises:
            UserError: it is one.
        """
        if self.role != role:
            way_out = {
                "retriever": "give a retriever here, and this folder to scripts/eval/rerank_mbeir.sh",
                "reranker": "train one with scripts/lamra_rank/train_rerank.sh, or give the base model",
            }
            raise UserError(f"{folder} is a {self.role}, and a {role} is needed: {way_out[role]}")

    def with_flags(self, folder: str | Path, **flags) -> Settings:
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
