"""Whether a change of structure changed a number: run the miniature of every stage in two checkouts, and compare.

    python tests/support/same_numbers.py record CHECKOUT before.json    # about 12 minutes on one core
    python tests/support/same_numbers.py record . after.json
    python tests/support/same_numbers.py compare before.json after.json

A record holds the digest of every result file (weights, embeddings, rankings, metrics, mined candidates) and every
training's loss, gradient norm and accuracy of each step. Two records are the same to the last bit, or are not the same.
Both must be made on one machine with one thread, which `record` sets.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

WORLD, MBEIR, BASE = "data/miniature", "data/miniature_mbeir", "checkpoints/hf_models/miniature"
RUNS, RESULTS = "checkpoints/same_numbers", "results/same_numbers"
TASKS = "mscoco_task0_test,mscoco_task3_test,nights_task4,cirr_task7,infoseek_task6"
SMALL = dict(DS_STAGE="none", BF16="False", LORA_R="16", LORA_ALPHA="32", PER_DEVICE_BATCH_SIZE="16", LR="1e-3")
STEPS_20 = ("--max_steps", "20", "--save_strategy", "no", "--seed", "0", "--force", "True")
STEPS_10 = ("--max_steps", "10", "--save_strategy", "no", "--seed", "0", "--force", "True")
STAGE_1 = {  # 20 steps each, with dropout
    "packed": ({}, ()),
    "padded": ({}, ("--padding_free", "False", "--last_token_only", "False")),
    "grad_cache": ({"GRAD_CACHE_CHUNK": "8"}, ()),
    "zero2": ({"DS_STAGE": "zero2", "BF16": "True", "NUM_GPUS": "2"}, ()),
}
DIGESTED = (
    "metrics.json",
    "*.npz",
    "*.npy",
    "ranking_*.jsonl",
    "mined.jsonl",
    "mined.json",
    "adapter_model.safetensors",
)
OF_A_STEP = ("step", "loss", "grad_norm", "accuracy", "eval_accuracy", "eval_recall@1")


def record(root: Path) -> dict:
    """Run everything in a checkout; its results by name."""

    def run(*command: str, **variables: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUM_GPUS": "1", "LAMRA_PARENT": ""} | variables
        print("$", " ".join(command), flush=True)
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")

    def python(*places: str) -> tuple[str, str]:
        """The first of some files that the checkout has, behind its Python: some moved between versions."""
        return ".venv/bin/python", next(place for place in places if (root / place).is_file())

    run("bash", "scripts/quickstart.sh")
    builder = python("miniature/build_mbeir.py", "miniature/mbeir.py", "datasets/miniature_mbeir.py")
    run(*builder, "--folder", MBEIR, "--train", "60", "--gallery", "40")
    stage_1 = ("bash", "scripts/lamra_ret/pretrain.sh", *STEPS_20)
    for name, (variables, flags) in STAGE_1.items():
        settings = {"MODEL_ID": "miniature", "TRAIN_DATA_PATH": f"{WORLD}/nli.csv", "OUTPUT_DIR": f"{RUNS}/{name}"}
        run(*stage_1, *flags, **{**SMALL, **settings, **variables})
    of_mbeir = {"DATA_PATH": MBEIR, "TASKS": TASKS}
    stage_2 = {**SMALL, "MODEL_ID": "miniature", "MODEL_LOCAL_PATH": BASE, "OUTPUT_DIR": f"{RUNS}/stage2", **of_mbeir}
    run("bash", "scripts/lamra_ret/finetune.sh", *STEPS_10, HARD_NEGATIVES="1", **stage_2)
    for split, pool in (("val", "local"), ("test", "local"), ("test", "global")):
        places = {"MODEL_ID": f"{RUNS}/stage2", "POOL": pool, "OUTPUT_DIR": f"{RESULTS}/mbeir"}
        run("bash", "scripts/eval/eval_mbeir.sh", "--split", split, **of_mbeir, **places)
    mined = {"MODEL_ID": f"{RUNS}/stage2", "OUTPUT_DIR": f"{RESULTS}/mined", "DATA_PATH": MBEIR, "TOP": "10"}
    as_lines = (
        ("--jsonl", "True") if (root / "datasets/columns.py").is_file() else ()
    )  # else there is nothing but lines
    run("bash", "scripts/lamra_rank/mine.sh", *as_lines, **mined)
    rank = {**SMALL, "MODEL_ID": "miniature", "MINED": f"{RESULTS}/mined/mined.jsonl", "DATA_PATH": MBEIR}
    rank |= {"OUTPUT_DIR": f"{RUNS}/rank", "PER_DEVICE_BATCH_SIZE": "4", "GRAD_ACCUM": "1", "BF16": "False"}
    run("bash", "scripts/lamra_rank/train_rerank.sh", *STEPS_10, **rank)
    for style in ("pointwise", "listwise"):
        answers = {"MODEL_ID": f"{RUNS}/rank", "STYLE": style, "OUTPUT_DIR": f"{RESULTS}/rerank", "DEPTH": "8"}
        places = {"RANKINGS": f"{RESULTS}/mbeir/test_local", **of_mbeir}
        tuned = ("--tune_weight", f"{RESULTS}/mbeir/val_local") if style == "pointwise" else ()
        run("bash", "scripts/eval/rerank_mbeir.sh", *tuned, **answers, **places)
    flickr = {
        "DATASETS": "flickr",
        "FLICKR_IMAGES": f"{WORLD}/test/images",
        "FLICKR_TEXTS": f"{WORLD}/test/captions.json",
    }
    for protocol in ("released", "clean"):
        flags = ("--mode", "finetuned", "--protocol", protocol, "--save_for_rerank", "True")
        folder = ("--output_dir", f"{RESULTS}/{protocol}/flickr30k")
        run("bash", "scripts/eval/eval_pretrained.sh", *flags, *folder, MODEL_ID=f"{RUNS}/stage2", **flickr)
    places = {"MODEL_ID": f"{RUNS}/rank", "RETRIEVED": f"{RESULTS}/clean", "DEPTH": "4"}
    run("bash", "scripts/eval/rerank_zeroshot.sh", **places, **flickr)  # into results/same_numbers/rank/flickr30k
    items = [{"id": "a", "text": "A red circle."}, {"id": "b", "image": "test/images/3.png"}]
    items += [{"id": "c", "text": "A box at the left.", "image": "test/images/4.png"}]
    (root / WORLD / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    places = ("--input", f"{WORLD}/items.jsonl", "--output", f"{RESULTS}/items.npz")
    run(*python("eval/embed.py"), "--model_id", f"{RUNS}/packed", *places)
    return {**digests(root), **curves(root)}


def digests(root: Path) -> dict[str, str]:
    """sha256 of every result file, by its path in the checkout."""
    folders = ("results/quickstart", RESULTS, RUNS, BASE, "checkpoints/miniature_LamRA_Ret_Pretrain")
    names = (*DIGESTED, "model.safetensors")
    files = sorted({path for folder in folders for name in names for path in (root / folder).rglob(name)})
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def curves(root: Path) -> dict[str, list]:
    """What TensorBoard's files of each training say, step by step, without what depends on the clock."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for folder in sorted((root / RUNS).iterdir()):
        events = EventAccumulator(str(next(folder.rglob("events*")).parent)).Reload()
        scalars = [f"train/{name}" for name in ("loss", "grad_norm", "accuracy", "learning_rate")]
        found[f"curve of {folder.name}"] = {
            name: [[event.step, event.value] for event in events.Scalars(name)] for name in scalars
        }
    return found


def compare(before: dict, after: dict) -> int:
    """Print what differs; the number of differences."""
    differences = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in differences:
        print(f"not the same: {name}: {str(before.get(name))[:200]} -> {str(after.get(name))[:200]}")
    print(f"{len({*before, *after})} compared, {len(differences)} differ")
    return len(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("checkout", type=Path)
    recording.add_argument("output", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "record":
        args.output.write_text(json.dumps(record(args.checkout.resolve()), indent=1) + "\n")
        return
    sys.exit(bool(compare(*(json.loads(path.read_text()) for path in (args.before, args.after)))))


if __name__ == "__main__":
    main()
