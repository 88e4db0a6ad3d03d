"""This project against upstream_mbeir.{safetensors, json}: stage 2's training, evaluation and mining."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from comparison import Comparison, gradients, read_json
from stage2_inputs import (
    Benchmark,
    Values,
    ambiguous,
    attempts,
    compare_inputs,
    compare_recipe,
    draws,
    flickr,
    item_of,
    model_folder,
    rendered,
    row_of,
    same_ranking,
    upstream_text,
)

from lamra.collators.messages import INSTRUCTION_IMAGE_TO_TEXT
from lamra.collators.processing import Processor
from lamra.collators.rerank import IGNORED
from lamra.collators.retrieval import RetrievalCollator
from lamra.datasets.items import Item, Pair
from lamra.datasets.mbeir import MBEIRPairs
from lamra.datasets.rerank import mined_candidates
from lamra.eval.metrics import recall_at_k
from lamra.eval.mine_rerank import TrainingQueries, mined, usable, write
from lamra.eval.retriever import Retriever, RetrieverArguments, load_retriever
from lamra.eval.search import top_k
from lamra.eval.zeroshot import with_instruction
from lamra.models.losses import info_nce

TEXT_MAX_TOKENS = 480  # scripts/lamra_ret/finetune.sh
TEMPERATURE = 0.05
BATCH = 16  # of upstream's evaluation
TOKENS_OF_A_FORWARD = 16384


class Stage2:
    def __init__(self, comparison: Comparison, golden: Path, work: Path, processor: Path, photographs: Path, model):
        self.comparison, self.golden, self.work = comparison, golden, work
        self.values = Values.read(golden, "upstream_mbeir")
        self.mbeir = Benchmark(golden, work / "retriever_mbeir", photographs)
        self.config = read_json(golden / "config_retriever.json")
        self.emb = self.config["vocab_size"] - 1  # upstream added <emb> as the last token
        self.drawn = model_folder(golden, self.values, "config_retriever.json", processor, work / "retriever")
        arguments = RetrieverArguments(
            str(model or self.drawn), bf16=False, num_workers=0, max_tokens_per_batch=TOKENS_OF_A_FORWARD
        )
        self.retriever: Retriever = load_retriever(arguments)
        self.processor = self.retriever.processor
        self.training = Processor(processor, text_max_tokens=TEXT_MAX_TOKENS)

    def compare(self) -> None:
        for part, keys in (
            (self.recipe, self.values.keys("model")),
            (self.instructions, self.values.keys("instructions")),
            (lambda: self.batches("train"), self.values.keys("train")),
            (lambda: self.batches("hardneg"), self.values.keys("hardneg")),
            (self.evaluation, self.values.keys("eval_query", "eval_cand", "edge_query", "edge_cand")),
            (self.script, self.values.keys("script")),
            (self.mined, self.values.keys("mined")),
            (self.made_up_recall, self.values.keys("recall")),
            (self.flickr, self.values.keys("flickr")),
            (self.pictures, self.values.keys("photographs")),
        ):
            with self.comparison.computing(*keys):
                part()
        self.comparison.require_all(self.values.keys())

    def recipe(self) -> None:
        compare_recipe(self.comparison, self.values, self.config, self.drawn)

    def instructions(self) -> None:
        found = []
        for entry in self.values.json["instructions"]:
            positive, prompt = draws(self.mbeir.train_pairs, entry["qid"], entry["positive"], entry["prompt"])
            item = item_of(self.mbeir.train_queries, entry["qid"], entry["prompt"])
            text = rendered(self.training, self.training.encode(item))
            found.append(dict(qid=item.id, positive=positive, prompt=prompt, text=text))
        expected = [{**entry, "text": upstream_text(entry["text"])} for entry in self.values.json["instructions"]]
        self.values.compare_json(self.comparison, "instructions", "could be drawn, and renders to it", found, expected)

    def batches(self, kind: str) -> None:
        """Training batches: what RetrievalCollator, Embedder and info_nce make of the rows that upstream drew."""
        found = []
        for number, entry in enumerate(self.values.json[kind]):
            with self.comparison.computing(*self.values.keys(f"{kind}.{number}.")):
                found.append(self.batch(f"{kind}.{number}", entry))
        texts = ("query_texts", "candidate_texts")
        expected = [
            {name: list(map(upstream_text, value)) if name in texts else value for name, value in entry.items()}
            for entry in self.values.json[kind]
        ]
        self.values.compare_json(self.comparison, kind, "can be drawn; rendered texts", found, expected)

    def batch(self, key: str, entry: dict) -> dict:
        values, mbeir = self.values, self.mbeir
        drawn = [draws(mbeir.train_pairs, *one) for one in zip(entry["queries"], entry["positives"], entry["prompts"])]
        queries = [item_of(mbeir.train_queries, *one) for one in zip(entry["queries"], entry["prompts"])]
        parts = [[item_of(mbeir.train_pool, did) for did in entry.get(name, [])] for name in ("positives", "negatives")]
        negatives = [(item,) for item in parts[1]] or [()] * len(queries)
        pairs = [Pair(*items) for items in zip(queries, parts[0], negatives)]
        collator = RetrievalCollator(self.training)
        encoded = attempts(collator.encode, pairs)
        broken = [one for one in encoded if isinstance(one, Exception)]
        if broken:
            raise broken[0]
        rows = [one[part] for part in range(len(encoded[0])) for one in encoded]  # queries, positives, negatives
        compare_inputs(self.comparison, values, key, rows, "a training batch", tail=self.emb)
        self.labels(key, rows)

        batch = collator.batch(pairs, encoded)
        count = batch.pop("num_queries")
        batch.pop("ids")
        embedder = self.retriever.embedder.requires_grad_().train()
        embedder.zero_grad()
        self.comparison.close(
            values.key(f"{key}.hidden"),
            "before <emb>",
            embedder.hidden_state(**batch),
            values.tensors[f"{key}.hidden"],
        )
        embeds = embedder(**batch)
        loss = info_nce(embeds[:count], embeds[count:], TEMPERATURE).loss
        self.comparison.close(values.key(f"{key}.loss"), "info_nce", loss, values.tensors[f"{key}.loss"])
        expected = {name: name.removeprefix(f"{key}.grad.") for name in values.tensors if f"{key}.grad." in name}
        if expected:
            loss.backward()
            found = gradients(embedder.stock)
            for name, parameter in expected.items():
                self.comparison.close_as_a_whole(
                    values.key(name), "gradient of the loss", found[parameter], values.tensors[name]
                )
        embedder.eval().requires_grad_(False)
        texts = [rendered(self.training, one) for one in rows]
        return {
            "queries": [pair.query.id for pair in pairs],
            "positives": [positive for positive, _ in drawn],
            "negatives": [pair.negatives[0].id for pair in pairs if pair.negatives],
            "prompts": [prompt for _, prompt in drawn],
            "loss_gradients": bool(expected),
            "cut_inside_a_character": [row for row, text in enumerate(texts) if "\ufffd" in text],
            "query_texts": texts[:count],
            "candidate_texts": texts[count:],
        }

    def labels(self, key: str, rows: Sequence[dict]) -> None:
        """Upstream's labels of stage 2 are its ids again, but for the padding token: no loss reads them."""
        labels, mask = self.values.tensors[f"{key}.labels"].long(), self.values.tensors[f"{key}.attention_mask"].bool()
        pad = self.training.tokenizer.pad_token_id
        expected, found = [], []
        for row, kept, one in zip(labels, mask, rows):
            expected.append(row[kept].tolist()[: len(one["input_ids"])] + row[~kept].unique().tolist())
            padded = [IGNORED] if not kept.all() else []
            found.append([IGNORED if token == pad else token for token in one["input_ids"]] + padded)
        self.comparison.equal(self.values.key(f"{key}.labels"), "ids again", found, expected)

    def instructed(self, queries, pool) -> TrainingQueries:
        """Queries with the one instruction of their kind."""
        return TrainingQueries(MBEIRPairs(queries, pool, self.mbeir.one_prompt))

    def evaluation(self) -> None:
        mbeir = self.mbeir
        self.queries = self.instructed(mbeir.test_queries, mbeir.test_pool)
        self.evaluated("eval_query", list(self.queries))
        self.evaluated("eval_cand", list(mbeir.test_pool))
        for name, rows in (("eval_query", mbeir.test_queries), ("eval_cand", mbeir.test_pool)):
            ids = [rows.id(row) for row in range(len(rows))]
            self.values.compare_json(self.comparison, name, "order of the file", ids)
        with self.comparison.computing(*self.values.keys("edge_cand")):
            edge = mbeir.pool("edge/cand_pool.jsonl")
            self.evaluated("edge_cand", attempts(edge.item, range(len(edge))))
        with self.comparison.computing(*self.values.keys("edge_query")):
            queries = mbeir.queries("edge/query.jsonl")
            self.evaluated("edge_query", list(self.instructed(queries, mbeir.pool("edge/cand_pool.jsonl"))))

    def evaluated(self, name: str, items: list[Item]) -> None:
        """Evaluation batches, and the hidden states of all rows."""
        hidden, skipped = [], {}
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            encoded = attempts(self.processor.encode, batch)
            reasons = ambiguous(batch)
            compare_inputs(
                self.comparison,
                self.values,
                f"{name}.{start // BATCH}",
                encoded,
                "an evaluation batch",
                tail=self.emb,
                skipped=reasons,
            )
            skipped |= {start + row: reason for row, reason in reasons.items()}
            for one in encoded:
                with torch.no_grad():
                    hidden.append(self.retriever.embedder.hidden_state(**self.processor.pad([one]))[0])
        kept = [row for row in range(len(items)) if row not in skipped]
        self.comparison.close(
            self.values.key(f"{name}.hidden"),
            "before <emb>",
            torch.stack(hidden)[kept],
            self.values.tensors[f"{name}.hidden"][kept],
        )

    def script(self) -> None:
        """eval_mbeir.py's features, scores, ranking and recalls; the mining script's file."""
        values, mbeir, expected = self.values, self.mbeir, self.values.json["script"]
        query = self.retriever.encode(self.queries, "queries")
        gallery = self.retriever.encode(mbeir.test_pool, "candidates")
        for name, features in (("query", query), ("candidate", gallery)):
            key = f"script.{name}_features"
            self.comparison.close(values.key(key), "the encode loop", features, values.tensors[key])
        depth = values.tensors["script.scores"].shape[1]
        scores, found = top_k(query, gallery, depth)
        self.comparison.close(values.key("script.scores"), f"top {depth}", scores, values.tensors["script.scores"])

        rows = [[row_of(mbeir.test_pool, did) for did in dids] for dids in expected["cand_names"]]
        whole = query @ gallery.T
        expected = {**expected, "cand_names": [same_ranking(*one) for one in zip(whole, found.tolist(), rows)]}
        answers = mbeir.answers()
        results = []
        for sentence in expected["results"]:
            k = int(sentence.split(" = ")[0].removeprefix("recall_at_"))
            # Of upstream's own ranking: equal pictures tie, and one of them may be the answer.
            results.append(f"recall_at_{k} = {recall_at_k(torch.tensor(rows), answers, k)}")
        ids = [mbeir.test_queries.id(row) for row in range(len(mbeir.test_queries))]
        values.compare_json(
            self.comparison,
            "script",
            "ranking, ties in our order; recall",
            {"query_names": ids, "cand_names": found.tolist(), "results": results},
            expected,
        )

    def mined(self) -> None:
        """What mining keeps of the whole pool, and the file it writes.

        Upstream keeps the positives in its file and drops them when training reads it; mining here drops them, and
        candidates that look or read like one (mine_rerank.usable), when it writes. So these are dropped from
        upstream's lists, and ours are as long as those.
        """
        values, mbeir = self.values, self.mbeir
        expected = values.json["mined"]
        pairs = MBEIRPairs(mbeir.train_queries, mbeir.train_pool, mbeir.one_prompt)
        gallery = self.retriever.encode(mbeir.train_pool, "candidates")
        scores = self.retriever.encode(TrainingQueries(pairs), "queries") @ gallery.T
        order = scores.argsort(dim=1, descending=True, stable=True)
        top = max(len(one["top100_docs"]) for one in expected.values())
        arguments = SimpleNamespace(own_kind=False, top=top)
        folder = self.work / "mined"
        write(folder, pairs, mined(pairs, scores.gather(1, order), order, arguments))
        ours = json.loads((folder / "mined.json").read_text())
        files = [dict(mined_candidates(folder / "mined.json")), {}]
        for qid, dids in mined_candidates(folder / "mined.jsonl"):
            files[1].setdefault(qid, []).extend(dids)
        assert files[0] == files[1]
        rankings = {}
        for qid, entry in expected.items():
            row = row_of(mbeir.train_queries, qid)
            ranking = [row_of(mbeir.train_pool, did) for did in entry["top100_docs"]]
            wrong = usable(pairs, row, ranking, own_kind=False)
            ranking = [candidate for candidate in ranking if candidate in wrong]
            found = [row_of(mbeir.train_pool, did) for did in ours[qid]["top100_docs"][: len(ranking)]]
            rankings[qid] = {**entry, "top100_docs": same_ranking(scores[row], found, ranking)}
            ours[qid]["top100_docs"] = found
        what = "mined from our scores; without positives and their equals, ties in our order"
        values.compare_json(self.comparison, "mined", what, ours, rankings)

    def made_up_recall(self) -> None:
        values = self.values.json["recall"]
        names = {name: place for place, name in enumerate(dict.fromkeys(sum(values["ranking"].values(), [])))}
        for dids in values["qrels"].values():
            for did in dids:
                names.setdefault(did, len(names))
        ranking = torch.tensor([[names[did] for did in values["ranking"][qid]] for qid in values["qrels"]])
        relevant = [[names[did] for did in dids] for dids in values["qrels"].values()]
        found = {"qrels": values["qrels"], "ranking": values["ranking"], "recall": {}, "mean": {}}
        for k in values["recall"]:
            each = [
                recall_at_k(ranking[row : row + 1], relevant[row : row + 1], int(k)) for row in range(len(relevant))
            ]
            found["recall"][k] = each
            found["mean"][k] = recall_at_k(ranking, relevant, int(k))
        self.values.compare_json(self.comparison, "recall", "recall_at_k", found)

    def flickr(self) -> None:
        """eval_flickr.py's mode "finetuned" embeds pictures with their instruction and captions without any."""
        data = flickr(self.golden, self.work / "retriever_flickr", self.values.json["flickr"])
        sources = self.values.json["flickr"]["pictures"]
        found = {"captions": [item.text for item in data.texts], "pictures": sources[: len(data.images)]}
        self.values.compare_json(self.comparison, "flickr", "read by load_captioned_images", found)
        for name, items in (
            ("image", with_instruction(data.images, INSTRUCTION_IMAGE_TO_TEXT)),
            ("text", data.texts),
        ):
            key = f"flickr_finetuned.{name}"
            with self.comparison.computing(*self.values.keys(key)):
                encoded = attempts(self.processor.encode, items[: len(self.values.tensors[f"{key}.input_ids"])])
                compare_inputs(self.comparison, self.values, key, encoded, "mode finetuned", tail=self.emb)
                with torch.no_grad():
                    hidden = self.retriever.embedder.hidden_state(**self.processor.pad(encoded))
                self.comparison.close(
                    self.values.key(f"{key}.hidden"), "before <emb>", hidden, self.values.tensors[f"{key}.hidden"]
                )

    def pictures(self) -> None:
        found = {}
        for name in self.values.json["photographs"]:
            pixels = self.processor.pixels(Item(name, images=(self.mbeir.photographs / name,)))
            digest = hashlib.sha256((pixels["pixel_values"].float() + 0.0).numpy().tobytes())
            found[name] = {"grid": pixels["image_grid_thw"][0].tolist(), "sha256": digest.hexdigest()}
        self.values.compare_json(self.comparison, "photographs", "Processor.pixels", found)
