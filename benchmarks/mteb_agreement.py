"""Whether mteb measures of an export what this project measures of it: recall on captioned pictures, both ways.

python benchmarks/mteb_agreement.py --model_id checkpoints/miniature_LamRA_Ret_Pretrain_export
"""

from __future__ import annotations

import argparse
import json

import torch

from lamra import load
from lamra.datasets.caption import captioned_tasks, load_captioned_images
from lamra.datasets.tasks import KS
from lamra.eval.evaluate import evaluate
from lamra.eval.guests import load_library_model
from lamra.eval.mteb_tasks import as_mteb, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_id", default="checkpoints/miniature_LamRA_Ret_Pretrain_export")
    parser.add_argument("--image_data_path", default="data/miniature/test/images")
    parser.add_argument("--text_data_path", default="data/miniature/test/captions.json")
    parser.add_argument("--trust_remote_code", action="store_true", help="an export with sequential positions needs it")
    args = parser.parse_args()

    data = load_captioned_images(args.image_data_path, args.text_data_path)
    own = load(args.model_id, dtype=torch.float32, device="cpu")
    guest = load_library_model(args.model_id, torch.device("cpu"), torch.float32, args.trust_remote_code)
    rows, difference = [], 0.0
    for protocol in (None, "clean", "released"):
        tasks = captioned_tasks(data, "captions", args.text_data_path, protocol)
        for task, _, found in evaluate(tasks, lambda items: own.encode(items, None), depth=max(KS)):
            told = {"query": task.queries[0].instruction or "", "document": task.gallery[0].instruction or ""}
            result = measure(guest, as_mteb(task, task.name), 32, **told)
            scores = result.scores["test"][0]
            for k in KS:
                ours, theirs = found[f"recall@{k}"], scores[f"hit_rate_at_{k}"]
                difference = max(difference, abs(round(ours, 5) - theirs))  # mteb rounds to 5 digits
                rows.append((protocol or "no instruction", task.name, k, ours, theirs))
    print(f"{'protocol':<16}{'task':<18}{'k':>3}{'recall@k':>10}{'hit_rate_at_k':>15}")
    for protocol, name, k, ours, theirs in rows:
        print(f"{protocol:<16}{name:<18}{k:>3}{ours:>10.5f}{theirs:>15.5f}")
    print(json.dumps({"numbers": len(rows), "max_abs_difference": difference}))


if __name__ == "__main__":
    main()
