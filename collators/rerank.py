"""A query with candidates to LamRA-Rank's prompts, answers and batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from lamra.collators.messages import YES_NO, listwise_answer, listwise_messages, pointwise_messages
from lamra.collators.processing import Processor
from lamra.collators.texts import CUT_PROMPT, CUT_TEXT, SPECIAL, digest_of
from lamra.collators.visuals import in_order
from lamra.common.errors import TooLongError, UserError
from lamra.datasets.items import Item
from lamra.datasets.rerank import RerankExample
from lamra.datasets.usable import UsableBatch

IGNORED = -100  # a label that no loss counts
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]


@dataclass(frozen=True)
class PreparedItem:
    """An item whose pictures are prepared, for as many prompts as it stands in."""

    item: Item
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None


@dataclass
class RankPrompts:
    """Builds prompts in one of messages.RANK_STYLES.

    An encoded prompt is what Processor.encode gives, "name", what its notes call it, and "labels": how many of its last
    tokens LamRA-Rank learns, which are the assistant's whole turn, from its header to the newline after its end; 0
    where no answer is given.
    """

    processor: Processor
    style: str

    def prepare(self, item: Item) -> PreparedItem:
        return PreparedItem(item, **self.processor.visuals.pixels(item))

    def pointwise(self, query: PreparedItem, candidate: PreparedItem, answer: str | None = None) -> dict:
        """Whether a candidate is what the query looks for; raises as `listwise`."""
        return self._encode([query, candidate], lambda q, c: pointwise_messages(self.style, q, c), answer)

    def listwise(self, query: PreparedItem, candidates: Sequence[PreparedItem], answer: str | None = None) -> dict:
        """Which of the candidates is best.

        Raises:
            TooLongError: the prompt is longer than the processor's max_length even with next to no text.
        """
        return self._encode([query, *candidates], lambda q, *c: listwise_messages(self.style, q, c), answer)

    def answer_ids(self, answer: str, messages: list[dict] = QUESTION) -> list[int]:
        """What the chat template puts after the generation prompt when this is the answer, to the turn's last newline.

        Raises:
            UserError: the template does not continue its generation prompt.
        """
        turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        prompt = self.processor.render(messages)
        whole = self.processor.tokenizer.apply_chat_template([*messages, turn], tokenize=False)
        if not whole.startswith(prompt):
            raise UserError("the chat template does not begin an assistant's turn as its generation prompt ends")
        return self.processor.tokenizer(whole[len(prompt) :].rstrip() + "\n")["input_ids"]

    def choices(self, answers: Sequence[str]) -> tuple[list[int], list[int]]:
        """The tokens that all answers begin with, and the first token in which each differs from the others.

        Raises:
            UserError: the tokenizer does not tell them apart by one token.
        """
        ids = [self.answer_ids(answer) for answer in answers]
        common = list(os.path.commonprefix(ids))
        deciding = [answer[len(common)] for answer in ids]
        if len(set(deciding)) < len(answers):
            raise UserError(f"the tokenizer does not tell {', '.join(answers)} apart by one token: use Qwen2-VL's own")
        return common, deciding

    def _encode(self, parts: list[PreparedItem], messages_of: Callable[..., list[dict]], answer: str | None) -> dict:
        pixels = in_order([part.pixel_values for part in parts])
        grids = in_order([part.image_grid_thw for part in parts])
        query = parts[0].item.id
        name = f"query {query} with {', '.join(part.item.id for part in parts[1:])}"
        most = self.processor.text_max_tokens
        cut = partial(
            self.processor.cut,
            whole_characters=self.style != "released",
            instruction_apart=self.style == "qwen3_reranker",
        )
        while True:
            items = [cut(part.item, most) for part in parts]
            messages = messages_of(*items)
            answer_ids = self.answer_ids(answer, messages) if answer else []
            ids = self.processor.token_ids(messages, grids, query) + answer_ids
            if len(ids) <= self.processor.max_length:
                labels = len(answer_ids) + len(self.header_ids) if answer else 0
                befell = []
                if any(item is not part.item for item, part in zip(items, parts)):
                    befell.append(CUT_TEXT if most == self.processor.text_max_tokens else CUT_PROMPT)
                if any(self.processor.reads_special_tokens_in(item.texts) for item in items):
                    befell.append(SPECIAL)
                notes = dict.fromkeys(befell, (digest_of(name),) * 2)  # equal lists of candidates are no news
                inputs = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grids, "labels": labels}
                return {**inputs, "name": name, "notes": notes}
            most = (most or self.processor.max_length) // 2  # every text alike, so that no candidate is favoured
            if not most:
                raise TooLongError(
                    f"the query {query!r} with {len(parts) - 1} candidates needs more than {self.processor.max_length} "
                    "tokens without its texts: raise --model_max_length, or lower --max_pixels"
                )

    @cached_property
    def header_ids(self) -> list[int]:
        """What the chat template begins an assistant's turn with: its generation prompt."""
        without = self.processor.tokenizer.apply_chat_template(QUESTION, tokenize=False)
        return self.processor.tokenizer(self.processor.render(QUESTION)[len(without) :])["input_ids"]


@dataclass
class RerankCollator:
    """Examples of LamRA-Rank to one batch: a Yes, a No and a list for each."""

    processor: Processor
    style: str = "released"

    def encode(self, example: RerankExample) -> list[dict]:
        """The three prompts with their answers; raises as RankPrompts does."""
        prompts, (yes, no) = RankPrompts(self.processor, self.style), YES_NO[self.style]
        query, positive, negative = map(prompts.prepare, (example.query, example.positive, example.negative))
        others = [prompts.prepare(item) for item in example.others]
        listed = [*others[: example.position], positive, *others[example.position :]]
        return [
            prompts.pointwise(query, positive, yes),
            prompts.pointwise(query, negative, no),
            prompts.listwise(query, listed, listwise_answer(example.position + 1)),
        ]

    def __call__(self, batch: UsableBatch) -> dict:
        """Reranker's keyword arguments but `answer_mask`, and:

        "ids": (B,) the queries' ids.
        "labels": (3 B, L), IGNORED but for the assistant's turns.
        "notes": the names of prompts and what befell their texts, see collators.texts.
        "faults": as in UsableBatch. A batch without examples is nothing else.
        """
        if not batch.pairs:
            return {"faults": batch.faults}
        prompts = [prompt for three in batch.encoded for prompt in three]
        inputs = self.processor.pad(prompts)
        labels = torch.full_like(inputs["input_ids"], IGNORED)  # (3 B, L)
        for row, prompt in zip(labels, prompts):
            turn = slice(len(prompt["input_ids"]) - prompt["labels"], len(prompt["input_ids"]))
            row[turn] = torch.tensor(prompt["input_ids"][turn])
        ids = [example.query.id for example in batch.pairs]
        notes = [(prompt["name"], prompt["notes"]) for prompt in prompts if prompt["notes"]]
        return {**inputs, "labels": labels, "ids": ids, "notes": notes, "faults": batch.faults}
