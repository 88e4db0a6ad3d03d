"""LamRA-Rank: prompts, labels, draws, exact answers, and mining, training and reranking through the real scripts."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from conftest import call, run_script

from lamra.collators.messages import listwise_messages, pointwise_messages
from lamra.collators.processing import Processor
from lamra.collators.rerank import IGNORED, RankPrompts, RerankTrainingCollator
from lamra.datasets.items import Item
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import INSTRUCTIONS, TRAIN_QUERIES, global_pool, local_pool
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.qrels import read_qrels
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows, id_key
from lamra.datasets.rankings import RankedQuery, write_ranking
from lamra.datasets.rerank import RerankExamples
from lamra.eval import compare_rerank, eval_mbeir, eval_rerank, mine_rerank
from lamra.eval.mining import same
from lamra.eval.rerank.fusion import reranked
from lamra.eval.rerank.judge import Judge
from lamra.miniature.build_mbeir import build_mbeir
from lamra.models.digests import model_sha256
from lamra.models.loading import load_reranker, settings_to_rerank, settings_to_train
from lamra.models.reranker import Reranker
from lamra.models.settings import Settings
from lamra.train import train_rerank
from lamra.train.arguments import ModelArguments
from lamra.train.build import build_embedder, build_reranker
from lamra.train.limits import memory_sentence

TASKS = "mscoco_task0_test,infoseek_task6"  # text to picture, picture and text to text

POINTWISE = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate                        "
    "meets the requirements of the query. If it does, respond with 'Yes'; if it doesn't, responed with 'No'."
)
LISTWISE = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, etc. Each "
    "candidate is independent of the others.                         Evaluate each candidate against the query, and "
    "respond with the number corresponding to the candidate that best meets the requirements of the query."
)
BOTH = Item("q", "Change it.", ("q.png",), "Find a picture.")
TEXT, PICTURE = Item("t", "A dog."), Item("p", None, ("p.png",))
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def rendered(processor: Processor, messages) -> str:
    start, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    text = processor.render(messages)
    assert text.endswith(end)
    return text[text.index(start) + len(start) : -len(end)]


def test_prompts_byte_for_byte(tiny_model):
    processor = Processor(tiny_model)
    for style, point, each in (
        ("released", POINTWISE, LISTWISE),
        ("clean", POINTWISE.replace(24 * " ", " ").replace("responed", "respond"), LISTWISE.replace(25 * " ", " ")),
    ):
        found = rendered(processor, pointwise_messages(style, BOTH, TEXT))
        assert found == f"{point}Query:{IMAGE}Find a picture. Change it.Candidate:A dog."
        found = rendered(processor, listwise_messages(style, TEXT, [PICTURE, BOTH, TEXT]))
        pictures = f"(1) {IMAGE}(2) {IMAGE}Find a picture. Change it."
        assert found == f"{each}Query:A dog.Candidates:{pictures}(3) A dog."
    assert POINTWISE.count(" " * 24) == 1 and POINTWISE.count(" " * 25) == 0 and LISTWISE.count(" " * 25) == 1


@pytest.fixture(scope="module")
def mbeir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mbeir")
    build_mbeir(folder, seed=0, train=8, gallery=6)
    return folder


@pytest.fixture(scope="module")
def mined(mbeir, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mined")
    call(mine_rerank.main, model_id=tiny_model, data_path=mbeir, output_dir=folder, top=6, search_depth=600)
    return folder


def pairs_of(mbeir, seed=0) -> MBEIRPairs:
    pool, queries = Rows(mbeir / global_pool("train"), mbeir, CANDIDATE), Rows(mbeir / TRAIN_QUERIES, mbeir, QUERY)
    return MBEIRPairs(queries, pool, Instructions(mbeir / INSTRUCTIONS), seed=seed)


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
    # One scene's picture under another name is no wrong answer.
    copy = shutil.copy(mbeir / "mbeir_images/train/0.png", mbeir / "mbeir_images/train/copy.png")
    original = Item("a", None, (mbeir / "mbeir_images/train/0.png",))
    assert same(original, Item("b", None, (copy,)))
    assert not same(original, Item("c", None, (mbeir / "mbeir_images/train/1.png",)))


def test_draws_repeat_and_change_with_seed_and_epoch(mbeir, mined):
    def draws(source="mined.jsonl", seed=0, epoch=0):
        examples = RerankExamples(pairs_of(mbeir, seed), [mined / source])
        examples.set_epoch(epoch)
        return [examples[i] for i in range(len(examples))]

    first = draws()
    assert first == draws() == draws("mined.json")
    assert first != draws(seed=1) and first != draws(epoch=1)
    assert {len(example.others) for example in first} == {1, 2, 3, 4}
    assert {example.place for example in first} == {0, 1, 2, 3, 4}
    for example in first:
        assert example.positive.id not in {example.negative.id, *(item.id for item in example.others)}
        assert 0 <= example.place <= len(example.others) == len({item.id for item in example.others})


@pytest.mark.parametrize("real", [False, True])
def test_labels_are_the_assistants_whole_turn(request, mbeir, mined, tiny_model, real):
    folder = request.getfixturevalue("shared") / "data" / "qwen2vl_processor" if real else tiny_model
    processor = Processor(folder, max_length=2048, text_max_tokens=256)
    examples = RerankExamples(pairs_of(mbeir), [mined / "mined.jsonl"])
    collator = RerankTrainingCollator(processor, examples, most_faults=0, style="clean")
    rows = list(range(5))  # one of each task
    batch = collator(rows)
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    for i, row in enumerate(rows):
        example, decode = examples[row], processor.tokenizer.decode
        answers = ["Yes", "No", f"Ans: ({example.place + 1})"]
        for j, answer in enumerate(answers):
            ids, labels = (batch[name][3 * i + j] for name in ("input_ids", "labels"))
            ids = ids[: batch["attention_mask"][3 * i + j].sum()]
            counted = labels != IGNORED
            assert decode(labels[counted]) == f"<|im_start|>assistant\n{answer}<|im_end|>\n"
            assert torch.equal(labels[counted], ids[-counted.sum() :])
        if example.positive.text:  # and it stands where the answer says
            found = decode(batch["input_ids"][3 * i + 2])
            assert f"({example.place + 1}) {example.positive.text}" in found
    assert batch["ids"] == [examples[row].query.id for row in rows]


def test_a_long_prompt_loses_text_alike_and_no_picture(tiny_model, mbeir):
    picture = mbeir / "mbeir_images/train/0.png"
    long = [Item(str(i), f"{word} " * 400, (picture,)) for i, word in enumerate(("red", "blue", "green"))]
    prompts = RankPrompts(Processor(tiny_model, max_length=700, text_max_tokens=256), "clean")
    encoded = prompts.listwise(prompts.shown(long[0]), [prompts.shown(item) for item in long[1:]], "Ans: (2)")
    text = prompts.processor.tokenizer.decode(encoded["input_ids"])
    assert len(encoded["input_ids"]) <= 700 and text.endswith("Ans: (2)<|im_end|>\n")
    assert text.count(" red") == text.count(" blue") == text.count(" green") >= 16
    assert text.count("<|vision_start|>") == 3 == len(encoded["image_grid_thw"])
    prompts.processor.max_length = 300
    with pytest.raises(
        ValueError, match="the query '0' with 2 candidates needs more than 300 tokens without its texts"
    ):
        prompts.listwise(prompts.shown(long[0]), [prompts.shown(item) for item in long[1:]])


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
    shown = [judge.prompts.shown(item) for item in candidates]
    for query in map(judge.prompts.shown, of):
        for some in (shown, shown[3:], [shown[1], shown[4]], shown[:1]):
            alone = [plain.pointwise(query, [one])[0] for one in some]
            assert judge.pointwise(query, some) == pytest.approx(alone, abs=1e-5)
            assert small.pointwise(query, some) == pytest.approx(alone, abs=1e-5)
            assert len({round(score, 4) for score in alone}) == len(alone)  # something to tell apart
        assert judge.listwise(query, shown) == plain.listwise(query, shown) == small.listwise(query, shown)
        assert sorted(judge.listwise(query, shown)) == list(range(6))
    judge.tokens = plain.tokens = 0
    query = judge.prompts.shown(of[2])
    judge.pointwise(query, shown), plain.pointwise(query, shown)
    assert judge.tokens < plain.tokens / 2


def test_a_picture_is_looked_at_once(tiny_model, mbeir):
    items = [Item(str(i), None, (mbeir / f"mbeir_images/train/{i}.png",)) for i in range(4)]
    items.append(Item("text", "A red circle.", (mbeir / "mbeir_images/train/0.png",)))  # the same picture once more
    judge, forgetful = judge_of(tiny_model), judge_of(tiny_model, memory=0)
    little = judge_of(tiny_model, memory=2.5 * 9 * 128 * 4 / 2**30)  # room for two pictures
    shown = [judge.prompts.shown(item) for item in items]
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
    asked = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
    asked[0, -1] = True
    logits = judge.model(**inputs, asked=asked)[0, judge.yes_no[1]]
    assert judge.yes_no[0] == [] and logits.softmax(0)[0].item() == pytest.approx(answers[0][0][0][0], abs=1e-6)


def test_answers_are_told_apart_in_bf16(tiny_model):
    """bf16 logits of one token after many prompts take few values; in float32 no two of them tie."""
    judge = judge_of(tiny_model)
    model = Reranker(judge.model.model.bfloat16(), "mrope").eval()
    model.stock.lm_head.weight.data.mul_(40)  # logits of the size that trained models have
    rows = [judge.prompts.pointwise(*(judge.prompts.shown(Item(t, t)) for t in ("q", f"{i} c"))) for i in range(40)]
    inputs = judge.processor.pad(rows)
    last = inputs["attention_mask"].sum(dim=1, keepdim=True) - 1
    inputs["asked"] = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool).scatter(1, last, True)
    answers = torch.tensor(judge.yes_no[1])
    with torch.no_grad():
        coarse, fine = model(**inputs)[:, answers], model(**inputs, answers=answers)
    assert fine.dtype == torch.float32 and (fine - coarse).abs().max() < 0.13
    assert len(coarse[:, 0].unique()) < 30 and len(fine[:, 0].unique()) == 40


def test_the_window_carries_the_best_to_the_front(tiny_model, monkeypatch):
    judge, asked = judge_of(tiny_model), []
    names = [f"{i} is it." for i in range(12)]
    shown = [judge.prompts.shown(Item(name, name)) for name in names]

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
    query = judge.prompts.shown(Item("q", "Which?"))
    assert judge.listwise(query, shown)[0] == 9 and [len(window) for window in asked] == [5, 5, 5]
    assert judge.listwise(query, shown[7:]) == [2, 1, 3, 0, 4]
    assert judge.listwise(query, shown[:1]) == [0]


def test_fusion_by_hand():
    scores = [0.9, 0.8, 0.7, 0.6]
    assert reranked(scores, [0.1, 0.3, 0.2], "pointwise", 1.0) == ([1, 0, 2, 3], [1.1, 1.0, 0.7 + 0.2, 0.6])
    assert reranked(scores, [0.1, 0.2, 0.2], "pointwise", 0.0) == ([0, 1, 2, 3], scores)
    assert reranked(scores, [2, 0, 1], "listwise", 1.0) == ([2, 0, 1, 3], scores)


@pytest.fixture(scope="module")
def trained(mbeir, mined, tiny_model, tmp_path_factory):
    """train_rerank.sh under ZeRO-2 on two processes, 2 queries each, 2 accumulated: 5 steps of 40 queries."""
    output = tmp_path_factory.mktemp("runs") / "rank"
    run_script(
        *("bash", "scripts/lamra_rank/train_rerank.sh", "--model_local_path", tiny_model, "--lora_dropout", 0),
        **dict(MODEL_ID="miniature", DATA_PATH=mbeir, MINED=mined / "mined.jsonl", OUTPUT_DIR=output, NUM_GPUS=2),
        **dict(DS_STAGE="zero2", BF16="False", LORA_R=4, LORA_ALPHA=8, LR="5e-3", GRAD_ACCUM=2, NUM_EPOCHS=1),
    )
    return output


def test_training(trained, mbeir, mined, tiny_model, tmp_path):
    settings = Settings.read(trained)
    assert (settings.role, settings.rank_style) == ("reranker", "released")
    assert (settings.position_ids, settings.text_max_tokens) == ("mrope", 256)
    checkpoint = max(trained.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert all(0 <= entry["accuracy"] <= 1 for entry in history if "accuracy" in entry)

    # One process, padded rectangles, nothing accumulated: the same losses.
    call(
        train_rerank.main,
        **dict(model_id="miniature", model_local_path=tiny_model, data_path=mbeir, mined=mined / "mined.json"),
        **dict(output_dir=tmp_path / "one", per_device_train_batch_size=8, gradient_accumulation_steps=1, lora_r=4),
        **dict(lora_alpha=8, lora_dropout=0, learning_rate=5e-3, num_train_epochs=1, padding_free=False),
        **dict(report_to="none", warmup_ratio=0.03, dataloader_num_workers=0),
    )
    state = json.loads((tmp_path / "one" / checkpoint.name / "trainer_state.json").read_text())["log_history"]
    assert [entry["loss"] for entry in state if "loss" in entry] == pytest.approx(losses, rel=1e-4)


def test_a_broken_training_ends_like_an_unbroken_one(mbeir, mined, tiny_model, tmp_path):
    flags = dict(model_id="miniature", model_local_path=tiny_model, data_path=mbeir, mined=mined / "mined.jsonl")
    flags |= dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, lora_r=4, learning_rate=5e-3)
    flags |= dict(max_steps=6, save_strategy="steps", save_steps=3, report_to="none", dataloader_num_workers=0)
    flags |= dict(output_dir=tmp_path / "run")
    call(train_rerank.main, **flags)  # with dropout, and into a second epoch
    adapter = tmp_path / "run/adapter_model.safetensors"
    unbroken = adapter.read_bytes()
    adapter.unlink()
    shutil.rmtree(tmp_path / "run/checkpoint-6")
    call(train_rerank.main, **flags, resume="auto")
    assert adapter.read_bytes() == unbroken


@pytest.fixture(scope="module")
def rankings(mbeir, tmp_path_factory):
    """Rankings of 6 candidates with an answer among them; the last query has 3."""
    folder = tmp_path_factory.mktemp("rankings")
    for task, queries, pool in (
        ("mscoco_task0_test", "mscoco_task0_test", "mscoco_task0_test"),
        ("infoseek_task6", "infoseek_task6_test", "infoseek_task6"),
    ):
        queries = Rows(mbeir / f"query/test/mbeir_{queries}.jsonl", mbeir, QUERY)
        pool = Rows(mbeir / local_pool(pool), mbeir, CANDIDATE)
        answers = read_qrels(mbeir / f"qrels/test/mbeir_{queries.path.stem[6:]}_qrels.txt", queries, pool)
        rows = []
        for row, right in enumerate(answers):
            wrong = [place for place in range(len(pool)) if place not in right][:5]
            found = [*wrong[:row], right[0], *wrong[row:]][: 3 if row == len(answers) - 1 else 6]
            rows.append(RankedQuery(row, found, [0.5 - i / 50 for i in range(len(found))]))
        write_ranking(folder / f"ranking_{task}.jsonl", queries, pool, rows)
    return folder


def rerank_flags(mbeir, model, rankings, output) -> dict:
    named = dict(model_id=model, rankings=rankings, data_path=mbeir, tasks=TASKS, depth=4, output_dir=output)
    return named | dict(num_workers=0, data_name="miniature")


def test_two_processes_one_and_a_killed_one_agree(trained, mbeir, rankings, tmp_path, monkeypatch, capsys):
    variables = dict(MODEL_ID=trained, RANKINGS=rankings, DATA_PATH=mbeir, TASKS=TASKS, DEPTH=4, NUM_GPUS=2)
    variables["OUTPUT_DIR"] = tmp_path / "two"
    printed = run_script("bash", "scripts/eval/rerank_mbeir.sh", "--data_name", "miniature", **variables).stdout
    assert "miniature, pointwise, top 4: recall in percent, retrieved -> reranked" in printed
    assert "average of 2" in printed and "the paper's" not in printed

    asked, answer = [], Judge.answer

    def counting(self, style, query, candidates):
        if len(asked) == 8:
            raise KeyboardInterrupt
        asked.append(query.item.id)
        return answer(self, style, query, candidates)

    run = rerank_flags(mbeir, trained, rankings, tmp_path / "one")
    monkeypatch.setattr(Judge, "answer", counting)
    with pytest.raises(KeyboardInterrupt):
        call(eval_rerank.main, **run)
    part = tmp_path / "one/pointwise/answers/infoseek_task6/0.jsonl"
    part.write_text(part.read_text() + '{"row": 2, "ans')  # what a kill while writing leaves
    monkeypatch.setattr(Judge, "answer", lambda *args: asked.append(args[2].item.id) or answer(*args))
    call(eval_rerank.main, **run)
    assert len(asked) == len(set(asked)) == 12  # nothing twice
    for name in ("metrics.json", "ranking_mscoco_task0_test.jsonl", "ranking_infoseek_task6.jsonl"):
        assert (tmp_path / "one/pointwise" / name).read_bytes() == (tmp_path / "two/pointwise" / name).read_bytes()

    # The written ranking reads back as input; candidates beyond the depth keep their places.
    lines = [json.loads(line) for line in (rankings / "ranking_mscoco_task0_test.jsonl").read_text().splitlines()]
    after = [
        json.loads(line)
        for line in (tmp_path / "one/pointwise/ranking_mscoco_task0_test.jsonl").read_text().splitlines()
    ]
    assert len(after) == len(lines) == 5 * 6 + 3
    for i in range(0, 30, 6):
        assert {line["did"] for line in after[i : i + 4]} == {line["did"] for line in lines[i : i + 4]}
        assert after[i + 4 : i + 6] == lines[i + 4 : i + 6]
        assert all(one["score"] >= next_["score"] for one, next_ in zip(after[i : i + 5], after[i + 1 : i + 6]))

    # Another weight asks nothing; weight 0 is the retriever.
    asked.clear()
    call(eval_rerank.main, **{name: value for name, value in run.items() if name != "data_name"}, weight=0)
    metrics = json.loads((tmp_path / "one/pointwise/metrics.json").read_text())
    assert not asked and all(metrics[task]["before"] == metrics[task]["after"] for task in TASKS.split(","))
    printed = capsys.readouterr().out  # under M-BEIR's own name the paper's rows stand beside
    assert "the paper's 7B" in printed and "   81.5 -> 85.2\n" in printed and "   52.1 -> 64.1\n" in printed

    # A weight chosen on validation rankings is at least as good there as none.
    stock = eval_rerank.open_rankings
    monkeypatch.setattr(eval_rerank, "open_rankings", lambda args: stock(replace(args, split="test")))
    call(eval_rerank.main, **run, tune_weight=rankings)
    metrics = json.loads((tmp_path / "one/pointwise/metrics.json").read_text())
    for task in TASKS.split(","):
        assert metrics[task]["weight"] in eval_rerank.WEIGHTS_TO_TRY
        assert metrics[task]["after"]["recall@5"] >= metrics[task]["before"]["recall@5"]


def test_listwise_through_the_entrypoint(trained, mbeir, rankings, tmp_path, capsys, monkeypatch):
    run = rerank_flags(mbeir, trained, rankings, tmp_path) | dict(style="listwise")
    call(eval_rerank.main, **run)
    first = (tmp_path / "listwise/ranking_infoseek_task6.jsonl").read_bytes()
    run["output_dir"] = tmp_path / "again"
    call(eval_rerank.main, **run, max_tokens_per_batch=1500)
    assert (tmp_path / "again/listwise/ranking_infoseek_task6.jsonl").read_bytes() == first
    assert "listwise, top 4" in capsys.readouterr().out
    lines = list(map(json.loads, first.decode().splitlines()))
    before = list(map(json.loads, (rankings / "ranking_infoseek_task6.jsonl").read_text().splitlines()))
    assert [line["score"] for line in lines] == [line["score"] for line in before]
    assert {line["did"] for line in lines[:4]} == {line["did"] for line in before[:4]} and lines[4:6] == before[4:6]

    # Side by side with itself: recall@1 worked by hand, cost, picture; other rankings are refused.
    def compare(**folders) -> str:
        runs = [f"{name}={folder}" for name, folder in folders.items()]
        monkeypatch.setattr(sys, "argv", ["compare", "--output_dir", str(tmp_path), *runs])
        compare_rerank.main()
        return capsys.readouterr().out

    metrics = {
        task: {when: {"recall@1": value} for when, value in (("before", 0.25), ("after", 0.75))}
        for task in TASKS.split(",")
    }
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        metrics["infoseek_task6"]["before"]["recall@1"] = 0.75
    (tmp_path / "mine/cost.json").write_text(json.dumps({"seconds_per_query": 0.01234, "tokens_per_query": 99.6}))
    table = [line.split() for line in compare(pointwise=tmp_path / "mine").splitlines()]
    assert table[1] == ["mscoco_task0_test", "25.0", "75.0"] and ["average", "25.0", "75.0"] in table
    assert ["tokens", "a", "query", "100"] in table and ["seconds", "a", "query", "0.0123"] in table
    assert (tmp_path / "rerank.png").stat().st_size > 1000
    assert "seconds a query" in compare(listwise=tmp_path / "listwise")  # what the entrypoint wrote
    with pytest.raises(ValueError, match="nowhere/metrics.json does not exist: name a folder"):
        compare(a=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a, b reranked different rankings: their recall before differs"):
        compare(a=tmp_path / "mine", b=tmp_path / "other")


def test_what_is_refused(fails, trained, mbeir, rankings, mined, tiny_model, tmp_path, monkeypatch, no_model):
    evaluation = dict(model_id=trained, data_path=mbeir, tasks=TASKS, output_dir=tmp_path / "o", num_workers=0)
    assert f"{trained} is a reranker, and a retriever is needed" in fails(eval_mbeir.main, **evaluation)
    retriever = shutil.copytree(tiny_model, tmp_path / "retriever")
    Settings(str(tiny_model), "sequential").write(retriever)
    run = rerank_flags(mbeir, trained, rankings, tmp_path / "out")
    assert f"{retriever} is a retriever, and a reranker is needed" in fails(
        eval_rerank.main, **run | {"model_id": retriever}
    )

    other = shutil.copytree(rankings, tmp_path / "other")
    path = other / "ranking_infoseek_task6.jsonl"

    first, *lines = (rankings / "ranking_infoseek_task6.jsonl").read_text().splitlines()

    def ranking_with(first: str, lines=lines) -> dict:
        path.write_text("\n".join([first, *lines]) + "\n")
        return {"rankings": other}

    good = json.loads(first)
    whole = json.dumps(good | {"qid": "6:99999"}) + "\n" + first
    monkeypatch.setattr("lamra.eval.rerank.judge.load_judge", lambda *_: pytest.fail("a model was loaded"))
    for change, words in (
        ({"depth": 8}, "have at most 6 candidates a query; give 6 or less"),
        ({"style": "setwise"}, "--style setwise: expected pointwise or listwise"),
        ({"rankings": tmp_path}, "ranking_mscoco_task0_test.jsonl does not exist: an evaluation writes it"),
        ({"tune_weight": rankings, "style": "listwise"}, "expected --style pointwise on M-BEIR, and no --weight"),
        ({"image_data_path": mbeir}, "--image_data_path and --text_data_path belong together"),
    ):
        assert words in fails(eval_rerank.main, **run | change)
    for line, words in (
        (json.dumps(good | {"did": "6:99999"}), "names the candidate 6:99999, which is not in"),
        (whole, "names the query 6:99999, which is not in"),
        ("{}", "ranking_infoseek_task6.jsonl line 1 is not {qid, did, score, rank}: '{}'"),
        ("\n".join(2 * [json.dumps(good)]), f"has a candidate of the query {good['qid']} twice"),
        (
            json.dumps(good | {"rank": 2}),
            f"the 6 candidates of the query {good['qid']} do not have the ranks 1 to 6, 2 is",
        ),
        (
            json.dumps(good | {"rank": 0}),
            f"the 6 candidates of the query {good['qid']} do not have the ranks 1 to 6, 0 is",
        ),
    ):
        assert words in fails(eval_rerank.main, **run | ranking_with(line))
    fewer = ranking_with(lines[5], lines[6:])  # without the first query
    assert f"lacks 1 of the task's 6 queries, first {good['qid']}: evaluate" in fails(eval_rerank.main, **run | fewer)

    bad = tmp_path / "bad.json"
    bad.write_text("[]")
    training = dict(model_id="miniature", model_local_path=tiny_model, data_path=mbeir, output_dir=tmp_path / "run")
    for change, words in (
        ({}, "--mined : expected a file that scripts/lamra_rank/mine.sh wrote"),
        ({"mined": tmp_path / "no.jsonl"}, "no.jsonl does not exist"),
        ({"mined": bad}, "bad.json is not {qid: {gt_docs, top100_docs}}"),
        ({"mined": path}, "names the"),
        ({"mined": bad, "rank_style": "short"}, "--rank_style short: expected released or clean"),
        ({"mined": bad, "grad_cache_chunk": 2}, "--grad_cache_chunk 2: expected no value"),
        ({"mined": bad, "init": "/nowhere"}, "no model in /nowhere"),
    ):
        assert words in fails(train_rerank.main, **training | change)


def test_memory_without_in_batch_negatives_is_saved_by_accumulation():
    args = train_rerank.RerankTrainingArguments(output_dir="x", use_cpu=True, gradient_checkpointing=True)
    sentence = memory_sentence(args, 5, total=80 * 2**30, allocated=79 * 2**30)
    assert sentence.endswith("the batch can stay: set PER_DEVICE_BATCH_SIZE=1 GRAD_ACCUM=8")


def test_what_is_trained_in_full(tiny_model):
    """Without LoRA a reranker learns the words of its answers too; an embedder has no use for them."""
    args = train_rerank.RerankTrainingArguments(output_dir="x", use_cpu=True)
    flags = ModelArguments(use_lora=False)
    for build, trained in ((build_reranker, True), (build_embedder, False)):
        model = build(tiny_model, flags, args, "mrope").stock
        assert model.lm_head.weight.requires_grad is trained and model.get_input_embeddings().weight.requires_grad
        assert not any(parameter.requires_grad for parameter in model.model.visual.parameters())


def test_a_reranker_goes_its_own_way_from_a_retriever(tiny_model, tmp_path):
    merged = shutil.copytree(tiny_model, tmp_path / "merged")
    Settings("base", "sequential", max_pixels=28 * 28 * 100, text_max_tokens=480).write(merged)
    flags = dict(rank_style="clean", text_max_tokens=256, min_pixels=None, max_pixels=None, train_position_ids=None)
    settings = settings_to_rerank(merged, position_ids=None, **flags)
    as_retriever = dict(text_max_tokens=256, role="reranker", rank_style="clean", max_pixels=28 * 28 * 100)
    as_retriever |= dict(base_model=str(merged), base_sha256=model_sha256(merged))
    assert settings == Settings(position_ids="mrope", train_position_ids="sequential", **as_retriever)  # as upstream
    both = settings_to_rerank(merged, position_ids=None, **flags | {"train_position_ids": "mrope"})
    assert both == Settings(position_ids="mrope", **as_retriever)  # as this project's first rerankers remember
    asked = settings_to_rerank(merged, position_ids="sequential", **flags)
    assert asked == Settings(position_ids="sequential", **as_retriever)
    with pytest.raises(ValueError, match="--max_pixels 784 contradicts the checkpoint"):
        settings_to_rerank(merged, position_ids=None, **flags | {"max_pixels": 784})
    settings.write(merged)
    with pytest.raises(ValueError, match="merged is a reranker, and a retriever is needed: give a retriever here"):
        settings_to_train(merged, text_max_tokens=None, temperature=0.05)
