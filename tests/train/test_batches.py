"""Batches that were mined: what they are made of, that steps hold whole communities, and files that do not fit."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from conftest import call
from mbeir_pairs import pairs_of, rank_at_random
from torch.utils.data import DataLoader
from training import stage2_flags

from lamra.common.files import sha256
from lamra.datasets.communities import Communities
from lamra.datasets.mbeir.layout import TRAIN_QUERIES
from lamra.train import mine_batches, train_mbeir, train_rerank
from lamra.train.sampling import CommunitySampler, MixtureSampler, mixture_sampler

SIZE = 4


def communities(rows: int) -> Communities:
    """Rows dealt out at random."""
    order = np.random.default_rng(0).permutation(rows)
    whole = rows // SIZE
    return Communities(order[: whole * SIZE].reshape(whole, SIZE), ["task"] * whole, order[whole * SIZE :])


def sampler_of(found: Communities, seed: int = 0) -> CommunitySampler:
    order = MixtureSampler({"": range(len(found.rows))}, weights=None, step=8, homogeneous=False, seed=seed, each=SIZE)
    return CommunitySampler(found, order, left=True)


def gathered_steps(sampler, processes: int, skipped: int = 0) -> list[list[int]]:
    """The rows of each step of 8 rows after `skipped` steps, as the Trainer's loaders deal them to the processes."""
    batch = 8 // processes
    loaders = []
    for rank in range(processes):
        plain = DataLoader(range(len(sampler)), batch_size=batch, sampler=sampler, drop_last=True)
        loader = prepare_data_loader(plain, num_processes=processes, process_index=rank, put_on_device=False)
        loader = skip_first_batches(loader, skipped) if skipped else loader
        # Without a process group to wait for: what the loader draws from, not what it hands on.
        loaders.append(list(loader.batch_sampler))
    assert len({len(batches) for batches in loaders}) == 1
    return [[row for batch in together for row in batch] for together in zip(*loaders)]


@pytest.mark.parametrize("rows", [64, 66, 71])
def test_steps_hold_whole_communities_on_any_number_of_processes(rows):
    found = communities(rows)
    of_row = {int(row): i for i, community in enumerate(found.rows) for row in community}
    seen = []
    for epoch in (0, 1):
        sampler = sampler_of(found)
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(rows)) and len(sampler) == rows
        steps = gathered_steps(sampler, 1)
        assert steps == gathered_steps(sampler, 2) == gathered_steps(sampler, 4)
        assert steps == [order[i : i + 8] for i in range(0, rows - 7, 8)]
        assert steps[3:] == gathered_steps(sampler, 2, skipped=3)
        broken = [
            step for step in steps if any(count != SIZE for count in Counter(of_row.get(r) for r in step).values())
        ]
        assert broken == ([steps[0]] if len(found.left) else [])  # it holds what is left over
        seen.append(order)
    assert seen[0] != seen[1] and seen[0][-1] != seen[1][-1]
    assert seen[0] == list(sampler_of(found)) != list(sampler_of(found, seed=1))


def test_steps_of_one_source(mbeir_20):
    """M-BEIR's groups of dataset and modalities: every gathered step is of one, on 1 and 2 processes."""
    groups = pairs_of(mbeir_20).groups
    assert len(groups) == 5 and {len(rows) for rows in groups.values()} == {20}
    sampler = MixtureSampler(groups, weights=None, step=8, homogeneous=True, seed=0)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        steps = gathered_steps(sampler, 2)
        assert steps == gathered_steps(sampler, 1) and steps[5:] == gathered_steps(sampler, 2, skipped=5)
        assert all(any(set(step) <= set(rows.tolist()) for rows in groups.values()) for step in steps)
        # A step holds no row twice; a source that has 2.5 steps is given 3 or 2.
        assert len(steps) == 12 and all(len(set(step)) == 8 for step in steps)


@pytest.fixture(scope="module")
def ranked(mbeir_20, tmp_path_factory):
    """A ranking of the training queries at random, without their positives."""
    return rank_at_random(pairs_of(mbeir_20), tmp_path_factory.mktemp("ranked") / "mined.jsonl", depth=200)


def test_edges_are_ranks_among_positives(mbeir_20, ranked):
    pairs = pairs_of(mbeir_20)
    source, target = mine_batches.hard_edges(pairs, [str(ranked)], mine_batches.positives_of(pairs), 3, 9)
    owners = {}
    for row in range(len(pairs)):
        for positive in pairs.positives(row):
            owners.setdefault(positive, []).append(row)
    expected = {}
    for line in map(json.loads, ranked.read_text().splitlines()):
        (row,), (did,) = pairs.queries.find([line["qid"]]), pairs.pool.find([line["did"]])
        if did in owners:
            expected.setdefault(row, []).append(owners[did])
    found = {}
    for row, other in zip(source.tolist(), target.tolist()):
        found.setdefault(row, []).append(other)
    assert found.keys() == expected.keys()
    for row, others in found.items():
        assert len(others) == len(expected[row][3:12]) and all(map(list.__contains__, expected[row][3:12], others))


def test_rows_of_one_positive_each_get_a_neighbour_of_their_own(tmp_path, mbeir_20):
    """Rows 0-2 have one positive and rows 3-5 another: the n-th is joined to the n-th."""

    class Stub:
        left_out = np.zeros(0, np.int64)

        def __init__(self):
            self.queries = self.pool = self
            self.keys, self.path = np.arange(6), "queries"

        def __len__(self):
            return 6

        def rows_of(self, keys):
            return np.asarray(keys) & 0xFF

    lines = [{"qid": f"0:{row}", "did": f"0:{1 if row < 3 else 0}", "score": 1.0, "rank": 1} for row in range(6)]
    (tmp_path / "mined.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    positives = np.arange(6, dtype=np.int32), np.array([0, 0, 0, 1, 1, 1])
    edges = mine_batches.hard_edges(Stub(), [str(tmp_path / "mined.jsonl")], positives, 0, 5)
    assert list(zip(*(side.tolist() for side in edges))) == [(0, 3), (1, 4), (2, 5), (3, 0), (4, 1), (5, 2)]


@pytest.fixture(scope="module")
def batches(mbeir_20, ranked):
    call(mine_batches.main, data_path=mbeir_20, mined=ranked, size=SIZE, skip=3, neighbours=40)
    return ranked.with_name("batches.jsonl")


def made_of(pairs) -> dict[str, str]:
    return {"queries": sha256(pairs.queries.path), "pool": sha256(pairs.pool.path)}


def test_a_file_of_communities(mbeir_20, ranked, batches, tmp_path, capsys):
    pairs = pairs_of(mbeir_20)
    found = Communities.read(batches, made_of(pairs), len(pairs))
    assert sorted(found.rows.ravel().tolist()) == list(range(100)) and not len(found.left)
    for task, rows in zip(found.tasks, found.rows):
        assert task is None or set(rows.tolist()) <= set(pairs.groups[task].tolist())
    again = tmp_path / "again.jsonl"
    call(mine_batches.main, data_path=mbeir_20, mined=ranked, size=SIZE, skip=3, neighbours=40, output=again)
    assert again.read_bytes() == batches.read_bytes()
    lines = capsys.readouterr().out.splitlines()
    for task, rows in pairs.groups.items():
        (line,) = [line for line in lines if line.startswith(f"{task}: {len(rows)} rows with ")]
        share, chance = (float(word.rstrip("%")) for word in line.split() if word.endswith("%"))
        assert share > 1.3 * chance == pytest.approx(1.3 * 100 * 3 / 19, abs=0.01)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(size=101), "--size 101: expected at most the 100 rows of "),
        (dict(skip=500), "--skip 500: no query of "),
        (dict(mined=""), "--mined : expected "),
        (dict(size=1), "--size 1: expected 2 to 65536"),
    ],
)
def test_batches_that_cannot_be_mined(fails, mbeir_20, ranked, flags, words):
    assert words in fails(mine_batches.main, **(dict(data_path=mbeir_20, mined=ranked, size=SIZE) | flags))


def test_rows_that_cannot_be_kept_apart(fails, mbeir_20, ranked, tmp_path):
    rows = [json.loads(line) for line in (mbeir_20 / TRAIN_QUERIES).read_text().splitlines()]
    first, others = rows[0], [row for row in rows if row["qid"].split(":")[0] == rows[1]["qid"].split(":")[0]]
    same = [first | {"qid": row["qid"]} for row in rows if row["qid"].split(":")[0] == first["qid"].split(":")[0]]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in same + others))
    ids = {row["qid"] for row in others}
    lines = [line for line in ranked.read_text().splitlines(keepends=True) if json.loads(line)["qid"] in ids]
    (tmp_path / "mined.jsonl").write_text("".join(lines))
    error = fails(mine_batches.main, data_path=mbeir_20, queries=few, mined=tmp_path / "mined.jsonl", size=4, skip=0)
    assert "--size 4: rows of one positive cannot be kept apart" in error and "give a smaller --size" in error


def test_batches_that_do_not_fit_a_training(fails, no_model, mbeir, mbeir_20, stage1, batches, tmp_path):
    run = stage2_flags(mbeir_20, stage1, tmp_path / "o") | dict(batches=batches, per_device_train_batch_size=8)
    lines = batches.read_text().splitlines(keepends=True)
    for name, content in (("short", lines[:-1]), ("twice", [*lines, lines[1]]), ("other", ['{"text": "a"}\n'])):
        (tmp_path / name).write_text("".join(content))
    (tmp_path / "line").write_text(lines[0] + '{"task": null, "rows": [1, 2, "x"]}\n')
    for change, words in (
        (dict(per_device_train_batch_size=10), "communities of 4 rows, which do not fill a step of 10 rows"),
        (dict(data_path=mbeir), "was made of another --queries file"),
        (dict(batches=tmp_path / "short"), "does not hold each of the 100 training rows once"),
        (dict(batches=tmp_path / "twice"), "does not hold each of the 100 training rows once"),
        (dict(batches=tmp_path / "other"), "is not what scripts/lamra_ret/mine_batches.sh writes"),
        (dict(batches=tmp_path / "line"), "line line 2 has a row that is no whole number"),
        (dict(batches=tmp_path / "none"), f"--batches {tmp_path / 'none'} does not exist"),
        (
            dict(mixture_batches="homogeneous", per_device_train_batch_size=24),
            "has 20 rows, a step of all processes 24",
        ),
        (dict(mixture_weights="1,2"), "--mixture_weights 1,2: expected 5 positive numbers"),
    ):
        assert words in fails(train_mbeir.main, **(run | change)), words
    run = dict(data_path=mbeir_20, mined=batches, batches=batches)
    assert "--batches" in fails(train_rerank.main, **run)


def test_communities_and_sources_together(mbeir_20, batches):
    """Homogeneous steps are made of communities of one source; what has several is left out."""
    pairs = pairs_of(mbeir_20)
    found = Communities.read(batches, made_of(pairs), len(pairs))

    class Args:
        mixture_weights, mixture_batches = None, "homogeneous"
        per_device_train_batch_size, world_size, seed, data_seed = 4, 2, 0, None

    steps = gathered_steps(sampler := mixture_sampler(pairs, Args, found), 2)
    whole = {frozenset(rows.tolist()) for task, rows in zip(found.tasks, found.rows) if task}
    assert len(steps) == len(sampler) // 8 > 0
    for step in steps:
        assert any(set(step) <= set(rows.tolist()) for rows in pairs.groups.values())
        assert {frozenset(step[:4]), frozenset(step[4:])} <= whole
    Args.mixture_batches, Args.mixture_weights = "mixed", "1,1,2,1,1"
    rows = list(mixture_sampler(pairs, Args, found))
    assert all(frozenset(rows[i : i + 4]) in whole for i in range(0, len(rows), 4))
