"""M-BEIR's tasks, each in the pools of all: from the embeddings that eval_mbeir.py left, or else made here.

Upstream's command, which takes no flags. Its files go to LamRA_Ret_eval_global_results/, ours beside eval_mbeir.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lamra.common import upstream
from lamra.common.cli import run
from lamra.common.flags import FOLDER, flag, require
from lamra.eval.eval_mbeir import MBEIRArguments, evaluate_mbeir
from lamra.eval.upstream_files import RETRIEVED_GLOBAL


@dataclass
class GlobalArguments(MBEIRArguments):
    model_id: str = flag("./checkpoints/qwen2-vl-7b_LamRA-Ret", "as eval_mbeir.py; default: upstream's", path=FOLDER)
    pool: str | None = flag("global", "eval_mbeir.py has the others", one_of=("global",))

    def __post_init__(self):
        require(not self.query_data_path, "query_data_path", self.query_data_path, "no file: --tasks chooses")
        super().__post_init__()

    def upstream_files(self, task: str) -> tuple[Path, Path]:
        name = task.removesuffix("_test")
        return RETRIEVED_GLOBAL / name, RETRIEVED_GLOBAL / "mbeir_eval_global_results.txt"


def main() -> None:
    evaluate_mbeir(*upstream.parse(upstream.EVALUATION, GlobalArguments), together=True)


if __name__ == "__main__":
    run(main)
