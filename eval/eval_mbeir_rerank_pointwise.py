"""Upstream's command for a reranker's pointwise answers about one task: see eval/upstream_rerank.py."""

from lamra.common.cli import run
from lamra.eval.upstream_rerank import write_answers

if __name__ == "__main__":
    run(lambda: write_answers("pointwise"))
