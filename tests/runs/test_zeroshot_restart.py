"""The zero-shot suite on two processes, killed while a set is encoded and between two tasks: equal to one process."""

from __future__ import annotations

import json
from functools import partial

from conftest import call, run_script
from suite_worker import LAST, SHARD_SIZE
from zeroshot_files import suite_files, write

from lamra.eval import zeroshot_suite
from lamra.eval.zeroshot_suite import evaluate_set


def test_all_sets_are_equal_after_two_kills(tiny_model, tmp_path, monkeypatch):
    files = suite_files(tmp_path)
    names = [name for name in files if name != LAST] + [LAST]
    monkeypatch.setattr(zeroshot_suite, "SHARD_SIZE", SHARD_SIZE)

    def flags(name: str, folder: str) -> dict:
        return files[name] | dict(model_id=tiny_model, num_workers=0, output_dir=tmp_path / folder / name)

    for name in names:
        call(partial(evaluate_set, name), **flags(name, "one"))
    commands = {
        name: [str(part) for flag, value in flags(name, "two").items() for part in (f"--{flag}", value)]
        for name in names
    }

    def start(dies: str | None):
        plan = write(tmp_path / "plan.json", {"flags": commands, "dies": dies})
        torchrun = ["torchrun", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
        return run_script(*torchrun, "tests/support/suite_worker.py", plan, check=dies is None)

    one, two = tmp_path / "one", tmp_path / "two"
    assert start("half a shard").returncode != 0
    shards = sorted(path.relative_to(two) for path in (two / LAST / "embeddings").rglob("*.npy"))
    assert [path.name for path in shards] == ["00000.npy"] and not (two / LAST / "metrics.json").exists()
    before = (two / LAST / "embeddings" / shards[0].relative_to(f"{LAST}/embeddings")).stat().st_mtime_ns

    killed = start("a task")
    assert killed.returncode != 0 and killed.stdout.count("tasks were measured before") == len(names) - 1
    assert (two / shards[0]).stat().st_mtime_ns == before  # it was not made again
    assert len(json.loads((two / LAST / "metrics.json").read_text())["tasks"]) == 3

    last = start(None)
    assert "3 of 7 tasks were measured before" in last.stdout
    found = {path.relative_to(one): path.read_bytes() for path in one.rglob("*") if path.is_file()}
    assert {path.relative_to(two): path.read_bytes() for path in two.rglob("*") if path.is_file()} == found
    assert {path.name.partition("_")[0] for path in found} == {
        "metrics.json",
        "made",
        "queries",
        "ranking",
        "submission",
    }
