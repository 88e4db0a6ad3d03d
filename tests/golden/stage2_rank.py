"""This project against upstream_rank.{safetensors, json}: LamRA-Rank's training, its prompts, answers and fusions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from comparison import Comparison, gradients, read_json, rotary_positions
from stage2_inputs import (
    Benchmark,
    Values,
    compare_inputs,
    compare_recipe,
    draws,
    flickr,
    is_positive,
    item_of,
    model_folder,
    rendered,
    row_of,
    upstream_text,
)

from lamra.collators.messages import MOST_CANDIDATES, listwise_answer
from lamra.collators.processing import Processor
from lamra.collators.rerank import IGNORED, PreparedItem, RerankCollator
from lamra.datasets.caption import INSTRUCTION_IMAGE_TO_TEXT, INSTRUCTION_TEXT_TO_IMAGE
from lamra.datasets.items import Item
from lamra.datasets.mbeir.layout import TASKS
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.rankings import mined_candidates
from lamra.datasets.rerank import RerankExample, RerankExamples
from lamra.datasets.usable import UsableBatch
from lamra.eval.flags import RetrieverArguments
from lamra.eval.metrics import recall_at_k
from lamra.eval.rerank.fusion import reranked
from lamra.eval.rerank.judge import load_judge
from lamra.models.reranker import Reranker
from lamra.models.settings import settings_to_rerank
from lamra.train.flags import RerankTrainingFlags
from lamra.train.rerank_trainer import RerankTrainer

CAPTIONS_PER_IMAGE = 5
PARTS = 3  # prompts of a training example: Yes, No, list


class Rank:
    """Args: as compare.compare; `work` is a folder to write in, `golden` the one with the reference values."""

    def __init__(self, comparison: Comparison, golden: Path, work: Path, processor: Path, photographs: Path, model):
        self.comparison, self.golden, self.work = comparison, golden, work
        self.values = Values.read(golden, "upstream_rank")
        self.mbeir = Benchmark(golden, work / "reranker_mbeir", photographs)
        self.config = read_json(golden / "config_reranker.json")
        self.drawn = model_folder(golden, self.values, "config_reranker.json", processor, work / "reranker")
        self.judge = load_judge(RetrieverArguments(str(model or self.drawn), bf16=False, num_workers=0))
        self.settings = settings_to_rerank(
            self.drawn,
            rank_style="released",
            position_ids=None,
            train_position_ids=None,
            text_max_tokens=RerankTrainingFlags.text_max_tokens,
            min_pixels=None,
            max_pixels=None,
        )
        self.training = Processor(
            self.drawn,
            min_pixels=self.settings.min_pixels,
            max_pixels=self.settings.max_pixels,
            max_length=RerankTrainingFlags.model_max_length,
            text_max_tokens=self.settings.text_max_tokens,
        )
        self.candidates = {qid: docs["top100_docs"] for qid, docs in self.values.json["mined"].items()}

    def compare(self) -> None:
        parts = (
            (self.recipe, ["model"]),
            (self.mined, ["mined"]),
            (self.batches, ["train"]),
            (self.pointwise, ["eval_pointwise"]),
            (self.listwise, ["eval_listwise"]),
            (self.edge_cases, ["edge"]),
            (self.flickr, ["flickr"]),
            (self.answers, ["p_yes"]),
            (self.fusion, ["fusion"]),
        )
        self.values.compare_parts(self.comparison, parts)

    def close(self, name: str, what: str, found: torch.Tensor) -> None:
        """Every entry by itself: a small probability counts as much as a large one."""
        expected = self.values.tensors[name].unsqueeze(-1)
        self.comparison.close(self.values.key(name), what, found.unsqueeze(-1), expected)

    def recipe(self) -> None:
        compare_recipe(self.comparison, self.values, self.config, self.drawn)

    def mined(self) -> None:
        """The mined file that training and evaluation read."""
        path, pairs = self.work / "mined_of_upstream.json", self.mbeir.train_pairs
        path.write_text(json.dumps(self.values.json["mined"]))
        found, expected = {}, {}
        for qid, dids in mined_candidates(path):
            docs, positives = self.values.json["mined"][qid], pairs.positives(row_of(pairs.queries, qid))
            for entries, listed in ((found, dids), (expected, docs["top100_docs"])):
                wrong = [did for did in listed if did not in docs["gt_docs"]]  # training drops the others
                entries[qid] = {**docs, "top100_docs": wrong}
            found[qid]["gt_docs"] = [pairs.pool.id(row) for row in positives]
        what = "read by mined_candidates, without positives; the queries' positives"
        self.values.compare_json(self.comparison, "mined", what, found, expected)
        examples = RerankExamples(pairs, [path])
        for i in range(len(examples)):  # every query can be drawn from
            examples[i]

    def batches(self) -> None:
        found = []
        for number, entry in enumerate(self.values.json["train"]):
            with self.comparison.computing(*self.values.keys(f"train.{number}.")):
                found.append(self.batch(f"train.{number}", entry))
        expected = [{**entry, "texts": list(map(upstream_text, entry["texts"]))} for entry in self.values.json["train"]]
        self.values.compare_json(self.comparison, "train", "can be drawn; rendered texts", found, expected)

    def batch(self, key: str, entry: dict) -> dict:
        """A training batch. Upstream has the Yes of all examples, then the No of all, then all lists."""
        collator = RerankCollator(self.training, self.settings.rank_style)
        examples = [self.example(drawn) for drawn in entry["examples"]]
        encoded = list(map(collator.encode, examples))
        size = len(examples)
        order = [PARTS * i + part for part in range(PARTS) for i in range(size)]  # our row of each of upstream's
        rows = [encoded[row // PARTS][row % PARTS] for row in order]
        compare_inputs(self.comparison, self.values, key, rows, "a training batch", processor=self.judge.processor)
        inputs = collator(UsableBatch(list(range(size)), examples, encoded, []))
        labels, expected = inputs["labels"][order], self.values.tensors[f"{key}.labels"].long()
        width = max(labels.shape[1], expected.shape[1])
        labels, expected = (F.pad(part, (0, width - part.shape[1]), value=IGNORED) for part in (labels, expected))
        self.comparison.equal(self.values.key(f"{key}.labels"), "what the loss counts", labels, expected)
        has_loss = f"{key}.loss" in self.values.tensors
        if has_loss:
            self.loss(key, inputs, order)
        return {
            "examples": [self.could_be_drawn(drawn) for drawn in entry["examples"]],
            "texts": [rendered(self.training, row) for row in rows],
            "loss": has_loss,
        }

    def example(self, drawn: dict) -> RerankExample:
        pool = self.mbeir.train_pool
        query = item_of(self.mbeir.train_queries, drawn["qid"], drawn["prompt"])
        others = tuple(item_of(pool, did) for did in drawn["others"])
        positive, negative = (item_of(pool, drawn[name]) for name in ("positive", "negative"))
        return RerankExample(query, positive, negative, others, drawn["answer"] - 1)

    def could_be_drawn(self, drawn: dict) -> dict:
        """`drawn` with None for whatever training here could not draw."""
        qid, pairs = drawn["qid"], self.mbeir.train_pairs
        positive, prompt = draws(pairs, qid, drawn["positive"], drawn["prompt"])
        wrong = [did for did in self.candidates[qid] if not is_positive(pairs, qid, did)]
        others = [did if did in wrong else None for did in drawn["others"]]
        return {
            "qid": pairs.queries.id(row_of(pairs.queries, qid)),
            "positive": positive,
            "prompt": prompt,
            "negative": drawn["negative"] if drawn["negative"] in wrong else None,
            "others": others if 1 <= len(others) < MOST_CANDIDATES else None,
            "answer": drawn["answer"] if 1 <= drawn["answer"] <= len(others) + 1 else None,
        }

    def loss(self, key: str, inputs: dict, order: Sequence[int]) -> None:
        positions = self.settings.train_position_ids or self.settings.position_ids
        reranker = Reranker(self.judge.model.model, positions).requires_grad_().train()
        reranker.pixels_from_bytes = self.judge.model.pixels_from_bytes
        reranker.zero_grad()
        with rotary_positions(reranker.stock) as received:
            # The trainer's own loss, without a Trainer: what it reports to itself is not needed.
            loss = RerankTrainer.compute_loss(MagicMock(), reranker, inputs)
        self.close(f"{key}.loss", "RerankTrainer's", loss.unsqueeze(0))
        self.positions(key, received, order)
        loss.backward()
        found = gradients(reranker.stock)
        for name, expected in self.values.tensors.items():
            if name.startswith(f"{key}.grad."):
                gradient = found[name.removeprefix(f"{key}.grad.")]
                self.comparison.close_as_a_whole(self.values.key(name), "gradient", gradient, expected)
        reranker.eval().requires_grad_(False)

    def positions(self, key: str, received: list[torch.Tensor], order: Sequence[int]) -> None:
        """Positions of the real tokens: ours come as one row of all sequences, upstream's are padded.

        Args:
            order: our row of each of upstream's.
        """
        expected, mask = (self.values.tensors[f"{key}.{name}"] for name in ("position_ids", "attention_mask"))
        rows = {ours: expected[:, i, mask[i].bool()] for i, ours in enumerate(order)}
        expected = torch.cat([rows[row] for row in sorted(rows)], dim=1)  # (3, T)
        what = "what the rotary embedding received"
        self.comparison.equal(self.values.key(f"{key}.position_ids"), what, received[0][:, 0], expected)

    def prepare(self, item: Item) -> PreparedItem:
        return self.judge.prompts.prepare(item)

    def asked(self, key: str, prompts: list[dict]) -> None:
        """Prompts of an evaluation, and the positions that the model is asked with."""
        compare_inputs(
            self.comparison, self.values, key, prompts, "prompts of an evaluation", processor=self.judge.processor
        )
        if f"{key}.position_ids" not in self.values.tensors:
            return
        inputs = self.judge.processor.pad(prompts)
        answer_mask = inputs["attention_mask"].bool()
        with torch.no_grad(), rotary_positions(self.judge.model.stock) as received:
            self.judge.model(**inputs, answer_mask=answer_mask)
        self.positions(key, received, range(len(prompts)))

    def given(self, entry: dict, pairs: MBEIRPairs) -> dict:
        """The fields of a prompt that come from the mined file and the table; None for what is not there."""
        qid, ranked = entry["qid"], self.candidates
        _, prompt = draws(pairs, qid, pairs.pool.id(pairs.positives(row_of(pairs.queries, qid))[0]), entry["prompt"])
        found = {"qid": pairs.queries.id(row_of(pairs.queries, qid)), "prompt": prompt}
        for name in ("did", "dids"):
            if name in entry:
                dids = [did if did in ranked[qid] else None for did in _listed(entry[name])]
                found[name] = dids if name == "dids" else dids[0]
        return found

    def test_pairs(self) -> MBEIRPairs:
        return MBEIRPairs(self.mbeir.test_queries, self.mbeir.test_pool, self.mbeir.instructions)

    def query(self, entry: dict) -> PreparedItem:
        return self.prepare(item_of(self.mbeir.test_queries, entry["qid"], entry["prompt"]))

    def candidate(self, did: str) -> PreparedItem:
        return self.prepare(item_of(self.mbeir.test_pool, did))

    def pointwise(self) -> None:
        found, pairs = [], self.test_pairs()
        for entry in self.values.json["eval_pointwise"]:
            with self.comparison.computing(*self.values.keys(f"eval_pointwise.{entry['batch']}.")):
                shown = [(self.query(row), self.candidate(row["did"])) for row in entry["rows"]]
                prompts = [self.judge.prompts.pointwise(*pair) for pair in shown]
                self.asked(f"eval_pointwise.{entry['batch']}", prompts)
            found.append({"rows": [self.given(row, pairs) for row in entry["rows"]]})
        self.values.leave_out_inputs(self.comparison, "eval_pointwise[].batch")
        self.values.compare_json(self.comparison, "eval_pointwise", "from the mined file and the table", found)

    def listwise(self) -> None:
        found, pairs = [], self.test_pairs()
        for entry in self.values.json["eval_listwise"]:
            with self.comparison.computing(*self.values.keys(f"eval_listwise.{entry['batch']}.")):
                prompt = self.judge.prompts.listwise(self.query(entry), list(map(self.candidate, entry["dids"])))
                self.asked(f"eval_listwise.{entry['batch']}", [prompt])
            found.append(self.given(entry, pairs))
        self.values.leave_out_inputs(self.comparison, "eval_listwise[].batch")
        self.values.compare_json(self.comparison, "eval_listwise", "from the mined file and the table", found)

    def edge_cases(self) -> None:
        """Long texts and photographs of full size, which evaluation does not cut; the answer to the long text."""
        queries, pool = self.mbeir.queries("edge/wide_query.jsonl"), self.mbeir.pool("edge/wide_pool.jsonl")
        pairs = MBEIRPairs(queries, pool, self.mbeir.instructions)
        self.candidates = self.candidates | {
            entry["qid"]: [pool.id(row) for row in range(len(pool))] for entry in self.values.json["edge"].values()
        }
        for style, entry in self.values.json["edge"].items():
            query = self.prepare(item_of(queries, entry["qid"], entry["prompt"]))
            candidates = [self.prepare(item_of(pool, did)) for did in _listed(entry.get("did", entry.get("dids")))]
            if style == "pointwise":
                prompts = [self.judge.prompts.pointwise(query, candidate) for candidate in candidates]
                self.close("p_yes_long", "Judge", torch.tensor(self.judge.pointwise(query, candidates)))
            else:
                prompts = [self.judge.prompts.listwise(query, candidates)]
            self.asked(f"edge_{style}.0", prompts)
        found = {style: self.given(entry, pairs) for style, entry in self.values.json["edge"].items()}
        self.values.compare_json(self.comparison, "edge", "rows of edge/, the table", found)

    def flickr(self) -> None:
        """Pointwise prompts between pictures and captions; the query has its instruction."""
        expected = self.values.json["flickr"]
        data = flickr(self.golden, self.work / "reranker_flickr", expected)
        for kind, queries, candidates, instruction in (
            ("t2i", data.texts, data.images, INSTRUCTION_TEXT_TO_IMAGE),
            ("i2t", data.images, data.texts, INSTRUCTION_IMAGE_TO_TEXT),
        ):
            query, candidate = ("caption", "picture") if kind == "t2i" else ("picture", "caption")
            prompts = []
            for entry in expected[kind]:
                instructed = replace(queries[int(entry[query])], instruction=instruction)
                shown = self.prepare(instructed), self.prepare(candidates[int(entry[candidate])])
                prompts.append(self.judge.prompts.pointwise(*shown))
            self.asked(f"flickr_{kind}", prompts)
            self.values.leave_out_inputs(
                self.comparison, *(f"flickr.{kind}[].{name}" for name in ("caption", "picture"))
            )
        self.values.leave_out_inputs(self.comparison, "flickr.pictures")
        found = {"captions": [item.text for item in data.texts]}
        self.values.compare_json(self.comparison, "flickr", "read by load_captioned_images", found)

    def answers(self) -> None:
        """P(Yes), asked by Judge."""
        pairs = self.test_pairs()
        found = [self.given(entry, pairs) for entry in self.values.json["p_yes"]]
        self.values.compare_json(self.comparison, "p_yes", "from the mined file and the table", found)
        scores = [
            self.judge.pointwise(self.query(entry), list(map(self.candidate, entry["dids"])))
            for entry in self.values.json["p_yes"]
        ]
        self.close("p_yes", "Judge", torch.tensor(scores))

    def fusion(self) -> None:
        """Orders and recalls that follow from made-up scores and answers; the weights are the project's own."""
        entries = self.values.json["fusion"]
        inputs = ("query_names", "cand_names", "scores", "p_yes", "relevant", "listwise_answers")
        self.values.leave_out_inputs(self.comparison, *(f"fusion[].{name}" for name in inputs))
        found = {name: fused(name, entry) for name, entry in entries.items()}
        self.values.compare_json(self.comparison, "fusion", "reranked, recall_at_k", found)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def fused(name: str, entry: dict) -> dict:
    """The fields of the json that follow from its inputs; Flickr's answers are those of its layout."""
    relevant = entry.get("relevant")
    if relevant is None and name.endswith("t2i"):
        relevant = [[caption // CAPTIONS_PER_IMAGE] for caption in entry["query_names"]]
    elif relevant is None:
        relevant = [
            [CAPTIONS_PER_IMAGE * image + caption for caption in range(CAPTIONS_PER_IMAGE)]
            for image in entry["query_names"]
        ]
    number = {
        did: i for i, did in enumerate(dict.fromkeys(did for dids in entry["cand_names"] + relevant for did in dids))
    }
    relevant = [[number[did] for did in dids] for dids in relevant]
    weight = {task.name: task.weight for task in TASKS}.get(f"{name}_test", 1.0)

    def ranking(style: str, answers: Sequence[list]) -> list[list]:
        orders = [reranked(scores, answer, style, weight)[0] for scores, answer in zip(entry["scores"], answers)]
        return [[dids[i] for i in order] for dids, order in zip(entry["cand_names"], orders)]

    def recalls(names: list[list], k: int) -> list[float]:
        rows = [[number[did] for did in dids] for dids in names]
        return [recall_at_k([row], [dids], k) for row, dids in zip(rows, relevant)]

    pointwise = ranking("pointwise", entry["p_yes"])
    found = {
        "weight": weight,
        "reranked": [ours[: len(theirs)] for ours, theirs in zip(pointwise, entry["reranked"])],
        "recall": {at: recalls(pointwise, int(at.removeprefix("recall_"))) for at in entry["recall"]},
    }
    if "listwise_answers" in entry:
        words = [listwise_answer(i + 1) for i in range(MOST_CANDIDATES)]
        best = [words.index(answer) for answer in entry["listwise_answers"]]
        orders = [[first, *(i for i in range(MOST_CANDIDATES) if i != first)] for first in best]
        listwise = ranking("listwise", orders)
        found |= {"listwise_first": [dids[0] for dids in listwise], "listwise_recall": recalls(listwise, 1)}
    return found
