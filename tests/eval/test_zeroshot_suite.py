"""The zero-shot suite's evaluation: files, metrics, means, a second start, pictures that are not there."""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partial

import pytest
from clips import drawn, write_clip
from conftest import call
from PIL import Image
from ranked import ranked_ids
from zeroshot_files import draw, write

from lamra.collators.visuals import Visuals
from lamra.common.errors import UserError
from lamra.datasets.zeroshot.genecis import SUBSETS
from lamra.datasets.zeroshot.msvd import PAPER
from lamra.datasets.zeroshot.sugar_crepe import KINDS
from lamra.datasets.zeroshot.vist import vist_tasks
from lamra.eval import compare_zeroshot, inference, zeroshot_report, zeroshot_suite
from lamra.eval.unreadable import without_missing
from lamra.eval.zeroshot_sets import SETS
from lamra.eval.zeroshot_suite import evaluate_set


def measure(name: str, **flags) -> None:
    call(partial(evaluate_set, name), **flags)


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
    measure("sugarcrepe", **flags)
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
    published = {**found, **zeroshot_suite.mean_of(SETS["sugarcrepe"], found["tasks"])}
    assert published["mean"]["paper"] == {"retrieved": 85.8, "reranked": 93.5}
    zeroshot_suite.print_results([published])
    assert "85.8" in capfd.readouterr().out
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())

    before, whole = (tmp_path / "out" / "metrics.json").stat().st_mtime_ns, found
    measure("sugarcrepe", **flags)  # finished: nothing is measured again
    assert (tmp_path / "out" / "metrics.json").stat().st_mtime_ns == before
    assert "7 of 7 tasks were measured before" in "".join(capfd.readouterr())
    (tmp_path / "out" / "ranking_sugarcrepe_swap_att.jsonl").unlink()  # as after a break
    measure("sugarcrepe", **flags)
    assert "6 of 7 tasks were measured before" in "".join(capfd.readouterr())
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == whole
    measure("sugarcrepe", **flags, protocol="clean")  # another protocol is measured
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["protocol"] == "clean"

    monkeypatch.setattr(
        sys, "argv", ["zeroshot_report.py", "--model_id", str(flags["model_id"]), "--output_dir", str(tmp_path), "out"]
    )
    zeroshot_report.main()
    assert "SugarCrepe (clean) mean" in capfd.readouterr().out


def test_one_kind_has_no_mean(flags, tmp_path):
    measure("sugarcrepe", **flags, data_type="swap_att", batch_size=8, save_for_rerank="")
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(found["tasks"]) == ["sugarcrepe_swap_att"] and "mean" not in found
    for kind in KINDS:  # upstream's script: a run for each kind, into one folder
        measure("sugarcrepe", **flags, data_type=kind)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(found["tasks"]) == 7 and "mean" in found


def test_dialogs_stories_and_garments(tiny_model, tmp_path):
    """Invented rows of the sets whose readers have tests of their own, through the whole evaluation."""
    pictures = draw(
        tmp_path / "pictures", "VisualDialog_val2018_000000000001.jpg", "VisualDialog_val2018_000000000002.jpg"
    )
    draw(tmp_path / "pictures", *(f"{n}.jpg" for n in range(1, 8)), "a.jpg", "b.jpg")
    turns = [{"question": n % 2, "answer": n % 2} for n in range(10)]
    dialogs = [{"image_id": n, "caption": "c", "dialog": turns} for n in (1, 2)]
    texts = {"questions": ["is it red", "is it big"], "answers": ["no", "yes"], "dialogs": dialogs}
    story = [
        [{"text": f"text {n} {end}", "photo_flickr_id": str(n if n < 5 else end), "story_id": str(end)}
         | {"album_id": "1", "tier": "story-in-sequence", "worker_arranged_photo_order": n - 1}]
        for end in (5, 6) for n in range(1, 6)
    ]  # fmt: skip
    files = {
        "visdial": write(tmp_path / "visdial.json", {"version": "1.0", "split": "val2018", "data": texts}),
        "vist": write(tmp_path / "vist.json", {"images": [], "albums": [], "annotations": story}),
        "turns": write(tmp_path / "all.val.json", [{"target": ["u", "b"], "reference": [["u", ["is red", ""], "a"]]}]),
        "gallery": write(tmp_path / "split.all.val.json", ["a", "b", "1"]),
        "share": write(tmp_path / "share.json", [{"image_name": f"{n}.jpg", "caption": f"long {n}"} for n in (1, 2)]),
    }
    common = dict(model_id=tiny_model, num_workers=0)
    below = dict(image_path_prefix=pictures)
    measure("visdial", **common, **below, data_path=files["visdial"], output_dir=tmp_path / "1")
    measure("vist", **common, **below, data_path=files["vist"], output_dir=tmp_path / "2", protocol="clean")
    garments = dict(query_data_path=files["turns"], cand_data_path=files["gallery"])
    measure("multiturn_fashion", **common, **below, **garments, output_dir=tmp_path / "3")
    pairs = dict(image_data_path=pictures, text_data_path=files["share"])
    measure("sharegpt4v", **common, **pairs, output_dir=tmp_path / "4")
    counts = {}
    for number in range(1, 5):
        found = json.loads((tmp_path / str(number) / "metrics.json").read_text())
        assert all(of["paper"] is None for of in found["tasks"].values())  # not of so many rows
        counts[found["set"]] = {of["counted"]: of["queries"] for of in found["tasks"].values()}
    assert counts == {
        "VisDial": {"recall@1": 2}, "VIST": {"recall@1": 2}, "MT-FIQ": {"recall@5": 1}, "ShareGPT4V": {"recall@1": 2},
    }  # fmt: skip


def test_clips(tiny_model, tmp_path, capsys, fails):
    """Three clips and their captions as both sets; a clip that is broken, and one that is not there."""
    names = ["video0", "video1", "video2"]
    for row, name in enumerate(names):
        for suffix in ("mp4", "avi"):
            write_clip(tmp_path / f"{name}.{suffix}", drawn(8 + 9 * row)[3 * row :])
    rows = [f"ret{row},msr{row},{name},a dog {row}" for row, name in enumerate(names)]
    captions = write(tmp_path / "test.csv", "\n".join(["key,vid_key,video_id,sentence", *rows]))
    lines = [json.dumps({"id": name, "captions": [f"a dog {row}", "a cat"]}) for row, name in enumerate(names)]
    msrvtt = dict(model_id=tiny_model, num_workers=0, data_path=captions, video_data_path=tmp_path)
    msvd = dict(video_path_prefix=tmp_path, test_video_path=write(tmp_path / "list.txt", "\n".join(names)))
    msvd |= dict(model_id=tiny_model, num_workers=0, captions_path=write(tmp_path / "captions.jsonl", "\n".join(lines)))
    for name, flags, queries in (("msrvtt", msrvtt, 3), ("msvd", msvd, 6)):
        measure(name, **flags, output_dir=tmp_path / name)
        found = json.loads((tmp_path / name / "metrics.json").read_text())["tasks"]["video_retrieval"]
        assert found["queries"] == queries and found["paper"] is None and found["recall@5"] == 1
        ranking = ranked_ids(tmp_path / name / "ranking_video_retrieval.jsonl")
        assert len(ranking) == queries and all(sorted(dids) == names for dids, _ in ranking.values())
    zeroshot_suite.print_results(
        [{"set": "MSVD", "protocol": "clean", "measure": "R@1", "tasks": {"v": found | {"paper": PAPER._asdict()}}}]
    )
    assert "52.4 as LamRA" in capsys.readouterr().out
    (tmp_path / "video1.mp4").write_bytes(b"no clip")
    run = partial(evaluate_set, "msrvtt")
    error = fails(run, **msrvtt, output_dir=tmp_path / "2")
    assert f"video {tmp_path / 'video1.mp4'} of item 'video1' cannot be read" in error
    (tmp_path / "video2.mp4").unlink()
    assert "MSR-VTT: 1 of 3 pictures or videos are missing, first" in fails(run, **msrvtt, output_dir=tmp_path / "2")
    measure("msrvtt", **msrvtt, output_dir=tmp_path / "2", skip_unreadable=2)
    found = json.loads((tmp_path / "2" / "metrics.json").read_text())
    assert [of["id"] for of in found["skipped_unreadable"]["items"]] == ["video1", "video2"]
    assert found["tasks"]["video_retrieval"]["queries"] == 1


def test_pictures_that_are_not_there(flags, tmp_path, fails, capsys):
    for kind in KINDS:  # the same without the row whose picture will be missing
        rows = json.loads((tmp_path / "texts" / f"{kind}.json").read_text())
        write(tmp_path / f"{kind}.json", {"0": rows["0"]})
    measure("sugarcrepe", **flags | dict(annotation_path_prefix=tmp_path))
    fewer = (tmp_path / "out" / "metrics.json").read_text()

    (tmp_path / "images" / "1.png").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "load_retriever", None)  # it stops before
        error = fails(partial(evaluate_set, "sugarcrepe"), **flags)
        assert "SugarCrepe: 1 of 2 pictures or videos are missing, first" in error and "1.png (item 2 of" in error
        nowhere = flags | dict(image_path_prefix=tmp_path / "texts")
        assert "2 of 2 pictures" in fails(partial(evaluate_set, "sugarcrepe"), **nowhere, missing="skip")

    measure("sugarcrepe", **flags, missing="skip")
    printed = "".join(capsys.readouterr())
    assert "1.png (item 2 of" in printed and "their items are left out" in printed
    assert "SugarCrepe (released) sugarcrepe_swap_att: without 1 queries and 0 candidates" in printed
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert all(task.pop("missing") == {"queries": 1, "candidates": 0} for task in found["tasks"].values())
    assert found == json.loads(fewer)
    measure("sugarcrepe", **flags, missing="skip")
    assert "7 of 7 tasks were measured before" in "".join(capsys.readouterr())

    measure("sugarcrepe", **flags, skip_unreadable=14)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["skipped_unreadable"]["count"] == 7 and {of["queries"] for of in found["tasks"].values()} == {1}


def test_a_missing_photo_that_only_a_reranker_is_shown(tmp_path, capsys):
    """VIST, released: the query lacks the fourth photo. The story goes, too: reranking would stop at it."""
    story = [
        [{"text": f"{n}", "photo_flickr_id": f"{name}{n}", "story_id": name, "tier": "story-in-sequence"}
         | {"worker_arranged_photo_order": n}] for name in "ab" for n in range(5)
    ]  # fmt: skip
    photos = draw(tmp_path / "photos", *(f"{name}{n}.jpg" for name in "ab" for n in range(5)))
    (photos / "a3.jpg").unlink()
    whole = vist_tasks(write(tmp_path / "vist.json", {"annotations": story}), photos, "released")
    (task,) = without_missing("VIST", whole, "skip")
    assert [item.id for item in task.queries] == [item.id for item in task.rerank_queries] == ["b"]
    assert [item.id for item in task.gallery] == [f"a{n}" for n in (0, 1, 2, 4)] + [f"b{n}" for n in range(5)]
    assert task.answers == [[8]] and task.excluded == [[4, 5, 6, 7]]
    assert "a3.jpg (item a3 of" in capsys.readouterr().out
    (photos / "b4.jpg").unlink()
    with pytest.raises(UserError, match="image_retrieval: of 2 queries none is left with its pictures and an answer"):
        without_missing("VIST", whole, "skip")


def test_ccneg(flags, tmp_path, capfd):
    rows = [
        {"image": f"images/{n}.png", "caption": f"a ball, {n}", "negative_caption": f"no ball, {n}"} for n in range(3)
    ]
    (tmp_path / "ccneg.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {name: flags[name] for name in ("model_id", "num_workers", "output_dir")}
    measure("ccneg", **own, data_path=tmp_path / "ccneg.jsonl")
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["tasks"]["ccneg"]
    ranking = ranked_ids(tmp_path / "out" / "ranking_ccneg.jsonl")
    hits = [dids[0] == f"{qid}#caption" and scores[0] > scores[1] for qid, (dids, scores) in ranking.items()]
    assert found["queries"] == 3 and found["recall@1"] == sum(hits) / 3
    assert "79.6" not in capfd.readouterr().out and found["paper"] is None  # of 3 rows, not of 40,000


def test_urban1k_released_reads_larger_pictures(tiny_model, tmp_path, monkeypatch, capsys, fails):
    (tmp_path / "caption").mkdir()
    write(tmp_path / "caption" / "1.txt", "A street.")
    (tmp_path / "image").mkdir()
    Image.new("RGB", (812, 616)).save(tmp_path / "image" / "1.jpg")  # 29 x 22 squares of 28; 300 by default
    flags = dict(model_id=tiny_model, num_workers=0, output_dir=tmp_path / "out")
    flags |= dict(image_data_path=tmp_path / "image", text_data_path=tmp_path / "caption")
    grids, pixels = [], Visuals.pixels
    monkeypatch.setattr(
        Visuals, "pixels", lambda self, item: (found := pixels(self, item), grids.append(found["image_grid_thw"]))[0]
    )
    for protocol, squares, largest in (("released", 29 * 22, 12845056), ("clean", 19 * 15, None)):
        grids.clear()
        measure("urban1k", **flags, protocol=protocol)
        assert {int(grid.prod()) // 4 for grid in grids if grid is not None} == {squares}
        found = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert (found["set"], found["protocol"], found.get("max_pixels")) == ("Urban1K", protocol, largest)
        made_by = json.loads((tmp_path / "out" / "made_by.json").read_text())
        assert made_by["max_pixels"] == (largest or 300 * 28 * 28)
        assert ("pictures of up to 12845056 pixels" in "".join(capsys.readouterr())) == bool(largest)
    error = fails(partial(evaluate_set, "urban1k"), **flags, max_pixels=235200)
    assert "--max_pixels 235200: expected 12845056, or no such flag, as LamRA read Urban1K" in error


def test_models_side_by_side(flags, tmp_path, capsys, fails):
    flags["output_dir"] = tmp_path / "a" / "sugarcrepe"
    measure("sugarcrepe", **flags)
    metrics = json.loads((tmp_path / "a/sugarcrepe/metrics.json").read_text())
    assert {task["chance"] for task in metrics["tasks"].values()} == {0.5}
    for kind, task in zip(KINDS, metrics["tasks"].values()):
        task["recall@1"] = 1.0 if kind.startswith("swap") else 0.0
    for name in ("b", "c"):
        (tmp_path / name / "sugarcrepe").mkdir(parents=True)
        write(tmp_path / name / "sugarcrepe/metrics.json", metrics)
        metrics["protocol"] = "clean"
    mean = f"{100 * json.loads((tmp_path / 'a/sugarcrepe/metrics.json').read_text())['mean']['value']:.1f}"
    capsys.readouterr()
    one, two, other, nothing = (f"{name}={tmp_path / name}" for name in "abcd")
    call(compare_zeroshot.main, "--output_dir", tmp_path / "out", one, two)
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["in", "percent", "measure", "chance", "a", "b"]
    assert row.split() == ["SugarCrepe", "(released)", "mean", "accuracy", "50.0", mean, f"{200 / 7:.1f}"]
    assert (tmp_path / "out/zeroshot.png").stat().st_size > 1000
    bare = ("--output_dir", tmp_path / "out")
    error = fails(compare_zeroshot.main, *bare, one, two, other)
    assert "a, b, c measured different things: other tasks, protocols or galleries" in error
    assert "have no set in common: name a folder that eval_zeroshot.sh wrote" in fails(
        compare_zeroshot.main, *bare, one, nothing
    )
    write(tmp_path / "b/sugarcrepe/metrics.json", {"recall@1": 1.0})
    assert "b/sugarcrepe/metrics.json is not of a set of the zero-shot suite" in fails(
        compare_zeroshot.main, *bare, one, two
    )


def test_circo(world, tiny_model, tmp_path, capfd):
    """Two splits, one gallery: val is measured, test gives a file to send."""
    names = [{"id": n + 1, "file_name": f"{n}.png"} for n in range(11)]
    asks = [{"reference_img_id": 3, "relative_caption": "is red", "id": n} for n in range(2)]
    known = [
        row | {"target_img_id": 2, "gt_img_ids": [2, 5 + row["id"]], "semantic_aspects": ["addition"]} for row in asks
    ]
    for name, content in (("image_info_unlabeled2017", {"images": names}), ("val", known), ("test", asks)):
        write(tmp_path / f"{name}.json", content)
    flags = dict(model_id=tiny_model, num_workers=0, output_dir=tmp_path / "out", annotation_path_prefix=tmp_path)
    flags |= dict(image_path_prefix=world / "test" / "images")
    measure("circo", **flags)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    val, test = (found["tasks"][f"circo_{split}"] for split in ("val", "test"))
    by_query = [json.loads(line) for line in (tmp_path / "out" / "queries_circo_val.jsonl").read_text().splitlines()]
    assert val["counted"] == "map@5" and val["map@10"] == val["map@10 addition"] > 0
    assert val["map@5"] == sum(of["map@5"] for of in by_query) / 2
    assert [row.name for row in compare_zeroshot.counted_of(tmp_path / "out")] == ["CIRCO (released) circo_val"]
    assert test == {"queries": 2, "counted": "map@5", "paper": None}
    assert not (tmp_path / "out" / "queries_circo_test.jsonl").exists()
    submission = tmp_path / "out" / "submission_circo_test.json"
    ranked = ranked_ids(tmp_path / "out" / "ranking_circo_test.jsonl")
    assert json.loads(submission.read_text()) == {qid: list(map(int, dids)) for qid, (dids, _) in ranked.items()}
    assert all(sorted(ids) == list(range(1, 12)) for ids in json.loads(submission.read_text()).values())
    printed = capfd.readouterr().out
    assert f"circo_test is measured by https://circo.micc.unifi.it: send it {submission}" in printed
    assert re.search(r"circo_test +mAP@5 +2 +submission +-", printed)
    before = submission.read_text()
    submission.unlink()
    measure("circo", **flags)
    assert submission.read_text() == before and "1 of 2 tasks were measured before" in "".join(capfd.readouterr())


def test_genecis(world, tiny_model, tmp_path, fails):
    """Whole pictures and parts of them; the target once more in its gallery is a sure tie, a miss."""
    shutil.copytree(world / "test" / "images", tmp_path / "vg")
    (tmp_path / "val2017").mkdir()
    for n in range(5):
        Image.open(tmp_path / "vg" / f"{n}.png").save(tmp_path / "val2017" / f"{n:012d}.jpg")
        Image.open(tmp_path / "vg" / f"{n}.png").save(tmp_path / "vg" / f"{n}.jpg")

    def row(named, *entries) -> dict:
        reference, target, *gallery = (dict(zip(named, entry)) for entry in entries)
        return {"condition": "red", "reference": reference, "target": target, "gallery": gallery}

    objects = [row(["val_image_id"], [0], [1], [2], [1]), row(["val_image_id"], [3], [1], [2], [4])]
    parts = [row(["image_id", "instance_bbox"], *([n, [4 * n, 4, 9, 9]] for n in (0, 1, 1, 2)))]
    for subset in SUBSETS:
        write(tmp_path / f"{subset}.json", objects if subset.endswith("object") else parts)
    flags = dict(model_id=tiny_model, num_workers=0, output_dir=tmp_path / "out", image_path_prefix=tmp_path)
    for subset in SUBSETS:  # upstream's script: a run for each
        measure("genecis", **flags, annotation_path=tmp_path / f"{subset}.json", data_type=subset)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    hits = [found["tasks"][f"genecis_{subset}"]["recall@1"] for subset in SUBSETS]
    assert found["mean"] == {"value": sum(hits) / 4, "paper": None} and found["measure"] == "R@1"
    dids, scores = ranked_ids(tmp_path / "out" / "ranking_genecis_change_object.jsonl")["0"]
    assert sorted(dids) == ["1", "1#2", "2"] and scores[dids.index("1")] == scores[dids.index("1#2")]
    first, *_ = map(json.loads, (tmp_path / "out" / "queries_genecis_change_object.jsonl").read_text().splitlines())
    assert first["qid"] == "0" and first["recall@1"] == 0
    measure("genecis", **flags | dict(output_dir=tmp_path / "all"), annotation_path=tmp_path)
    assert json.loads((tmp_path / "all" / "metrics.json").read_text()) == found

    parts[0]["target"]["instance_bbox"][0] = 1000  # beyond the picture
    write(tmp_path / "change_attribute.json", parts * 2)
    flags |= dict(annotation_path=tmp_path, data_type="change_attribute")
    error = fails(partial(evaluate_set, "genecis"), **flags)
    assert re.search(r"vg/1\.jpg \[.*\] cannot be read \(the part lies outside", error)
    (tmp_path / "vg" / "2.jpg").unlink()
    error = fails(partial(evaluate_set, "genecis"), **flags)
    assert "GeneCIS: 1 of 3 pictures or videos are missing, first" in error and "vg/2.jpg" in error
