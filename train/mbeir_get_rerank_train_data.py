"""Upstream's command to mine one file of training queries: rerank_training_data/<save_name>_data.json.

eval/mine_rerank.py does the work, and needs no file of its own for each task: it can mine all queries in one run.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from lamra.common import upstream
from lamra.common.cli import flag, require, run
from lamra.common.processes import is_first_process
from lamra.eval.mine_rerank import MineArguments, mine_files
from lamra.eval.upstream_files import MINED


@dataclass
class UpstreamMineArguments(MineArguments):
    save_name: str = flag("", "name of the file, such as cirr_task7")

    def __post_init__(self):
        super().__post_init__()
        require(bool(self.save_name), "save_name", self.save_name, "a name, such as cirr_task7")


def main() -> None:
    (args,) = upstream.parse(upstream.MINING, UpstreamMineArguments)
    folder = mine_files(args)
    if is_first_process():
        MINED.mkdir(exist_ok=True)
        path = MINED / f"{args.save_name}_data.json"
        shutil.copyfile(folder / "mined.json", path)
        print(f"the same in {path}")


if __name__ == "__main__":
    run(main)
