"""The hard miniature M-BEIR: what matches scenes exactly finds every answer, and what finds families alone does not."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from test_miniature import files, understood

from lamra.collators.processing import Processor
from lamra.datasets.mbeir.layout import TRAIN_POOL, TRAIN_QUERIES, qrels_of, queries_of
from lamra.miniature import mbeir_hard, world
from lamra.miniature.mbeir import TASKS, change
from lamra.miniature.mbeir_hard import MEMBERS, build_hard_mbeir
from lamra.miniature.model import random_model
from lamra.miniature.pretrain import Scenes, instructions
from lamra.miniature.world import Scene

SIZES = dict(train=10, gallery=2, asked=(3, 7))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small build: its folder, and the scene of every picture, of which there are but stand-ins on the disk."""
    folder, drawn = tmp_path_factory.mktemp("hard") / "mbeir", []

    def draw(scene: Scene) -> Image.Image:
        drawn.append(scene)
        return Image.new("RGB", (1, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mbeir_hard, "draw", draw)
        build_hard_mbeir(folder, 0, **SIZES)
    paths = sorted(folder.glob("mbeir_images/*/*.png"), key=lambda path: int(path.stem))
    assert len(paths) == len(drawn)
    scene_of = {str(path.relative_to(folder)): scene for path, scene in zip(paths, drawn)}
    return SimpleNamespace(folder=folder, scene_of=scene_of)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(built, candidate: dict) -> Scene:
    """The scene of a candidate, from its words or its picture."""
    return understood(candidate["txt"]) if candidate["txt"] else built.scene_of[candidate["img_path"]]


def wanted(built, query: dict) -> Scene:
    """The scene that a query looks for."""
    text, picture = query["query_txt"], query["query_img_path"]
    if picture is None:
        return understood(text)
    scene = built.scene_of[picture]
    if text is None:
        return scene
    if not text.endswith("?"):
        before, after = text.split(". ")
        return scene - understood(before) | understood(after)
    where = text.removeprefix("what is at ").rstrip("?")
    (shape,) = (shape for shape in scene if where in positions(shape))
    return frozenset({shape})


def positions(shape: world.Shape) -> set[str]:
    row, column = divmod(shape.cell, world.GRID)
    return {f"{a} {b}" for a in world.ROWS[row] for b in world.COLUMNS[column]}


def tasks(folder: Path) -> Iterator[tuple[list[dict], list[dict], dict[str, set[str]]]]:
    """Queries, local pool and answers of each task of val and test."""
    for split in ("val", "test"):
        for name in TASKS:
            task = name.removesuffix("_test")
            pool = f"{task}_{split}" if task.startswith("mscoco") else task
            answers: dict[str, set[str]] = defaultdict(set)
            for line in (folder / qrels_of(task, split)).read_text().splitlines():
                qid, _, did, _, _ = line.split()
                answers[qid].add(did)
            pool_rows = rows(folder / f"cand_pool/local/mbeir_{pool}_cand_pool.jsonl")
            yield rows(folder / queries_of(task, split)), pool_rows, answers


def test_an_oracle_finds_all_answers_and_nothing_else(built):
    for queries, pool, answers in tasks(built.folder):
        assert len(queries) == SIZES["gallery"] * SIZES["asked"][1]
        by_scene = defaultdict(set)
        for candidate in pool:
            by_scene[told(built, candidate)].add(candidate["did"])
        for query in queries:
            assert by_scene[wanted(built, query)] == answers[query["qid"]] == set(query["pos_cand_list"])


def test_galleries_are_whole_families_of_near_misses(built):
    for queries, pool, _ in tasks(built.folder):
        candidate_of = {row["did"]: row for row in pool}
        for query in queries:
            right = wanted(built, query)
            wrong = {told(built, candidate_of[did]) for did in query["neg_cand_list"]}
            assert right not in wrong and len(wrong) >= MEMBERS - 1
            # One edit from the answer, so that no detail can be left out.
            assert any(len(right - other) <= 1 and len(other - right) <= 1 for other in wrong)


def test_no_scene_is_in_two_splits(built):
    scenes = defaultdict(set)
    for path, scene in built.scene_of.items():
        scenes[Path(path).parent.name].add(scene)
    assert scenes.keys() == {"train", "val", "test"}
    assert not any(scenes[a] & scenes[b] for a, b in combinations(scenes, 2))
    # Four data sets, each with families of its own.
    assert len(scenes["test"]) == 4 * SIZES["gallery"] * MEMBERS - facts_alone(built, "test")


def facts_alone(built, split: str) -> int:
    """Members of InfoSeek's families without a picture: those that no question is about."""
    return SIZES["gallery"] * (MEMBERS - SIZES["asked"][split != "train"])


def test_some_training_answers_are_not_listed(built):
    by_kind, kind_of = defaultdict(set), {}
    for candidate in rows(built.folder / TRAIN_POOL):
        kind_of[candidate["did"]] = kind = candidate["did"].split(":")[0], candidate["modality"]
        by_kind[kind, told(built, candidate)].add(candidate["did"])
    queries, hidden = rows(built.folder / TRAIN_QUERIES), 0
    for query in queries:
        right = by_kind[kind_of[query["pos_cand_list"][0]], wanted(built, query)]
        assert right >= set(query["pos_cand_list"]) and not right & set(query["neg_cand_list"])
        hidden += len(right) > len(query["pos_cand_list"])
    assert len(queries) == 5 * SIZES["train"] * SIZES["asked"][0]
    assert 0.1 < hidden / len(queries) < 0.4  # TWINS of four tasks out of five


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        build_hard_mbeir(tmp_path / folder, 0, train=1, gallery=1, asked=(1, 1))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_base_model_learns_to_answer_and_to_change(tmp_path):
    """The prompts hold a picture and a text; what is to be said is true of the scene after the text."""
    rng = random.Random(0)
    scenes = world.distinct_scenes(rng, 5, set())
    sentences = [text for scene in scenes for text in world.descriptions(scene, rng, 5)]
    random_model(tmp_path, [*sentences, *2 * instructions()], 0, "qwen2_vl")
    corpus = Scenes(scenes, Processor(tmp_path))
    examples = corpus.sample(rng, sentences=3, details=2)
    assert len(examples) == 4 * (3 + 2)
    decode = corpus.tokenizer.decode
    for kind, group in zip(("image", "sentence", "question", "change"), (examples[i : i + 5] for i in range(0, 20, 5))):
        for example in group[:3]:
            prompt, said = decode(example.prompt), decode(example.answer).partition(": ")[2]
            scene = understood(said.partition("<|im_end|>")[0])
            assert "in one word: " in prompt and (example.pixels is None) == (kind == "sentence")
            if kind == "question":
                (shape,) = scene
                assert any(f"what is at {where}?" in prompt for where in positions(shape))
                assert any(shape in each for each in scenes)
            elif kind == "change":
                before, after = prompt.split("<|vision_end|>")[1].split("\n")[0].split(". ")
                assert understood(after) <= scene and scene - understood(after) | understood(before) in scenes
            else:
                assert scene in scenes
        for example in group[3:]:
            assert example.alternatives and set(map(decode, example.answer)) <= world.DETAILS
            assert "Name a detail of above" in decode(example.prompt)


def test_a_change_says_what_was_there_and_what_is_there_instead():
    rng = random.Random(0)
    scene = world.random_scene(rng)
    after = world.edited(scene, rng)
    old, new = change(scene, after, rng).split(". ")
    assert scene - understood(old) | understood(new) == after
