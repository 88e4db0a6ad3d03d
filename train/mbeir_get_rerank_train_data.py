"""Upstream's command to mine one file of training queries: rerank_training_data/<save_name>_data.json.

eval/mine_rerank.py does the work, and needs no file of its own for each task: it can mine all queries in one run.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from lamra.common import upstream
from lamra.common.cli import run
from lamra.common.flags import OUT_FILE, flag, require_path
from lamra.common.processes import is_first_process
from lamra.eval.mine_rerank import MineArguments, mine_files
from lamra.eval.upstream_files import MINED


@dataclass
class UpstreamMineArguments(MineArguments):
    save_name: str = flag("", "name of the file, such as cirr_task7")

    def check_paths(self) -> None:
        super().check_paths()
        require_path("save_name", self.file, OUT_FILE)

    @property
    def file(self) -> Path:
        return MINED / f"{self.save_name}_data.json"


def main() -> None:
    (args,) = upstream.parse(upstream.MINING, UpstreamMineArguments)
    folder = mine_files(replace(args, jsonl=True))
    if is_first_process():
        args.file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "mined.json", args.file)
        print(f"the same in {args.file}")


if __name__ == "__main__":
    run(main)
