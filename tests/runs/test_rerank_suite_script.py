"""rerank_zeroshot.sh: sets without rankings, a set that fails, a run that was killed, two processes and one."""

from __future__ import annotations

import json

import pytest
from conftest import call, run_script
from zeroshot_files import suite_files, suite_rankings, suite_reranker

from lamra.eval.rerank.judge import Judge
from lamra.eval.rerank.suite import rerank_set

SETS = ("ccneg", "visdial")


def test_the_script(tiny_model, tmp_path, monkeypatch):
    for name in ("files", "retrieved"):
        (tmp_path / name).mkdir()
    files, model = suite_files(tmp_path / "files"), suite_reranker(tiny_model, tmp_path / "model")
    suite_rankings(tmp_path / "retrieved", files)
    (tmp_path / "retrieved/sugarcrepe/ranking_sugarcrepe_add_att.jsonl").rename(tmp_path / "elsewhere.jsonl")

    def rerank(name, output):
        named = dict(set=name, model_id=model, num_workers=0, rankings=tmp_path / "retrieved" / name)
        call(rerank_set, **named, **files[name], output_dir=tmp_path / output / name)

    answer, answered = Judge.answer, []

    def killed(self, *args):
        if len(answered) == 2:
            raise KeyboardInterrupt
        answered.append(args)
        return answer(self, *args)

    for name in SETS:
        rerank(name, "one")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Judge, "answer", killed)
        rerank("ccneg", "two")
    before = (tmp_path / "two/ccneg/pointwise/answers/ccneg/0.jsonl").read_text()
    assert before.count("answer") == 2

    variables = {"CCNEG": files["ccneg"], "VISDIAL": files["visdial"], "VIST": files["vist"]}
    variables = {f"{name}_TEXTS": of["data_path"] for name, of in variables.items()}
    variables |= dict.fromkeys(("CCNEG_IMAGES", "VISDIAL_IMAGES"), files["ccneg"]["image_path_prefix"])
    variables |= dict(VIST_IMAGES=tmp_path, SUGARCREPE_TEXTS=tmp_path / "files/crepe", SUGARCREPE_IMAGES=tmp_path)
    variables |= dict(MODEL_ID=model, RETRIEVED=tmp_path / "retrieved", OUTPUT_DIR=tmp_path / "two", NUM_GPUS=2)
    tasks = "TASKS", "flickr,vist,ccneg,visdial,urban1k"
    script = "bash", "scripts/eval/rerank_zeroshot.sh", "--num_workers", 0
    done = run_script(*script, check=False, URBAN1K_TEXTS=tmp_path / "nowhere", **variables, **dict([tasks]))
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-3:]
    assert last == [
        f"left out: flickr: {tmp_path}/retrieved/flickr30k has no rankings",
        f"left out: urban1k: {tmp_path}/nowhere is not there",
        "failed, see above: vist",
    ]
    assert "error: VIST: 10 of 10 pictures or videos are missing" in done.stderr
    table = done.stdout[done.stdout.rindex("zero-shot, in percent") :].splitlines()
    assert [line.split("  ")[0] for line in table[2:]] == [
        "CC-Neg (released) ccneg",
        "VisDial (released) image_retrieval",
        "VisDial (released) text_retrieval",
    ]
    for name in SETS:
        for path in sorted((tmp_path / "one" / name / "pointwise").glob("*.json*")):
            if path.name != "cost.json":
                assert (tmp_path / "two" / name / "pointwise" / path.name).read_bytes() == path.read_bytes(), path
    parts = [path.read_text() for path in (tmp_path / "two/ccneg/pointwise/answers/ccneg").glob("*.jsonl")]
    rows = [json.loads(line)["row"] for part in parts for line in part.splitlines() if line]
    assert sorted(rows) == [0, 1, 2]  # nothing was asked again
    assert "set OUTPUT_DIR instead" in run_script(*script, "--output_dir", tmp_path, check=False).stderr
    done = run_script(*script, check=False, RETRIEVED=tmp_path, TASKS="ccneg")
    assert done.returncode == 2 and "error: no set of TASKS=ccneg has all its files" in done.stderr
    assert "TASKS=abc: expected names of flickr,coco,sharegpt4v" in run_script(*script, check=False, TASKS="abc").stderr
