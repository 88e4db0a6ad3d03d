"""The ladder: its report by hand, and its script as commands; no run is trained here."""

from __future__ import annotations

import json

import pytest
from conftest import call
from PIL import Image

from lamra.common.errors import UserError
from lamra.eval import ladder as entrypoint
from lamra.eval.reporting import ladder

TASKS = ("mscoco_task0_test", "nights_task4")


def write_run(folder, rung, seed, recalls, number=1, *, flags="", split="test", name=None):
    run = folder / (name or f"{rung}.1-seed{seed}")
    told = dict(rung=rung, number=number, seed=seed, flags=flags, seconds=100 + seed)
    path = run / f"{split}_local" / "metrics.json"
    path.parent.mkdir(parents=True)
    (run / "rung.json").write_text(json.dumps(told))
    metrics = {task: {"recall@1": 0.0, "recall@5": recall} for task, recall in zip(TASKS, recalls)}
    path.write_text(json.dumps(metrics | {"average": sum(recalls) / len(recalls)}))


@pytest.fixture
def results(tmp_path):
    for seed, shift in ((0, 0.0), (1, 0.02)):
        write_run(tmp_path, "recipe", seed, (0.50 + shift, 0.30 + shift), 1)
        write_run(tmp_path, "mined", seed, (0.60 + shift, 0.36 + 2 * shift), 3, flags="--hard_negatives 2")
        write_run(tmp_path, "another-order", seed, (0.50 + 2 * shift, 0.28), 2, flags="--seed 1000")
    return tmp_path


def test_the_table_by_hand(results):
    frame = ladder.read_rungs(results)
    table = ladder.write_table(results / "table.md", frame).splitlines()
    assert table[0] == (
        "| rung | seeds | average | least to most | gain | gained | mscoco_task0_test | nights_task4 | training | "
        "reported by others |"
    )
    # Averages 40 and 42: mean 41, deviation sqrt(2).
    assert table[2] == "| recipe | 2 | 41.0 ± 1.4 | 40.0 to 42.0 | - | - | 51.0 | 31.0 | 100 s | - |"
    # Less 1 with the first seed, 41 against 42 with the second.
    assert table[3] == (
        "| another-order | 2 | 40.0 ± 1.4 | 39.0 to 41.0 | -1.0 ± 0.0 | 0 of 2 | 52.0 | 28.0 | 100 s | - |"
    )
    # 48 and 51, gains 8 and 9; what others report stands in the last column alone.
    assert table[4] == (
        "| mined | 2 | 49.5 ± 2.1 | 48.0 to 51.0 | +8.5 ± 0.7 | 2 of 2 | 61.0 | 38.0 | 100 s | "
        f"{ladder.REPORTED['mined']} |"
    )
    assert "| mined | `--hard_negatives 2` |" in table and "| recipe | - |" in table


def test_a_gain_is_over_the_recipe_with_the_same_seed(results):
    write_run(results, "mined", 2, (0.9, 0.9), 3)
    table = ladder.write_table(results / "table.md", ladder.read_rungs(results)).splitlines()
    assert table[4].startswith("| mined | 3 |") and "| +8.5 ± 0.7 | 2 of 2 |" in table[4]


def test_what_has_no_test_result_is_left_out(results):
    write_run(results, "hardness", 0, (0.9, 0.9), 4, split="val")
    assert set(ladder.read_rungs(results)["rung"]) == {"recipe", "another-order", "mined"}


def test_val_chooses(tmp_path):
    for number, recall in enumerate((0.3, 0.4, 0.4), 1):
        write_run(tmp_path, "hardness", 0, (recall, recall), split="val", name=f"hardness.{number}-seed0")
        write_run(tmp_path, "hardness", 1, (1 - recall, recall), split="test", name=f"hardness.{number}-seed1")
    names = [f"hardness.{number}-seed0" for number in (1, 2, 3)]
    assert ladder.best_on_val(tmp_path, names) == "hardness.2-seed0"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: write_run(folder, "recipe", 0, (0.5, 0.5), name="again"), "recipe of one seed twice"),
        (lambda folder: write_run(folder, "soup", 0, (0.5,), 9), "measured on other tasks"),
        (lambda folder: (folder / "mined.1-seed0/rung.json").write_text("{}"), "has no word for rung and flags"),
        (lambda folder: (folder / "mined.1-seed0/test_local/metrics.json").write_text("{"), "is no json"),
        (lambda folder: [path.unlink() for path in folder.glob("recipe*/rung.json")], "no run of recipe"),
        (lambda folder: [path.unlink() for path in folder.glob("*/rung.json")], "holds no finished run"),
    ],
)
def test_what_cannot_be_compared_is_refused(results, spoil, words):
    spoil(results)
    with pytest.raises(UserError, match=words):
        ladder.read_rungs(results)


def test_the_command_writes_all_files(results, monkeypatch, capsys):
    monkeypatch.chdir(results)
    (results / "results").mkdir()
    (results / "results/l").symlink_to(results)
    call(entrypoint.main, study="l")
    assert "written to results/l/: results.csv, table.md, ladder.png" in capsys.readouterr().out
    with Image.open(results / "ladder.png") as picture:
        assert picture.width > 1000
    assert (results / "results.csv").read_text().startswith("rung,flags,seed,seconds,average,")
