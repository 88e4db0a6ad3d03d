"""Upstream's command for the recall after pointwise reranking: --task_name, such as cirr_task7."""

from lamra.common.cli import run
from lamra.eval.upstream_rerank import report

if __name__ == "__main__":
    run(lambda: report("pointwise"))
