"""A reranker's answers about one query and its candidates, from the logits of one token: nothing is generated.

A query's answer comes from forwards that hold no other query, so that it is the same on any number of processes and
after a restart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lamra.collators.messages import MOST_CANDIDATES, YES_NO, listwise_answer
from lamra.collators.processing import Processor
from lamra.collators.rerank import PreparedItem, RankPrompts
from lamra.collators.texts import ToldTexts
from lamra.common.errors import UserError
from lamra.datasets.items import Indexed
from lamra.eval.encode import named, token_batches
from lamra.eval.flags import RetrieverArguments
from lamra.eval.inference import ONE_AT_A_TIME, Entry, as_item, as_items, load_with_processor
from lamra.eval.rerank.pictures import DecodedPictures, PictureFeatures
from lamra.models.loading import load_reranker
from lamra.models.reranker import Reranker
from lamra.models.settings import Settings


@dataclass
class Judge:
    """A reranker that answers about one query at a time."""

    model: Reranker
    processor: Processor
    settings: Settings
    max_tokens_per_batch: int
    num_workers: int
    share_prefix: bool
    picture_memory: float = 4.0  # GiB

    def __post_init__(self):
        self.model.pixels_from_bytes = self.processor.visuals.floats
        self.features = PictureFeatures(self.model, self.picture_memory * 2**30)
        self.prompts = RankPrompts(self.processor, self.settings.rank_style)
        self.yes_no = self.prompts.choices(YES_NO[self.settings.rank_style])
        self.numbers = self.prompts.choices([listwise_answer(n + 1) for n in range(MOST_CANDIDATES)])
        self.texts = ToldTexts()
        self.tokens = self.queries = 0  # computed and answered so far
        self.seconds = 0.0

    @property
    def exif_rotation(self) -> bool:
        return self.settings.exif_rotation

    def answer(self, style: str, query: PreparedItem, candidates: Sequence[PreparedItem]) -> list:
        """What the method of that name answers: "pointwise", "log_odds" or "listwise"."""
        return getattr(self, style)(query, candidates)

    def rerank(self, query: Entry, candidates: Indexed[Entry], *, instruction: str | None = None) -> torch.Tensor:
        """How surely each of N candidates is what the query looks for. Threads may call at the same time.

        Args:
            query, candidates: as Retriever.encode takes them.
            instruction: of the query, unless it has one.

        Returns:
            (N,) float32 P(Yes), in order.

        Raises:
            UserError, TypeError: as Retriever.encode; or an answer is not finite.
        """
        items = as_items(candidates)
        if not items:
            raise UserError("there is nothing to rerank: give a candidate")
        # Features are kept by path, and a file may be another one at the next call: pixels have no path.
        pictures = DecodedPictures(0, self.settings.exif_rotation)
        with ONE_AT_A_TIME:
            asked, *shown = (
                self.prompts.prepare(pictures.decoded(item)) for item in (as_item(query, "query", instruction), *items)
            )
            return torch.tensor(self.pointwise(asked, shown))

    def pointwise(self, query: PreparedItem, candidates: Sequence[PreparedItem]) -> list[float]:
        """P(Yes) of each candidate, over the two answers; raises as `log_odds`."""
        return self._yes_or_no(query, candidates, lambda logits: logits.softmax(dim=1)[:, 0])

    def log_odds(self, query: PreparedItem, candidates: Sequence[PreparedItem]) -> list[float]:
        """log P(Yes) - log P(No) of each candidate, which tells apart what P(Yes) rounds to 1.

        Raises:
            UserError: an answer is not finite; names query and candidates.
        """
        return self._yes_or_no(query, candidates, lambda logits: logits[:, 0] - logits[:, 1])

    @torch.no_grad()
    def _yes_or_no(
        self,
        query: PreparedItem,
        candidates: Sequence[PreparedItem],
        answer_of: Callable[[torch.Tensor], torch.Tensor],
    ) -> list[float]:
        """What answer_of makes of the logits (b, 2) of Yes and No. The query's part of the prompts is computed once.

        That is exact, pictures and all: causal attention never looks ahead, so the tokens that all prompts begin with
        have the same keys and values in each.
        """
        common, deciding = self.yes_no
        prompts = [self.prompts.pointwise(query, candidate) for candidate in candidates]
        self.texts.add((prompt["name"], prompt["notes"]) for prompt in prompts)
        ids = [prompt["input_ids"] + common for prompt in prompts]
        share = self.share_prefix and self.model.padding_free and len(ids) > 1
        known = self._shared_tokens(ids, query) if share else 0
        prefix = None
        if known:
            begin, grids = self._on_device(torch.tensor(ids[0][:known]), query.image_grid_thw)
            prefix = self.model.prefix_of(begin, None, grids, self.features.of([query]))
            self.tokens += known
        scores = torch.empty(len(ids))
        for batch in token_batches([len(prompt) - known for prompt in ids], self.max_tokens_per_batch, True):
            rows = [{**prompts[i], "input_ids": ids[i]} for i in batch]
            shown = [item for i in batch for item in (() if known else (query,)) + (candidates[i],)]
            logits = self._last_logits(rows, shown, deciding, prefix)  # (b, 2)
            scores[batch] = answer_of(logits).cpu()
            self._require_finite(scores[batch], query, [candidates[i] for i in batch])
            self.tokens += sum(len(ids[i]) - known for i in batch)
        return scores.tolist()

    @torch.no_grad()
    def listwise(self, query: PreparedItem, candidates: Sequence[PreparedItem]) -> list[int]:
        """Positions of the candidates, best first, by the logits of their numbers in the answer.

        A list holds MOST_CANDIDATES. Deeper, a window slides from the last candidates to the first, and the best of
        each joins the next: the first is then the winner of all, the others are sorted within their window.

        Raises:
            UserError: an answer is not finite; names query and candidates.
        """
        common, deciding = self.numbers
        order = list(range(len(candidates)))
        start = max(0, len(order) - MOST_CANDIDATES)
        while True:
            window = order[start : start + MOST_CANDIDATES]
            prompt = self.prompts.listwise(query, [candidates[i] for i in window])
            self.texts.add([(prompt["name"], prompt["notes"])])
            prompt["input_ids"] = prompt["input_ids"] + common
            shown = [query, *(candidates[i] for i in window)]
            logits = self._last_logits([prompt], shown, deciding[: len(window)])[0]  # (window,)
            self._require_finite(logits, query, [candidates[i] for i in window])
            self.tokens += len(prompt["input_ids"])
            best_first = logits.argsort(descending=True, stable=True).tolist()
            order[start : start + MOST_CANDIDATES] = [window[i] for i in best_first]
            if start == 0:
                return order
            start = max(0, start - MOST_CANDIDATES + 1)

    @staticmethod
    def _require_finite(answers: torch.Tensor, query: PreparedItem, candidates: Sequence[PreparedItem]) -> None:
        wrong = [shown.item.id for shown, fine in zip(candidates, answers.isfinite().tolist()) if not fine]
        if wrong:
            raise UserError(
                f"the reranker's answers to the query {query.item.id} about {named(wrong)} are not finite: its "
                "weights, its config.json or its preprocessor_config.json are damaged"
            )

    def _shared_tokens(self, ids: list[list[int]], query: PreparedItem) -> int:
        """How many tokens all prompts begin with: those of the query, no picture of a candidate, no prompt's last."""
        known = min(len(os.path.commonprefix(ids)), min(map(len, ids)) - 1)
        config = self.model.config
        begin = [config.vision_start_token_id, config.image_token_id]  # a text may spell the first alone
        pictures = [position for position in range(known) if ids[0][position : position + 2] == begin]
        of_query = 0 if query.image_grid_thw is None else len(query.image_grid_thw)
        if len(pictures) < of_query:  # never with LamRA's prompts: the query comes first
            return 0
        return pictures[of_query] if len(pictures) > of_query else known

    def _last_logits(
        self, prompts: list[dict], shown: Sequence[PreparedItem], answers: list[int], prefix=None
    ) -> torch.Tensor:
        """(b, n) logits of n tokens that may follow each prompt.

        Args:
            shown: the items of all prompts, without those in the prefix.
        """
        inputs = self.processor.pad([{**prompt, "pixel_values": None} for prompt in prompts])
        last = inputs["attention_mask"].sum(dim=1, keepdim=True) - 1
        inputs["answer_mask"] = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool).scatter(1, last, True)
        inputs["answers"] = torch.tensor(answers)
        inputs = dict(zip(inputs, self._on_device(*inputs.values())))
        return self.model(**inputs, prefix=prefix, picture_features=self.features.of(shown))

    def _on_device(self, *tensors):
        return [tensor if tensor is None else tensor.to(self.model.device) for tensor in tensors]


def load_judge(args: RetrieverArguments, device: torch.device | None = None, **options) -> Judge:
    """The reranker that the flags choose, as eval.inference.load_retriever."""
    return Judge(*load_with_processor(args, load_reranker, device), args.share_prefix, **options)
