"""Reranking of the zero-shot suite: what is asked, byte for byte, what becomes of the scores, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from conftest import call
from ranked import ranked_ids
from zeroshot_files import suite_files, suite_rankings, suite_reranker

from lamra.collators.messages import POINTWISE
from lamra.collators.rerank import RankPrompts
from lamra.datasets.items import Item
from lamra.datasets.tasks import ItemList
from lamra.datasets.zeroshot.genecis import SUBSETS
from lamra.eval.eval_rerank import RerankArguments
from lamra.eval.rerank.judge import Judge, load_judge
from lamra.eval.rerank.suite import RERANKED, rerank_set
from lamra.eval.zeroshot_suite import evaluate_set
from lamra.models.settings import Settings

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
DESCRIBE = "Find an image caption describing the following everyday image."
FIND = "Find me an everyday image that matches the given caption."
STORY = (
    "I will provide you with a series of images and captions from a story, and I need you to retrieve the image "
    "corresponding to the last caption."
)
GARMENT = "Find me a similar fashion image based on the following multi-round modifications."
SAID = {1: "Q: is it big? A: yes. Q: is it red? A: no.", 2: "Q: is it red? A: no. Q: is it big? A: yes."}
DIALOG = {n: " ".join(5 * [said]) for n, said in SAID.items()}
GENECIS = dict.fromkeys(SUBSETS, "a similar everyday image with the described changes.")
GENECIS["focus_attribute"] = "an image with the same attributes as described."
# Of each set every query as a reranker is asked it, and every candidate.
ASKED = {
    "sharegpt4v": (
        {*(f"{FIND} long {n} of them" for n in range(1, 13)), IMAGE + DESCRIBE},
        {IMAGE, *(f"long {n} of them" for n in range(1, 13))},
    ),
    "urban1k": (
        {*(f"{FIND} street {n}" for n in range(1, 13)), IMAGE + DESCRIBE},
        {IMAGE, *(f"street {n}" for n in range(1, 13))},
    ),
    "circo": (
        {f"{IMAGE}I'm looking for a similar everyday image with the described changes is {n}" for n in range(2)},
        {IMAGE},
    ),
    "genecis": (
        {f"{IMAGE}I'm looking for {words} {subset} {n}" for subset, words in GENECIS.items() for n in (0, 1)},
        {IMAGE},
    ),
    "msrvtt": ({f"Find an everyday video match with caption. clip {n}" for n in (1, 2)}, {IMAGE}),
    "msvd": (
        {f"Find an everyday video match with caption. {text}" for text in ("scene 1", "1 again", "scene 2", "2 again")},
        {IMAGE},
    ),
    "visdial": (
        {*(f"Find the image that matches the dialogue {said}" for said in DIALOG.values()), IMAGE},
        {IMAGE, *(f"Find me an everyday image that matches the given dialog. {said}" for said in DIALOG.values())},
    ),
    "vist": (
        {STORY + "".join(f"text {n} of {first}{IMAGE}" for n in range(4)) + f"text 4 of {first}" for first in (1, 7)},
        {IMAGE},
    ),
    "multiturn_fashion": (
        {f"{GARMENT}{IMAGE}is red and is blue{IMAGE}is long", f"{GARMENT}{IMAGE}is wide"},
        {IMAGE},
    ),
    "ccneg": ({IMAGE + DESCRIBE}, {*(f"a ball, {n}" for n in (1, 2, 3)), "a box and a ball"}),
    "sugarcrepe": ({IMAGE + DESCRIBE}, {"a box, and a ball", *(f"ball {k} {n}" for k in range(7) for n in (1, 2))}),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, dict[str, Path]]:
    return suite_files(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def retrieved(files, tmp_path_factory) -> Path:
    """A folder for each set with invented rankings."""
    folder = tmp_path_factory.mktemp("retrieved")
    suite_rankings(folder, files)
    return folder


@pytest.fixture(scope="module")
def reranker(tiny_model, tmp_path_factory) -> Path:
    return suite_reranker(tiny_model, tmp_path_factory.mktemp("reranker") / "model")


@pytest.fixture
def flags(files, retrieved, reranker, tmp_path):
    def of(name: str, **more) -> dict:
        named = dict(set=name, model_id=reranker, num_workers=0, rankings=retrieved / name)
        return named | dict(output_dir=tmp_path / name) | files[name] | more

    return of


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ASKED)
def test_prompts_byte_for_byte_and_uncut(flags, name, monkeypatch, capsys):
    asked, noted, pointwise = set(), [], RankPrompts.pointwise

    def recording(self, *args):
        prompt = pointwise(self, *args)
        noted.append(prompt["notes"])
        text = re.sub(r"(<\|image_pad\|>)+", "<|image_pad|>", self.processor.tokenizer.decode(prompt["input_ids"]))
        found = re.fullmatch(
            r"<\|im_start\|>system\nYou are a helpful assistant.<\|im_end\|>\n<\|im_start\|>user\n(.*)Query:(.*)"
            r"Candidate:(.*)<\|im_end\|>\n<\|im_start\|>assistant\n",
            text,
        )
        assert found and found[1] == POINTWISE["released"]
        asked.add(found.groups()[1:])
        return prompt

    monkeypatch.setattr(RankPrompts, "pointwise", recording)
    call(rerank_set, **flags(name))
    queries, candidates = ASKED[name]
    assert ({query for query, _ in asked}, {candidate for _, candidate in asked}) == (queries, candidates)
    assert not any(noted)  # nothing was cut
    printed = capsys.readouterr().out
    assert f"{RERANKED[name].title} (released)" in printed and "the paper's LamRA 7B" in printed


def test_no_text_is_cut(reranker):
    """Neither after the 4 tokens that the reranker remembers, nor after 2,048."""
    assert Settings.read(reranker).text_max_tokens == 4
    judge = load_judge(RerankArguments(str(reranker), rankings="r", num_workers=0))
    long = Item("long", " ".join(f"a red ball {n}" for n in range(1000)))
    prompt = judge.prompts.pointwise(judge.prompts.prepare(long), judge.prompts.prepare(long))
    assert len(prompt["input_ids"]) > 2 * 2048 and not prompt["notes"]
    assert judge.processor.tokenizer.decode(prompt["input_ids"]).count(long.text) == 2


def answer_with(monkeypatch, answer) -> list[tuple[str, list[str]]]:
    """Put `answer` (query's id, candidate's id -> P(Yes)) in the reranker's place; what was asked."""
    asked: list[tuple[str, list[str]]] = []

    def judge(self, style, query, candidates):
        ids = [candidate.item.id for candidate in candidates]
        asked.append((query.item.id, ids))
        if style == "listwise":
            return sorted(range(len(ids)), key=lambda i: -answer(query.item.id, ids[i]))
        return [answer(query.item.id, did) for did in ids]

    monkeypatch.setattr(Judge, "answer", judge)
    return asked


def test_the_first_ten_are_fused_and_the_others_keep_their_places(flags, retrieved, tmp_path, monkeypatch, capsys):
    asked = answer_with(monkeypatch, lambda qid, did: int(did.removesuffix(".jpg")) / 20)
    call(rerank_set, **flags("sharegpt4v"))
    assert len(asked) == 24 and {len(dids) for _, dids in asked} == {10}
    out = tmp_path / "sharegpt4v/pointwise"
    for name in ("image_retrieval", "text_retrieval"):
        before, after = (ranked_ids(folder / f"ranking_{name}.jsonl") for folder in (retrieved / "sharegpt4v", out))
        for qid, (dids, scores) in before.items():
            fused = [score + int(did.removesuffix(".jpg")) / 20 for did, score in zip(dids[:10], scores)]
            order = sorted(range(10), key=lambda i: -fused[i])
            expected = [dids[i] for i in order] + dids[10:], [fused[i] for i in order] + scores[10:]
            assert after[qid] == expected
    metrics, made_by = (json.loads((out / name).read_text()) for name in ("metrics.json", "made_by.json"))
    for found in metrics.values():
        assert found["weight"] == 1 and found["before"]["recall@1"] == 1 > found["after"]["recall@1"]
    assert (made_by["set"], made_by["protocol"], made_by["depth"]) == ("sharegpt4v", "released", 10)
    assert made_by["tasks"]["text_retrieval"] == {"queries": 12, "counted": "recall@1", "paper": None}

    asked.clear()  # another start asks nothing; neither does another weight
    written = (out / "metrics.json").read_bytes()
    call(rerank_set, **flags("sharegpt4v"))
    assert (out / "metrics.json").read_bytes() == written
    call(rerank_set, **flags("sharegpt4v", weight=0))
    found = json.loads((out / "metrics.json").read_text())
    assert not asked and all(of["before"] == of["after"] for of in found.values())
    capsys.readouterr()
    call(rerank_set, **flags("sharegpt4v", style="listwise"))
    assert {len(dids) for _, dids in asked} == {5}
    after = ranked_ids(tmp_path / "sharegpt4v/listwise/ranking_text_retrieval.jsonl")
    assert all(dids[:5] == sorted(dids[:5], key=lambda did: -int(did[:-4])) for dids, _ in after.values())


def test_pairs_are_fused_by_the_weight_of_their_set_and_a_tie_is_a_miss(
    flags, retrieved, tmp_path, monkeypatch, capsys
):
    asked = answer_with(monkeypatch, lambda qid, did: 1.0 if did.endswith("caption") else 0.25)
    for name, weight in (("sugarcrepe", 0.1), ("ccneg", 1.0)):
        call(rerank_set, **flags(name))
        out = tmp_path / name / "pointwise"
        for task, found in json.loads((out / "metrics.json").read_text()).items():
            before, after = (ranked_ids(of / f"ranking_{task}.jsonl") for of in (retrieved / name, out))
            hits = 0
            for qid, (dids, scores) in before.items():
                score = dict(zip(dids, scores))
                fused = score[f"{qid}#caption"] + weight, score[f"{qid}#negative"] + weight * 0.25
                hits += fused[0] > fused[1]
                assert sorted(after[qid][1]) == sorted(fused)
            assert found["weight"] == weight and found["after"]["recall@1"] == hits / len(before)
    assert {len(dids) for _, dids in asked} == {2}
    means = [line.split()[-4:] for line in capsys.readouterr().out.splitlines() if "mean" in line]
    found = json.loads((tmp_path / "sugarcrepe/pointwise/metrics.json").read_text())
    mean = {when: f"{100 * sum(of[when]['recall@1'] for of in found.values()) / 7:.1f}" for when in ("before", "after")}
    assert means == [[mean["before"], mean["after"], "-", "-"]]  # the paper's are of the published files

    # The same fused score for both: a miss, whichever stands first. A list's order decides.
    rows = lines(retrieved / "ccneg/ranking_ccneg.jsonl")
    tied = shutil.copytree(retrieved / "ccneg", tmp_path / "tied")
    (tied / "ranking_ccneg.jsonl").write_text("".join(json.dumps(row | {"score": 0.5}) + "\n" for row in rows))
    answer_with(monkeypatch, lambda qid, did: 0.5 if qid != "2" or did.endswith("caption") else 0.25)
    call(rerank_set, **flags("ccneg", rankings=tied, output_dir=tmp_path / "a"))
    found = json.loads((tmp_path / "a/pointwise/metrics.json").read_text())["ccneg"]
    assert (found["before"]["recall@1"], found["after"]["recall@1"]) == (0, 1 / 3)
    answer_with(monkeypatch, lambda qid, did: float(did.endswith("caption")))
    call(rerank_set, **flags("ccneg", rankings=tied, output_dir=tmp_path / "a", style="listwise"))
    assert json.loads((tmp_path / "a/listwise/metrics.json").read_text())["ccneg"]["after"]["recall@1"] == 1


def test_kinds_one_by_one_come_together(flags, tmp_path, monkeypatch, capsys):
    answer_with(monkeypatch, lambda qid, did: 0.5)
    for kind in ("add_att", "swap_obj"):
        call(rerank_set, **flags("sugarcrepe", data_type=kind))
    printed = capsys.readouterr().out
    assert printed.count("SugarCrepe (released) sugarcrepe_add_att") == 2 and "mean" not in printed
    assert len(json.loads((tmp_path / "sugarcrepe/pointwise/made_by.json").read_text())["tasks"]) == 2


def test_what_is_refused(flags, retrieved, tmp_path, fails, no_model, monkeypatch):
    foreign = shutil.copytree(retrieved / "ccneg", tmp_path / "foreign")
    rows = lines(foreign / "ranking_ccneg.jsonl")
    for change, words in (
        ([row | {"did": row["did"].replace("0#", "1#")} if row["qid"] == "0" else row for row in rows],
         "ranking_ccneg.jsonl: the query 0 ranks other candidates than its own in"),
        (rows[1:], "do not have the ranks 1 to 1"),
        (rows[2:], "ranking_ccneg.jsonl lacks 1 of the task's 3 queries"),
    ):  # fmt: skip
        (foreign / "ranking_ccneg.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change))
        assert words in fails(rerank_set, **flags("ccneg", rankings=foreign))
    of_another = flags("ccneg", rankings=retrieved / "vist")
    assert "ranking_ccneg.jsonl does not exist" in fails(rerank_set, **of_another)
    assert "--depth 3: the rankings in" in fails(rerank_set, **flags("ccneg", depth=3))
    assert "--set nothing: expected flickr30k or coco" in fails(rerank_set, **flags("ccneg") | {"set": "nothing"})
    without = {
        name: value for name, value in flags("ccneg").items() if name not in ("set", "data_path", "image_path_prefix")
    }
    assert "the following arguments are required: --set" in fails(rerank_set, **without)
    assert "--library sentence-transformers: expected no such flag" in fails(
        rerank_set, **flags("ccneg", library="sentence-transformers")
    )
    assert "unknown flag --image_data_path" in fails(rerank_set, **flags("ccneg", image_data_path=tmp_path))


def test_pictures_that_cannot_be_read(flags, files, retrieved, tiny_model, tmp_path, fails, monkeypatch):
    pictures = shutil.copytree(files["ccneg"]["image_path_prefix"], tmp_path / "pictures")
    (pictures / "2.jpg").write_bytes(b"no picture")
    own = dict(data_path=files["ccneg"]["data_path"], image_path_prefix=pictures)
    call(partial(evaluate_set, "ccneg"), **own, model_id=tiny_model, skip_unreadable=1, output_dir=tmp_path / "r")
    answer_with(monkeypatch, lambda qid, did: 0.5)
    of_few = flags("ccneg", rankings=tmp_path / "r", **own)
    assert "lacks 1 of the task's 3 queries" in fails(rerank_set, **of_few)
    call(rerank_set, **of_few, skip_unreadable=1)
    made_by = json.loads((tmp_path / "ccneg/pointwise/made_by.json").read_text())
    assert made_by["skipped_unreadable"]["count"] == 1 and made_by["tasks"]["ccneg"]["queries"] == 2
    (pictures / "2.jpg").unlink()
    assert "CC-Neg: 1 of 3 pictures or videos are missing" in fails(rerank_set, **flags("ccneg", **own))


def test_ids_are_indexed_once(monkeypatch):
    items = ItemList([Item(str(n), "text") for n in range(3)], "items", "file")
    assert items.find(["2", "x"]) == [2, -1]
    monkeypatch.setattr(ItemList, "__iter__", lambda self: pytest.fail("indexed again"))
    assert items.find(["0"]) == [0]


def test_a_server_gets_the_new_order(flags, retrieved, tmp_path, monkeypatch, capsys):
    """CIRCO's test: nothing is measured, and its submission has the reranked first and then the others."""
    answer_with(monkeypatch, lambda qid, did: float(did in "456"))
    call(rerank_set, **flags("circo"))
    out = tmp_path / "circo/pointwise"
    after = ranked_ids(out / "ranking_circo_test.jsonl")
    submitted = json.loads((out / "submission_circo_test.json").read_text())
    assert submitted == {qid: list(map(int, dids)) for qid, (dids, _) in after.items()}
    assert submitted["0"] == [4, 5, 6, 1, 2, 3, *range(7, 13)]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["circo_val"]["after"]["map@5"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if " circo_test " in line]
    assert row[2:] == ["circo_test", "mAP@5", "2", "1.0", "submission", "submission", "-", "-"]
