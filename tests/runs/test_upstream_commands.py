"""The commands of LamRA's published code, flags as its scripts spell them, on a miniature M-BEIR of all 16 tasks.

One command feeds the next, from merging to the recall after reranking. Where a launcher adds nothing, the files are run
in this process.
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, script_environment
from PIL import Image

from lamra.common.upstream import TRAINING, translated
from lamra.datasets.mbeir.layout import INSTRUCTIONS, TASKS, TRAIN_QUERIES, global_pool, local_pool
from lamra.datasets.mbeir.write import MBEIRFiles
from lamra.eval import eval_mbeir, eval_mbeir_global, upstream_rerank
from lamra.export import merge_lora
from lamra.models.folders import local_folder
from lamra.models.loading import load_model
from lamra.models.lora import add_lora
from lamra.train import train_mbeir, train_rerank

DATASETS = dict(visualnews=0, fashion200k=1, webqa=2, edis=3, nights=4, oven=5, infoseek=6, fashioniq=7, cirr=8)
DATASETS |= dict(mscoco=9)
# Number of a task -> modality of its queries and of its candidates.
KINDS = {0: "text>image", 1: "text>text", 2: "text>image,text", 3: "image>text", 4: "image>image"}
KINDS |= {6: "image,text>text", 7: "image,text>image", 8: "image,text>image,text"}
QUERIES, CANDIDATES = 3, 6  # of each task and split
NAMES = [task.name.removesuffix("_test") for task in TASKS]


def parts(kind: str, number: int, what: str) -> dict:
    return {
        "text": f"{what} number {number}" if "text" in kind else None,
        "image": f"mbeir_images/{number}.png" if "image" in kind else None,
    }


def build_mbeir(root: Path) -> None:
    """Test files of all tasks, a union to train on, and the files that upstream's mining wants of CIRR and COCO."""
    files, header = MBEIRFiles(root), "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1"
    lines = [header]
    (root / "mbeir_images").mkdir(parents=True)
    for number in range(CANDIDATES):
        Image.new("RGB", (56, 56), (40 * number, 90, 200 - 40 * number)).save(root / f"mbeir_images/{number}.png")
    for task, name in zip(TASKS, NAMES):
        dataset, _, number = name.rpartition("_task")
        query, candidate = KINDS[int(number)].split(">")
        lines.append(f"{query}\t{candidate}\t{dataset}\t{DATASETS[dataset]}\tFind what belongs to this {dataset}.")
        own = Path(local_pool(task.name)).name
        assert own == task.files(root, "test", "local").pool.name
        for split, pools in (("test", [local_pool(task.name), global_pool("test")]), ("train", [global_pool("train")])):
            pools = pools if split == "test" else [*pools, f"cand_pool/rerank_pool/mbeir_{name}_cand_pool.jsonl"]
            dids = [
                files.candidate(DATASETS[dataset], pools, **parts(candidate, place, f"{name} {split} candidate"))
                for place in range(CANDIDATES)
            ]
            for place in range(QUERIES):
                asked = parts(query, place, f"{name} {split} query")
                files.query(DATASETS[dataset], name, split, [dids[place]], negatives=[dids[-1]], **asked)
    files.write()
    (root / INSTRUCTIONS).parent.mkdir()
    (root / INSTRUCTIONS).write_text("\n".join(lines) + "\n")
    union = (root / TRAIN_QUERIES).read_text().splitlines(keepends=True)
    (root / "query/train").mkdir()
    for name, file in (("cirr_task7", "mbeir_cirr_train"), ("mscoco_task0", "mbeir_mscoco_train_task0")):
        own = slice(QUERIES * NAMES.index(name), QUERIES * (NAMES.index(name) + 1))
        (root / f"query/train/{file}.jsonl").write_text("".join(union[own]))


@pytest.fixture(scope="module")
def workplace(tiny_model, tmp_path_factory):
    """A checkout with M-BEIR, a base model and the adapter of stage 1; it is the working directory of each test."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("train", "eval", "merge_lora", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    build_mbeir(folder / "data/M-BEIR")
    (folder / "checkpoints/hf_models").mkdir(parents=True)
    (folder / "checkpoints/hf_models/Qwen2-VL-7B-Instruct").symlink_to(tiny_model)
    torch.manual_seed(1)
    model = load_model(tiny_model, dtype=torch.float32)
    adapter = add_lora(model, r=4, alpha=8, dropout=0.0, vision=False, trained=())
    adapter.save_pretrained(folder / "checkpoints/qwen2-vl-7b_LamRA_Ret_Pretrain")
    config = json.loads((folder / "checkpoints/qwen2-vl-7b_LamRA_Ret_Pretrain/adapter_config.json").read_text())
    (folder / "checkpoints/moved").mkdir()
    (folder / "checkpoints/moved/adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct"})
    )
    return folder


@pytest.fixture(autouse=True)
def inside(request, monkeypatch):
    if "workplace" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("workplace"))


def here(command: str) -> None:
    """A command in this process: the file, its flags."""
    script, *flags = shlex.split(command.replace("\\\n", " "))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *flags])
        runpy.run_path(script, run_name="__main__")


def started(command: str) -> str:
    """A command as a process of its own; what it printed."""
    done = subprocess.run(
        shlex.split(command.replace("\\\n", " ")), capture_output=True, text=True, env=script_environment({})
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def read(path: str):
    return json.loads(Path(path).read_text())


TRAIN_FLAGS = r"""
    --query_data_path ./data/M-BEIR/query/union_train/mbeir_union_up_train.jsonl \
    --cand_pool_path ./data/M-BEIR/cand_pool/global/mbeir_union_train_cand_pool.jsonl \
    --instructions_path ./data/M-BEIR/instructions/query_instructions.tsv \
    --image_path_prefix ./data/M-BEIR \
    --report_to tensorboard --bf16 True --num_train_epochs 1 --learning_rate 1e-4 --weight_decay 0. \
    --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 --tf32 True --gradient_checkpointing True \
    --dataloader_num_workers 4 --train_vision_encoder False --use_vision_lora False --train_vision_projector False \
    --use_lora True --q_lora False --lora_r 8 --lora_alpha 16 --save_total_limit 20"""


@pytest.fixture(scope="module")
def retriever(workplace):
    """merge_lora.sh, then finetune.sh."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        here(r"""merge_lora/merge.py --original_model_id Qwen/Qwen2-VL-7B-Instruct \
            --model_id ./checkpoints/qwen2-vl-7b_LamRA_Ret_Pretrain \
            --save_path ./checkpoints/LamRA-Ret-Pretrained-merged""")
        printed = started(r"""torchrun --nnodes=1 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint localhost:0 \
            train/train_mbeir.py --model_id qwen2-vl-7b --model_local_path ./checkpoints/LamRA-Ret-Pretrained-merged \
            --output_dir ./checkpoints/qwen2-vl-7b_LamRA-Ret --run_name qwen2-vl-7b_LamRA-Ret \
            --deepspeed ./ds_configs/zero2.json --per_device_train_batch_size 12 --per_device_eval_batch_size 12 \
            --gradient_accumulation_steps 1 --eval_strategy "epoch" --save_strategy "epoch" --model_max_length 1024"""
                          + TRAIN_FLAGS)  # fmt: skip
        assert "MODEL_ID=./checkpoints/qwen2-vl-7b_LamRA-Ret" in printed
    return "./checkpoints/qwen2-vl-7b_LamRA-Ret"


def evaluate(task: str, pool: str, query_pool_flag: str = "--query_cand_pool_path") -> None:
    """One paragraph of eval_mbeir.sh."""
    here(rf"""eval/eval_mbeir.py \
        --query_data_path ./data/M-BEIR/query/test/mbeir_{task}_test.jsonl \
        {query_pool_flag} ./data/M-BEIR/cand_pool/global/mbeir_union_test_cand_pool.jsonl \
        --cand_pool_path ./data/M-BEIR/cand_pool/{pool}_cand_pool.jsonl \
        --instructions_path ./data/M-BEIR/instructions/query_instructions.tsv \
        --qrels_path ./data/M-BEIR/qrels/test/mbeir_{task}_test_qrels.txt \
        --original_model_id ./checkpoints/hf_models/Qwen2-VL-7B-Instruct \
        --image_path_prefix ./data/M-BEIR \
        --model_id ./checkpoints/qwen2-vl-7b_LamRA-Ret --model_max_length 1024""")


def rerank(style: str, task: str, model: str, name: str, depth: int) -> str:
    """eval_rerank_mbeir_{pointwise,listwise}.sh."""
    return rf"""eval/eval_mbeir_rerank_{style}.py \
        --query_data_path ./data/M-BEIR/query/test/mbeir_{task}_test.jsonl \
        --cand_pool_path ./data/M-BEIR/cand_pool/global/mbeir_union_test_cand_pool.jsonl \
        --instructions_path ./data/M-BEIR/instructions/query_instructions.tsv \
        --model_id {model} \
        --original_model_id ./checkpoints/hf_models/Qwen2-VL-7B-Instruct \
        --ret_query_data_path ./LamRA_Ret_eval_results/mbeir_{task}_test_qwen2-vl-7b_LamRA-Ret_query_names.json \
        --ret_cand_data_path ./LamRA_Ret_eval_results/mbeir_{task}_test_qwen2-vl-7b_LamRA-Ret_cand_names.json \
        --rank_num {depth} --save_name {task}_{name} --image_path_prefix ./data/M-BEIR --batch_size 4"""


def test_retrieval_mining_and_reranking_as_upstream_spells_them(workplace, retriever, capsys):
    capsys.readouterr()
    evaluate("cirr_task7", "local/mbeir_cirr_task7")
    # Upstream names Qwen2-VL for every model; the adapter of stage 2 belongs on the merged model of stage 1.
    trained_on = "was trained on checkpoints/LamRA-Ret-Pretrained-merged, which is used, not --original_model_id"
    assert trained_on in capsys.readouterr().out
    evaluate("mscoco_task0", "local/mbeir_mscoco_task0_test", "--query_cand_pool")
    assert "note: --query_cand_pool is ignored" in capsys.readouterr().out
    results = "LamRA_Ret_eval_results/mbeir_cirr_task7_test_qwen2-vl-7b_LamRA-Ret"
    qids, dids, scores = (read(f"{results}_{name}.json") for name in ("query_names", "cand_names", "scores"))
    assert len(qids) == len(dids) == QUERIES and all(len(row) == CANDIDATES for row in dids)
    assert all(len(row[0]) == CANDIDATES and row[0] == sorted(row[0], reverse=True) for row in scores)
    text = Path("LamRA_Ret_eval_results/qwen2-vl-7b_LamRA-Ret_results.txt").read_text().splitlines()
    assert [line for line in text if "recall" not in line] == [
        f"data/M-BEIR/qrels/test/mbeir_{task}_test_qrels.txt" for task in ("cirr_task7", "mscoco_task0")
    ]
    assert text[4] == "recall_at_50 = 1.0"
    found = "results/qwen2-vl-7b_LamRA-Ret/mbeir/mbeir_cirr_task7_test/mbeir_cirr_task7_cand_pool/metrics.json"
    assert f"recall_at_1 = {read(found)['cirr_task7']['recall@1']}" == text[1]

    # All 16 in one pool, from the embeddings that are there and those that are not: no flag at all.
    stamps = {path: path.stat().st_mtime_ns for path in Path("results").rglob("*.npy")}
    started("python eval/eval_mbeir_global.py")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    for name in NAMES:
        qids = read(f"LamRA_Ret_eval_global_results/{name}_query_names.json")
        dids, scores = (read(f"LamRA_Ret_eval_global_results/{name}_{part}.json") for part in ("cand_names", "scores"))
        assert len(qids) == QUERIES and {len(row) for row in dids + scores} == {50}
    metrics = read("results/qwen2-vl-7b_LamRA-Ret/mbeir/test_global/metrics.json")
    assert set(metrics) == {"average", *(task.name for task in TASKS)}
    text = Path("LamRA_Ret_eval_global_results/mbeir_eval_global_results.txt").read_text()
    assert text.count("recall_at_1 = ") == 16

    for name, pool in (("cirr", "cirr_task7"), ("mscoco_train_task0", "mscoco_task0")):
        task = name if "train" in name else f"{name}_train"
        here(rf"""train/mbeir_get_rerank_train_data.py \
            --query_data_path ./data/M-BEIR/query/train/mbeir_{task}.jsonl \
            --query_cand_pool_path ./data/M-BEIR/cand_pool/global/mbeir_union_train_cand_pool.jsonl \
            --cand_pool_path ./data/M-BEIR/cand_pool/rerank_pool/mbeir_{pool}_cand_pool.jsonl \
            --instructions_path ./data/M-BEIR/instructions/query_instructions.tsv \
            --qrels_path ./data/M-BEIR/qrels/train/mbeir_{name}_train_qrels.txt \
            --original_model_id ./checkpoints/hf_models/Qwen2-VL-7B-Instruct \
            --model_id {retriever} --save_name {pool}""")
    mined = read("rerank_training_data/cirr_task7_data.json")
    assert len(mined) == QUERIES and all(set(docs) == {"gt_docs", "top100_docs"} for docs in mined.values())
    here("train/mbeir_merge_rerank_train_data.py")
    assert read("data/rerank_data_all.json") == mined | read("rerank_training_data/mscoco_task0_data.json")
    here("train/mbeir_merge_rerank_train_data.py")  # its own file is none of those to join
    assert len(read("data/rerank_data_all.json")) == 2 * QUERIES

    started(r"""torchrun --nnodes=1 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint localhost:0 \
        train/train_rerank.py --model_id qwen2-vl-7b --model_local_path ./checkpoints/hf_models/Qwen2-VL-7B-Instruct \
        --output_dir ./checkpoints/qwen2-vl-7b_LamRA-Rank --run_name qwen2-vl-7b_LamRA-Rank \
        --deepspeed ./ds_configs/zero2.json --per_device_train_batch_size 2 --per_device_eval_batch_size 2 \
        --gradient_accumulation_steps 1 --eval_strategy "no" --save_strategy "steps" --save_steps 2000 \
        --model_max_length 2048 --rerank_data_path ./data/rerank_data_all.json""" + TRAIN_FLAGS)  # fmt: skip
    Path("checkpoints/LamRA-Rank").symlink_to("qwen2-vl-7b_LamRA-Rank")

    here(rerank("pointwise", "cirr_task7", "./checkpoints/qwen2-vl-7b_LamRA-Rank", "top50", 50))
    yes = read("mbeir_rerank_files/cirr_task7_top50_test_queryid2rerank_score.json")
    assert len(yes) == QUERIES and all(len(row) == CANDIDATES and max(row) < 1 for row in yes.values())
    here(rerank("listwise", "mscoco_task0", "code-kunkun/LamRA-Rank", "top5_all", 5))
    named = read("mbeir_rerank_files/mscoco_task0_top5_all_test_queryid2rerank_outputs_listwise.json")
    assert len(named) == QUERIES and set(named.values()) <= {f"Ans: ({n})" for n in range(1, 6)}

    capsys.readouterr()
    here("eval/rerank/mbeir_rerank.py --task_name cirr_task7")
    printed = capsys.readouterr().out
    assert [line.split(" = ")[0] for line in printed.splitlines()[-4:]] == [f"recall_at_{k}" for k in (1, 5, 10, 20)]
    here("eval/rerank/mbeir_rerank_listwise.py --task_name mscoco_task0")
    printed = capsys.readouterr().out
    dids = read("LamRA_Ret_eval_results/mbeir_mscoco_task0_test_qwen2-vl-7b_LamRA-Ret_cand_names.json")
    right = read("LamRA_Ret_eval_results/mbeir_mscoco_task0_test_qwen2-vl-7b_LamRA-Ret_query_names.json")
    qrels = Path("data/M-BEIR/qrels/test/mbeir_mscoco_task0_test_qrels.txt").read_text().splitlines()
    answer = {line.split()[0]: line.split()[2] for line in qrels}
    hits = sum(row[int(named[qid][6]) - 1] == answer[qid] for qid, row in zip(right, dids))
    assert f"recall_at_1 = {hits / QUERIES} " in printed


def test_a_file_of_queries_is_a_task_of_its_own(workplace, retriever, capsys):
    """No file of M-BEIR's: what its queries look for follows from their answers."""
    root = Path("data/M-BEIR")
    own = Path("own_queries.jsonl")
    own.write_text((root / "query/test/mbeir_nights_task4_test.jsonl").read_text())
    here(rf"""eval/eval_mbeir.py --query_data_path {own} \
        --cand_pool_path {root}/cand_pool/global/mbeir_union_test_cand_pool.jsonl --pool global --split val \
        --qrels_path {root}/qrels/test/mbeir_nights_task4_test_qrels.txt --save_for_rerank --batch_size=16 \
        --model_id {retriever}""")
    out = capsys.readouterr().out
    assert "own_queries" in out and "average of 1" in out and "--save_for_rerank is ignored" in out
    folder = "results/qwen2-vl-7b_LamRA-Ret/mbeir/own_queries/mbeir_union_test_cand_pool"
    assert "recall@5" in read(f"{folder}/metrics.json")["own_queries"]


def test_both_spellings_of_one_thing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["--query_data_path", "./d/q.jsonl", "--image_path_prefix=d", "--lr", "-1", "--queries=q.jsonl"]
    assert translated(line, TRAINING) == ["--lr", "-1", "--queries=q.jsonl", "--data_path", "d"]
    assert translated(["--cand-pool-path", "a b"], TRAINING) == ["--pool", f"{tmp_path}/a b"]
    with pytest.raises(ValueError, match="--query_data_path other.jsonl contradicts --queries q.jsonl: the two mean"):
        translated([*line, "--query_data_path", "other.jsonl"], TRAINING)
    with pytest.raises(ValueError, match="--image_path_prefix d contradicts --data_path e"):
        translated(["--image_path_prefix", "d", "--data_path", "e"], TRAINING)
    with pytest.raises(ValueError, match="--cand_pool_path needs a path"):
        translated(["--cand_pool_path", "--lr", "1"], TRAINING)


def test_mistakes_are_one_sentence(workplace, fails, no_model):
    test = "data/M-BEIR/query/test/mbeir_cirr_task7_test.jsonl"
    pool = "data/M-BEIR/cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl"
    qrels = "data/M-BEIR/qrels/test/mbeir_cirr_task7_test_qrels.txt"
    files = dict(query_data_path=test, cand_pool_path=pool, qrels_path=qrels)
    model = dict(model_id="checkpoints/hf_models/Qwen2-VL-7B-Instruct")
    train = dict(output_dir="o", report_to="none", model_id="qwen2-vl-7b")
    ranking = dict(ret_query_data_path="a_query_names.json", ret_cand_data_path="a_cand_names.json", save_name="x")
    files_asked = dict(query_data_path=test, cand_pool_path=pool, instructions_path="data/M-BEIR/" + INSTRUCTIONS)
    for main, flags, words in (
        (
            eval_mbeir.main,
            model | files | dict(tasks="nights_task4"),
            "--tasks nights_task4 contradicts --query_data_path",
        ),
        (eval_mbeir.main, model | files | dict(split="val"), "--split val contradicts --query_data_path"),
        (eval_mbeir.main, model | files | dict(pool="global"), "--pool global contradicts --query_data_path"),
        (eval_mbeir.main, model | dict(query_data_path=test), "--qrels_path belong together: give all three"),
        (eval_mbeir.main, model | files | dict(qrels_path="no.txt"), "no.txt does not exist"),
        (eval_mbeir.main, model | files | dict(cand_pool_path="no.jsonl"), "no.jsonl does not exist"),
        (eval_mbeir.main, model | files | dict(instructions_path="no.tsv"), "no.tsv does not exist"),
        (eval_mbeir_global.main, model | files, "--query_data_path " + test + ": expected no file"),
        (train_mbeir.main, train | dict(query_data_path="no.jsonl"), "no.jsonl does not exist"),
        (
            train_mbeir.main,
            train | dict(query_data_path=test, queries="b"),
            f"--query_data_path {test} contradicts --queries b",
        ),
        (
            train_rerank.main,
            train | dict(rerank_data_path="a.json", mined="b.json"),
            "--rerank_data_path a.json contradicts",
        ),
        (train_rerank.main, train | dict(rerank_data_path="no.json"), "no.json does not exist: expected a file"),
        (
            lambda: upstream_rerank.write_answers("pointwise"),
            model | ranking | files_asked,
            "a_query_names.json does not exist",
        ),
        (
            lambda: upstream_rerank.write_answers("pointwise"),
            model | ranking | files_asked | dict(ret_cand_data_path="b_cand_names.json"),
            "expected the two files .._query_names.json and .._cand_names.json of one ranking",
        ),
        (
            lambda: upstream_rerank.report("listwise"),
            dict(task_name="cirr"),
            "--task_name cirr: expected visualnews_task0 or",
        ),
        (
            lambda: upstream_rerank.report("listwise"),
            dict(task_name="oven_task6"),
            "LamRA_Ret_eval_results/mbeir_oven_task6_test_qwen2-vl-7b_LamRA-Ret_query_names.json does not exist",
        ),
        # Names of a hub.
        (
            eval_mbeir.main,
            files | dict(model_id="code-kunkun/LamRA-Ret"),
            "--model_id code-kunkun/LamRA-Ret is not in checkpoints/hf_models/LamRA-Ret: "
            "bash scripts/download.sh lamra-ret",
        ),
        (
            eval_mbeir.main,
            files | dict(model_id="some/model"),
            "--model_id some/model is no folder here and no published",
        ),
        (
            merge_lora.main,
            dict(model_id="checkpoints/moved", save_path="m"),
            "--original_model_id Qwen/Qwen2-VL-2B-Instruct is not in checkpoints/hf_models/Qwen2-VL-2B-Instruct: bash",
        ),
        (
            eval_mbeir.main,
            files | dict(model_id="checkpoints/moved", original_model_id="some/base"),
            "--original_model_id some/base is no folder here",
        ),
        (train_mbeir.main, train | dict(model_local_path="a/b"), "--model_local_path a/b is no folder here"),
        (train_mbeir.main, train | dict(model_id="Qwen/Qwen2-VL-2B-Instruct"), "bash scripts/download.sh qwen2-vl-2b"),
        (
            train_rerank.main,
            train | dict(mined=qrels, init="code-kunkun/LamRA-Ret"),
            "--init code-kunkun/LamRA-Ret is not",
        ),
    ):
        assert words in fails(main, **flags), (words, flags)


def test_a_folder_wins_over_a_hub_name(workplace):
    assert local_folder("Qwen/Qwen2-VL-7B-Instruct", "model_id") == "checkpoints/hf_models/Qwen2-VL-7B-Instruct"
    os.makedirs("Qwen/Qwen2-VL-7B-Instruct")
    assert local_folder("Qwen/Qwen2-VL-7B-Instruct", "model_id") == "Qwen/Qwen2-VL-7B-Instruct"
    os.removedirs("Qwen/Qwen2-VL-7B-Instruct")
    for path in ("checkpoints/not_there", "./a/b", "/a/b", "qwen2-vl-7b", "a/b/c"):
        assert local_folder(path, "model_id") == path
