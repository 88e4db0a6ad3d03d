"""Machines of a run that differ are refused at the start, in one sentence that names what and where."""

from __future__ import annotations

import pytest

from lamra.common import machines
from lamra.eval import embed
from lamra.train import train_nli


@pytest.fixture
def other(monkeypatch):
    """A second machine, b, that sees what the first sees, but for what the dict says."""
    seen = {}

    def gather(mine):
        ((_, found),) = mine
        return [("a", found), ("b", {name: seen.get(name, value) for name, value in found.items()})]

    monkeypatch.setattr(machines, "several_machines", lambda: True)
    monkeypatch.setattr(machines, "of_all_processes", gather)
    return seen


def test_what_differs_is_named(other, fails, no_model, world, tiny_model, tmp_path):
    (tmp_path / "items.jsonl").write_text('{"id": "a", "text": "a dog"}\n')
    training = dict(model_id="miniature", model_local_path=tiny_model, data_path=world / "nli.csv")
    training |= dict(output_dir=tmp_path / "run", max_steps=1, dataloader_num_workers=0, report_to="none")
    embedding = dict(model_id=tiny_model, input=tmp_path / "items.jsonl", output=tmp_path / "out.npz")
    for name, main, flags in (
        (f"--data_path {world / 'nli.csv'}", train_nli.main, training),
        ("the package torch", train_nli.main, training),
        (f"the model {tiny_model}", train_nli.main, training),
        (f"the code in {machines.ROOT}", embed.main, embedding),
    ):
        other.clear()
        other[name] = "another"
        assert f"error: {name} is not the same on b as on a: all machines need an equal one" == fails(main, **flags)
        assert not (tmp_path / "run").exists()


def test_one_machine_is_compared_with_nothing(monkeypatch):
    monkeypatch.setattr(machines, "of_all_processes", lambda _: pytest.fail("asked the other processes"))
    monkeypatch.setattr(machines, "several_processes", lambda: True)
    for world, here, several in (("4", "4", False), ("4", "2", True)):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
        assert machines.several_machines() == several
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    machines.require_alike({"the data": 1})
    machines.require_same_code()


def test_the_code_is_what_a_run_imports(monkeypatch, tmp_path):
    for room in machines.CODE:
        (tmp_path / room).mkdir()
    (tmp_path / "models" / "packing.py").write_text("a = 1\n")
    monkeypatch.setattr(machines, "ROOT", tmp_path)
    before = machines.code_sha256()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.py").write_text("a = 2\n")
    assert machines.code_sha256() == before
    (tmp_path / "models" / "packing.py").write_text("a = 2\n")
    assert machines.code_sha256() != before
