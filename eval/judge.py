"""A reranker's answers about the candidates of rankings, on any number of processes, kept in files; and what follows.

A query is the unit: its answer comes from forwards that hold no other query, so that it is the same on any number of
processes and after a restart. Nothing is generated: an answer is read from the logits of one token.
"""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from tqdm import tqdm

from lamra.collators.messages import MOST_CANDIDATES, NO, YES, listwise_answer
from lamra.collators.processing import Processor
from lamra.collators.rerank import RankPrompts, Shown
from lamra.common.errors import UserError
from lamra.datasets.items import Item
from lamra.datasets.rerank import ranked_candidates
from lamra.eval.encode import named, one_thread, token_batches
from lamra.eval.inference import RetrieverArguments, load_with_processor
from lamra.eval.shards import check_manifest, pictures_sha256
from lamra.models.loading import load_reranker
from lamra.models.reranker import Reranker
from lamra.models.settings import Settings

STYLES = ("pointwise", "listwise")


@dataclass
class RankingTask:
    """A ranking, what its ids stand for, and which candidates are right.

    Attributes:
        asked: the queries of the ranking, as places in `queries`.
        found: for each of them its candidates, best first, as places in `candidates`.
        scores: the retriever's, of the same.
        answers: for each of them the places of the right candidates.
    """

    queries: Sequence[Item]
    candidates: Sequence[Item]
    asked: list[int]
    found: list[list[int]]
    scores: list[list[float]]
    answers: list[list[int]] = field(default_factory=list)


def read_ranking(path: str | Path, qids: Sequence[str] = ()) -> dict[str, tuple[list[str], list[float]]]:
    """qid -> the ids of its candidates, best first, and their scores.

    Args:
        qids: the queries of the task: recall over fewer of them would be another number.

    Raises:
        UserError: as ranked_candidates; or a query has a candidate twice or ranks other than 1, 2, ..., n, or is
            lacking.
    """
    lines: dict[str, list] = {}
    for line in ranked_candidates(path):
        lines.setdefault(line.qid, []).append(line)
    ranking = {}
    for qid, found in lines.items():
        found.sort(key=lambda line: line.rank)
        dids = [line.did for line in found]
        if len(set(dids)) < len(dids):
            raise UserError(f"{path} has a candidate of the query {qid} twice: a ranking names each once")
        ranks = [line.rank for line in found]
        if ranks != list(range(1, len(found) + 1)):
            wrong = next(rank for place, rank in enumerate(ranks, start=1) if rank != place)
            raise UserError(
                f"{path}: the {len(found)} candidates of the query {qid} do not have the ranks 1 to {len(found)}, "
                f"{wrong} is repeated or follows a gap: evaluate the retriever again"
            )
        ranking[qid] = dids, [line.score for line in found]
    lacking = [qid for qid in qids if qid not in ranking]
    if lacking:
        raise UserError(
            f"{path} lacks {len(lacking)} of the task's {len(qids)} queries, first {lacking[0]}: evaluate the "
            "retriever on all of them"
        )
    return ranking


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
        self.pictures = PictureFeatures(self.model, self.picture_memory * 2**30)
        self.prompts = RankPrompts(self.processor, self.settings.rank_style)
        self.yes_no = self.prompts.choices([YES, NO])
        self.numbers = self.prompts.choices([listwise_answer(n + 1) for n in range(MOST_CANDIDATES)])
        self.tokens = self.queries = 0  # computed and answered about so far
        self.seconds = 0.0

    def answer(self, style: str, query: Shown, candidates: Sequence[Shown]) -> list:
        """P(Yes) of each candidate for "pointwise", the candidates' places best first for "listwise"."""
        return (self.pointwise if style == "pointwise" else self.listwise)(query, candidates)

    @torch.no_grad()
    def pointwise(self, query: Shown, candidates: Sequence[Shown]) -> list[float]:
        """P(Yes) of each candidate, over the two answers. The query's part of the prompts is computed once.

        That is exact, pictures and all: causal attention never looks ahead, so the tokens that all prompts begin with
        have the same keys and values in each.

        Raises:
            UserError: an answer is not finite; names query and candidates.
        """
        common, deciding = self.yes_no
        prompts = [self.prompts.pointwise(query, candidate) for candidate in candidates]
        ids = [prompt["input_ids"] + common for prompt in prompts]
        share = self.share_prefix and self.model.padding_free and len(ids) > 1
        known = self._shared_tokens(ids, query) if share else 0
        prefix = None
        if known:
            begin, grids = self._on_device(torch.tensor(ids[0][:known]), query.image_grid_thw)
            prefix = self.model.prefix_of(begin, None, grids, self.pictures.of([query]))
            self.tokens += known
        scores = torch.empty(len(ids))
        for batch in token_batches([len(one) - known for one in ids], self.max_tokens_per_batch, True):
            rows = [{**prompts[i], "input_ids": ids[i]} for i in batch]
            shown = [one for i in batch for one in (() if known else (query,)) + (candidates[i],)]
            logits = self._last_logits(rows, shown, deciding, prefix)  # (b, 2)
            scores[batch] = logits.softmax(dim=1)[:, 0].cpu()
            self._require_finite(scores[batch], query, [candidates[i] for i in batch])
            self.tokens += sum(len(ids[i]) - known for i in batch)
        return scores.tolist()

    @torch.no_grad()
    def listwise(self, query: Shown, candidates: Sequence[Shown]) -> list[int]:
        """Places of the candidates, best first, by the logits of their numbers in the answer.

        A list holds MOST_CANDIDATES. Deeper, a window slides from the last candidates to the first, and the best of
        each joins the next: the first place is then the winner of all, the others are sorted within their window.

        Raises:
            UserError: an answer is not finite; names query and candidates.
        """
        common, deciding = self.numbers
        order = list(range(len(candidates)))
        start = max(0, len(order) - MOST_CANDIDATES)
        while True:
            window = order[start : start + MOST_CANDIDATES]
            prompt = self.prompts.listwise(query, [candidates[i] for i in window])
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
    def _require_finite(answers: torch.Tensor, query: Shown, candidates: Sequence[Shown]) -> None:
        wrong = [one.item.id for one, fine in zip(candidates, answers.isfinite().tolist()) if not fine]
        if wrong:
            raise UserError(
                f"the reranker's answers to the query {query.item.id} about {named(wrong)} are not finite: its "
                "weights, its config.json or its preprocessor_config.json are damaged"
            )

    def _shared_tokens(self, ids: list[list[int]], query: Shown) -> int:
        """How many tokens all prompts begin with: those of the query, no picture of a candidate, no prompt's last."""
        known = min(len(os.path.commonprefix(ids)), min(map(len, ids)) - 1)
        begins = self.model.config.vision_start_token_id
        pictures = [place for place, token in enumerate(ids[0][:known]) if token == begins]
        of_query = len(query.item.images)
        if len(pictures) < of_query:  # never with LamRA's prompts: the query comes first
            return 0
        return pictures[of_query] if len(pictures) > of_query else known

    def _last_logits(
        self, prompts: list[dict], shown: Sequence[Shown], answers: list[int], prefix=None
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
        return self.model(**inputs, prefix=prefix, picture_features=self.pictures.of(shown))

    def _on_device(self, *tensors):
        return [tensor if tensor is None else tensor.to(self.model.device) for tensor in tensors]


class PictureFeatures:
    """Vision features of pictures, computed once and kept on the device, the least recently used dropped.

    Each item's are computed alone, so that they do not depend on which others were asked for with it.

    Args:
        most_bytes: of the features kept.
    """

    def __init__(self, model: Reranker, most_bytes: float):
        self.model, self.room = model, most_bytes
        self.computed = 0  # items so far
        self._kept: OrderedDict[tuple, torch.Tensor] = OrderedDict()

    def of(self, shown: Sequence[Shown]) -> torch.Tensor | None:
        """(tokens, D) of the pictures of items in order; None without any."""
        parts = [self._of_item(one) for one in shown if one.pixel_values is not None]
        return torch.cat(parts) if parts else None

    def _of_item(self, shown: Shown) -> torch.Tensor:
        key = tuple(map(str, shown.item.images))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        pixels, grids = (tensor.to(self.model.device) for tensor in (shown.pixel_values, shown.image_grid_thw))
        features = self.model.picture_features(pixels, grids)
        self.computed += 1
        if all(isinstance(image, (str, Path)) for image in shown.item.images):  # a file, which has a name
            self._kept[key] = features
            self.room -= features.nbytes
            while self.room < 0:
                self.room += self._kept.popitem(last=False)[1].nbytes
        return features


def load_judge(args: RetrieverArguments, **options) -> Judge:
    """The reranker that the flags choose, as eval.retriever.load_retriever."""
    return Judge(*load_with_processor(args, load_reranker), args.share_prefix, **options)


class _Prepared(Dataset):
    """A query and its first candidates with their pictures decoded, ahead of the model."""

    def __init__(self, task: RankingTask, prompts: RankPrompts, rows: list[int], depth: int):
        self.task, self.prompts, self.rows, self.depth = task, prompts, rows, depth

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        row, task = self.rows[i], self.task
        try:
            candidates = (task.candidates[c] for c in task.found[row][: self.depth])
            return row, joined([self.prompts.shown(item) for item in (task.queries[task.asked[row]], *candidates)])
        except ValueError as error:  # a worker would wrap it in its own traceback
            return row, error


def joined(shown: Sequence[Shown]) -> tuple[list[Item], torch.Tensor | None, torch.Tensor | None]:
    """Items, and all their pixels and grids in one tensor each.

    A tensor that comes from a worker process holds a file handle open, and 1,024 of them is many a machine's limit.
    """
    tensors = (
        [tensor for tensor in column if tensor is not None]
        for column in zip(*((one.pixel_values, one.image_grid_thw) for one in shown))
    )
    return [one.item for one in shown], *(torch.cat(column) if column else None for column in tensors)


def divided(prepared: tuple[list[Item], torch.Tensor | None, torch.Tensor | None]) -> list[Shown]:
    """The inverse of `joined`."""
    items, pixels, grids = prepared
    if pixels is None:
        return [Shown(item, None, None) for item in items]
    pictures = [len(item.images) for item in items]
    grids = grids.split(pictures)  # (pictures of the item, 3) each
    pixels = pixels.split([int(grid.prod(dim=1).sum()) for grid in grids])
    parts = zip(items, pixels, grids)
    return [Shown(item, *(part if item.images else (None, None))) for item, *part in parts]


def judge_ranking(
    judge: Judge, task: RankingTask, style: str, depth: int, folder: str | Path, manifest: dict, description: str
) -> list[list]:
    """Judge.answer for every query's first `depth` candidates, on all processes together.

    Each process appends what it finished to a file in `folder`; a restarted run, also on another number of processes,
    asks for the rest.

    Args:
        manifest: of what and by what; anything that can be json.

    Returns:
        For each query of the task its answer, the same on every process.

    Raises:
        UserError: the folder holds answers with another manifest, or a picture cannot be read; names it.
    """
    folder, state = Path(folder), PartialState()
    candidates = sorted({place for found in task.found for place in found[:depth]})
    items = ConcatDataset([Subset(task.queries, task.asked), Subset(task.candidates, candidates)])
    manifest = {**manifest, "style": style, "depth": depth, "pictures": pictures_sha256(items)}
    check_manifest(folder, manifest, "answers")
    done = broadcast_object_list([_read_answers(folder) if state.is_main_process else None])[0]
    missing = [row for row in range(len(task.asked)) if row not in done]
    mine = missing[state.process_index :: state.num_processes]
    loader = DataLoader(
        _Prepared(task, judge.prompts, mine, depth),
        batch_size=None,
        num_workers=judge.num_workers if mine else 0,
        worker_init_fn=one_thread,
        generator=torch.Generator(),  # draws nothing from the global one
    )
    began = time.perf_counter()
    with open(folder / f"{state.process_index}.jsonl", "a") as file:
        file.write("\n")  # ends a line that a killed run left half written
        for row, prepared in tqdm(loader, desc=description, unit="query", disable=not state.is_main_process):
            if isinstance(prepared, ValueError):
                raise prepared
            query, *candidates = divided(prepared)
            file.write(json.dumps({"row": row, "answer": judge.answer(style, query, candidates)}) + "\n")
            file.flush()
    judge.queries += len(mine)
    judge.seconds += time.perf_counter() - began
    state.wait_for_everyone()
    done = broadcast_object_list([_read_answers(folder) if state.is_main_process else None])[0]
    return [done[row] for row in range(len(task.asked))]


def _read_answers(folder: Path) -> dict[int, list]:
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            if line.endswith("}"):  # whole
                answer = json.loads(line)
                found[answer["row"]] = answer["answer"]
    return found


def reranked(scores: Sequence[float], answer: list, style: str, weight: float) -> tuple[list[int], list[float]]:
    """The new order of a query's candidates, as places in the old one, and their scores.

    Pointwise: s_ret + weight * P(Yes) for those that were asked about (arXiv 2412.01720, section 3.4). Listwise gives
    an order and no scores: each place keeps the retriever's score of that place. Candidates beyond the depth follow as
    they were; they score no higher than any before them.
    """
    depth = len(answer)
    if style == "listwise":
        return answer + list(range(depth, len(scores))), list(scores)
    fused = [score + weight * yes for score, yes in zip(scores, answer)]
    order = sorted(range(depth), key=lambda place: -fused[place])
    return order + list(range(depth, len(scores))), [fused[place] for place in order] + list(scores[depth:])
