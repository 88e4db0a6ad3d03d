"""Videos through the entrypoints: embedded from a jsonl, found by the demonstration, and judged by a reranker."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from clips import drawn, noise, write_clip
from conftest import call
from test_judge import judge_of

from lamra import demo, load
from lamra.common.errors import UserError
from lamra.datasets.items import Item, Picture, Text, Video
from lamra.datasets.pairs import PairFile
from lamra.datasets.rankings import RankedQuery
from lamra.datasets.zeroshot.msvd import msvd_tasks
from lamra.eval import embed
from lamra.eval.rerank.answers import answers_of, divided, joined


@pytest.fixture
def folder(tmp_path):
    """Two clips, a picture, and a clip that breaks off."""
    (tmp_path / "clips").mkdir()
    for name, frames in (("a.mp4", drawn(6)), ("b.avi", drawn(20)[9:])):
        write_clip(tmp_path / "clips" / name, frames)
    noise(56, 84).save(tmp_path / "clips" / "c.png")
    return tmp_path


def test_embed(folder, tiny_model, fails):
    lines = [
        {"id": "a", "video": "clips/a.mp4"},
        {"id": "b", "video": "clips/b.avi", "image": "clips/c.png", "text": "both"},
        {"id": "c", "content": [{"text": "see"}, {"video": "clips/a.mp4"}, {"text": "there"}]},
    ]
    path, out = folder / "items.jsonl", folder / "out.npz"
    path.write_text("\n".join(map(json.dumps, lines)))
    run = dict(model_id=tiny_model, input=path, output=out, num_workers=0)
    call(embed.main, **run)
    clips = folder / "clips"
    of_b = Item("b", parts=[Picture(clips / "c.png"), Video(clips / "b.avi"), Text("both")])
    expected = load(tiny_model).encode([clips / "a.mp4", of_b, {"video": clips / "a.mp4"}])
    assert torch.equal(expected[0], expected[2])
    with np.load(out) as found:
        np.testing.assert_allclose(found["embeddings"][:2], expected[:2], atol=1e-6)
        assert abs(found["embeddings"][0] @ found["embeddings"][2]) < 0.9999

    (clips / "b.avi").write_bytes(b"no video")
    error = fails(embed.main, **run)
    assert f"video {clips / 'b.avi'} of item 'b' cannot be read" in error
    call(embed.main, **run, skip_unreadable=1)
    with np.load(out) as found:
        assert found["skipped"].tolist() == ["b"] and found["ids"].tolist() == ["a", "c"]
    (clips / "b.avi").unlink()
    assert f"items.jsonl line 2: picture or video {clips / 'b.avi'} does not exist" in fails(embed.main, **run)
    path.write_text('{"id": 1, "video": "../a.mp4"}')
    assert "line 1: the path ../a.mp4 leaves" in fails(embed.main, **run)
    path.write_text('{"id": 1, "video": 3}')
    assert """line 1: {'video': 3} is not {"text"}, {"image"} or {"video"} with a string""" in fails(embed.main, **run)


def test_demo(folder, tiny_model, capsys):
    run = dict(model_id=tiny_model, folder=folder / "clips", num_workers=0)
    call(demo.main, **run, video=folder / "clips" / "b.avi")
    (best, *others) = [line for line in capsys.readouterr().out.splitlines() if "/clips/" in line]
    assert best.split()[1:] == ["1.0000", str(folder / "clips" / "b.avi")] and len(others) == 2
    call(demo.main, **run, text="a dog", rerank=tiny_model)
    assert capsys.readouterr().out.count(" = ") == 4  # the heading, and three


def test_pairs_to_train_on(folder):
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps({"query": {"text": "a dog"}, "target": {"video": "clips/a.mp4"}}) + "\n")
    (pair,) = [PairFile(path, "pairs")[0]]
    assert pair.target.parts == (Video(folder / "clips/a.mp4"),)
    (folder / "clips/a.mp4").unlink()
    with pytest.raises(UserError, match=r"picture or video .*a\.mp4 of .*pairs\.jsonl does not exist"):
        PairFile(path, "pairs")


@pytest.mark.parametrize("position_ids", ["mrope", "sequential"])
def test_a_reranker_judges_videos(folder, tiny_model, position_ids):
    clip, other = (Video(folder / "clips" / name, nframes=2) for name in ("a.mp4", "b.avi"))
    items = [
        Item("v", parts=[clip]),
        Item("w", parts=[other, Text("moves")]),
        Item("p", images=(noise(84, 56),)),
        Item("t", "a dog"),
    ]
    judge, plain = judge_of(tiny_model, position_ids), judge_of(tiny_model, position_ids, padding_free=False)
    shown = divided(joined([judge.prompts.prepare(item) for item in items]))  # as workers hand them over
    for query in shown:
        alone = [plain.pointwise(query, [candidate])[0] for candidate in shown]
        assert judge.pointwise(query, shown) == pytest.approx(alone, abs=1e-5)
        assert len({round(score, 4) for score in alone}) == len(alone)
        assert sorted(judge.listwise(query, shown)) == [0, 1, 2, 3]
    assert judge.features.computed == 2 + 10  # a clip's once; those of "p", which is no file, each time it is shown


def test_rankings_of_videos_are_reranked(folder, tiny_model, tmp_path):
    """MSVD's reranker sees 8 frames of each clip, where its retriever sees 12."""
    clips = folder / "clips"
    (clips / "a.mp4").rename(clips / "a.avi")
    (folder / "list.txt").write_text("a\nb\n")
    lines = [{"id": name, "captions": [f"a dog {name}"]} for name in "ab"]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (task,) = msvd_tasks(clips, folder / "list.txt", folder / "captions.jsonl", "released")
    ranking = [RankedQuery(0, [1, 0], [0.5, 0.4]), RankedQuery(1, [1, 0], [0.6, 0.1])]
    judge = judge_of(tiny_model, budget=8192)
    (tmp_path / "answers").mkdir()
    found = answers_of(judge, task, ranking, "pointwise", 2, tmp_path / "answers", {}, "rerank")
    shown = [judge.prompts.prepare(Item(name, parts=[Video(clips / f"{name}.avi", nframes=8)])) for name in "ba"]
    assert [int(item.image_grid_thw[0, 0]) for item in shown] == [4, 3]  # of 11 and of 6 frames
    for answer, query in zip(found, task.queries):
        assert answer == pytest.approx(judge.pointwise(judge.prompts.prepare(query), shown), abs=1e-6)
