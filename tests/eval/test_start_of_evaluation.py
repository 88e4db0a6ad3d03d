"""Evaluation's command lines are told what is wrong at once: no entrypoint imports torch before it has parsed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

MOST = 1.5  # seconds of one core
FILES = ("--query_data_path", "q.jsonl", "--cand_pool_path", "p.jsonl", "--instructions_path", "i.tsv")
RETRIEVED = ("--ret_query_data_path", "r_query_names.json", "--ret_cand_data_path", "r_cand_names.json")
ANSWERS = ("--model_id", "m", *FILES, *RETRIEVED, "--save_name", "s")
CAPTIONS = ("--model_id", "m", "--image_data_path", "i", "--text_data_path", "t.json")
ENTRYPOINTS = {  # with the flags that each wants
    "app/index.py": ("--model_id", "m", "--source", "."),
    "app/gallery.py": ("--index", "."),
    "demo.py": ("--model_id", "m", "--folder", ".", "--text", "a"),
    "eval/embed.py": ("--model_id", "m", "--input", "a.jsonl", "--output", "a.npz"),
    "eval/eval_mbeir.py": ("--model_id", "m"),
    "eval/eval_mbeir_global.py": (),
    "eval/eval_mbeir_rerank_listwise.py": ANSWERS,
    "eval/eval_mbeir_rerank_pointwise.py": ANSWERS,
    "eval/eval_mteb.py": ("--model_id", "m", "--tasks", "SugarCrepe"),
    "eval/eval_rerank.py": ("--model_id", "m", "--rankings", "r"),
    "eval/eval_zeroshot/eval_ccneg.py": ("--model_id", "m"),
    "eval/eval_zeroshot/eval_circo.py": ("--model_id", "m"),
    "eval/eval_zeroshot/eval_coco.py": CAPTIONS,
    "eval/eval_zeroshot/eval_flickr.py": CAPTIONS,
    "eval/eval_zeroshot/eval_genecis.py": ("--model_id", "m"),
    "eval/eval_zeroshot/eval_sugar_crepe.py": ("--model_id", "m"),
    "eval/eval_zeroshot/eval_msrvtt.py": ("--model_id", "m"),
    "eval/eval_zeroshot/eval_msvd.py": ("--model_id", "m"),
    "eval/eval_zeroshot/eval_multiturn_fashion.py": ("--model_id", "m"),
    "eval/eval_zeroshot/eval_sharegpt4v.py": ("--model_id", "m"),
    "eval/eval_zeroshot/eval_urban1k.py": ("--model_id", "m"),
    "eval/eval_zeroshot/eval_visdial.py": ("--model_id", "m"),
    "eval/eval_zeroshot/eval_vist.py": ("--model_id", "m"),
    "eval/eval_zeroshot_rerank.py": ("--set", "ccneg", "--model_id", "m", "--rankings", "r"),
    "eval/mine_negatives.py": ("--model_id", "m"),
    "eval/mine_rerank.py": ("--model_id", "m"),
    "eval/vectors.py": CAPTIONS,
    "eval/rerank/mbeir_rerank.py": ("--task_name", "cirr_task7"),
    "eval/rerank/mbeir_rerank_listwise.py": ("--task_name", "cirr_task7"),
    "eval/teacher_scores.py": ("--model_id", "m", "--mined", "n"),
}
# --help, then an unknown flag; at the end what was imported and used of a core for both.
CHILD = """
import os, runpy, sys
script, *flags = sys.argv[1:]
for last in ("--help", "--no_such_flag"):
    sys.argv = [script, *flags, last]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print("exit", end.code)
print("torch" in sys.modules, sum(os.times()[:2]))
"""


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_help_and_mistakes_come_at_once(entrypoint):
    for _ in range(3):  # a busy machine may be slow
        command = [sys.executable, "-c", CHILD, entrypoint, *ENTRYPOINTS[entrypoint]]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        *printed, last = done.stdout.splitlines()
        with_torch, seconds = last.split()
        if float(seconds) < MOST:
            break
    assert printed[0].startswith("usage: ") and [line for line in printed if line[:5] == "exit "] == [
        "exit 0",
        "exit 2",
    ]
    assert "error: unknown flag --no_such_flag: --help lists the flags" in done.stderr
    assert with_torch == "False" and float(seconds) < MOST


def test_every_entrypoint_is_tried():
    sources = [path for room in ("eval", "app") for path in (ROOT / room).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in sources if "__main__" in path.read_text()}
    no_model = ("report", "study", "ladder", "zeroshot_report", "compare_mbeir", "compare_rerank", "compare_zeroshot")
    others = {f"eval/{name}.py" for name in no_model}
    assert found - others == ENTRYPOINTS.keys() - {"demo.py"}
