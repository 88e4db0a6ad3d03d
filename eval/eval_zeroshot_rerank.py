"""A set of the zero-shot suite, reranked. Started by accelerate from scripts/eval/rerank_zeroshot.sh."""

from lamra.common.cli import run
from lamra.eval.rerank.suite import rerank_set

if __name__ == "__main__":
    run(rerank_set)
