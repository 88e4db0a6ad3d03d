"""The miniature world says what it draws, and its base model is a model folder like any published one."""

from __future__ import annotations

import csv
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image

from lamra.collators.processing import Processor
from lamra.collators.rerank import RankPrompts
from lamra.common.errors import UserError
from lamra.datasets.caption import load_captioned_images
from lamra.datasets.items import Item
from lamra.datasets.pairs import load_source
from lamra.miniature import pretrain_rank, study, world
from lamra.miniature.comparisons import RESPECTS, compare, view
from lamra.miniature.model import Example, padded
from lamra.miniature.pretrain import Corpus, build_base, next_token_loss
from lamra.miniature.pretrain_rank import Teacher, build_rank_base
from lamra.miniature.recipes import RankRecipe, Recipe, ensure, miniature_of
from lamra.miniature.world import DETAILS, GRID, Shape
from lamra.models.backbone import Backbone
from lamra.models.embedder import Embedder
from lamra.models.families import FAMILIES, family_of
from lamra.models.folders import MODELS, model_folder
from lamra.models.loading import load_embedder, load_model
from lamra.train import train_nli

KIND_OF = {name: kind for kind, names in world.NAMES.items() for name in names}


def understood(sentence: str) -> world.Scene:
    """The scene that a sentence describes, read back by its words alone."""
    shapes = set()
    for clause in re.split(r", | and ", sentence.lower().rstrip(".")):
        place = re.search(r"\bat (\w+)(?: (left|middle|centre|right))?", clause)
        thing = re.search(rf"({'|'.join(world.COLOURS)}) (\w+)", clause)
        row = next(i for i, names in enumerate(world.ROWS) if place[1] in names)
        column = next(i for i, names in enumerate(world.COLUMNS) if (place[2] or "middle") in names)
        shapes.add(Shape(row * GRID + column, thing[1], KIND_OF[thing[2]]))
    return frozenset(shapes)


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SHORT = Recipe(pictures=10, gallery=5, triplets=20, steps=2, sentences=2, details=2)


def ensure_base(recipe: Recipe, world, model, force: bool = False) -> bool:
    return ensure([model], recipe, lambda: build_base(recipe, world, model), force)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The world of SHORT."""
    folder = tmp_path_factory.mktemp("miniature") / "world"
    world.build_world(folder, 0, train_pictures=SHORT.pictures, gallery_pictures=SHORT.gallery, triplets=SHORT.triplets)
    return folder


@pytest.fixture(scope="module")
def built(drawn, tmp_path_factory):
    """A whole build, pre-trained for two steps only."""
    folder = tmp_path_factory.mktemp("miniature")
    assert ensure_base(SHORT, drawn, folder / "model")
    return SHORT, drawn, folder / "model"


def test_sentences_differ_and_describe_their_scene():
    rng = random.Random(0)
    for _ in range(200):
        scene = world.random_scene(rng)
        sentences = world.descriptions(scene, rng, 5)
        assert len(set(sentences)) == 5
        assert {understood(sentence) for sentence in sentences} == {scene}


def test_paraphrase_agrees_and_contradiction_does_not():
    rng = random.Random(0)
    for scene in world.distinct_scenes(rng, 200, set()):
        sentence, paraphrase, contradiction = world.triplet(scene, rng)
        assert sentence != paraphrase
        assert understood(sentence) == understood(paraphrase) == scene
        other = understood(contradiction)
        assert len(other) == len(scene) and len(other - scene) == 1


def test_picture_shows_its_scene():
    rng = random.Random(0)
    for scene in world.distinct_scenes(rng, 50, set()):
        picture = world.draw(scene)
        assert picture.size == (84, 84)
        colour_in = {shape.cell: world.COLOURS[shape.colour] for shape in scene}
        for cell in range(GRID * GRID):
            centre = picture.getpixel((cell % GRID * 28 + 14, cell // GRID * 28 + 14))
            assert centre == colour_in[cell] if cell in colour_in else min(centre) > 150


def test_files_are_seeded_and_share_no_scene(tmp_path):
    sizes = dict(train_pictures=30, gallery_pictures=20, triplets=40)
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        world.build_world(tmp_path / name, seed, **sizes)
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")

    scenes = []
    for split, pictures in {"train": 30, "val": 20, "test": 20}.items():
        captions = json.loads((tmp_path / "a" / split / "captions.json").read_text())
        assert len(captions) == 5 * len(list((tmp_path / "a" / split / "images").iterdir())) == 5 * pictures
        scenes += [understood(caption) for caption in captions[::5]]
        assert understood(captions[-1]) == scenes[-1]
        picture = Image.open(tmp_path / "a" / split / f"images/{pictures - 1}.png")
        assert picture.tobytes() == world.draw(scenes[-1]).tobytes()
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
    assert all(len(tokenizer(word)["input_ids"]) == 1 for word in DETAILS)
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


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_base_model_of_each_family_learns_embeds_and_is_trained(family, drawn, tmp_path):
    model, run = tmp_path / "model", tmp_path / "run"
    assert ensure_base(replace(SHORT, family=family.model_type), drawn, model)
    assert miniature_of(family.model_type) in MODELS
    picture = Item("p", images=(drawn / "test/images/0.png",))
    processor = Processor(model)
    batch = processor([picture, Item("t", text="A red disc at centre.")])
    first_role = "user" if family.model_type == "qwen3_vl" else "system"
    assert processor.tokenizer.decode(processor.prefix_ids).startswith(f"<|im_start|>{first_role}\n")
    assert batch["image_grid_thw"].tolist() == [[1, 6, 6]]
    embedder, settings = load_embedder(model, dtype=torch.float32)
    assert family_of(model) is family and settings.position_ids == family.position_ids
    assert 0.8e6 < sum(p.numel() for p in embedder.parameters()) < 1.5e6

    flags = dict(model_id=miniature_of(family.model_type), model_local_path=model, data_path=drawn / "nli.csv")
    flags |= dict(output_dir=run, max_steps=2, per_device_train_batch_size=4, lora_r=4, learning_rate=1e-2)
    call(train_nli.main, **flags, dataloader_num_workers=0, report_to="none")
    trained, settings = load_embedder(run, dtype=torch.float32)
    before, after = embedder(**batch), trained(**batch)  # (2, D)
    assert torch.isfinite(after).all() and (before - after).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize(
    ("model_id", "command"),
    [
        ("miniature", ": bash scripts/quickstart.sh makes it"),
        ("miniature_qwen3_vl", ": FAMILY=qwen3_vl bash scripts/quickstart.sh makes it"),
    ],
)
def test_a_miniature_that_is_not_there_says_what_makes_it(model_id, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=command):
        model_folder(model_id)


def test_loss_of_alternatives_is_the_mean_over_single_answers(built):
    _, world, folder = built
    corpus = Corpus([world / "train"], Processor(folder))
    backbone = Backbone(load_model(folder, dtype=torch.float32), "sequential", padding_free=False)
    backbone.pixels_from_bytes = corpus.processor.visuals.floats
    example = corpus.example(random.Random(0), pictured=True, naming=True)
    assert example.alternatives and len(example.answer) >= 3
    with torch.no_grad():
        together = next_token_loss(backbone, [example], corpus.processor)
        alone = [
            next_token_loss(backbone, [Example(example.prompt, [word], pixels=example.pixels)], corpus.processor)
            for word in example.answer
        ]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_second_build_does_nothing_and_another_recipe_builds_again(built):
    recipe, world, folder = built
    before = files(folder)
    assert not ensure_base(recipe, world, folder)
    assert ensure_base(recipe, world, folder, force=True)
    assert files(folder) == before  # seeded, model included
    assert ensure_base(replace(recipe, seed=1), world, folder)
    assert files(folder)["model.safetensors"] != before["model.safetensors"]


def test_comparisons_fit_or_differ_as_much_as_the_caller_says():
    rng, scenes, sides = random.Random(0), world.distinct_scenes(random.Random(0), 50, set()), 2 * ("sentence",)
    for one_shape_changed, kind_alone in ((0, 0), (1, 1)):
        shares = dict(one_shape_changed=one_shape_changed, kind_alone=kind_alone)
        drawn = [compare(scene, sides, rng, **shares) for scene in 8 * scenes]
        said = [(understood(query.text), understood(candidate.text)) for query, candidate, _ in drawn]
        assert all((told <= scene) == fits for (scene, told), (_, _, fits) in zip(said, drawn))
        assert 150 < sum(comparison.fits for comparison in drawn) < 250
        unfit = [(scene, told) for scene, told in said if not told <= scene and len(told) == len(scene)]
        assert {len(told) for _, told in unfit} == {1, 2, 3}
        changed = [len(told - scene) for scene, told in unfit if len(scene) > 1]
        assert set(changed) == {1} if one_shape_changed else sum(count > 1 for count in changed) > 0.9 * len(changed)
        for scene, told in unfit:
            if one_shape_changed:
                (old,), (new,) = scene - told, told - scene
                assert (old.cell, old.colour) == (new.cell, new.colour) and old.kind != new.kind
            elif len(scene) == 1:
                (old,), (new,) = scene, told
                assert all(getattr(old, respect) != getattr(new, respect) for respect in RESPECTS)

    views = [view(scenes[0], "picture", rng) for _ in range(50)]
    pictures = {shown.variant: shown.picture().tobytes() for shown in views}
    assert len(set(pictures.values())) == 4 and pictures[0] == world.draw(scenes[0]).tobytes()


@pytest.fixture(scope="module")
def rank_base(tmp_path_factory):
    """The base model of LamRA-Rank's world, after a step or two of each phase."""
    folder = tmp_path_factory.mktemp("rank") / "model"
    recipe = RankRecipe(
        scenes=30, naming=1, language=1, shapes=1, whole_scenes=1, sentences=2, questions=2, comparisons=6
    )
    for built in (True, False):
        assert ensure([folder], recipe, lambda: build_rank_base(recipe, folder)) == built
    return folder


def test_examples_with_a_shared_beginning_lose_and_learn_as_padded_ones(rank_base):
    rng = random.Random(0)
    teacher = Teacher(world.distinct_scenes(rng, 20, set()), Processor(rank_base), rng)
    groups = [
        teacher.language(4, 4),
        [teacher.compare(comparison) for comparison in teacher.comparisons(6, 0.5)],
        [teacher.name() for _ in range(3)],  # all of them begin with a picture
    ]
    assert [len(group) for group in groups] == [9, 6, 3]
    found = []
    for shared in (True, False):
        model = load_model(rank_base, dtype=torch.float32)
        backbone = Backbone(model, "mrope", padding_free=shared).eval()
        backbone.pixels_from_bytes = teacher.processor.visuals.floats
        losses = []
        for group in groups:
            if shared:
                losses.append(pretrain_rank.next_token_loss(backbone, group, teacher.processor))
                continue
            hidden, _ = backbone.hidden(*padded(group, teacher.processor))  # (B, L, D)
            predicting = [hidden[i, example.positions] for i, example in enumerate(group)]
            wanted = torch.tensor([token for example in group for token in example.answer])
            losses.append(torch.nn.functional.cross_entropy(model.lm_head(torch.cat(predicting)), wanted))
        sum(losses).backward()
        found.append([*losses, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    assert len(found[0]) == len(found[1]) > 50
    for packed, plain in zip(*found):
        assert (packed - plain).norm() <= 1e-5 * plain.norm() + 1e-9


def test_what_the_rerankers_teacher_says_is_true_of_what_is_shown(rank_base):
    rng = random.Random(0)
    teacher = Teacher(world.distinct_scenes(rng, 20, set()), Processor(rank_base), rng)
    decode = teacher.processor.tokenizer.decode
    for scene in teacher.scenes:
        told = teacher.caption(view(scene, "sentence", rng))
        assert understood(decode(told.answer)) == scene and decode(told.prompt).endswith("Candidate:")
        colour = teacher.answer(view(scene, "sentence", rng), "colour")
        assert decode(colour.answer).strip() in {shape.colour for shape in scene}
        kind = KIND_OF[decode(teacher.answer(view(scene, "picture", rng), "kind").answer).strip()]
        assert kind in {shape.kind for shape in scene}
        comparison = compare(scene, ("picture", "sentence"), rng, one_shape_changed=0.5, kind_alone=0.5)
        example = teacher.compare(comparison)
        assert decode(example.answer) == ("Yes" if comparison.fits else "No") and len(example.pixels) == 36


def test_the_base_model_of_a_reranker_knows_its_prompts(rank_base):
    processor = Processor(rank_base)
    prompts = RankPrompts(processor, "released")
    item = Item("", "A red disc at top left.")
    for encoded in (
        prompts.pointwise(*2 * [prompts.prepare(item)]),
        prompts.listwise(prompts.prepare(item), 5 * [prompts.prepare(item)]),
    ):
        text = processor.tokenizer.decode(encoded["input_ids"])
        assert len(encoded["input_ids"]) < len(text.split()) * 1.7  # whole words
    assert len(prompts.choices(["Yes", "No"])[1]) == 2
    load_model(rank_base, dtype=torch.float32)


def test_the_studys_data_are_of_four_kinds_and_another_domain(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "PICTURES_TO_KNOW", 4)
    for folder in (tmp_path / "a", tmp_path / "b"):
        study.build_study_world(folder, 0, gallery_pictures=3, rows=5)
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
        scene = study.random_scene(rng)
        for shape in scene:
            assert study.POSITIONS[shape.cell] in study.premise(scene, rng).lower()
        sentence = study.hypothesis(scene, rng).lower()
        said = [place for place in study.POSITIONS if place in sentence]
        assert len(said) == 2 and {study.POSITIONS.index(place) for place in said} <= {s.cell for s in scene}
