"""Upstream's command to ask a reranker, pointwise, about one task: see eval/upstream_rerank.py."""

from lamra.common.cli import run
from lamra.eval.upstream_rerank import ask

if __name__ == "__main__":
    run(lambda: ask("pointwise"))
