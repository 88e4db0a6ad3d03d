"""One table of the sets of the zero-shot suite that a model has results of, the paper's numbers beside them.

python eval/zeroshot_report.py --model_id MODEL sugarcrepe visdial
python eval/zeroshot_report.py --model_id RERANKER --style pointwise sugarcrepe visdial
"""

from __future__ import annotations

from pathlib import Path

from lamra.common.cli import run
from lamra.eval.flags import run_name
from lamra.eval.reporting.results import Parser
from lamra.eval.rerank.reranking import STYLES
from lamra.eval.rerank.suite import print_reranked
from lamra.eval.zeroshot_suite import print_results, read_set
from lamra.models.folders import local_folder


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--model_id", required=True)
    parser.add_argument("--output_dir", type=Path, help="default: results/<model>")
    parser.add_argument("--style", choices=STYLES, help="of a reranker: what it made of a retriever's rankings")
    parser.add_argument("sets", nargs="+", help="folders below output_dir")
    args = parser.parse_args()

    folder = args.output_dir or Path("results", run_name(local_folder(args.model_id, "model_id")))
    if args.style:
        print_reranked([folder / name / args.style for name in args.sets])
        return
    print_results([read_set(folder / name).content for name in args.sets])


if __name__ == "__main__":
    run(main)
