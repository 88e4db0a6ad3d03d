"""Kill jobs with SIGKILL at random moments, give the same command again, and compare with an unbroken run, bit for bit.

python tests/runs/kills.py --trials 100 --seed 0 --folder /tmp/kills      (CPU; about half a minute of one core a trial)

Every trial draws a job, whom to kill (the script's shell, the launcher, or one rank of two) and when. After a rank is
killed its launcher ends the rest; in any case no process may be left 5 seconds later. A training that is refused in a
sentence is given again with the flag that the sentence names. --folder keeps the unbroken runs for the next call.
The last line is json, before it stands the table of docs/reliability.md. Exit status 1 if a trial failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lamra.miniature.mbeir import build_mbeir
from lamra.miniature.model import build_config, build_tokenizer
from lamra.miniature.world import build_world

ROOT = Path(__file__).parents[2]
MARK = "LAMRA_KILLS"  # in the environment of all processes of a trial
VICTIMS = ("shell", "launcher", "rank")
PATIENCE = 5  # seconds in which every process must have ended
TRAINING = ("stage 1", "stage 2", "rank")


@dataclass
class Job:
    """A command, its shell variables, and the files in which its result stands."""

    name: str
    command: list[str]
    variables: dict
    output: str  # the variable that names the output folder
    results: tuple[str, ...]


def jobs_of(folder: Path) -> list[Job]:
    """What is killed, each in a size of a few steps, on what `prepare` made."""
    model, mbeir, whole = folder / "model", folder / "mbeir", folder / "unbroken"
    lora = dict(BF16="False", DS_STAGE="none", LORA_R=4, LORA_ALPHA=8, LR="1e-3", NUM_EPOCHS=1, NUM_GPUS=2)
    lora |= dict(MODEL_ID="miniature", MODEL_LOCAL_PATH=model, DATA_PATH=mbeir, PER_DEVICE_BATCH_SIZE=4)
    steps = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "1", "--dataloader_num_workers", "1"]
    steps += ["--lora_dropout", "0.1", "--report_to", "none"]
    tasks = "mscoco_task0_test,infoseek_task6"
    adapter = ("adapter_model.safetensors", "lamra.json", "losses")
    retrieved = tuple(f"test_local/{name}" for name in ("metrics.json", "ranking_infoseek_task6.jsonl"))
    evaluation = dict(MODEL_ID=whole / "stage 2", DATA_PATH=mbeir, TASKS=tasks, NUM_GPUS=2)
    reranking = evaluation | dict(MODEL_ID=whole / "rank", RANKINGS=whole / "evaluation" / "test_local", DEPTH=4)
    embed = ["--model_id", f"{whole}/stage 1", "--input", f"{folder}/items.jsonl"]
    mined = ("mined.arrow", "mined.jsonl", "mined.json")
    scripts = {
        "stage 1": ("lamra_ret/pretrain.sh", steps, lora | dict(TRAIN_DATA_PATH=folder / "world" / "nli.csv"), adapter),
        "stage 2": ("lamra_ret/finetune.sh", steps, lora, adapter),
        "evaluation": ("eval/eval_mbeir.sh", ["--shard_size", "5"], evaluation, retrieved),
        "mining": ("lamra_rank/mine.sh", ["--search_depth", "60", "--jsonl", "True"], evaluation | dict(TOP=6), mined),
        "negatives": ("lamra_ret/mine_negatives.sh", [], evaluation | dict(RANKS="0:6", KEEP=3), ("negatives.arrow",)),
        "rank": (
            "lamra_rank/train_rerank.sh",
            [*steps, "--model_local_path", str(model)],
            lora | dict(MINED=whole / "mining" / "mined.arrow", GRAD_ACCUM=1, PER_DEVICE_BATCH_SIZE=1),
            adapter,
        ),
        "teacher": (
            "lamra_ret/teacher_scores.sh",
            [],
            evaluation | dict(MODEL_ID=whole / "rank", MINED=whole / "negatives" / "negatives.arrow"),
            ("teacher.arrow",),
        ),
        "reranking": ("eval/rerank_mbeir.sh", [], reranking, ("pointwise/metrics.json",)),
        "merge": ("merge_lora.sh", [], dict(MODEL_ID=whole / "stage 1"), ("model.safetensors", "lamra.json")),
    }
    found = []
    for name, (script, flags, variables, results) in scripts.items():
        output = "SAVE_PATH" if name == "merge" else "OUTPUT_DIR"
        found.append(Job(name, ["bash", f"scripts/{script}", *flags], variables, output, results))
    shell = 'source scripts/env.sh && tethered eval/embed.py "$@" --output "$OUTPUT_DIR/out.npz"'
    script = folder / "scripts" / "embed.sh"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"set -e\ncd {ROOT}\n{shell}\n")
    found.append(Job("embed", ["bash", str(script), *embed], {}, "OUTPUT_DIR", ("out.npz",)))
    return found


def prepare(folder: Path) -> None:
    """Data and a base model with random weights."""
    build_world(folder / "world", seed=0, train_pictures=1, gallery_pictures=4, triplets=60)
    build_mbeir(folder / "mbeir", seed=0, train=3, gallery=3)
    tokenizer = build_tokenizer((folder / "world" / "nli.csv").read_text().splitlines())
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(build_config(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    Qwen2VLImageProcessorPil().save_pretrained(folder / "model")
    rows = [{"id": str(i), "text": f"A red circle, {i}."} for i in range(20)]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def start(job: Job, output: Path, flags: list[str], log: Path, mark: str = "") -> subprocess.Popen:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {name: str(value) for name, value in (job.variables | {job.output: output}).items()}
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", MARK: mark} | variables
    with open(log, "w") as file:
        return subprocess.Popen(
            [*job.command, *flags], cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )


def processes(mark: str) -> list[psutil.Process]:
    """What runs of a trial, whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wait_for_cpu(shell: subprocess.Popen, seconds: float) -> None:
    """Until a job has used so many CPU seconds, which a busy machine does not stretch, or has ended."""
    while shell.poll() is None:
        try:
            root = psutil.Process(shell.pid)
            if sum(sum(process.cpu_times()[:4]) for process in [root, *root.children(recursive=True)]) >= seconds:
                return
        except psutil.Error:
            pass  # one ended in between
        time.sleep(0.05)


def victim_of(whom: str, mark: str, shell: subprocess.Popen, chance: random.Random) -> psutil.Process | None:
    """None if there is none yet, or no more."""
    if whom == "shell":
        return psutil.Process(shell.pid) if shell.poll() is None else None
    found = [process for process in processes(mark) if process.pid != shell.pid]
    launchers = [process for process in found if process.ppid() == shell.pid]
    ranks = [process for process in found if process.ppid() in [launcher.pid for launcher in launchers]]
    # Merging and embedding are one process, which stands in the launcher's place.
    choice = sorted(ranks if whom == "rank" and ranks else launchers, key=lambda process: process.pid)
    return chance.choice(choice) if choice else None


def results_of(job: Job, output: Path) -> dict[str, bytes | None]:
    found = {}
    for name in job.results:
        if name == "losses":
            state = output / "checkpoint-4" / "trainer_state.json"
            history = json.loads(state.read_text())["log_history"] if state.is_file() else []
            found[name] = json.dumps([entry["loss"] for entry in history if "loss" in entry]).encode()
        elif name.endswith(".npz"):
            found[name] = np.load(output / name)["embeddings"].tobytes() if (output / name).is_file() else None
        else:
            found[name] = (output / name).read_bytes() if (output / name).is_file() else None
    return found


def trial(job: Job, whom: str, share: float, seconds: float, folder: Path, chance: random.Random) -> dict:
    """Kill once, and give the command again; how that ended."""
    mark, output = uuid.uuid4().hex, folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    process = start(job, output, [], folder / "killed.log", mark)
    wait_for_cpu(process, share * seconds)
    victim = victim_of(whom, mark, process, chance)
    if victim is not None:
        victim.send_signal(signal.SIGKILL)
    if victim is None or whom == "rank":  # the launcher ends the others
        process.wait(300)
    until = time.monotonic() + PATIENCE
    while (left := processes(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    orphans = [" ".join(one.cmdline()[:4]) for one in left]
    for one in left:
        one.kill()
    process.wait()

    flags, refused = [], None
    for _ in range(2):
        status = start(job, output, flags, folder / "again.log").wait(300)
        errors = re.findall(r"^error: .*", (folder / "again.log").read_text(), re.MULTILINE)
        if status == 0 or not errors or job.name not in TRAINING or refused:
            break
        refused = errors[0]
        flags = ["--resume", "auto"] if "--resume auto" in refused else ["--force", "True"]
    # A merge that was complete when the kill came is refused the second time, and is right.
    told = status == 0 or len(errors) == 1
    same = told and results_of(job, output) == results_of(job, folder / "unbroken" / job.name)
    ended = "equal" if same and not refused else "a sentence, then equal" if same else "FAILED"
    return {
        "job": job.name,
        "victim": whom if victim is not None else "nobody",  # before it started, or after it ended
        "share": round(share, 3),
        "refused": refused,
        "orphans": orphans,
        "ended": ended,
    }


def table(trials: list[dict]) -> str:
    columns = ("equal", "a sentence, then equal", "FAILED")
    lines = ["| job | trials | killed: shell, launcher, rank, too late | " + " | ".join(columns) + " | orphans |"]
    lines.append("|" + "---|" * (len(columns) + 4))
    for name in [*dict.fromkeys(one["job"] for one in trials), "all"]:
        rows = [one for one in trials if name in (one["job"], "all")]
        victims = Counter(one["victim"] for one in rows)
        ended = Counter(one["ended"] for one in rows)
        cells = [name, len(rows), ", ".join(str(victims[whom]) for whom in (*VICTIMS, "nobody"))]
        cells += [*(ended[column] for column in columns), sum(len(one["orphans"]) for one in rows)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--jobs", default="", help="names separated by commas; default: all")
    args = parser.parse_args()
    folder = args.folder.resolve()
    (folder / "unbroken").mkdir(parents=True, exist_ok=True)
    if not (folder / "items.jsonl").is_file():
        prepare(folder)
    jobs = jobs_of(folder)
    durations = folder / "seconds.json"
    seconds = json.loads(durations.read_text()) if durations.is_file() else {}
    for job in jobs:
        if job.name not in seconds:
            output, began = folder / "unbroken" / job.name, cpu_of_children()
            shutil.rmtree(output, ignore_errors=True)
            if start(job, output, [], folder / "unbroken.log").wait(600) != 0:
                sys.exit(f"error: {job.name} does not run unbroken: see {folder}/unbroken.log")
            seconds[job.name] = cpu_of_children() - began
            durations.write_text(json.dumps(seconds))
            print(f"unbroken {job.name}: {seconds[job.name]:.1f} CPU seconds", flush=True)

    chance, trials = random.Random(args.seed), []
    jobs = [job for job in jobs if not args.jobs or job.name in args.jobs.split(",")]
    for number in range(args.trials):
        job, whom, share = jobs[number % len(jobs)], chance.choice(VICTIMS), chance.random()
        trials.append(trial(job, whom, share, seconds[job.name], folder, chance))
        print(number, json.dumps(trials[-1]), flush=True)
        if trials[-1]["ended"] == "FAILED":
            shutil.copytree(folder / "run", folder / f"failed{number}", dirs_exist_ok=True)
            for log in ("killed.log", "again.log"):
                shutil.copy(folder / log, folder / f"failed{number}" / log)
    print(f"\n{table(trials)}\n")
    failed = [one for one in trials if one["ended"] == "FAILED" or one["orphans"]]
    print(json.dumps({"seed": args.seed, "trials": len(trials), "failed": len(failed)}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
