"""Real triplets, tokenizer and photographs of ../shared through the practice's own commands, on two processes."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, run_script
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lamra.datasets.caption import load_captioned_images
from lamra.datasets.mbeir.layout import INSTRUCTIONS, global_pool, local_pool
from lamra.datasets.mbeir.write import MBEIRFiles


@pytest.fixture(scope="module")
def real_model(shared, tmp_path_factory):
    """The published tokenizer and image settings around a random Qwen2-VL of 2 layers."""
    folder = tmp_path_factory.mktemp("real_model")
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=151664,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        ),
        vision_config=dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2),
        tie_word_embeddings=True,
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    for file in (shared / "data" / "qwen2vl_processor").iterdir():
        shutil.copy(file, folder / file.name)
    return folder


def practice_flags(shared, name: str, replaced: dict[str, object]) -> list[str]:
    """The flags of a command of ../shared/practice with its shell variables filled in and some values replaced."""
    script = (shared / "practice" / name).read_text().replace("\\\n", " ")
    variables = dict(re.findall(r"^(\w+)=([^\s#]*)", script, flags=re.MULTILINE))
    command = next(line for line in script.splitlines() if " --model_id " in line)
    for variable, value in variables.items():
        command = command.replace(f"${{{variable}}}", value).replace(f"${variable}", value)
    flags = dict(re.findall(r"--(\w+) +(\S+)", command.split(".py ", 1)[1]))
    return [part for flag, value in (flags | replaced).items() for part in (f"--{flag}", str(value).strip('"'))]


def test_the_practice(shared, real_model, tmp_path):
    data, output = shared / "data", tmp_path / "run"
    torchrun = ["torchrun", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    changed = {"data_path": data / "nli_sample.csv", "output_dir": output, "per_device_train_batch_size": 16}
    small = ["--model_local_path", str(real_model), "--max_steps", "60"]
    flags = practice_flags(shared, "pretrain_command.sh", changed)
    assert {"--tf32", "--warmup_ratio", "--eval_strategy", "--q_lora"} <= set(flags)
    result = run_script(*torchrun, "train/train_nli.py", *flags, *small, "--learning_rate", "5e-3")
    assert "note: --tf32 True is ignored" in result.stdout
    history = json.loads((output / "checkpoint-60" / "trainer_state.json").read_text())["log_history"]
    losses = np.array([entry["loss"] for entry in history if "loss" in entry])
    assert np.isfinite(losses).all() and losses[-10:].mean() < losses[:10].mean() - 0.1

    accelerate = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    for name, pictures in (("flickr", "flickr8k"), ("coco", "coco")):
        folder = data / pictures
        changed = {
            "image_data_path": folder / "images",
            "text_data_path": folder / f"dataset_{pictures}.json",
            "original_model_id": real_model,
            "model_id": output,
            "output_dir": tmp_path / name,
        }
        flags = practice_flags(shared, "eval_command.sh", changed)
        run_script(*accelerate, f"eval/eval_zeroshot/eval_{name}.py", *flags)
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        assert len(metrics) == 10 and all(0 <= value <= 1 for value in metrics.values())
        assert metrics["image_retrieval_recall@1"] <= metrics["image_retrieval_recall@10"]


def to_mbeir(data, root, pictures_each: int, split: str = "test") -> None:
    """Karpathy's captions of Flickr8k and COCO as M-BEIR's files, as VisualNews and as MSCOCO, both ways."""
    files = MBEIRFiles(root)
    for source, name, dataset, suffix in (("flickr8k", "visualnews", 0, ""), ("coco", "mscoco", 9, "_test")):
        captioned = load_captioned_images(data / source / "images", data / source / f"dataset_{source}.json")
        (root / "mbeir_images").mkdir(parents=True, exist_ok=True)
        (root / "mbeir_images" / source).symlink_to(data / source / "images")
        pools = {task: [global_pool(split), local_pool(f"{name}_{task}{suffix}")] for task in ("task0", "task3")}
        pictures = [f"mbeir_images/{source}/{item.id}" for item in captioned.images[:pictures_each]]
        captions = [(text, i) for text, i in zip(captioned.texts, captioned.image_of_text) if i < pictures_each]
        images = [files.candidate(dataset, pools["task0"], image=picture) for picture in pictures]
        texts = [files.candidate(dataset, pools["task3"], item.text) for item, _ in captions]
        for item, image in captions:
            files.query(dataset, f"{name}_task0", split, [images[image]], text=item.text)
        for image, picture in enumerate(pictures):
            answers = [text for text, (_, described) in zip(texts, captions) if described == image]
            files.query(dataset, f"{name}_task3", split, answers, image=picture)
    files.write()
    (root / INSTRUCTIONS).parent.mkdir()
    shutil.copy(data / "mbeir" / "query_instructions.tsv", root / INSTRUCTIONS)


def test_rerank_from_mining_to_a_ranking(shared, real_model, tmp_path):
    """Photographs and captions both ways: mine, train, retrieve, rerank, each by its script; and the demonstration."""
    data, root, output = shared / "data", tmp_path / "M-BEIR", tmp_path / "reranker"
    to_mbeir(data, root, pictures_each=6, split="train")
    base = dict(DATA_PATH=root, NUM_GPUS=1)
    mine = ("bash", "scripts/lamra_rank/mine.sh", "--search_depth", 200, "--jsonl", True)
    run_script(*mine, **base, MODEL_ID=real_model, TOP=10, OUTPUT_DIR=tmp_path / "mined")
    mined = json.loads((tmp_path / "mined" / "mined.json").read_text())
    assert len(mined) == 2 * 6 * 6 and all(docs["top100_docs"] for docs in mined.values())
    run_script(
        *("bash", "scripts/lamra_rank/train_rerank.sh", "--model_local_path", real_model, "--max_steps", 3),
        **dict(
            MODEL_ID="qwen2-vl-2b", MINED=tmp_path / "mined" / "mined.json", OUTPUT_DIR=output, LORA_R=4, GRAD_ACCUM=1
        ),
        **(base | dict(DS_STAGE="none", BF16="False")),
    )
    few = json.loads((data / "flickr8k" / "dataset_flickr8k.json").read_text())
    few["images"] = [image for image in few["images"] if image["split"] == "test"][:12]
    captions, pictures = tmp_path / "few.json", tmp_path / "pictures"
    captions.write_text(json.dumps(few))
    pictures.mkdir()
    for image in few["images"]:
        (pictures / image["filename"]).symlink_to(data / "flickr8k" / "images" / image["filename"])
    texts = dict(DATASETS="flickr", FLICKR_IMAGES=pictures, FLICKR_TEXTS=captions)
    retrieved = tmp_path / "retrieved" / "flickr30k"
    flags = ("--save_for_rerank", "True", "--output_dir", retrieved)
    run_script("bash", "scripts/eval/eval_pretrained.sh", *flags, **texts, MODEL_ID=real_model, NUM_GPUS=1)
    for style in ("pointwise", "listwise"):
        variables = dict(MODEL_ID=output, RETRIEVED=retrieved.parent, STYLE=style, NUM_GPUS=1)
        variables["OUTPUT_DIR"] = tmp_path / "reranked"
        folder = variables["OUTPUT_DIR"] / "flickr30k"
        printed = run_script("bash", "scripts/eval/rerank_zeroshot.sh", **texts, **variables).stdout
        assert printed.count("Flickr30K text_retrieval") == 2  # the set's table, and that of all
        for name, queries, candidates in (("image_retrieval", 60, 12), ("text_retrieval", 12, 50)):
            lines = (folder / style / f"ranking_{name}.jsonl").read_text().splitlines()
            assert len(lines) == queries * candidates
    demo = ("python", "demo.py", "--model_id", real_model, "--folder", pictures, "--text", "Two dogs.", "--top", 4)
    lines = run_script(*demo, "--rerank", output).stdout.splitlines()[-4:]
    fused = [[float(part) for part in re.findall(r"\d\.\d{4}", line)[:3]] for line in lines]
    assert fused == sorted(fused, reverse=True) and all(abs(a - b - c) < 2e-4 for a, b, c in fused)
    assert sorted(int(line.split()[1]) for line in lines) == [1, 2, 3, 4]


def test_mbeir(shared, real_model, tmp_path):
    """The real instructions; own pools and one for all, the queries' embeddings used twice."""
    to_mbeir(shared / "data", tmp_path / "M-BEIR", pictures_each=30)
    variables = dict(MODEL_ID=real_model, DATA_PATH=tmp_path / "M-BEIR", OUTPUT_DIR=tmp_path / "out", NUM_GPUS=2)
    tasks = ("visualnews_task0", "mscoco_task0_test", "visualnews_task3", "mscoco_task3_test")
    metrics = {}
    for pool, script in (("local", "eval_mbeir.sh"), ("global", "eval_mbeir_global.sh")):
        result = run_script("bash", f"scripts/eval/{script}", **variables, TASKS=" ".join(tasks), SEARCH_MEMORY=0.01)
        metrics[pool] = json.loads((tmp_path / "out" / f"test_{pool}" / "metrics.json").read_text())
        assert set(metrics[pool]) == {*tasks, "average"} and f"M-BEIR test, {pool} pool" in result.stdout
    assert ("the paper's LamRA-Ret 7B" in result.stdout) and "54.9" not in result.stdout  # an average of all 16 only
    for task in tasks:  # more candidates make no query easier
        assert all(metrics["global"][task][k] <= recall for k, recall in metrics["local"][task].items())
    lines = (tmp_path / "out" / "test_global" / "ranking_mscoco_task3_test.jsonl").read_text().splitlines()
    assert len(lines) == 30 * 50 and set(json.loads(lines[0])) == {"qid", "did", "score", "rank"}


def test_the_study_on_photographs(shared, real_model, tmp_path):
    """Two crops of a photograph stand in for a region edit, Flickr8k's captions for long ones."""
    data, name = shared / "data", f"test_{tmp_path.name}"
    photographs = json.loads((data / "flickr8k" / "dataset_flickr8k.json").read_text())["images"][:20]
    edits, captions = [], []
    for i, photograph in enumerate(photographs):
        with Image.open(data / "flickr8k" / "images" / photograph["filename"]) as image:
            width, height = image.size
            image.crop((0, 0, width * 3 // 4, height)).save(tmp_path / f"{i}_0.jpg")
            image.crop((width // 4, 0, width, height)).save(tmp_path / f"{i}_1.jpg")
        edits.append({"source_image": f"{i}_0.jpg", "edited_image": f"{i}_1.jpg"})
        caption = " ".join(sentence["raw"] for sentence in photograph["sentences"])
        captions.append({"image": f"{i}_0.jpg", "conversations": [{"from": "gpt", "value": caption}]})
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, edits)))
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    study = dict(
        STUDY=name,
        MODEL_LOCAL_PATH=real_model,
        NUM_GPUS=1,
        DS_STAGE="none",
        BF16=False,
        STEPS=4,
        SEEDS=0,
        KINDS=os.environ.get("KINDS", "mixture"),  # of all; KINDS="text image image-text mixture" tries each alone
        PER_DEVICE_BATCH_SIZE=4,
        TEXT_DATA=data / "nli_sample.csv",
        IMAGE_DATA=tmp_path / "edits.jsonl",
        IMAGE_TEXT_DATA=tmp_path / "captions.json",
        DATASETS=os.environ.get("DATASETS", "coco"),
        FLICKR_IMAGES=data / "flickr8k" / "images",
        FLICKR_TEXTS=data / "flickr8k" / "dataset_flickr8k.json",
        COCO_IMAGES=data / "coco" / "images",
        COCO_TEXTS=data / "coco" / "dataset_coco.json",
    )
    try:
        result = run_script("bash", "scripts/study/data_types.sh", timeout=600, **study)
        print(result.stdout[-3000:])
        frame = pd.read_csv(ROOT / "results" / name / "results.csv")
        kinds, galleries = study["KINDS"].split(), study["DATASETS"].split()
        assert set(frame["kind"]) == {"none", *kinds} and set(frame["data"]) == set(galleries)
        assert len(frame) == (1 + len(kinds)) * len(galleries) * 6 and frame["recall"].between(0, 1).all()
    finally:
        for folder in ("results", "checkpoints"):
            shutil.rmtree(ROOT / folder / name, ignore_errors=True)
