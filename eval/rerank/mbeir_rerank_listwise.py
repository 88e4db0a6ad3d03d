"""Upstream's command for the recall after listwise reranking: --task_name, such as cirr_task7."""

from lamra.common.cli import run
from lamra.eval.upstream_rerank import report

if __name__ == "__main__":
    run(lambda: report("listwise"))
