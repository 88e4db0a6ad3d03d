"""--skip_unreadable: what is left is measured as if the pictures that cannot be read were not there."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from conftest import call

from lamra import demo
from lamra.datasets.items import Item
from lamra.datasets.tasks import ItemList, RetrievalTask
from lamra.eval import embed, eval_mbeir, zeroshot


def flickr() -> None:
    zeroshot.evaluate_captions("Flickr30K")


@pytest.fixture
def broken(world, tmp_path):
    """The world's 11 test pictures, of which 3 is empty and 7 is not there; and the same data without these."""
    captions = json.loads((world / "test" / "captions.json").read_text())
    for name, lost in (("broken", ()), ("fewer", (3, 7))):
        kept = [row for row in range(11) if row not in lost]
        (tmp_path / name).mkdir()
        for new, row in enumerate(kept):
            shutil.copy(world / "test" / "images" / f"{row}.png", tmp_path / name / f"{new}.png")
        texts = [text for row in kept for text in captions[5 * row : 5 * row + 5]]
        (tmp_path / f"{name}.json").write_text(json.dumps(texts))
    (tmp_path / "broken" / "3.png").write_bytes(b"")
    (tmp_path / "broken" / "7.png").unlink()
    return tmp_path


def test_captions(broken, tiny_model, fails):
    def flags(name: str, **more) -> dict:
        folders = dict(image_data_path=broken / name, text_data_path=broken / f"{name}.json", output_dir=broken / "out")
        return dict(model_id=tiny_model, num_workers=0) | folders | more

    assert "1 of the 11 pictures of" in fails(flickr, **flags("broken"))
    error = fails(flickr, **flags("broken", skip_unreadable=1))
    assert "2 items have a picture that cannot be read, more than --skip_unreadable 1; the first: picture" in error
    assert "--skip_unreadable -1: expected 0 or more" in fails(flickr, **flags("broken", skip_unreadable=-1))
    for mode in ("pretrained", "finetuned"):
        call(flickr, **flags("broken", skip_unreadable=2, mode=mode, output_dir=broken / mode))
        found = json.loads((broken / mode / "metrics.json").read_text())
        skipped = found.pop("skipped_unreadable")
        assert skipped["count"] == 2 and [of["id"] for of in skipped["items"]] == ["3.png", "7.png"]
        assert "3.png cannot be read" in skipped["items"][0]["reason"] and "exist" in skipped["items"][1]["reason"]
        call(flickr, **flags("fewer", mode=mode, output_dir=broken / f"{mode} fewer"))
        assert json.loads((broken / f"{mode} fewer" / "metrics.json").read_text()) == found


def test_mbeir_goes_on_from_where_a_picture_stopped_it(mbeir, tiny_model, tmp_path, fails):
    root, lost = tmp_path / "mbeir", "mbeir_images/test/0.png"
    shutil.copytree(mbeir, root)
    (root / lost).write_bytes(b"")
    run = dict(model_id=tiny_model, data_path=root, tasks="nights_task4,cirr_task7", num_workers=0, shard_size=5)
    run |= dict(output_dir=tmp_path / "out")
    assert f"picture {root / lost} cannot be read" in fails(eval_mbeir.main, **run)
    for folder, together in (("test_local", False), ("test_global", True)):
        args = eval_mbeir.MBEIRArguments(
            **{name: str(run[name]) for name in ("model_id", "data_path", "tasks", "output_dir")}
        )
        args.num_workers, args.shard_size, args.skip_unreadable, args.pool = 0, 5, 20, folder.partition("_")[2]
        eval_mbeir.evaluate_mbeir(args, together=together)
        metrics = json.loads((tmp_path / "out" / folder / "metrics.json").read_text())
        skipped = metrics["skipped_unreadable"]
        assert skipped["count"] == len(skipped["items"]) > 1
        assert all(lost in of["reason"] for of in skipped["items"])
        for task in ("nights_task4", "cirr_task7"):
            lines = map(json.loads, (tmp_path / "out" / folder / f"ranking_{task}.jsonl").read_text().splitlines())
            named = {(kind, line[kind]) for line in lines for kind in ("qid", "did")}
            own = [of for of in skipped["items"] if task in of["of"]]
            lost_here = {("did" if "pool" in of["of"] else "qid", of["id"]) for of in own}
            assert lost_here and lost_here.isdisjoint(named)


def test_embeddings(broken, tiny_model, fails):
    lines = [{"id": str(row), "image": f"{row}.png"} for row in range(11)] + [{"id": "text", "text": "a dog"}]
    (broken / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = dict(model_id=tiny_model, input=broken / "items.jsonl", image_root=broken / "broken", num_workers=0)
    run |= dict(output=broken / "out.npz")
    assert "items.jsonl line 8: picture" in fails(embed.main, **run)
    call(embed.main, **run, skip_unreadable=2)
    with np.load(broken / "out.npz") as found:
        assert found["skipped"].tolist() == ["3", "7"] and found["ids"].tolist() == [*"01245689", "10", "text"]
        assert len(found["embeddings"]) == 10


def test_the_demonstration_counts_what_it_leaves_out(broken, tiny_model, fails, capsys):
    folder = broken / "broken"
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    for name in ("._1.png", "notes.txt", "more.TXT", "name", "folder.jpg/deep.JPEG"):
        shutil.copy(folder / "1.png", folder / name)
    os.rename(folder / "2.png", os.path.join(os.fsencode(folder), b"\xff, \n.png"))
    run = dict(model_id=tiny_model, folder=folder, text="a dog", num_workers=0, top=20)
    assert "3.png cannot be read" in fails(demo.main, **run)
    capsys.readouterr()
    call(demo.main, **run, skip_unreadable=1)
    printed = capsys.readouterr().out
    assert (
        "6 entries are left out as no pictures or videos: 2 .txt, 1 macOS's ._ files, 2 no files, 1 no suffix"
        in printed
    )
    assert "note: 1 of the 11 items of" in printed
    assert "deep.JPEG" in printed and " 10  " in printed and " 11  " not in printed
    (broken / "empty").mkdir()
    assert "--folder" in (error := fails(demo.main, **run | dict(folder=broken / "empty"))) and "no picture" in error


def test_a_query_without_its_answers_goes_too():
    queries, gallery = (
        ItemList([Item(f"{name}{row}", "a") for row in range(count)], name, "") for name, count in (("q", 5), ("g", 4))
    )
    answers, own = [[0], [1, 2], [3], [2], []], [[0, 1], [1, 2], [3, 2], [2], [0]]
    lost = np.array([False, True, True, False])
    for more, fewer in (({}, {}), ({"candidates": own}, {"candidates": [[0], [1], [0]]})):
        task = RetrievalTask("task", queries, gallery, answers, **more)
        found = task.without(np.array([False] * 5), lost, gallery.without(lost))
        assert [item.id for item in found.queries] == ["q0", "q2", "q4"]  # q4 had no answer before: a miss, as ever
        assert [item.id for item in found.gallery] == ["g0", "g3"]
        assert found.answers == [[0], [1], []] and found.candidates == fewer.get("candidates")
    found = RetrievalTask("task", queries, gallery, answers, excluded=[[1], [], [2], [0], [3]]).without(
        np.array([True] + [False] * 4), lost, gallery.without(lost)
    )
    assert found.excluded == [[], [1]] and [item.id for item in found.queries] == ["q2", "q4"]
