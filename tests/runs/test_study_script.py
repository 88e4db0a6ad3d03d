"""The study's script on two kinds of data, broken off and continued."""

from __future__ import annotations

import json
import random
import shutil

import pandas as pd
import pytest
from conftest import ROOT, run_script

from lamra.miniature.world import distinct_scenes, draw, edited


def write_edits(folder, scenes, rng):
    rows = []
    for i, scene in enumerate(scenes):
        for name, shown in ((f"{i}_a.png", scene), (f"{i}_b.png", edited(scene, rng))):
            draw(shown).save(folder / name)
        rows.append({"source_image": f"{i}_a.png", "edited_image": f"{i}_b.png"})
    (folder / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


@pytest.fixture(scope="module")
def variables(world, tiny_model, tmp_path_factory):
    """A study of one seed and 14 steps, 9 of which are an epoch of the mixture."""
    folder = tmp_path_factory.mktemp("study")
    rng = random.Random(0)
    scenes = distinct_scenes(rng, 24, set())
    write_edits(folder, scenes, rng)
    turns = [{"from": "gpt", "value": "A picture with a shape."}]
    captions = [{"image": f"{i}_a.png", "conversations": turns} for i in range(len(scenes))]
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "nli.csv").write_text("\n".join((world / "nli.csv").read_text().splitlines()[:25]) + "\n")
    return dict(
        STUDY=f"test_{folder.name}",
        MODEL_ID="miniature",
        MODEL_LOCAL_PATH=tiny_model,
        NUM_GPUS=2,
        DS_STAGE="none",
        BF16=False,
        GRADIENT_CHECKPOINTING=False,
        STEPS=14,
        SAVE_STEPS=5,
        SEEDS=0,
        PER_DEVICE_BATCH_SIZE=4,
        LORA_R=8,
        TEXT_DATA=folder / "nli.csv",
        IMAGE_DATA=folder / "edits.jsonl",
        IMAGE_TEXT_DATA=folder / "captions.json",
        DATASETS="flickr",
        FLICKR_IMAGES=world / "test" / "images",
        FLICKR_TEXTS=world / "test" / "captions.json",
    )


def test_a_broken_study_goes_on_and_repeats_nothing(variables):
    """Also: a mixture resumed in its second epoch ends as it did unbroken."""
    name = variables["STUDY"]
    results, runs = ROOT / "results" / name, ROOT / "checkpoints" / name
    try:
        command = ("bash", "scripts/study/data_types.sh")
        both = variables | dict(KINDS="mixture", MIXTURE_BATCHES="homogeneous")
        first = run_script(*command, **both)
        assert "| mixture | 100 % | 1 |" in first.stdout and (results / "data_types.png").is_file()
        frame = pd.read_csv(results / "results.csv")
        assert set(frame["kind"]) == {"none", "mixture"} and len(frame) == 2 * 6

        mixture = runs / "mixture-100-seed0"
        adapter = (mixture / "adapter_model.safetensors").read_bytes()
        for gone in ("checkpoint-14", "adapter_config.json", "adapter_model.safetensors"):
            shutil.rmtree(mixture / gone, ignore_errors=True)
            (mixture / gone).unlink(missing_ok=True)
        shutil.rmtree(results / "mixture-100-seed0")
        kept = results / "none-0-seed0/flickr/metrics.json"
        written = kept.stat().st_mtime_ns
        second = run_script(*command, **both)
        assert "going on from" in second.stdout
        assert kept.stat().st_mtime_ns == written
        assert (mixture / "adapter_model.safetensors").read_bytes() == adapter
        assert pd.read_csv(results / "results.csv").equals(frame)

        refused = run_script(*command, check=False, **(both | dict(LR="1e-9")))
        assert refused.returncode == 2 and "was made with other settings" in refused.stderr
    finally:
        for folder in (results, runs):
            shutil.rmtree(folder, ignore_errors=True)
