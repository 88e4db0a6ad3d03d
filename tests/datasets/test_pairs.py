"""Pairs from every source and format, subsets and mixtures of them, and the order in which they are trained on."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lamra.datasets.pairs import Mixture, PairFile, Subset
from lamra.train.flags import DataArguments
from lamra.train.sampling import MixtureSampler
from lamra.train.train_nli import load_pairs

QUERY, TARGET = {"text": "a dog"}, {"text": "the same dog", "image": "p/1.png"}


@pytest.fixture
def root(tmp_path):
    for folder in ("p", "0000001"):
        (tmp_path / folder).mkdir()
    for name in ("p/1.png", "p/2.png", "0000001/7_0.jpg", "0000001/7_1.jpg", "0000001/8_0.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def write(path, content):
    path.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)) + "\n")
    return path


def test_each_format_gives_its_pairs(root):
    rows = [{"query": QUERY, "target": TARGET, "negatives": [{"image": "p/2.png"}]}]
    (pair,) = PairFile(write(root / "a.jsonl", rows), "pairs", use_hard_negatives=True)
    assert (pair.query.text, pair.query.images) == ("a dog", ())
    assert (pair.target.text, pair.target.images) == ("the same dog", (root / "p/1.png",))
    assert [item.images for item in pair.negatives] == [(root / "p/2.png",)]
    assert PairFile(root / "a.jsonl", "pairs")[0].negatives == ()

    turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "A long caption."}]
    path = write(root / "b.json", json.dumps([{"id": "x", "image": "p/2.png", "conversations": turns}]))
    (pair,) = PairFile(path, "sharegpt4v")
    assert pair.query.images == (root / "p/2.png",) and pair.target.text == "A long caption."

    path = write(root / "c.jsonl", [{"source_image": "1.png", "edited_image": "2.png", "edit": "make it snow"}])
    (pair,) = PairFile(path, "region_edit", root=root / "p")
    assert (pair.query.images, pair.target.images) == ((root / "p/1.png",), (root / "p/2.png",))
    assert not pair.query.text and not pair.target.text
    (pair,) = PairFile(root, "region_edit")  # a folder; 8_0.jpg has no partner
    assert [side.images[0].name for side in (pair.query, pair.target)] == ["7_0.jpg", "7_1.jpg"]


@pytest.mark.parametrize(
    ("format", "content", "words"),
    [
        ("pairs", "", "has no pairs pairs"),
        ("pairs", "{", "a.json line 1 is not json"),
        ("pairs", "\n[1]\n", "a.json line 2 is not an object but list"),
        ("pairs", [{"query": QUERY}], 'a.json line 1 lacks "target": it has query'),
        (
            "pairs",
            [{"query": QUERY, "target": {"txt": "x"}}],
            "line 1 has the key 'txt', which nothing reads: known are",
        ),
        ("pairs", [{"query": QUERY, "target": TARGET, "negative": []}], "line 1 has the key 'negative', which nothing"),
        ("pairs", [{"query": QUERY, "target": TARGET, "negatives": None}], 'line 1: "negatives" is None: give a list'),
        ("pairs", [{"query": QUERY, "target": TARGET, "negatives": "x"}], 'line 1: "negatives" is x: give a list'),
        ("pairs", [{"query": QUERY, "target": {"text": "\u200b\u2060"}}], "line 1 has neither text nor picture"),
        ("pairs", '{"query": {"text": "\\ud83d"}, "target": {"text": "a"}}', "line 1 has \\ud83d, half of a letter"),
        ("pairs", [{"query": QUERY, "target": {"text": 3}}], "line 1"),
        ("pairs", [{"query": QUERY, "target": {"text": " "}}], "line 1 has neither text nor picture"),
        ("pairs", [{"query": QUERY, "target": {"image": "p/3.png"}}], "p/3.png of"),
        ("pairs", [{"query": QUERY, "target": {"image": "../x.png"}}], "the path ../x.png leaves"),
        ("pairs", [{"query": QUERY, "target": {"image": "/etc/x.png"}}], "the path /etc/x.png leaves"),
        ("sharegpt4v", '{"a": 1}', "a.json is not ShareGPT4V's json: it is no list"),
        ("sharegpt4v", '[{"image": "p/1.png"}]', "a.json entry 1 is not ShareGPT4V's"),
        ("sharegpt4v", '[{"image": "p/1.png", "conversations": []}]', "a.json entry 1 is not ShareGPT4V's"),
        ("region_edit", [{"source_image": "p/1.png"}], 'line 1 lacks "edited_image"'),
        ("region_edit", None, "does not exist"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(root, format, content, words):
    path = root / "a.json"
    if content is not None:
        write(path, content)
    with pytest.raises(ValueError) as error:
        PairFile(path, format)
    assert words in str(error.value)


def test_negatives_must_be_as_many_in_each_row(root):
    rows = [{"query": QUERY, "target": TARGET}, {"query": QUERY, "target": TARGET, "negatives": [QUERY]}]
    path = write(root / "a.jsonl", rows)
    assert len(PairFile(path, "pairs")) == 2
    with pytest.raises(ValueError, match=r"rows of .* have \[0, 1\] negatives"):
        PairFile(path, "pairs", use_hard_negatives=True)
    path = write(root / "none.jsonl", rows[:1])
    with pytest.raises(ValueError, match="--use_hard_negatives True: .*none.jsonl has no hard negatives; leave the"):
        PairFile(path, "pairs", use_hard_negatives=True)


def test_negatives_must_be_as_many_in_each_source(root):
    rows = [{"query": QUERY, "target": TARGET, "negatives": [QUERY] * count} for count in (1, 2)]
    sources = [write(root / f"{i}.jsonl", [row]) for i, row in enumerate(rows, start=1)]
    args = DataArguments(data_path=",".join(map(str, sources)), data_format="pairs", use_hard_negatives=True)
    with pytest.raises(ValueError, match=r"unequal numbers of hard negatives, 1 in .*1\.jsonl, 2 in .*2\.jsonl; make"):
        load_pairs(args, seed=0)
    args.use_hard_negatives = False
    assert len(load_pairs(args, seed=0)) == 2
    args.max_train_samples = 1
    with pytest.raises(ValueError, match="--max_train_samples 1: expected more: it leaves no row of"):
        load_pairs(args, seed=0)


def test_a_smaller_subset_is_among_a_larger_one():
    source = list(range(100))
    small, large, other = Subset(source, 10, 0), Subset(source, 25, 0), Subset(source, 10, 1)
    assert len(small) == 10 and set(small) < set(large) and len(set(large)) == 25
    assert set(small) != set(other)


def test_a_mixture_finds_its_rows():
    mixture = Mixture({"a": ["a0", "a1"], "b": ["b0"], "c": ["c0", "c1", "c2"]})
    assert list(mixture) == ["a0", "a1", "b0", "c0", "c1", "c2"]
    assert mixture.groups == {"a": range(2), "b": range(2, 3), "c": range(3, 6)}


def sampler(homogeneous, weights=None, **changes):
    groups = {"a": range(40), "b": range(40, 60), "c": np.arange(60, 100)}
    return MixtureSampler(groups, **(dict(weights=weights, step=8, homogeneous=homogeneous, seed=0) | changes))


def source_of(row):
    return "a" if row < 40 else "b" if row < 60 else "c"


def test_homogeneous_steps_hold_one_source_and_no_row_twice():
    rows = list(sampler(True, weights=[1, 3, 2]))
    assert len(rows) == len(sampler(True)) == 96
    steps = [rows[i : i + 8] for i in range(0, 96, 8)]
    assert all(len({source_of(row) for row in step}) == 1 and len(set(step)) == 8 for step in steps)
    assert Counter(source_of(step[0]) for step in steps) == {"a": 2, "b": 6, "c": 4}


def test_mixed_rows_follow_the_weights():
    rows = list(sampler(False, weights=[1, 1, 2]))
    assert Counter(map(source_of, rows)) == {"a": 25, "b": 25, "c": 50}
    assert max(Counter(rows).values()) == 2  # b and c are gone through again
    assert sorted(sampler(False)) == list(range(100))


@pytest.mark.parametrize("weights", [None, [1, 3, 2]])
@pytest.mark.parametrize("homogeneous", [False, True])
def test_the_order_is_that_of_shuffled_lists(homogeneous, weights):
    ours, unit = sampler(homogeneous, weights), 8 if homogeneous else 1
    ours.set_epoch(3)
    rng, units = random.Random("0/3"), []
    for rows, count in zip(ours.groups.values(), ours.counts):
        of_source = []
        while len(of_source) < count:
            order = [int(row) for row in rows]
            rng.shuffle(order)
            of_source += [order[i : i + unit] for i in range(0, len(order) - unit + 1, unit)]
        units += of_source[:count]
    rng.shuffle(units)
    assert list(ours) == [row for unit in units for row in unit]


def test_an_epoch_is_another_order_and_a_seed_the_same():
    one, two = sampler(False), sampler(False)
    assert list(one) == list(two) and list(one) == list(one)
    two.set_epoch(1)
    assert list(one) != list(two) and sorted(one) == sorted(two)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(weights=[1, 2]), "--mixture_weights 1,2: expected 3 positive numbers, one for each of a, b, c"),
        (dict(weights=[1, 0, 2]), "--mixture_weights 1,0,2: expected 3 positive numbers"),
        (dict(step=30), "--mixture_batches homogeneous: b has 20 rows, a step of all processes 30"),
    ],
)
def test_a_mixture_that_cannot_be(changes, words):
    with pytest.raises(ValueError) as error:
        sampler(True, **changes)
    assert words in str(error.value)
