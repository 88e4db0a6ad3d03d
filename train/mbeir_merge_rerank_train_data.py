"""Upstream's command to join what mbeir_get_rerank_train_data.py mined: no flags.

It writes rerank_training_data/rerank_data_all.json. Upstream's train_rerank.sh reads data/rerank_data_all.json: a link
leads from there, unless something is there already.
"""

from __future__ import annotations

import os
from pathlib import Path

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.eval.upstream_files import MINED, MINED_TOGETHER, read_json, write_json

READ_BY_TRAINING = Path("data") / MINED_TOGETHER


def main() -> None:
    files = sorted(path for path in MINED.glob("*.json") if path.name != MINED_TOGETHER)
    if not files:
        raise UserError(f"{MINED}/ holds no json: train/mbeir_get_rerank_train_data.py writes them")
    together: dict[str, dict] = {}
    for path in files:
        together |= read_json(path, dict, "train/mbeir_get_rerank_train_data.py")
    write_json(MINED / MINED_TOGETHER, together)
    print(f"{len(together)} queries of {len(files)} files in {MINED / MINED_TOGETHER}")
    if READ_BY_TRAINING.parent.is_dir() and not os.path.lexists(READ_BY_TRAINING):
        READ_BY_TRAINING.symlink_to(Path("..") / MINED / MINED_TOGETHER)
        print(f"{READ_BY_TRAINING} leads there")


if __name__ == "__main__":
    run(main)
