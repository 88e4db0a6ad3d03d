"""The study: its report by hand, and its script on two kinds of data, broken off and continued."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lamra.common.errors import UserError
from lamra.eval.reporting import study


def write_run(folder, name, image, text, data="flickr"):
    path = folder / name / data / "metrics.json"
    path.parent.mkdir(parents=True)
    recalls = {
        f"{direction}_retrieval_recall@{k}": value
        for direction, value in (("image", image), ("text", text))
        for k in (1, 5)
    }
    path.write_text(json.dumps(recalls | {"image_retrieval_ndcg@10": 0.9, "image_retrieval_mrr@10": 0.9}))


@pytest.fixture
def results(tmp_path):
    write_run(tmp_path, "none-0-seed0", 0.1, 0.1)
    for seed, shift in ((0, 0.0), (1, 0.02)):
        write_run(tmp_path, f"text-10-seed{seed}", 0.3 + shift, 0.5)
        write_run(tmp_path, f"text-100-seed{seed}", 0.5 + shift, 0.7)
        write_run(tmp_path, f"image-100-seed{seed}", 0.2 + shift, 0.2)
        write_run(tmp_path, f"mixture-100-seed{seed}", 0.51 + shift, 0.7)
    return tmp_path


def test_the_table_by_hand(results):
    frame = study.read_results(results)
    assert len(frame) == 9 * 4
    table = study.write_table(results / "table.md", frame).splitlines()
    assert table[0] == "| data | size | seeds | flickr, image retrieval | flickr, text retrieval | mean |"
    assert table[2] == "| base model | - | 1 | 0.100 | 0.100 | 0.100 |"  # one run has no spread
    # 0.50 and 0.52: mean 0.51, deviation 0.01 * sqrt(2); the means over directions are 0.60 and 0.61
    assert table[4] == "| text | 100 % | 2 | 0.510 ± 0.014 | 0.700 ± 0.000 | 0.605 ± 0.007 |"


def test_conclusions_by_hand(results):
    assert dict(study.conclusions(study.read_results(results))) == {
        "text alone is the best data": "within the spread",  # 0.605 against the mixture's 0.610, deviation 0.007
        "text alone rises steadily with its size": "held",
        "mixing lowers the result of text alone": "within the spread",
    }
    best = "text alone is the best data"
    write_run(results, "image-text-100-seed0", 0.9, 0.9)
    assert dict(study.conclusions(study.read_results(results)))[best] == "needs 2 seeds"
    write_run(results, "image-text-100-seed1", 0.9, 0.9)
    assert dict(study.conclusions(study.read_results(results)))[best] == "did not hold"


def test_the_mean_is_over_the_galleries_that_all_runs_have(results):
    write_run(results, "text-100-seed0", 0.9, 0.9, data="coco")  # its own mean would be 0.75, beside others' 0.60
    frame = study.read_results(results)
    assert study.common_galleries(frame) == ["flickr"]
    table = study.write_table(results / "table.md", frame).splitlines()
    assert table[0].count("coco") == 2
    assert table[2] == "| base model | - | 1 | 0.100 | 0.100 | - | - | 0.100 |"
    assert table[4] == "| text | 100 % | 2 | 0.510 ± 0.014 | 0.700 ± 0.000 | 0.900 | 0.900 | 0.605 ± 0.007 |"
    assert "The mean leaves out coco, which not every run has." in "\n".join(table)
    assert dict(study.conclusions(frame))["text alone is the best data"] == "within the spread"
    (results / "image-100-seed0" / "flickr" / "metrics.json").rename(results / "metrics.json")
    (results / "image-100-seed0" / "coco").mkdir()
    (results / "metrics.json").rename(results / "image-100-seed0" / "coco" / "metrics.json")
    with pytest.raises(ValueError, match="no gallery .* has all runs; measure them on the same ones"):
        study.read_results(results)


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run"):
        study.read_results(tmp_path)
    write_run(tmp_path, "text-100-seed0", 0.5, "half")
    with pytest.raises(UserError, match="has no number for text_retrieval_recall@1: delete it"):
        study.read_results(tmp_path)


def test_the_figures_and_hparams(results, tmp_path):
    frame = study.read_results(results)
    for plot, name in ((study.plot_kinds, "data_types.png"), (study.plot_sizes, "data_scale.png")):
        plot(results / name, frame)
        with Image.open(results / name) as image:
            assert image.height == 720
    (tmp_path / "runs" / "text-100-seed0" / "runs").mkdir(parents=True)
    study.write_hparams(tmp_path / "runs", frame)
    board = EventAccumulator(str(tmp_path / "runs" / "text-100-seed0" / "runs" / "hparams"))
    board.Reload()
    assert "flickr/image_retrieval_recall@1" in board.Tags()["scalars"]
