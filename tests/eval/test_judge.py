"""LamRA-Rank: what is mined, and exact answers: shared beginnings, pictures kept, the window, fusion."""

from __future__ import annotations

import json
import re

import pytest
import torch
from mbeir_pairs import pairs_of

from lamra.collators.processing import Processor
from lamra.datasets.items import Item
from lamra.datasets.mbeir.rows import id_key
from lamra.eval.rerank.fusion import reranked
from lamra.eval.rerank.judge import Judge
from lamra.models.loading import load_reranker
from lamra.models.reranker import Reranker


def test_mined_candidates_are_wrong_and_of_the_positives_kind(mbeir, mined):
    pairs, upstream = pairs_of(mbeir), json.loads((mined / "mined.json").read_text())
    lines = [json.loads(line) for line in (mined / "mined.jsonl").read_text().splitlines()]
    assert [line["did"] for line in lines] == [did for docs in upstream.values() for did in docs["top100_docs"]]
    assert len(upstream) == len(pairs) and {len(docs["top100_docs"]) for docs in upstream.values()} == {6}
    for row in range(len(pairs)):
        docs = upstream[pairs.queries.id(row)]
        right = [pairs.pool[place] for place in pairs.positives(row)]
        assert docs["gt_docs"] == [item.id for item in right]
        for place in pairs.pool.rows_of([id_key(did) for did in docs["top100_docs"]]):
            item = pairs.pool[place]
            assert item.id not in docs["gt_docs"] and item.id.split(":")[0] == docs["gt_docs"][0].split(":")[0]
            assert all(item.text != one.text or not item.text for one in right)
            assert all(item.images != one.images or not item.images for one in right)


def judge_of(folder, position_ids="mrope", **options) -> Judge:
    options = dict(padding_free=True, share_prefix=True, budget=4096, memory=1.0) | options
    model, settings = load_reranker(
        folder, dtype=torch.float32, position_ids=position_ids, padding_free=options["padding_free"]
    )
    processor = Processor(folder, max_length=2048, text_max_tokens=256)
    return Judge(model, processor, settings, options["budget"], 0, options["share_prefix"], options["memory"])


@pytest.mark.parametrize("position_ids", ["mrope", "sequential"])
def test_shared_prefix_and_batches_change_nothing(tiny_model, mbeir, position_ids):
    pictures = [mbeir / f"mbeir_images/train/{i}.png" for i in range(3)]
    of = [
        Item("t", "A red circle."),
        Item("p", None, (pictures[0],)),
        Item("b", "A red box.", (pictures[1],), "Find it."),
    ]
    candidates = [
        *of,
        Item("u", "A blue cross at top left."),
        Item("v", None, (pictures[2],)),
        Item("w", "A red circle"),
    ]
    judge = judge_of(tiny_model, position_ids)
    plain = judge_of(tiny_model, position_ids, padding_free=False)
    small = judge_of(tiny_model, position_ids, budget=400)
    shown = [judge.prompts.prepare(item) for item in candidates]
    for query in map(judge.prompts.prepare, of):
        for some in (shown, shown[3:], [shown[1], shown[4]], shown[:1]):
            alone = [plain.pointwise(query, [one])[0] for one in some]
            assert judge.pointwise(query, some) == pytest.approx(alone, abs=1e-5)
            assert small.pointwise(query, some) == pytest.approx(alone, abs=1e-5)
            assert len({round(score, 4) for score in alone}) == len(alone)  # something to tell apart
        assert judge.listwise(query, shown) == plain.listwise(query, shown) == small.listwise(query, shown)
        assert sorted(judge.listwise(query, shown)) == list(range(6))
    judge.tokens = plain.tokens = 0
    query = judge.prompts.prepare(of[2])
    judge.pointwise(query, shown), plain.pointwise(query, shown)
    assert judge.tokens < plain.tokens / 2


def test_a_picture_is_looked_at_once(tiny_model, mbeir):
    items = [Item(str(i), None, (mbeir / f"mbeir_images/train/{i}.png",)) for i in range(4)]
    items.append(Item("text", "A red circle.", (mbeir / "mbeir_images/train/0.png",)))  # the same picture once more
    judge, forgetful = judge_of(tiny_model), judge_of(tiny_model, memory=0)
    little = judge_of(tiny_model, memory=2.5 * 9 * 128 * 4 / 2**30)  # room for two pictures
    shown = [judge.prompts.prepare(item) for item in items]
    answers = []
    for one, kept in ((judge, 4), (forgetful, 0), (little, 2)):
        queries = shown[0], shown[4], shown[1]
        answers.append([(one.pointwise(query, shown[1:4]), one.listwise(query, shown[1:4])) for query in queries])
        assert len(one.features._kept) == kept
    assert answers[0] == answers[1] == answers[2]
    assert judge.features.computed == 4 < little.features.computed < forgetful.features.computed == 24

    # And as the stock model sees the pixels.
    prompt = judge.prompts.pointwise(shown[0], shown[1])
    inputs = judge.processor.pad([prompt])
    answer_mask = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
    answer_mask[0, -1] = True
    logits = judge.model(**inputs, answer_mask=answer_mask)[0, judge.yes_no[1]]
    assert judge.yes_no[0] == [] and logits.softmax(0)[0].item() == pytest.approx(answers[0][0][0][0], abs=1e-6)


def test_answers_are_told_apart_in_bf16(tiny_model):
    """bf16 logits of one token after many prompts take few values; in float32 no two of them tie."""
    judge = judge_of(tiny_model)
    model = Reranker(judge.model.model.bfloat16(), "mrope").eval()
    model.stock.lm_head.weight.data.mul_(40)  # logits of the size that trained models have
    rows = [judge.prompts.pointwise(*(judge.prompts.prepare(Item(t, t)) for t in ("q", f"{i} c"))) for i in range(40)]
    inputs = judge.processor.pad(rows)
    last = inputs["attention_mask"].sum(dim=1, keepdim=True) - 1
    inputs["answer_mask"] = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool).scatter(1, last, True)
    answers = torch.tensor(judge.yes_no[1])
    with torch.no_grad():
        coarse, fine = model(**inputs)[:, answers], model(**inputs, answers=answers)
    assert fine.dtype == torch.float32 and (fine - coarse).abs().max() < 0.13
    assert len(coarse[:, 0].unique()) < 30 and len(fine[:, 0].unique()) == 40


def test_the_window_carries_the_best_to_the_front(tiny_model, monkeypatch):
    judge, asked = judge_of(tiny_model), []
    names = [f"{i} is it." for i in range(12)]
    shown = [judge.prompts.prepare(Item(name, name)) for name in names]

    def last_logits(prompts, _shown, _answers):
        (prompt,) = prompts
        text = judge.processor.tokenizer.decode(prompt["input_ids"]).split("Candidates:")[1]
        window = [int(number) for number in re.findall(r"\) (\d+) is it", text)]
        asked.append(window)
        logits = torch.zeros(1, len(window))
        for place, i in enumerate(window):
            logits[0, place] = -abs(i - 9) - i / 100  # 9 is best, then 8, 10, 7, 11
        return logits

    monkeypatch.setattr(judge, "_last_logits", last_logits)
    query = judge.prompts.prepare(Item("q", "Which?"))
    assert judge.listwise(query, shown)[0] == 9 and [len(window) for window in asked] == [5, 5, 5]
    assert judge.listwise(query, shown[7:]) == [2, 1, 3, 0, 4]
    assert judge.listwise(query, shown[:1]) == [0]


def test_fusion_by_hand():
    scores = [0.9, 0.8, 0.7, 0.6]
    assert reranked(scores, [0.1, 0.3, 0.2], "pointwise", 1.0) == ([1, 0, 2, 3], [1.1, 1.0, 0.7 + 0.2, 0.6])
    assert reranked(scores, [0.1, 0.2, 0.2], "pointwise", 0.0) == ([0, 1, 2, 3], scores)
    assert reranked(scores, [2, 0, 1], "listwise", 1.0) == ([2, 0, 1, 3], scores)
