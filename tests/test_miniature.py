"""The miniature world says what it draws, and its base model is a model folder like any published one."""

from __future__ import annotations

import csv
import json
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from lamra.collators.processing import Processor
from lamra.datasets import miniature, miniature_study
from lamra.datasets.caption import load_captioned_images
from lamra.datasets.items import Item
from lamra.datasets.miniature import GRID, Shape
from lamra.datasets.pairs import load_source
from lamra.models.embedder import Embedder
from lamra.models.loading import load_model
from lamra.train.build_miniature import Corpus, Recipe, ensure, next_token_loss

KIND_OF = {name: kind for kind, names in miniature.NAMES.items() for name in names}


def understood(sentence: str) -> miniature.Scene:
    """The scene that a sentence describes, read back by its words alone."""
    shapes = set()
    for clause in re.split(r", | and ", sentence.lower().rstrip(".")):
        place = re.search(r"\bat (\w+)(?: (left|middle|centre|right))?", clause)
        thing = re.search(rf"({'|'.join(miniature.COLOURS)}) (\w+)", clause)
        row = next(i for i, names in enumerate(miniature.ROWS) if place[1] in names)
        column = next(i for i, names in enumerate(miniature.COLUMNS) if (place[2] or "middle") in names)
        shapes.add(Shape(row * GRID + column, thing[1], KIND_OF[thing[2]]))
    return frozenset(shapes)


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A whole build, pre-trained for two steps only."""
    folder = tmp_path_factory.mktemp("miniature")
    recipe = Recipe(pictures=10, gallery=5, triplets=20, steps=2, sentences=2, details=2)
    assert ensure(recipe, folder / "world", folder / "model")
    return recipe, folder / "world", folder / "model"


def test_sentences_differ_and_describe_their_scene():
    rng = random.Random(0)
    for _ in range(200):
        scene = miniature.random_scene(rng)
        sentences = miniature.descriptions(scene, rng, 5)
        assert len(set(sentences)) == 5
        assert {understood(sentence) for sentence in sentences} == {scene}


def test_paraphrase_agrees_and_contradiction_does_not():
    rng = random.Random(0)
    for scene in miniature.distinct_scenes(rng, 200, set()):
        sentence, paraphrase, contradiction = miniature.triplet(scene, rng)
        assert sentence != paraphrase
        assert understood(sentence) == understood(paraphrase) == scene
        other = understood(contradiction)
        assert len(other) == len(scene) and len(other - scene) == 1


def test_picture_shows_its_scene():
    rng = random.Random(0)
    for scene in miniature.distinct_scenes(rng, 50, set()):
        picture = miniature.draw(scene)
        assert picture.size == (84, 84)
        colour_in = {shape.cell: miniature.COLOURS[shape.colour] for shape in scene}
        for cell in range(GRID * GRID):
            centre = picture.getpixel((cell % GRID * 28 + 14, cell // GRID * 28 + 14))
            assert centre == colour_in[cell] if cell in colour_in else min(centre) > 150


def test_files_are_seeded_and_share_no_scene(tmp_path):
    sizes = dict(train_pictures=30, gallery_pictures=20, triplets=40)
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        miniature.build_world(tmp_path / name, seed, **sizes)
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")

    scenes = []
    for split, pictures in {"train": 30, "val": 20, "test": 20}.items():
        captions = json.loads((tmp_path / "a" / split / "captions.json").read_text())
        assert len(captions) == 5 * len(list((tmp_path / "a" / split / "images").iterdir())) == 5 * pictures
        scenes += [understood(caption) for caption in captions[::5]]
        assert understood(captions[-1]) == scenes[-1]
        picture = Image.open(tmp_path / "a" / split / f"images/{pictures - 1}.png")
        assert picture.tobytes() == miniature.draw(scenes[-1]).tobytes()
    for name in ("nli.csv", "nli_eval.csv"):
        with (tmp_path / "a" / name).open(newline="") as file:
            scenes += [understood(row["sent0"]) for row in csv.DictReader(file)]
    assert len(scenes) == len(set(scenes)) == 30 + 20 + 20 + 40 + 20


def test_tokenizer_and_chat_template_are_qwen2_vls(built):
    _, world, folder = built
    processor = Processor(folder)
    tokenizer, picture = processor.tokenizer, Item("p", images=(world / "test/images/0.png",))
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>"):
        assert tokenizer(token)["input_ids"] == [tokenizer.convert_tokens_to_ids(token)]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert all(len(tokenizer(word)["input_ids"]) == 1 for word in miniature.DETAILS)
    for text in ("Zebra crossing, 3 dogs & naïve 猫\n", " two  spaces "):  # bytes: nothing is unknown
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    encoded = processor.encode(picture)
    assert encoded["image_grid_thw"].tolist() == [[1, 6, 6]]  # one token a cell
    assert tokenizer.decode(encoded["input_ids"]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 9
        + "<|vision_end|>\nSummarize above image in one word: <|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_template_renders_as_the_published_one(built, shared):
    published = Processor(shared / "data/qwen2vl_processor").tokenizer
    ours = Processor(built[2]).tokenizer
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "A box."}]
    system = [{"role": "system", "content": "Be brief."}]
    for conversation in (turns, system + turns, turns[:1]):
        for prompt in (True, False):
            options = dict(tokenize=False, add_generation_prompt=prompt)
            assert ours.apply_chat_template(conversation, **options) == published.apply_chat_template(
                conversation, **options
            )


def test_model_loads_whole_and_embeds(built):
    _, world, folder = built
    model = load_model(folder, dtype=torch.float32)  # refuses missing weights
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 1.5e6
    items = [Item("p", images=(world / "test/images/0.png",)), Item("t", text="A red disc at centre.")]
    with torch.no_grad():
        embeddings = Embedder(model.eval(), "sequential")(**Processor(folder)(items))
    assert embeddings.shape == (2, 128) and torch.isfinite(embeddings).all()


def test_loss_of_alternatives_is_the_mean_over_single_answers(built):
    _, world, folder = built
    model, corpus = load_model(folder, dtype=torch.float32), Corpus([world / "train"], Processor(folder))
    example = corpus.name_in_picture(random.Random(0), 0)
    assert example.alternatives and len(example.answer) >= 3
    pad = corpus.tokenizer.pad_token_id
    with torch.no_grad():
        together = next_token_loss(model, [example], pad)
        alone = [
            next_token_loss(model, [type(example)(example.prompt, [word], False, example.pixels)], pad)
            for word in example.answer
        ]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_second_build_does_nothing_and_another_recipe_builds_again(built):
    recipe, world, folder = built
    before = files(folder)
    assert not ensure(recipe, world, folder)
    assert ensure(recipe, world, folder, force=True)
    assert files(folder) == before  # seeded, model included
    assert ensure(Recipe(**{**vars(recipe), "seed": 1}), world, folder)
    assert files(folder)["model.safetensors"] != before["model.safetensors"]


def test_the_studys_data_are_of_four_kinds_and_another_domain(tmp_path, monkeypatch):
    monkeypatch.setattr(miniature_study, "PICTURES_TO_KNOW", 4)
    for folder in (tmp_path / "a", tmp_path / "b"):
        miniature_study.build_study_world(folder, 0, gallery_pictures=3, rows=5)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    text, image, image_text = (
        load_source(tmp_path / "a" / name, format, None, False)
        for name, format in (
            ("text.csv", "nli"),
            ("region_edit.jsonl", "region_edit"),
            ("image_text.json", "sharegpt4v"),
        )
    )
    assert len(text) == len(image) == len(image_text) == 5
    assert all(len(pair.target.text) < len(pair.query.text) for pair in text)  # an entailed sentence says less
    assert all(pair.target.text.startswith("The image features") for pair in image_text)
    for pair in image:
        before, after = (np.asarray(Image.open(side.images[0]), int) for side in (pair.query, pair.target))
        changed = (abs(before - after).max(axis=2) > 40).mean()
        assert 0 < changed < 0.3  # one shape, or two cells where it moved
        assert before.mean() < 128  # dark; the evaluation's pictures are pale
    with Image.open(tmp_path / "a" / "flickr" / "images" / "0.png") as everyday:
        assert np.asarray(everyday.convert("L")).mean() > 128
    assert len(load_captioned_images(tmp_path / "a/coco/images", tmp_path / "a/coco/dataset.json").texts) == 15


def test_a_hypothesis_follows_from_its_premise():
    rng = random.Random(0)
    for _ in range(50):
        scene = miniature_study.random_scene(rng)
        for shape in scene:
            assert miniature_study.PLACES[shape.cell] in miniature_study.premise(scene, rng).lower()
        sentence = miniature_study.hypothesis(scene, rng).lower()
        said = [place for place in miniature_study.PLACES if place in sentence]
        assert len(said) == 2 and {miniature_study.PLACES.index(place) for place in said} <= {s.cell for s in scene}
