"""The zero-shot suite's evaluation: files, metrics, means, a second start, pictures that are not there."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from conftest import call

from lamra.datasets.rankings import ranked_ids
from lamra.datasets.zeroshot.sugar_crepe import KINDS
from lamra.eval import zeroshot_report, zeroshot_suite
from lamra.eval.eval_zeroshot import eval_ccneg, eval_sugar_crepe


@pytest.fixture
def flags(world, tiny_model, tmp_path) -> dict:
    """SugarCrepe's seven files with two invented rows each; in the second both captions are the same: a sure tie."""
    rows = {
        "0": {"filename": "0.png", "caption": "a red ball", "negative_caption": "a blue box, and a ball"},
        "2": {"filename": "1.png", "caption": "a box", "negative_caption": "a box"},
    }
    shutil.copytree(world / "test" / "images", tmp_path / "images")
    (tmp_path / "texts").mkdir()
    for kind in KINDS:
        (tmp_path / "texts" / f"{kind}.json").write_text(json.dumps(rows))
    return dict(
        model_id=tiny_model,
        num_workers=0,
        annotation_path_prefix=tmp_path / "texts",
        image_path_prefix=tmp_path / "images",
        output_dir=tmp_path / "out",
    )


def test_sugar_crepe(flags, tmp_path, capfd, monkeypatch):
    call(eval_sugar_crepe.main, **flags)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["protocol"] == "released" and found["set"] == "SugarCrepe"
    assert found["tasks"].keys() == {f"sugarcrepe_{kind}" for kind in KINDS}
    for name, task in found["tasks"].items():
        ranking = ranked_ids(tmp_path / "out" / f"ranking_{name}.jsonl")
        dids, scores = ranking["2"]
        assert set(dids) == {"2#caption", "2#negative"} and scores[0] == scores[1]
        assert task["queries"] == 2 and task["recall@1"] == (0.5 if ranking["0"][0][0] == "0#caption" else 0.0)
    counted = [task["recall@1"] for task in found["tasks"].values()]
    assert found["mean"] == {"value": sum(counted) / 7, "paper": None}  # of other files than the published ones
    printed = capfd.readouterr().out
    assert "85.8" not in printed and "the paper's LamRA-Ret 7B" in printed
    for name, task in found["tasks"].items():
        task["queries"] = KINDS[name.removeprefix("sugarcrepe_")]
    published = {**found, **zeroshot_suite._mean(eval_sugar_crepe.SUGAR_CREPE, found["tasks"])}
    assert published["mean"]["paper"] == {"retrieved": 85.8, "reranked": 93.5}
    zeroshot_suite.print_results([published])
    assert "85.8" in capfd.readouterr().out
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())

    before, whole = (tmp_path / "out" / "metrics.json").stat().st_mtime_ns, found
    call(eval_sugar_crepe.main, **flags)  # finished: nothing is measured again
    assert (tmp_path / "out" / "metrics.json").stat().st_mtime_ns == before
    assert "7 of 7 tasks were measured before" in "".join(capfd.readouterr())
    (tmp_path / "out" / "ranking_sugarcrepe_swap_att.jsonl").unlink()  # as after a break
    call(eval_sugar_crepe.main, **flags)
    assert "6 of 7 tasks were measured before" in "".join(capfd.readouterr())
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == whole
    call(eval_sugar_crepe.main, **flags, protocol="clean")  # another protocol is measured
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["protocol"] == "clean"

    monkeypatch.setattr(sys, "argv", ["zeroshot_report.py", str(tmp_path / "out" / "metrics.json")])
    zeroshot_report.main()
    assert "SugarCrepe (clean) mean" in capfd.readouterr().out


def test_one_kind_has_no_mean(flags, tmp_path):
    call(eval_sugar_crepe.main, **flags, data_type="swap_att", batch_size=8, save_for_rerank="")
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(found["tasks"]) == ["sugarcrepe_swap_att"] and "mean" not in found
    for kind in KINDS:  # upstream's script: a run for each kind, into one folder
        call(eval_sugar_crepe.main, **flags, data_type=kind)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(found["tasks"]) == 7 and "mean" in found


def test_pictures_that_are_not_there(flags, tmp_path, fails):
    (tmp_path / "images" / "1.png").unlink()
    error = fails(eval_sugar_crepe.main, **flags)
    assert "SugarCrepe: 1 of 2 pictures are missing, first" in error and "1.png (item 2 of" in error
    call(eval_sugar_crepe.main, **flags, skip_unreadable=14)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["skipped_unreadable"]["count"] == 7 and {of["queries"] for of in found["tasks"].values()} == {1}


def test_ccneg(flags, tmp_path, capfd):
    rows = [
        {"image": f"images/{n}.png", "caption": f"a ball, {n}", "negative_caption": f"no ball, {n}"} for n in range(3)
    ]
    (tmp_path / "ccneg.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {name: flags[name] for name in ("model_id", "num_workers", "output_dir")}
    call(eval_ccneg.main, **own, data_path=tmp_path / "ccneg.jsonl")
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["tasks"]["ccneg"]
    ranking = ranked_ids(tmp_path / "out" / "ranking_ccneg.jsonl")
    hits = [dids[0] == f"{qid}#caption" and scores[0] > scores[1] for qid, (dids, scores) in ranking.items()]
    assert found["queries"] == 3 and found["recall@1"] == sum(hits) / 3
    assert "79.6" not in capfd.readouterr().out and found["paper"] is None  # of 3 rows, not of 40,000
