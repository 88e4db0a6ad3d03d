"""Checkpoints: every damage is noticed, and complete ones only are counted."""

from __future__ import annotations

from lamra.train.checkpoints import checkpoint_to_resume, checkpoints, commit_checkpoint


def test_retention_counts_complete_checkpoints_only(tmp_path):
    for step in (1, 2, 3, 4):
        partial = tmp_path / ".partial"
        partial.mkdir()
        (partial / "weights").write_text(str(step))
        commit_checkpoint(partial, tmp_path / f"checkpoint-{step}", record={}, keep=2)
        if step == 3:
            (tmp_path / "checkpoint-3" / "manifest.json").unlink()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-3", "checkpoint-2"]
    assert checkpoint_to_resume(tmp_path, "auto").endswith("checkpoint-4")
