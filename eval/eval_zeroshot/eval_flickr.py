"""Flickr30K retrieval both ways. Started by accelerate from scripts/eval/eval_pretrained.sh."""

from lamra.common.cli import run
from lamra.eval.zeroshot import evaluate_captions

if __name__ == "__main__":
    run(lambda: evaluate_captions("Flickr30K"))
