"""This project against upstream_mbeir.{safetensors, json}: stage 2's training, evaluation and mining."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from unittest.mock import patch

import torch
from comparison import Comparison, gradients, read_json
from stage2_inputs import (
    ONE_PROMPT,
    Benchmark,
    Values,
    ambiguous,
    attempts,
    compare_inputs,
    compare_recipe,
    draws,
    flickr,
    is_positive,
    item_of,
    model_folder,
    rendered,
    row_of,
    same_ranking,
    upstream_text,
)

from lamra.collators.processing import Processor
from lamra.collators.rerank import IGNORED
from lamra.collators.retrieval import RetrievalCollator, in_batch_order
from lamra.datasets.caption import captioned_tasks
from lamra.datasets.items import Item, Pair
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.rows import Rows
from lamra.datasets.rankings import mined_candidates
from lamra.eval import mine_rerank
from lamra.eval.flags import RetrieverArguments
from lamra.eval.inference import load_retriever
from lamra.eval.metrics import recall_at_k
from lamra.eval.mining import TrainingQueries
from lamra.eval.search import top_k
from lamra.models.losses import info_nce
from lamra.models.settings import settings_to_train

sys.path.append(str(Path(__file__).parents[1] / "support"))  # where compare.py is started alone
from plain_mining import same

TEXT_MAX_TOKENS = 480  # scripts/lamra_ret/finetune.sh
TEMPERATURE = 0.05


class Stage2:
    """Args: as compare.compare; `work` is a folder to write in, `golden` the one with the reference values."""

    def __init__(self, comparison: Comparison, golden: Path, work: Path, processor: Path, photographs: Path, model):
        self.comparison, self.golden, self.work = comparison, golden, work
        self.values = Values.read(golden, "upstream_mbeir")
        self.mbeir = Benchmark(golden, work / "retriever_mbeir", photographs)
        self.config = read_json(golden / "config_retriever.json")
        self.emb = self.config["vocab_size"] - 1  # upstream added <emb> as the last token
        self.drawn = model_folder(golden, self.values, "config_retriever.json", processor, work / "retriever")
        self.model_id = str(model or self.drawn)
        self.retriever = load_retriever(RetrieverArguments(self.model_id, bf16=False, num_workers=0))
        self.processor = self.retriever.processor
        self.retriever.embedder.pixels_from_bytes = self.processor.visuals.floats
        settings = settings_to_train(
            self.drawn, text_max_tokens=TEXT_MAX_TOKENS, temperature=TEMPERATURE, min_pixels=None, max_pixels=None
        )
        self.training = Processor(
            self.drawn,
            min_pixels=settings.min_pixels,
            max_pixels=settings.max_pixels,
            text_max_tokens=settings.text_max_tokens,
        )

    def compare(self) -> None:
        parts = (
            (self.recipe, ["model"]),
            (self.instructions, ["instructions"]),
            (lambda: self.batches("train"), ["train"]),
            (lambda: self.batches("hardneg"), ["hardneg"]),
            (self.evaluation, ["eval_query", "eval_cand"]),
            (self.edge_cases, ["edge_query", "edge_cand"]),
            (self.script, ["script"]),
            (self.mined, ["mined"]),
            (self.made_up_recall, ["recall"]),
            (self.flickr, ["flickr"]),
            (self.pictures, ["photographs"]),
        )
        self.values.compare_parts(self.comparison, parts)

    def close(self, name: str, what: str, found: torch.Tensor) -> None:
        self.comparison.close(self.values.key(name), what, found, self.values.tensors[name])

    def recipe(self) -> None:
        compare_recipe(self.comparison, self.values, self.config, self.drawn)

    def instructions(self) -> None:
        found = []
        for entry in self.values.json["instructions"]:
            positive, prompt = draws(self.mbeir.train_pairs, entry["qid"], entry["positive"], entry["prompt"])
            item = item_of(self.mbeir.train_queries, entry["qid"], entry["prompt"])
            text = rendered(self.training, self.training.encode(item))
            found.append({"qid": item.id, "positive": positive, "prompt": prompt, "text": text})
        expected = [{**entry, "text": upstream_text(entry["text"])} for entry in self.values.json["instructions"]]
        self.values.compare_json(self.comparison, "instructions", "can be drawn; rendered texts", found, expected)

    def batches(self, kind: str) -> None:
        """Training batches: what RetrievalCollator, Embedder and info_nce make of the rows that upstream drew."""
        found, texts = [], ("query_texts", "candidate_texts")
        for number, entry in enumerate(self.values.json[kind]):
            with self.comparison.computing(*self.values.keys(f"{kind}.{number}.")):
                found.append(self.batch(f"{kind}.{number}", entry))
        expected = [
            {name: list(map(upstream_text, value)) if name in texts else value for name, value in entry.items()}
            for entry in self.values.json[kind]
        ]
        self.values.compare_json(self.comparison, kind, "can be drawn; rendered texts", found, expected)

    def batch(self, key: str, entry: dict) -> dict:
        mbeir = self.mbeir
        drawn = [draws(mbeir.train_pairs, *one) for one in zip(entry["queries"], entry["positives"], entry["prompts"])]
        queries = [item_of(mbeir.train_queries, *one) for one in zip(entry["queries"], entry["prompts"])]
        positives = [item_of(mbeir.train_pool, did) for did in entry["positives"]]
        negatives = [(item_of(mbeir.train_pool, did),) for did in entry.get("negatives", [])] or [()] * len(queries)
        pairs = list(map(Pair, queries, positives, negatives))
        collator = RetrievalCollator(self.training)
        encoded = list(map(collator.encode, pairs))
        rows = [prompts[part] for part in range(len(encoded[0])) for prompts in encoded]  # queries, then positives, ...
        skipped = ambiguous([*queries, *positives, *(item for few in negatives for item in few)])
        compare_inputs(
            self.comparison,
            self.values,
            key,
            rows,
            "a training batch",
            tail=self.emb,
            skipped=skipped,
            processor=self.processor,
        )
        self.labels(key, rows, skipped)

        batch, size = self.training.pad(in_batch_order(encoded)), len(pairs)
        embedder = self.retriever.embedder.requires_grad_().train()
        embedder.zero_grad()
        kept = [row for row in range(len(rows)) if row not in skipped]
        self.comparison.close(
            self.values.key(f"{key}.hidden"),
            "before <emb>",
            embedder.hidden_state(**batch)[kept],
            self.values.tensors[f"{key}.hidden"][kept],
        )
        has_gradients = self.loss(key, lambda: embedder(**batch), size, skipped)
        embedder.eval().requires_grad_(False)
        texts = [rendered(self.training, row) for row in rows]
        return {
            "queries": [query.id for query in queries],
            "positives": [positive for positive, _ in drawn],
            # Any candidate that is no positive may be a hard negative.
            "negatives": [
                None if is_positive(mbeir.train_pairs, query.id, negative[0].id) else negative[0].id
                for query, negative in zip(queries, negatives)
                if negative
            ],
            "prompts": [prompt for _, prompt in drawn],
            "loss_gradients": has_gradients,
            "cut_inside_a_character": [row for row, text in enumerate(texts) if "\ufffd" in text],
            "query_texts": texts[:size],
            "candidate_texts": texts[size:],
        }

    def labels(self, key: str, rows: Sequence[dict], skipped: dict) -> None:
        """Upstream's labels of stage 2 are its ids again, but for the padding token: no loss reads them."""
        labels, mask = self.values.tensors[f"{key}.labels"].long(), self.values.tensors[f"{key}.attention_mask"].bool()
        pad = self.training.tokenizer.pad_token_id
        expected, found = [], []
        for i, (row, kept, prompt) in enumerate(zip(labels, mask, rows)):
            if i not in skipped:
                expected.append([row[kept].tolist()[: len(prompt["input_ids"])], row[~kept].unique().tolist()])
                ids = [IGNORED if token == pad else token for token in prompt["input_ids"]]
                found.append([ids, [] if kept.all() else [IGNORED]])
        self.comparison.equal(self.values.key(f"{key}.labels"), "ids again, padding ignored", found, expected)

    def loss(self, key: str, embed, size: int, skipped: dict) -> bool:
        """Loss and its gradients; whether the file has gradients."""
        wanted = {name: name.removeprefix(f"{key}.grad.") for name in self.values.tensors if f"{key}.grad." in name}
        if skipped:
            for name in (f"{key}.loss", *wanted):
                self.comparison.leave_out(self.values.key(name), next(iter(skipped.values())))
            return bool(wanted)
        embeds = embed()
        loss = info_nce(embeds[:size], embeds[size:], TEMPERATURE).loss
        self.close(f"{key}.loss", "info_nce", loss.unsqueeze(0))
        if wanted:
            loss.backward()
            found = gradients(self.retriever.embedder.stock)
            for name, parameter in wanted.items():
                expected = self.values.tensors[name]
                self.comparison.close_as_a_whole(self.values.key(name), "gradient", found[parameter], expected)
        return bool(wanted)

    def evaluation(self) -> None:
        """The test queries and candidates, in the order of their files."""
        mbeir = self.mbeir
        for name, rows in (("eval_query", mbeir.test_queries), ("eval_cand", mbeir.test_pool)):
            ids = [rows.id(row) for row in range(len(rows))]
            self.values.compare_json(self.comparison, name, "order of the file", ids)
        self.evaluated("eval_query", list(self.instructed(mbeir.test_queries, mbeir.test_pool)))
        self.evaluated("eval_cand", list(mbeir.test_pool))

    def edge_cases(self) -> None:
        pool = self.mbeir.pool("edge/cand_pool.jsonl")
        self.evaluated("edge_cand", list(pool))
        self.evaluated("edge_query", list(self.instructed(self.mbeir.queries("edge/query.jsonl"), pool)))

    def instructed(self, queries: Rows, pool: Rows) -> TrainingQueries:
        """Queries with the one instruction of their kind."""
        return TrainingQueries(MBEIRPairs(queries, pool, self.mbeir.one_prompt))

    def evaluated(self, name: str, items: list[Item]) -> None:
        """Evaluation batches, and the hidden states of all rows."""
        hidden, skipped, start = [], ambiguous(items), 0
        for number in count():
            key = f"{name}.{number}"
            if f"{key}.input_ids" not in self.values.tensors:
                break
            end = start + len(self.values.tensors[f"{key}.input_ids"])
            encoded = attempts(self.processor.encode, items[start:end])
            left_out = {row - start: reason for row, reason in skipped.items() if start <= row < end}
            what = "an evaluation batch"
            left_out = compare_inputs(
                self.comparison,
                self.values,
                key,
                encoded,
                what,
                tail=self.emb,
                skipped=left_out,
                processor=self.processor,
            )
            skipped |= {start + row: reason for row, reason in left_out.items()}
            with torch.no_grad():
                hidden.append(self.retriever.embedder.hidden_state(**self.processor.pad(encoded)))
            start = end
        kept = [row for row in range(start) if row not in skipped]
        expected = self.values.tensors[f"{name}.hidden"][kept]
        self.comparison.close(self.values.key(f"{name}.hidden"), "before <emb>", torch.cat(hidden)[kept], expected)

    def script(self) -> None:
        """eval_mbeir.py's features, scores, ranking and recalls."""
        mbeir, expected = self.mbeir, self.values.json["script"]
        query = self.retriever.encode(self.instructed(mbeir.test_queries, mbeir.test_pool), "queries")
        gallery = self.retriever.encode(mbeir.test_pool, "candidates")
        self.close("script.query_features", "the encode loop", query)
        self.close("script.candidate_features", "the encode loop", gallery)
        depth = self.values.tensors["script.scores"].shape[1]
        scores, ranking = top_k(query, gallery, depth)
        self.close("script.scores", f"the {depth} highest", scores)

        theirs = [[row_of(mbeir.test_pool, did) for did in dids] for dids in expected["cand_names"]]
        results, answers = [], mbeir.answers()
        for sentence in expected["results"]:
            k = int(sentence.split(" = ")[0].removeprefix("recall_at_"))
            # Of upstream's own ranking: equal pictures tie, and one of them may be the answer.
            results.append(f"recall_at_{k} = {recall_at_k(theirs, answers, k)}")
        found = {
            "query_names": [mbeir.test_queries.id(row) for row in range(len(mbeir.test_queries))],
            "cand_names": ranking.tolist(),
            "results": results,
        }
        names = [same_ranking(*rows) for rows in zip(query @ gallery.T, found["cand_names"], theirs)]
        what = "order of the file; ranking, ties in our order; recalls"
        self.values.compare_json(self.comparison, "script", what, found, {**expected, "cand_names": names})

    def mined(self) -> None:
        """What mine_rerank.py writes of the whole pool.

        Upstream keeps the positives in its file and drops them when training reads it; mining here drops them, and
        candidates that look or read like one (plain_mining.same), when it writes. So these are dropped from upstream's
        lists, and ours are as long as those.
        """
        queries, pool, expected = self.mbeir.train_queries, self.mbeir.train_pool, self.values.json["mined"]
        flags = {
            "model_id": self.model_id,
            "data_path": self.mbeir.root,
            "instructions": ONE_PROMPT,
            "own_kind": False,
            "top": max(len(docs["top100_docs"]) for docs in expected.values()),
            "output_dir": self.work / "mined",
            "bf16": False,
            "num_workers": 0,
            "jsonl": True,
        }
        arguments = ["mine_rerank.py", *(str(part) for flag, value in flags.items() for part in (f"--{flag}", value))]
        with patch.object(sys, "argv", arguments), redirect_stdout(sys.stderr):
            mine_rerank.main()
        ours = read_json(self.work / "mined" / "mined.json")
        ranking: dict[str, list[str]] = {}
        for qid, dids in mined_candidates(self.work / "mined" / "mined.jsonl"):
            ranking.setdefault(qid, []).extend(dids)
        if ranking != {qid: docs["top100_docs"] for qid, docs in ours.items()}:
            raise ValueError("mined.jsonl and mined.json have other candidates")

        pairs = MBEIRPairs(queries, pool, self.mbeir.one_prompt)
        scores = self.retriever.encode(TrainingQueries(pairs), "queries") @ self.retriever.encode(pool, "candidates").T
        number = {item.id: i for i, item in enumerate(TrainingQueries(pairs))}
        theirs = {}
        for qid, docs in expected.items():
            right = [row_of(pool, did) for did in docs["gt_docs"]]
            rows = [row_of(pool, did) for did in docs["top100_docs"]]
            wrong = [row for row in rows if not any(row == one or same(pool[row], pool[one]) for one in right)]
            found = [row_of(pool, did) for did in ours[qid]["top100_docs"][: len(wrong)]]
            ours[qid]["top100_docs"] = found
            theirs[qid] = {**docs, "top100_docs": same_ranking(scores[number[qid]], found, wrong)}
        what = "mined; without positives and their equals, ties in our order"
        self.values.compare_json(self.comparison, "mined", what, ours, theirs)

    def made_up_recall(self) -> None:
        values = self.values.json["recall"]
        dids = [did for ids in (*values["ranking"].values(), *values["qrels"].values()) for did in ids]
        number = {did: i for i, did in enumerate(dict.fromkeys(dids))}
        ranking = [[number[did] for did in values["ranking"][qid]] for qid in values["qrels"]]
        relevant = [[number[did] for did in dids] for dids in values["qrels"].values()]
        found = {
            "recall": {
                k: [recall_at_k([row], [ids], int(k)) for row, ids in zip(ranking, relevant)] for k in values["recall"]
            },
            "mean": {k: recall_at_k(ranking, relevant, int(k)) for k in values["mean"]},
        }
        self.values.leave_out_inputs(self.comparison, "recall.qrels", "recall.ranking")
        self.values.compare_json(self.comparison, "recall", "recall_at_k", found)

    def flickr(self) -> None:
        """eval_flickr.py's mode "finetuned" embeds pictures with their instruction and captions without any."""
        data = flickr(self.golden, self.work / "retriever_flickr", self.values.json["flickr"])
        self.values.leave_out_inputs(self.comparison, "flickr.pictures")
        found = {"captions": [item.text for item in data.texts]}
        self.values.compare_json(self.comparison, "flickr", "read by load_captioned_images", found)
        task, _ = captioned_tasks(data, "Flickr30K", "captions.json", "released")
        for key, items in (("flickr_finetuned.image", task.gallery), ("flickr_finetuned.text", task.queries)):
            encoded = attempts(self.processor.encode, items[: len(self.values.tensors[f"{key}.input_ids"])])
            compare_inputs(
                self.comparison, self.values, key, encoded, "mode finetuned", tail=self.emb, processor=self.processor
            )
            with torch.no_grad():
                hidden = self.retriever.embedder.hidden_state(**self.processor.pad(encoded))
            self.close(f"{key}.hidden", "before <emb>", hidden)

    def pictures(self) -> None:
        found = {}
        for name in self.values.json["photographs"]:
            pixels = self.processor.visuals.pixels(Item(name, images=(self.mbeir.photographs / name,)))
            digest = hashlib.sha256((self.processor.visuals.floats(pixels["pixel_values"]) + 0.0).numpy().tobytes())
            found[name] = {"grid": pixels["image_grid_thw"][0].tolist(), "sha256": digest.hexdigest()}
        self.values.compare_json(self.comparison, "photographs", "Processor.pixels", found)
