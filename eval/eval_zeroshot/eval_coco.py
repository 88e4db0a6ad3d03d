"""COCO retrieval both ways. Started by accelerate from scripts/eval/eval_pretrained.sh."""

from lamra.eval.zeroshot import evaluate
from lamra.train.entrypoint import run

if __name__ == "__main__":
    run(lambda: evaluate("COCO"))
