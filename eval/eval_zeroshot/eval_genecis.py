"""GeneCIS: a picture and a condition search galleries of their own. Started from scripts/eval/eval_zeroshot.sh."""

from lamra.common.cli import run
from lamra.eval.zeroshot_suite import evaluate_set

if __name__ == "__main__":
    run(lambda: evaluate_set("genecis"))
