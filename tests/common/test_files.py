"""Files are written whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import pytest
from full_disk import largest_file

from lamra.common import files
from lamra.common.files import whole_file


def in_child(work) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def test_a_file_is_old_or_new(tmp_path):
    path = tmp_path / ("长" * 60 + "[1].json")
    with whole_file(path) as file:
        file.write("旧")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write("new")
        raise KeyboardInterrupt
    with largest_file(1000), pytest.raises(OSError) as error, whole_file(path, "wb") as file:
        file.write(bytes(2000))
    assert error.value.filename == str(path) and files.is_disk_full(error.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text(encoding="utf-8") == "旧"

    def killed():
        with whole_file(path) as file:
            file.write("newer")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    in_child(killed).join()
    assert len(list(tmp_path.iterdir())) == 2 and path.read_text(encoding="utf-8") == "旧"
    with whole_file(path) as file:
        file.write("newest")
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "newest"


def test_numbers_survive_beside_a_failed_write(tmp_path):
    """An npz as embed.py writes it."""
    path = tmp_path / "out.npz"
    with whole_file(path, "wb") as file:
        np.savez(file, ids=np.array(["a"]))
    with largest_file(4000), pytest.raises(OSError), whole_file(path, "wb") as file:
        np.savez(file, ids=np.arange(10_000))
    assert np.load(path)["ids"].tolist() == ["a"] and len(list(tmp_path.iterdir())) == 1
