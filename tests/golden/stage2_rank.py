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
    attempts,
    compare_inputs,
    compare_recipe,
    draws,
    flickr,
    item_of,
    model_folder,
    rendered,
    row_of,
    upstream_text,
)

from lamra.collators.messages import (
    INSTRUCTION_IMAGE_TO_TEXT,
    INSTRUCTION_TEXT_TO_IMAGE,
    MOST_CANDIDATES,
    listwise_answer,
)
from lamra.collators.processing import Processor
from lamra.collators.rerank import IGNORED, RerankTrainingCollator, Shown
from lamra.datasets.items import Item
from lamra.datasets.rerank import RerankExample, RerankExamples, mined_candidates
from lamra.eval.eval_rerank import WEIGHTS, RerankArguments
from lamra.eval.metrics import recall_at_k
from lamra.eval.rerank import Judge, load_judge, reranked
from lamra.eval.retriever import RetrieverArguments
from lamra.models.reranker import Reranker
from lamra.train.rerank_trainer import RerankTrainer
from lamra.train.train_rerank import RerankTrainingArguments

CAPTIONS_PER_IMAGE = 5
TOKENS_OF_A_FORWARD = 16384
PARTS = 3  # prompts of a training example: Yes, No, list


class Rank:
    def __init__(self, comparison: Comparison, golden: Path, work: Path, processor: Path, photographs: Path, model):
        self.comparison, self.golden, self.work = comparison, golden, work
        self.values = Values.read(golden, "upstream_rank")
        self.mbeir = Benchmark(golden, work / "reranker_mbeir", photographs)
        self.config = read_json(golden / "config_reranker.json")
        self.drawn = model_folder(golden, self.values, "config_reranker.json", processor, work / "reranker")
        arguments = RetrieverArguments(
            str(model or self.drawn),
            bf16=False,
            num_workers=0,
            max_tokens_per_batch=TOKENS_OF_A_FORWARD,
            model_max_length=RerankArguments.model_max_length,
        )
        self.judge: Judge = load_judge(arguments)
        self.training = Processor(
            processor,
            max_length=RerankTrainingArguments.model_max_length,
            text_max_tokens=RerankTrainingArguments.text_max_tokens,
        )
        self.collator = RerankTrainingCollator(self.training, [], most_faults=0)

    def compare(self) -> None:
        for part, keys in (
            (self.recipe, self.values.keys("model")),
            (self.mined, self.values.keys("mined")),
            (self.batches, self.values.keys("train")),
            (self.pointwise, self.values.keys("eval_pointwise")),
            (self.listwise, self.values.keys("eval_listwise")),
            (self.edge, self.values.keys("edge")),
            (self.flickr, self.values.keys("flickr")),
            (self.answers, self.values.keys("p_yes")),
            (self.fusion, self.values.keys("fusion")),
        ):
            with self.comparison.computing(*keys):
                part()
        self.comparison.require_all(self.values.keys())

    def recipe(self) -> None:
        compare_recipe(self.comparison, self.values, self.config, self.drawn)

    def mined(self) -> None:
        """The mined file that training and evaluation read."""
        path = self.work / "mined_of_upstream.json"
        path.write_text(json.dumps(self.values.json["mined"]))
        pairs = self.mbeir.train_pairs
        self.candidates = dict(mined_candidates(path))
        found = {
            qid: {
                "gt_docs": [pairs.pool.id(row) for row in pairs.positives(row_of(pairs.queries, qid))],
                "top100_docs": dids,
            }
            for qid, dids in self.candidates.items()
        }
        self.values.compare_json(self.comparison, "mined", "read by mined_candidates; positives of the queries", found)
        examples = RerankExamples(pairs, [path])
        for i in range(len(examples)):  # each can be drawn
            examples[i]

    def negative(self, qid: str, did: str) -> str | None:
        """`did`, or None if training could not draw it as a negative."""
        pairs = self.mbeir.train_pairs
        positives = pairs.positives(row_of(pairs.queries, qid))
        return did if did in self.candidates[qid] and row_of(pairs.pool, did) not in positives else None

    def batches(self) -> None:
        found = []
        for number, entry in enumerate(self.values.json["train"]):
            with self.comparison.computing(*self.values.keys(f"train.{number}.")):
                found.append(self.batch(f"train.{number}", entry))
        expected = [{**entry, "texts": list(map(upstream_text, entry["texts"]))} for entry in self.values.json["train"]]
        self.values.compare_json(self.comparison, "train", "can be drawn; rendered texts", found, expected)

    def batch(self, key: str, entry: dict) -> dict:
        values, pool = self.values, self.mbeir.train_pool
        examples, drawn = [], []
        for one in entry["examples"]:
            others = tuple(item_of(pool, did) for did in one["others"])
            query = item_of(self.mbeir.train_queries, one["qid"], one["prompt"])
            positive, negative = item_of(pool, one["positive"]), item_of(pool, one["negative"])
            examples.append(RerankExample(query, positive, negative, others, one["answer"] - 1))
            did, prompt = draws(self.mbeir.train_pairs, one["qid"], one["positive"], one["prompt"])
            drawn.append(
                {
                    "qid": query.id,
                    "positive": did,
                    "prompt": prompt,
                    "negative": self.negative(one["qid"], one["negative"]),
                    "others": [self.negative(one["qid"], other) for other in one["others"]],
                    "answer": one["answer"] if one["answer"] <= len(others) + 1 <= MOST_CANDIDATES else None,
                }
            )
        encoded = [self.collator.encode(example) for example in examples]
        rows = [encoded[i][part] for part in range(PARTS) for i in range(len(examples))]  # upstream's order
        compare_inputs(self.comparison, values, key, rows, "a training batch")
        inputs = self.collator.batch(list(range(len(examples))), examples, encoded)
        self.labels(key, inputs["labels"], len(examples))
        found = {"examples": drawn, "texts": [rendered(self.training, row) for row in rows], "loss": False}
        if f"{key}.loss" in values.tensors:
            found["loss"] = True
            self.loss(key, {**inputs, "faults": []}, len(examples))
        return found

    def labels(self, key: str, labels: torch.Tensor, count: int) -> None:
        expected = self.values.tensors[f"{key}.labels"].long()
        found = labels[[PARTS * (row % count) + row // count for row in range(PARTS * count)]]
        width = max(expected.shape[1], found.shape[1])
        expected, found = (F.pad(one, (0, width - one.shape[1]), value=IGNORED) for one in (expected, found))
        self.comparison.equal(self.values.key(f"{key}.labels"), "what the loss counts", found, expected)

    def loss(self, key: str, inputs: dict, count: int) -> None:
        """RerankTrainer's own loss; in training positions count on over pictures."""
        values = self.values
        reranker = Reranker(self.judge.model.model, "sequential").requires_grad_().train()
        reranker.zero_grad()
        with rotary_positions(reranker.stock) as received:
            loss = RerankTrainer.compute_loss(MagicMock(), reranker, inputs)
        self.comparison.close(
            values.key(f"{key}.loss"), "RerankTrainer.compute_loss", loss, values.tensors[f"{key}.loss"]
        )
        self.positions(key, received, [PARTS * (row % count) + row // count for row in range(PARTS * count)])
        loss.backward()
        found = gradients(reranker.stock)
        for name in values.tensors:
            if name.startswith(f"{key}.grad."):
                gradient = found[name.removeprefix(f"{key}.grad.")]
                self.comparison.close_as_a_whole(
                    values.key(name), "gradient of the loss", gradient, values.tensors[name]
                )
        reranker.eval().requires_grad_(False)

    def positions(self, key: str, received: list[torch.Tensor], order: Sequence[int]) -> None:
        """Positions of real tokens: ours are one row of all sequences, upstream's are padded. `order`: our rows."""
        expected, mask = self.values.tensors[f"{key}.position_ids"].long(), self.values.tensors[f"{key}.attention_mask"]
        mask = mask.bool()
        rows = [expected[:, row, mask[row]] for row in range(len(mask))]
        place = {ours: row for row, ours in enumerate(order)}
        expected = torch.cat([rows[place[ours]] for ours in range(len(rows))], dim=1)
        (found,) = received
        self.comparison.equal(
            self.values.key(f"{key}.position_ids"), "what the rotary embedding received", found[:, 0], expected
        )

    def shown(self, item: Item) -> Shown:
        return self.judge.prompts.shown(item)

    def query(self, entry: dict, queries=None) -> Shown:
        """A query with its instruction, which evaluation takes from the table of one prompt a kind."""
        return self.shown(item_of(queries or self.mbeir.test_queries, entry["qid"], entry["prompt"]))

    def instruction(self, qid: str, dids: Sequence[str], prompt: str, queries, pool) -> str | None:
        """`prompt` if the table has it for this query and one of the candidates' kinds or the positive's, else None."""
        modality = queries.modality(row_of(queries, qid))
        dataset = int(qid.split(":")[0])
        found = attempts(
            lambda kind: self.mbeir.one_prompt.prompts(dataset, modality, kind), ["text", "image", "image,text"]
        )
        return prompt if any(prompt in one for one in found if isinstance(one, list)) else None

    def pointwise(self) -> None:
        found = []
        queries, pool = self.mbeir.test_queries, self.mbeir.test_pool
        for entry in self.values.json["eval_pointwise"]:
            key = f"eval_pointwise.{entry['batch']}"
            with self.comparison.computing(*self.values.keys(f"{key}.")):
                prompts = [
                    self.judge.prompts.pointwise(self.query(row), self.shown(item_of(pool, row["did"])))
                    for row in entry["rows"]
                ]
                compare_inputs(self.comparison, self.values, key, prompts, "pointwise prompts")
                if f"{key}.position_ids" in self.values.tensors:
                    self.asked_positions(key, prompts)
            rows = [
                {
                    "qid": row["qid"],
                    "did": row["did"] if row["did"] in self.candidates[row["qid"]] else None,
                    "prompt": self.instruction(row["qid"], [row["did"]], row["prompt"], queries, pool),
                }
                for row in entry["rows"]
            ]
            found.append({"batch": entry["batch"], "rows": rows})
        self.values.compare_json(self.comparison, "eval_pointwise", "of the mined file and the table", found)

    def asked_positions(self, key: str, prompts: Sequence[dict]) -> None:
        inputs = self.judge.processor.pad([{k: v for k, v in one.items() if k != "answer"} for one in prompts])
        asked = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
        asked[:, 0] = True
        with torch.no_grad(), rotary_positions(self.judge.model.stock) as received:
            self.judge.model(**inputs, asked=asked)
        self.positions(key, received, range(len(prompts)))

    def listwise(self) -> None:
        found = []
        queries, pool = self.mbeir.test_queries, self.mbeir.test_pool
        for entry in self.values.json["eval_listwise"]:
            key = f"eval_listwise.{entry['batch']}"
            with self.comparison.computing(*self.values.keys(f"{key}.")):
                candidates = [self.shown(item_of(pool, did)) for did in entry["dids"]]
                prompt = self.judge.prompts.listwise(self.query(entry), candidates)
                compare_inputs(self.comparison, self.values, key, [prompt], "a listwise prompt")
                if f"{key}.position_ids" in self.values.tensors:
                    self.asked_positions(key, [prompt])
            of_query = self.candidates[entry["qid"]]
            found.append(
                {
                    "batch": entry["batch"],
                    "qid": entry["qid"],
                    "dids": [did if did in of_query else None for did in entry["dids"]],
                    "prompt": self.instruction(entry["qid"], entry["dids"], entry["prompt"], queries, pool),
                }
            )
        self.values.compare_json(self.comparison, "eval_listwise", "of the mined file and the table", found)

    def edge(self) -> None:
        """Long texts and full-size photographs: evaluation cuts nothing."""
        queries, pool = self.mbeir.queries("edge/wide_query.jsonl"), self.mbeir.pool("edge/wide_pool.jsonl")
        found = {}
        for style, entry in self.values.json["edge"].items():
            dids = entry["dids"] if "dids" in entry else [entry["did"]]
            with self.comparison.computing(*self.values.keys(f"edge_{style}.")):
                candidates = [self.shown(item_of(pool, did)) for did in dids]
                query = self.query(entry, queries)
                if style == "pointwise":
                    prompts = [self.judge.prompts.pointwise(query, candidate) for candidate in candidates]
                else:
                    prompts = [self.judge.prompts.listwise(query, candidates)]
                compare_inputs(self.comparison, self.values, f"edge_{style}.0", prompts, "a long prompt")
            dids = [pool.id(row_of(pool, did)) for did in dids]
            found[style] = {"qid": queries.id(row_of(queries, entry["qid"]))}
            found[style] |= {"dids": dids} if "dids" in entry else {"did": dids[0]}
            found[style]["prompt"] = self.instruction(entry["qid"], dids, entry["prompt"], queries, pool)
        self.values.compare_json(self.comparison, "edge", "rows of edge/", found)

    def flickr(self) -> None:
        """Pointwise prompts between pictures and captions; the query has its instruction."""
        expected = self.values.json["flickr"]
        data = flickr(self.golden, self.work / "reranker_flickr", expected)
        found = {
            "captions": [item.text for item in data.texts],
            "pictures": expected["pictures"][: len(data.images)],
            "t2i": [],
            "i2t": [],
        }
        for kind, queries, candidates, instruction in (
            ("t2i", data.texts, data.images, INSTRUCTION_TEXT_TO_IMAGE),
            ("i2t", data.images, data.texts, INSTRUCTION_IMAGE_TO_TEXT),
        ):
            names = ("caption", "picture") if kind == "t2i" else ("picture", "caption")
            prompts = []
            for entry in expected[kind]:
                query = replace(queries[int(entry[names[0]])], instruction=instruction)
                candidate = candidates[int(entry[names[1]])]
                prompts.append(self.judge.prompts.pointwise(self.shown(query), self.shown(candidate)))
                found[kind].append(dict(entry))
            compare_inputs(self.comparison, self.values, f"flickr_{kind}", prompts, "zero-shot reranking")
        self.values.compare_json(self.comparison, "flickr", "read by load_captioned_images", found)

    def answers(self) -> None:
        """P(Yes), asked by Judge."""
        pool, queries = self.mbeir.test_pool, self.mbeir.test_queries
        scores, found = [], []
        for entry in self.values.json["p_yes"]:
            candidates = [self.shown(item_of(pool, did)) for did in entry["dids"]]
            scores.append(self.judge.pointwise(self.query(entry), candidates))
            of_query = self.candidates[entry["qid"]]
            dids = [did if did in of_query else None for did in entry["dids"]]
            prompt = self.instruction(entry["qid"], entry["dids"], entry["prompt"], queries, pool)
            found.append({"qid": entry["qid"], "dids": dids, "prompt": prompt})
        self.values.compare_json(self.comparison, "p_yes", "of the mined file and the table", found)
        expected = self.values.tensors["p_yes"].unsqueeze(-1)  # each probability for itself
        self.comparison.close(self.values.key("p_yes"), "Judge", torch.tensor(scores).unsqueeze(-1), expected)
        entry = self.values.json["edge"]["pointwise"]
        with self.comparison.computing(self.values.key("p_yes_long")):
            query = self.query(entry, self.mbeir.queries("edge/wide_query.jsonl"))
            candidate = self.shown(item_of(self.mbeir.pool("edge/wide_pool.jsonl"), entry["did"]))
            found = torch.tensor(self.judge.pointwise(query, [candidate]))
            self.comparison.close(self.values.key("p_yes_long"), "Judge", found, self.values.tensors["p_yes_long"])

    def fusion(self) -> None:
        found = {}
        for name, entry in self.values.json["fusion"].items():
            found[name] = fused(name, entry)
        self.values.compare_json(self.comparison, "fusion", "reranked and recall_at_k", found)


def fused(name: str, entry: dict) -> dict:
    """What the project makes of made-up scores and answers, in the fields of the json."""
    names = sorted(
        {did for dids in entry["cand_names"] for did in dids} | set(sum(entry.get("relevant", []), [])), key=str
    )
    number = {did: place for place, did in enumerate(names)}
    if "relevant" in entry:
        relevant = entry["relevant"]
    elif name.endswith("t2i"):
        relevant = [[query // CAPTIONS_PER_IMAGE] for query in entry["query_names"]]
    else:
        captions = range(CAPTIONS_PER_IMAGE)
        relevant = [[CAPTIONS_PER_IMAGE * query + caption for caption in captions] for query in entry["query_names"]]
    relevant = [[number.get(did, -1) for did in dids] for dids in relevant]

    def ranking(style: str, answers: Sequence[list]) -> list[list]:
        orders = (reranked(scores, one, style, entry["weight"])[0] for scores, one in zip(entry["scores"], answers))
        return [[dids[place] for place in order] for dids, order in zip(entry["cand_names"], orders)]

    def recalls(order: list[list], k: int) -> list[float]:
        table = torch.tensor([[number[did] for did in dids] for dids in order])
        return [recall_at_k(table[row : row + 1], relevant[row : row + 1], k) for row in range(len(table))]

    pointwise = ranking("pointwise", entry["p_yes"])
    found = {
        # What the json gives is taken; the weight is the project's own of this task.
        **{
            field: entry[field]
            for field in ("query_names", "cand_names", "scores", "p_yes", "relevant")
            if field in entry
        },
        "weight": WEIGHTS.get(f"{name}_test", 1.0),
        "reranked": [one[: len(other)] for one, other in zip(pointwise, entry["reranked"])],
        "recall": {at: recalls(pointwise, int(at.removeprefix("recall_"))) for at in entry["recall"]},
    }
    if "listwise_answers" in entry:
        words = [listwise_answer(number + 1) for number in range(MOST_CANDIDATES)]
        best = [words.index(answer) for answer in entry["listwise_answers"]]
        order = [[one] + [place for place in range(MOST_CANDIDATES) if place != one] for one in best]
        listwise = ranking("listwise", order)
        found["listwise_answers"] = [words[one] for one in best]
        found["listwise_first"] = [dids[0] for dids in listwise]
        found["listwise_recall"] = recalls(listwise, 1)
    return found
