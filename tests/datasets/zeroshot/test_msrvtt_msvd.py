"""MSR-VTT and MSVD: prompts byte for byte, the files as they are published, and a sentence for each wrong one."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
from zeroshot_files import T, embedded, reranked, write

from lamra.common.errors import UserError
from lamra.datasets.caption import PROTOCOLS
from lamra.datasets.items import Video
from lamra.datasets.tasks import ReportedAsLamRA, RetrievalTask
from lamra.datasets.zeroshot import msrvtt, msvd
from lamra.datasets.zeroshot.msrvtt import msrvtt_tasks
from lamra.datasets.zeroshot.msvd import msvd_tasks

ASKS = "Find an everyday video match with caption. "
V = "\nSummarize above video in one word: "
HEADER = "key,vid_key,video_id,sentence\n"
CSV = (
    HEADER + 'ret0,msr9770,video9770,a man cooks\nret1,msr1,video1,"a dog, a cat"\nret2,msr9770,video9770,a man cooks\n'
)
CAPTIONS = {"mv_1_2": [["a", "bird", "sings"], ["a bird"]], "other": [["x"]], "-4w_0_9": [["dogs"]]}


def of_msrvtt(folder: Path, content: str = CSV, protocol: str = "released") -> RetrievalTask:
    (task,) = msrvtt_tasks(write(folder / "test.csv", content), folder / "videos", protocol)
    return task


def of_msvd(
    folder: Path, captions: object = CAPTIONS, listed: str = "mv_1_2\n-4w_0_9\n\n", protocol: str = "released"
) -> RetrievalTask:
    path = folder / "raw-captions.pkl"
    path.write_bytes(captions if isinstance(captions, bytes) else pickle.dumps(captions, protocol=2))
    (task,) = msvd_tasks(folder / "clips", write(folder / "test_list.txt", listed), path, protocol)
    return task


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts(tmp_path, protocol):
    for task, caption, clip in (
        (of_msrvtt(tmp_path, protocol=protocol), "a man cooks", "video9770.mp4"),
        (of_msvd(tmp_path, protocol=protocol), "a bird sings", "mv_1_2.avi"),
    ):
        assert embedded(task.queries[0]) == f"{ASKS}{caption}{T}"
        assert embedded(task.gallery[0]) == f"[{clip}]{V}"
        assert reranked(task.queries[0], task.gallery[0]) == f"Query:{ASKS}{caption}Candidate:[{clip}]"


def test_msrvtt(tmp_path, monkeypatch):
    monkeypatch.setattr(msrvtt, "PUBLISHED", 3)
    task = of_msrvtt(tmp_path)
    assert [item.id for item in task.queries] == ["ret0", "ret1", "ret2"]
    assert task.queries[1].text == "a dog, a cat"
    assert [item.parts for item in task.gallery] == [
        (Video(tmp_path / "videos" / f"{name}.mp4"),) for name in ("video9770", "video1")
    ]
    assert task.answers == [[0], [1], [0]]  # a clip with two captions is there once
    assert (task.name, task.reported) == ("video_retrieval", ReportedAsLamRA(44.7, 68.6, 78.6))
    assert (task.ks, task.counted, task.weight) == ((1, 5, 10), 1, 1)
    monkeypatch.undo()
    assert of_msrvtt(tmp_path).reported is None


def test_msvd(tmp_path, monkeypatch):
    monkeypatch.setattr(msvd, "PUBLISHED", 2)
    task = of_msvd(tmp_path)
    assert [(item.id, item.text) for item in task.queries] == [
        ("mv_1_2#0", "a bird sings"),
        ("mv_1_2#1", "a bird"),
        ("-4w_0_9#0", "dogs"),
    ]
    assert [item.parts for item in task.gallery] == [
        (Video(tmp_path / "clips" / f"{name}.avi", nframes=12),) for name in ("mv_1_2", "-4w_0_9")
    ]
    assert [item.parts[0].nframes for item in task.rerank_gallery] == [8, 8]
    assert task.answers == [[0], [0], [1]]
    assert (task.name, task.reported) == ("video_retrieval", ReportedAsLamRA(52.4, 79.8, 87.0))
    rows = ({"id": clip, "captions": [" ".join(words) for words in lists]} for clip, lists in CAPTIONS.items())
    lines = write(tmp_path / "captions.jsonl", "\n".join(map(json.dumps, rows)))
    (same,) = msvd_tasks(tmp_path / "clips", tmp_path / "test_list.txt", lines, "released")
    assert list(same.queries) == list(task.queries) and list(same.gallery) == list(task.gallery)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_nothing_of_a_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"could run code \(it names posix\.mkdir\): where you trust it, write it as"):
        of_msvd(tmp_path, {"mv_1_2": Runs()})
    assert not (tmp_path / "ran").exists()


WRONG_MSRVTT = {
    "another csv": ("image,caption\na,b\n", r"test\.csv lacks the column key, video_id, sentence"),
    "empty": (HEADER, r"test\.csv has no captions"),
    "nothing": ("", r"test\.csv cannot be read as a csv: it is empty"),
    "twice": (CSV + "ret1,m,video3,x\n", r"test\.csv line 5 repeats the key 'ret1'"),
    "no caption": (HEADER + "ret0,msr1,video1\n", r'test\.csv line 2 lacks "sentence"'),
    "blank": (HEADER + "ret0,msr1,video1, \n", r'test\.csv line 2: "sentence" is \' \''),
    "above": (HEADER + "ret0,msr1,../video1,a\n", r"test\.csv line 2: the path \.\./video1\.mp4 leaves"),
}


@pytest.mark.parametrize(("content", "sentence"), WRONG_MSRVTT.values(), ids=WRONG_MSRVTT.keys())
def test_wrong_files_of_msrvtt(tmp_path, content, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        of_msrvtt(tmp_path, content)
    assert "\n" not in str(error.value)


BROKEN = pickle.dumps(CAPTIONS)
WRONG_MSVD = {
    "no pickle": (b"mv_1_2 a bird", "mv_1_2", r"raw-captions\.pkl is broken, or holds more than plain data"),
    "cut": (BROKEN[:40], "mv_1_2", r"raw-captions\.pkl is broken"),
    "a list": ([1], "mv_1_2", r"raw-captions\.pkl is not of MSVD: a dict of captions is expected, and it holds a list"),
    "other clips": ({"a": [["x"]]}, "mv_1_2", r"test_list\.txt line 1: .*pkl has no captions of 'mv_1_2'"),
    "twice": (CAPTIONS, "mv_1_2\nmv_1_2", r"test_list\.txt line 2 repeats the clip 'mv_1_2'"),
    "none": (CAPTIONS, "\n", r"test_list\.txt has no clips"),
    "no captions": ({"mv_1_2": []}, "mv_1_2", r'clip mv_1_2: "captions" is \'\[\]\': a list that is not empty'),
    "no words": ({"mv_1_2": [[1]]}, "mv_1_2", r"clip mv_1_2: the caption '\[1\]' is neither a text nor a list"),
    "empty words": ({"mv_1_2": [[]]}, "mv_1_2", r"clip mv_1_2: the caption '\[\]' is neither"),
    "above": ({"../a": [["x"]]}, "../a", r"test_list\.txt line 1: the path \.\./a\.avi leaves"),
}


@pytest.mark.parametrize(("captions", "listed", "sentence"), WRONG_MSVD.values(), ids=WRONG_MSVD.keys())
def test_wrong_files_of_msvd(tmp_path, captions, listed, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        of_msvd(tmp_path, captions, listed)
    assert "\n" not in str(error.value)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"MSR-VTT's .*test\.csv does not exist"):
        msrvtt_tasks(tmp_path / "test.csv", tmp_path, "released")
    with pytest.raises(UserError, match=r"MSVD's .*list\.txt does not exist"):
        msvd_tasks(tmp_path, tmp_path / "list.txt", tmp_path / "captions.pkl", "released")
    write(tmp_path / "list.txt", "a")
    with pytest.raises(UserError, match=r"MSVD's .*captions\.pkl does not exist"):
        msvd_tasks(tmp_path, tmp_path / "list.txt", tmp_path / "captions.pkl", "released")


@pytest.mark.parametrize("end", range(1, len(BROKEN), 3))
def test_a_pickle_that_breaks_off(tmp_path, end):
    with pytest.raises(UserError, match="is broken"):
        of_msvd(tmp_path, BROKEN[:end])
