"""Output folders: one job each, whole files, what --force deletes."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import stat
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import call
from full_disk import largest_file

from lamra.common import lock
from lamra.common.cli import what_the_machine_says
from lamra.eval import embed, eval_mbeir, eval_rerank, mine_negatives, mine_rerank, teacher_scores, zeroshot
from lamra.export import merge_lora
from lamra.models.loading import load_trained
from lamra.models.saving import whole_model
from lamra.models.settings import Settings
from lamra.train import checkpoints, train_nli
from lamra.train.output import clear_output, prepare_output


def train(world: Path, model: Path, output: Path, *flags) -> None:
    """One step of stage 1 in this process."""
    named = dict(model_id="miniature", model_local_path=model, data_path=world / "nli.csv", output_dir=output)
    named |= dict(per_device_train_batch_size=8, max_steps=1, lora_r=2, dataloader_num_workers=0, report_to="none")
    before = sys.argv
    sys.argv = ["train_nli.py", *(str(part) for name in named for part in (f"--{name}", named[name])), *map(str, flags)]
    try:
        train_nli.main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def trained(world, tiny_model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    before = os.umask(0o027)
    try:
        train(world, tiny_model, output)
    finally:
        os.umask(before)
    return output


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Runs.


def test_a_run_is_readable_by_whom_the_umask_says_and_leaves_no_lock(trained):
    modes = {str(path.relative_to(trained)): stat.S_IMODE(path.stat().st_mode) for path in trained.rglob("*.*")}
    weights = [name for name in modes if name.endswith(".safetensors")]
    assert len(weights) == 2 and all(modes[name] == 0o640 for name in weights), modes
    assert not [name for name in modes if name.startswith(".")]


def test_force_deletes_what_belongs_to_the_run_and_nothing_else(copy, fails, tmp_path, world, tiny_model):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(copy / "checkpoint-1", elsewhere)
    (copy / "checkpoint-7").symlink_to(elsewhere)
    (copy / "skipped.jsonl").write_text('{"step": 1, "row": 3, "reason": "x"}\n')
    (copy / "notes.txt").write_text("mine")
    (copy / "checkpoint-best").mkdir()
    flags = dict(model_id="miniature", model_local_path=tiny_model, output_dir=copy, data_path=world / "nli.csv")
    before = content(copy)
    assert f"--output_dir {copy} holds a finished run" in fails(train_nli.main, **flags)
    error = fails(train_nli.main, **(flags | dict(data_path=tmp_path / "typo.csv", force=True)))
    assert "typo.csv does not exist" in error and content(copy) == before  # a mistake costs no run
    train(world, tiny_model, copy, "--dry_run", "True", "--force", "True")
    assert content(copy) == before

    clear_output(copy)
    assert sorted(path.name for path in copy.iterdir()) == ["checkpoint-best", "notes.txt"]
    assert checkpoints.fault(elsewhere) is None
    prepare_output(copy, tiny_model, force=False, resume=None)


def test_a_link_to_a_checkpoint_is_not_followed(copy, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(copy / "checkpoint-1", elsewhere)
    (copy / "checkpoint-2").symlink_to(elsewhere)
    assert checkpoints.checkpoint_to_resume(copy, "auto") == str(copy / "checkpoint-1")
    shutil.rmtree(copy / "checkpoint-1")
    with pytest.raises(ValueError, match="checkpoint-2: it is a link"):
        checkpoints.checkpoint_to_resume(copy, "auto")
    partial = copy / ".partial"
    shutil.copytree(elsewhere, partial)
    checkpoints.commit_checkpoint(partial, copy / "checkpoint-2", record={}, keep=1)
    assert not (copy / "checkpoint-2").is_symlink() and checkpoints.fault(elsewhere) is None


def test_no_run_writes_over_the_model_that_it_trains_or_a_model_of_others(copy, fails, tiny_model, tmp_path, world):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    flags = dict(model_id="miniature", model_local_path=base, output_dir=base, data_path=world / "nli.csv")
    whole = copy / "checkpoint-1"  # as USE_LORA=False writes them
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, whole / name)
    (whole / "adapter_config.json").unlink()
    before = content(base), content(copy)
    for force in (False, True):
        for use_lora in (False, True):
            error = fails(train_nli.main, **flags, force=force, use_lora=use_lora)
            assert f"--output_dir {base} holds the model that is trained" in error
    error = fails(train_nli.main, **(flags | dict(model_local_path=whole, output_dir=copy)), force=True)
    assert f"--output_dir {copy} holds the model that is trained, {whole}" in error
    error = fails(train_nli.main, **(flags | dict(model_local_path=tiny_model)), force=True)
    assert f"--output_dir {base} holds a model that no training wrote there" in error
    assert (content(base), content(copy)) == before


def test_a_run_that_was_stopped_early_is_no_published_model(copy, tiny_model, fails, world):
    clear_output(copy)
    (copy / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="was stopped before its first checkpoint: .* start again with --force True"):
        prepare_output(copy, tiny_model, force=False, resume=None)
    prepare_output(copy, tiny_model, force=True, resume=None)
    shutil.copytree(tiny_model, copy, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="is half-written: its run.json says that a training began"):
        load_trained(copy, dtype=torch.float32)


def test_a_job_that_is_queued_again_goes_on_from_what_there_is(copy, tiny_model, fails, world):
    """--resume if_any: from a checkpoint, or anew over what was stopped before one; never over a finished run."""
    flags = dict(model_id="miniature", model_local_path=tiny_model, data_path=world / "nli.csv", output_dir=copy)
    flags |= dict(per_device_train_batch_size=8, max_steps=1, dataloader_num_workers=0, report_to="none")
    assert checkpoints.checkpoint_to_resume(copy, "if_any") == str(copy / "checkpoint-1")
    shutil.rmtree(copy / "checkpoint-1")
    assert f"--output_dir {copy} holds a finished run" in fails(train_nli.main, **flags, resume="if_any")
    (copy / "checkpoint-1").mkdir()
    (copy / "checkpoint-1" / "manifest.json").write_text("{")
    assert "its manifest.json is damaged" in fails(train_nli.main, **flags, resume="if_any")  # and costs no run
    clear_output(copy)
    (copy / "run.json").write_text("{}")
    (copy / ".partial").mkdir()
    call(train_nli.main, **flags, resume="if_any")
    assert checkpoints.checkpoint_to_resume(copy, "if_any") == str(copy / "checkpoint-1")
    assert not (copy / ".partial").exists()


def test_a_kill_between_two_renames_loses_no_checkpoint(copy, tiny_model, monkeypatch):
    partial = shutil.copytree(copy / "checkpoint-1", copy / ".partial")
    rename, renamed = os.rename, []

    def killed(source, target):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.commit_checkpoint(partial, copy / "checkpoint-1", record={}, keep=1)
    monkeypatch.undo()
    assert not checkpoints.checkpoints(copy)
    prepare_output(copy, tiny_model, force=False, resume="auto")
    assert checkpoints.checkpoint_to_resume(copy, "auto") == str(copy / "checkpoint-1")


@pytest.mark.parametrize(("keep", "left"), [(None, 3), (0, 3), (1, 1), (2, 2)])
def test_how_many_checkpoints_are_kept(tmp_path, keep, left):
    for step in (1, 2, 3):
        partial = tmp_path / ".partial"
        partial.mkdir()
        checkpoints.commit_checkpoint(partial, tmp_path / f"checkpoint-{step}", record={}, keep=keep)
    assert len(checkpoints.checkpoints(tmp_path)) == left and (tmp_path / "checkpoint-3").is_dir()


def test_a_model_takes_its_place_as_a_whole(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for number, interrupt in ((1, False), (2, True), (3, False)):
        try:
            with whole_model(tmp_path) as folder:
                for name in ("config.json", "lamra.json", "model.safetensors"):
                    (folder / name).write_text(str(number))
                if interrupt:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        left = {name: text.decode() for name, text in content(tmp_path).items()}
        expected = str(1 if interrupt else number)
        assert left.pop("notes.txt") == "mine"
        assert left == dict.fromkeys(("config.json", "lamra.json", "model.safetensors"), expected)


# One writer, one lock.


def in_child(work) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def test_a_second_job_is_refused_until_the_first_has_ended(fails, trained, tmp_path, monkeypatch):
    folder = tmp_path / "out"

    def hold():
        with lock.folder_lock(folder):
            time.sleep(60)

    child = in_child(hold)
    while not (folder / ".lock").exists() or not (folder / ".lock").read_text():
        time.sleep(0.01)
    error = fails(merge_lora.main, model_id=trained, save_path=folder)
    assert f"--save_path {folder} is written by another job, process {child.pid} on " in error
    child.kill()
    child.join()
    assert (folder / ".lock").exists()
    with lock.folder_lock(folder):  # its process has ended
        with lock.folder_lock(folder):
            pass
        assert (folder / ".lock").exists()
    assert not (folder / ".lock").exists()

    record = {"owner": "other-1_17_99", "since": "2026-01-01 00:00:00", "job": ["5", None]}
    for text, taken in ((json.dumps(record), False), ('{"owner": "ot', True), ("", True)):
        (folder / ".lock").write_text(text)
        if taken:
            with lock.folder_lock(folder):
                pass
        else:
            with pytest.raises(ValueError, match="process 17 on other since .*if that job is gone, delete .*lock"):
                lock.folder_lock(folder).__enter__()
    (folder / ".lock").write_text(json.dumps(record))
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # this job, which Slurm started again on another machine
    with lock.folder_lock(folder):
        pass
    with lock.folder_lock(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()  # nothing was written


def test_every_output_is_locked_before_a_model_is_loaded(fails, no_model, world, tiny_model, mbeir, tmp_path):
    folder = tmp_path / "out"
    record = {"owner": "other-1_17_99", "since": "2026-01-01 00:00:00", "job": [None, None]}
    for held in (folder / ".lock", folder / "pointwise" / ".lock", folder / ".out.npz.lock"):
        held.parent.mkdir(exist_ok=True)
        held.write_text(json.dumps(record))
    (tmp_path / "items.jsonl").write_text('{"id": "a", "text": "a dog"}')
    model, captions = dict(model_id=tiny_model), dict(text_data_path=world / "test" / "captions.json")
    data = dict(image_data_path=world / "test" / "images", **captions)
    for main, flags in (
        (lambda: zeroshot.evaluate_captions("Flickr30K"), dict(data, output_dir=folder)),
        (eval_mbeir.main, dict(output_dir=folder, data_path=mbeir)),
        (mine_rerank.main, dict(output_dir=folder, data_path=mbeir)),
        (mine_negatives.main, dict(output_dir=folder, data_path=mbeir)),
        (teacher_scores.main, dict(output_dir=folder, data_path=mbeir, mined=tmp_path / "items.jsonl")),
        (eval_rerank.main, dict(output_dir=folder, data_path=mbeir, rankings=tmp_path)),
        (embed.main, dict(input=tmp_path / "items.jsonl", output=folder / "out.npz")),
    ):
        assert "is written by another job, process 17 on other since" in fails(main, **model, **flags)


# Full disks.


def test_a_full_disk_is_told_in_one_sentence(fails, trained, world, tiny_model, tmp_path):
    """In a training through one process, in a merge; nothing half-written stays."""
    output, merged = tmp_path / "run", tmp_path / "merged"
    flags = dict(model_id="miniature", model_local_path=tiny_model, data_path=world / "nli.csv", output_dir=output)
    flags |= dict(per_device_train_batch_size=8, max_steps=1, dataloader_num_workers=0, report_to="none")
    with largest_file(200_000):
        error = fails(train_nli.main, **flags)
        assert f"--output_dir {output} cannot be written" in error
        assert f"error: {merged} cannot be written, the disk, a quota or a limit is full (" in fails(
            merge_lora.main, model_id=trained, save_path=merged
        )
    assert [path.name for path in output.iterdir()] == ["run.json"] and not merged.exists()
    for words in ("basic_ios::clear: iostream error", "PytorchStreamWriter failed writing file data/1"):
        assert "cannot be written" in what_the_machine_says(RuntimeError(words))


# Processes.


def test_settings_go_first(trained):
    assert Settings.read(trained) and Settings.read(trained / "checkpoint-1")
