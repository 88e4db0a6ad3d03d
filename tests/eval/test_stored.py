"""Evaluation in smaller vectors: rankings against plain numpy, what is refused or noted, and no result mixed up."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import call
from plain_vectors import brute_force

from lamra.datasets.items import Item
from lamra.datasets.tasks import ItemList, RetrievalTask
from lamra.eval import embed, eval_mbeir, vectors
from lamra.eval.evaluate import evaluate
from lamra.eval.flags import SearchArguments
from lamra.eval.inference import Retriever
from lamra.models.settings import Settings
from lamra.models.vectors import to_bits, to_int8, truncated

STORED = [
    dict(vectors="int8"),
    dict(vectors="binary"),
    dict(truncate_dim=10),
    dict(truncate_dim=10, rescore=12),
    dict(vectors="binary", rescore=12),
    dict(truncate_dim=10, vectors="int8", rescore=12),
]


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("own", [False, True])
def test_rankings_are_those_of_the_stored_bytes(stored, own):
    """Of the whole gallery without what a query may not find, and of galleries of its own."""
    generator = torch.Generator().manual_seed(0)
    of = {name: F.normalize(torch.randn(n, 24, generator=generator), dim=1) for name, n in (("q", 7), ("g", 60))}
    queries, gallery = (ItemList([Item(str(row), "a") for row in range(len(of[name]))], name, name) for name in of)
    excluded = [[row, row + 1, 2 * row + 20] for row in range(7)]
    allowed = [[row for row in range(60) if row not in lost] for lost in excluded]
    choice = {"candidates": allowed} if own else {"excluded": excluded}
    task = RetrievalTask("task", queries, gallery, [[0]] * 7, **choice)
    ((_, ranking, _),) = evaluate([task], lambda items: of[items.name], depth=10, **stored)
    for query, ranked in enumerate(ranking):
        searched = np.array(allowed[query] if own else range(60))
        # What a query may not find does not crowd out others: as many more are looked at.
        looked_at = stored if own or "rescore" not in stored else stored | {"rescore": stored["rescore"] + 3}
        scores, rows = brute_force(of["q"][query : query + 1].numpy(), of["g"][searched].numpy(), 60, **looked_at)
        kept = [position for position, row in enumerate(searched[rows[0]]) if row in allowed[query]]
        kept = kept[: None if own else 10]
        assert ranked.candidates == searched[rows[0]][kept].tolist()
        np.testing.assert_allclose(ranked.scores, scores[0][kept], atol=1e-6)


def test_flags_of_smaller_vectors(tiny_model, tmp_path, capsys, fails):
    whole = SearchArguments(str(tiny_model))
    assert whole.stored_as == {} and whole.dimensions == 128 and capsys.readouterr().out == ""
    assert SearchArguments(str(tiny_model), vectors="int8", rescore=50).stored_as == {"vectors": "int8", "rescore": 50}
    for flags, words in (
        (dict(truncate_dim=129), "--truncate_dim 129: expected at most 128, the size of this model's vectors"),
        (dict(truncate_dim=0), "--truncate_dim 0: expected 1 or more"),
        (dict(vectors="int4"), "--vectors int4: expected float32 or int8 or binary"),
        (dict(rescore=50), "--rescore 50: expected --vectors int8, binary, or --truncate_dim too"),
        (dict(rescore=49, vectors="int8"), "--rescore 49: expected 50 or more, or 0"),
    ):
        with pytest.raises(ValueError, match=words):
            SearchArguments(str(tiny_model), **flags)
    with pytest.raises(ValueError, match=r"--rescore 60: expected 0, or --depth \(70\) and more"):
        eval_mbeir.MBEIRArguments(str(tiny_model), vectors="int8", rescore=60, depth=70)
    assert "--dims 129,4: expected at most 128" in fails(
        vectors.main, model_id=tiny_model, image_data_path=tmp_path, text_data_path=tmp_path, dims="129,4"
    )
    assert "give --image_data_path and --text_data_path, or --data_path" in fails(vectors.main, model_id=tiny_model)
    SearchArguments(str(tiny_model), truncate_dim=128)
    assert capsys.readouterr().out == ""
    SearchArguments(str(tiny_model), truncate_dim=32)
    assert f"note: --truncate_dim 32: {tiny_model} was trained without --matryoshka_dims" in capsys.readouterr().out

    trained = tmp_path / "trained"
    shutil.copytree(tiny_model, trained)
    settings = Settings("elsewhere", "sequential", matryoshka_dims=[64, 32])
    settings.write(trained)
    assert Settings.read(trained) == settings
    content = json.loads((trained / "lamra.json").read_text())
    del content["matryoshka_dims"]  # an older checkpoint
    (trained / "lamra.json").write_text(json.dumps(content))
    assert Settings.read(trained) == replace(settings, matryoshka_dims=None)
    settings.write(trained)
    SearchArguments(str(trained), truncate_dim=32)
    assert capsys.readouterr().out == ""
    SearchArguments(str(trained), truncate_dim=33)
    assert "was trained with --matryoshka_dims 64,32, not for vectors of this size" in capsys.readouterr().out


def test_embeddings_in_a_file(tiny_model, tmp_path):
    items, found = tmp_path / "items.jsonl", {}
    items.write_text("".join(json.dumps({"id": str(i), "text": f"A red circle {i}"}) + "\n" for i in range(5)))
    for name, flags in {"float32": {}, "int8": {"truncate_dim": 40}, "binary": {"truncate_dim": 12}}.items():
        out = tmp_path / f"{name}.npz"
        call(embed.main, model_id=tiny_model, input=items, output=out, vectors=name, num_workers=0, **flags)
        found[name] = np.load(out)
    whole = torch.from_numpy(found["float32"]["embeddings"])
    values, scales = to_int8(truncated(whole, 40))
    np.testing.assert_array_equal(found["int8"]["embeddings"], values)
    np.testing.assert_array_equal(found["int8"]["scales"], scales)
    np.testing.assert_array_equal(found["binary"]["embeddings"], to_bits(truncated(whole, 12)))
    assert found["binary"]["embeddings"].shape == (5, 2) and "scales" not in found["float32"]


def test_mbeir_is_encoded_once_and_no_result_is_taken_for_anothers(mbeir, tiny_model, tmp_path, monkeypatch, capsys):
    encoded, encode = [], Retriever.encode
    monkeypatch.setattr(Retriever, "encode", lambda *args, **rest: encoded.append(args) or encode(*args, **rest))
    flags = dict(model_id=tiny_model, data_path=mbeir, output_dir=tmp_path, num_workers=0)
    local = tmp_path / "test_local"

    def metrics(task: str, **more) -> dict:
        call(eval_mbeir.main, **flags, tasks=task, **more)
        return json.loads((local / "metrics.json").read_text())

    plain = metrics("nights_task4")
    assert plain.keys() == {"nights_task4", "average"} and "vectors" not in (local / "made_by.json").read_text()
    sets = len(encoded)
    assert metrics("cirr_task7").keys() == {"nights_task4", "cirr_task7", "average"}  # the same vectors: one table
    sets_of_both = len(encoded)
    stored = dict(truncate_dim=16, vectors="int8", rescore=50)
    small = metrics("nights_task4", **stored)
    assert {name: small[name] for name in stored} == stored and "cirr_task7" not in small
    assert "is replaced: an earlier run with another truncate_dim, vectors, rescore wrote it" in capsys.readouterr().out
    again = metrics("nights_task4")
    assert again == plain  # and not joined to those in int8
    assert "is replaced: an earlier run with another" in capsys.readouterr().out
    assert len(encoded) == sets_of_both > sets  # all from the same embeddings

    call(vectors.main, **flags, tasks="nights_task4", dims="128,16", rescore=50)
    assert len(encoded) == sets_of_both
    with open(tmp_path / "vectors.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (5 + 6)  # a task and the mean
    assert [int(row["bytes"]) for row in rows[::2]] == [512, 132, 132, 16, 16, 64, 64, 20, 20, 2, 2]
    of = {(row["dimensions"], row["vectors"], row["rescored"]): row for row in rows if row["task"] == "nights_task4"}
    for k in (1, 5, 10):
        assert float(of["128", "float32", "0"][f"recall@{k}"]) == plain["nights_task4"][f"recall@{k}"]
        assert float(of["16", "int8", "50"][f"recall@{k}"]) == small["nights_task4"][f"recall@{k}"]
    assert "| 16 | binary | 50 | 2 | 512 |" in (tmp_path / "vectors.md").read_text()
    assert (tmp_path / "vectors.png").stat().st_size > 10_000
