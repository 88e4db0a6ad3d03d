"""Recall worked by hand, and exact search against a full sort of every score."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from full_sort import full_sort, with_ties
from PIL import Image

from lamra.datasets.caption import CaptionedImages, captioned_tasks
from lamra.datasets.items import Item
from lamra.datasets.rankings import RankedQuery
from lamra.datasets.tasks import ItemList, RetrievalTask
from lamra.eval import compare_mbeir, compare_rerank, report
from lamra.eval.evaluate import evaluate
from lamra.eval.flags import run_name
from lamra.eval.metrics import average, average_precision_at_k, chance, measures, measures_by_query, recall_at_k
from lamra.eval.reporting import figures, results
from lamra.eval.search import top_k


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
@pytest.mark.parametrize("k", [1, 2, 5, 40, 60])
def test_top_k_equals_a_full_sort_with_ties(block_size: int, k: int):
    query, gallery = with_ties(11, seed=0), with_ties(41, seed=1)
    expected_scores, expected_indices = full_sort(query, gallery, k)
    for pool in (gallery, gallery.numpy(), gallery.bfloat16()):
        scores, indices = top_k(query, pool, k, block_size, query_block_size=4)
        assert scores.dtype == torch.float32 and indices.dtype == torch.int64
        assert torch.equal(scores, expected_scores)
        assert torch.equal(indices, expected_indices)


def test_zeros_of_both_signs_are_one_score():
    gallery = torch.tensor([[-0.0], [0.0], [-0.0], [0.0]])
    for block_size in (1, 2, 4):
        assert top_k(torch.tensor([[1.0]]), gallery, 3, block_size)[1].tolist() == [[0, 1, 2]]


def test_top_k_on_random_embeddings_and_a_read_only_memmap(tmp_path):
    generator = torch.Generator().manual_seed(2)
    query, gallery = torch.randn(20, 16, generator=generator), torch.randn(500, 16, generator=generator)
    np.save(tmp_path / "pool.npy", gallery.numpy())
    pool = np.load(tmp_path / "pool.npy", mmap_mode="r")
    scores, indices = top_k(query, pool, 10, block_size=64, query_block_size=7)
    best = (query @ gallery.T).sort(dim=1, descending=True)
    assert torch.equal(indices, best.indices[:, :10])
    torch.testing.assert_close(scores, best.values[:, :10])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the search is tried on the CPU only")
def test_top_k_on_cuda_equals_cpu_also_under_tf32():
    query, gallery = with_ties(11, seed=0) * 4097, with_ties(41, seed=1)  # 4097 needs 13 bits, TF32 has 11
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    scores, indices = top_k(query.cuda(), gallery, 5, block_size=7)
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    expected_scores, expected_indices = full_sort(query, gallery, 5)
    assert torch.equal(scores.cpu(), expected_scores) and torch.equal(indices.cpu(), expected_indices)


def test_top_k_refuses_nan_and_sizes_that_do_not_fit():
    query, gallery = torch.ones(2, 3), torch.ones(5, 3)
    gallery[4, 1] = torch.nan
    with pytest.raises(ValueError, match="a score is NaN"):
        top_k(query, gallery, 1, block_size=2)
    with pytest.raises(ValueError, match=r"query \(2, 3\) and gallery \(5, 2\)"):
        top_k(query, gallery[:, :2], 1)
    with pytest.raises(ValueError, match="k=0"):
        top_k(query, query, 0)


def test_top_k_leaves_the_matmul_precision_as_it_was():
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.set_float32_matmul_precision("high")
    try:
        during = torch.backends.mkldnn.matmul.fp32_precision
        top_k(torch.ones(1, 2), torch.ones(3, 2), 1)
        assert torch.backends.mkldnn.matmul.fp32_precision == during
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.backends.mkldnn.matmul.fp32_precision in (before, "ieee")


def test_recall_at_k_by_hand():
    ranking = [[2, 0, 1], [1, 2, 0], [0, 1, 2], [1, 0, 2]]
    relevant = [[2], [0], [1, 2], {0, 2}]
    # First relevant candidate of each query: rank 1, 3, 2, 2.
    assert recall_at_k(ranking, relevant, 1) == 1 / 4
    assert recall_at_k(ranking, relevant, 2) == 3 / 4
    assert recall_at_k(ranking, relevant, 3) == recall_at_k(ranking, relevant, 9) == 1.0


def test_recall_at_k_of_what_has_no_answer():
    assert recall_at_k(2 * [[0, 1]], [[], [0]], 1) == 1 / 2  # M-BEIR's queries without an answer are misses
    for ranking, relevant, k in (([[0]], [[0]], 0), ([[0]], [[0], [0]], 1)):
        with pytest.raises(ValueError, match=f"recall@{k} of 1 ranked queries"):
            recall_at_k(ranking, relevant, k)
    with pytest.raises(ValueError, match="no queries"):
        recall_at_k([], [], 1)


def caption_recalls(images: torch.Tensor, texts: torch.Tensor, image_of_text: list[int], **changes) -> dict[str, float]:
    """Recall in both directions between pictures and captions with these embeddings."""
    pictures = [Item(f"{i}.png", images=(f"{i}.png",)) for i in range(len(images))]
    captions = [Item(f"{i}", f"caption {i}") for i in range(len(texts))]
    tasks = captioned_tasks(CaptionedImages(pictures, captions, image_of_text), "data", "captions.json")
    embeddings = {id(tasks[0].gallery): images, id(tasks[0].queries): texts}
    tasks = [replace(task, **changes) for task in tasks]
    found = evaluate(tasks, lambda items: embeddings.pop(id(items)), depth=10)  # each is embedded once
    return {
        f"{task.name}_{name}": value
        for task, _, of_task in found
        for name, value in of_task.items()
        if "recall" in name
    }


def test_caption_recalls_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, -1.0]])
    image_of_text = [0, 0, 1, 2]
    # Scores, a caption a row:   picture 0   1   2    ranking of pictures      rank of the right picture
    #   caption 0 (picture 0)            1   0  -1    0 1 2                    1
    #   caption 1 (picture 0)            0   1   0    1 0 2 (0 and 2 tie)      2
    #   caption 2 (picture 1)            1   1  -1    0 1 2 (0 and 1 tie)      2
    #   caption 3 (picture 2)            0  -1   0    0 2 1 (0 and 2 tie)      2
    # image retrieval: R@1 1/4, R@2 4/4.
    # picture 0: captions 1 0 1 0 -> 0 2 1 3, its captions 0 and 1: rank 1
    # picture 1: captions 0 1 1 -1 -> 1 2 0 3, its caption 2: rank 2
    # picture 2: captions -1 0 -1 0 -> 1 3 0 2, its caption 3: rank 2
    # text retrieval: R@1 1/3, R@2 3/3.
    expected = {
        "image_retrieval_recall@1": 1 / 4,
        "image_retrieval_recall@2": 1.0,
        "text_retrieval_recall@1": 1 / 3,
        "text_retrieval_recall@2": 1.0,
    }
    assert caption_recalls(images, texts, image_of_text, ks=(1, 2)) == expected
    found = caption_recalls(images, texts, image_of_text)  # k beyond both galleries
    assert list(found) == list(results.PRACTICE_STAGE1_FLICKR30K)
    assert found["image_retrieval_recall@10"] == found["text_retrieval_recall@10"] == 1.0


def test_a_model_that_gives_one_embedding_to_everything_scores_by_chance():
    # All scores tie, so every ranking is 0, 1, 2, ...: exactly the first gallery item's queries are answered.
    found = caption_recalls(torch.ones(20, 4), torch.ones(100, 4), [i // 5 for i in range(100)])
    assert found["image_retrieval_recall@1"] == 1 / 20
    assert found["image_retrieval_recall@10"] == 10 / 20
    assert found["text_retrieval_recall@1"] == 1 / 20
    assert found["text_retrieval_recall@10"] == 2 / 20


def test_report_writes_equal_files_and_a_picture(tmp_path, capsys):
    row = results.PRACTICE_STAGE1_FLICKR30K
    results.print_recalls({"base model": dict.fromkeys(row, 0.1), "paper (7B, Flickr30K 1K)": row})
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split()[-6:] == ["0.8056", "0.9536", "0.9732", "0.9140", "0.9910", "0.9970"]
    assert len({len(line) for line in lines}) == 1

    first = results.write_json(tmp_path / "a/metrics.json", {"b": 1 / 3, "a": 2}).read_bytes()
    assert first == results.write_json(tmp_path / "b/metrics.json", {"a": 2, "b": 1 / 3}).read_bytes()
    assert json.loads(first) == {"a": 2, "b": 1 / 3}
    with pytest.raises(ValueError, match="JSON"):
        results.write_json(tmp_path / "a/metrics.json", {"a": float("nan")})
    assert (tmp_path / "a" / "metrics.json").read_bytes() == first

    figures.plot_recalls(tmp_path / "plots" / "recall.png", {"paper": row})
    assert (tmp_path / "plots" / "recall.png").read_bytes().startswith(b"\x89PNG")


def test_table_columns_are_as_wide_as_their_widest_cell(capsys):
    results.print_table(["", "a head", "b"], [["name", "1", "22222"]])
    assert capsys.readouterr().out == "      a head      b\nname       1  22222\n"
    results.print_table(["", "b"], [["name", "1"]], name_width=6, cell_width=4)
    assert capsys.readouterr().out == "         b\nname     1\n"


def test_report_of_two_runs(tmp_path, capsys, monkeypatch):
    for name, recall in (("before", 0.25), ("after", 0.75)):
        content = dict.fromkeys(results.PRACTICE_STAGE1_FLICKR30K, recall) | {"protocol": "clean"}
        results.write_json(tmp_path / f"{name}.json", content)
    named = [f"{name}={tmp_path / name}.json" for name in ("before", "after")]
    monkeypatch.setattr("sys.argv", ["report", "--output_dir", str(tmp_path / "out"), *named])
    report.main()
    assert ["after", *6 * ["0.7500"]] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert json.loads((tmp_path / "out/metrics.json").read_text())["before"]["image_retrieval_recall@5"] == 0.25
    assert (tmp_path / "out/recall.png").stat().st_size > 1000


def test_a_report_of_hundreds_of_runs(tmp_path, capsys, monkeypatch):
    for number in range(300):
        recalls = dict.fromkeys(results.PRACTICE_STAGE1_FLICKR30K, number / 300)
        results.write_json(tmp_path / f"a, b {number}.json", recalls)
    named = [f"run {number}={tmp_path / f'a, b {number}'}.json" for number in range(300)]
    monkeypatch.setattr("sys.argv", ["report", "--output_dir", str(tmp_path / "out, put"), *named])
    report.main()
    assert "run 299" in capsys.readouterr().out
    with Image.open(tmp_path / "out, put" / "recall.png") as picture:
        assert picture.size[1] > 300 * 20 and picture.size[1] < 2**16


def test_results_of_an_earlier_run_are_kept_if_the_same_model_made_them(tmp_path, capsys):
    made_by = {"model": "a", "seed": 0}
    assert results.of_earlier_tasks(tmp_path, made_by) == ({}, {})
    results.write_json(tmp_path / "metrics.json", {"task": {"recall@1": 0.5}})
    results.write_json(tmp_path / "made_by.json", {**made_by, "files": {"q": "1"}})
    metrics, earlier = results.of_earlier_tasks(tmp_path, made_by)
    assert metrics == {"task": {"recall@1": 0.5}} and earlier["files"] == {"q": "1"}
    assert capsys.readouterr().out == ""
    assert results.of_earlier_tasks(tmp_path, {"model": "b", "seed": 0}) == ({}, {})
    assert "metrics.json is replaced: an earlier run with another model wrote it" in capsys.readouterr().out


def test_models_of_one_name_have_results_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_name("checkpoints/run/checkpoint-3") == Path("run/checkpoint-3")
    one, other = run_name("/a/model"), run_name("/b/model")
    assert one != other and one.name.startswith("model-") and one == run_name("/a/../a/model")


def mbeir_run(folder, name, average, **recalls) -> str:
    """A metrics.json of eval_mbeir.py as an argument of the comparison."""
    path = folder / f"{name}.json"
    tasks = {task: {"recall@1": 0.0, "recall@5": recall, "recall@10": 1.0} for task, recall in recalls.items()}
    path.write_text(json.dumps({**tasks, "average": average}))
    return f"{name}={path}"


def test_runs_are_compared_on_the_tasks_that_all_have(tmp_path, monkeypatch, capsys, fails):
    more = mbeir_run(tmp_path, "more", 0.8, cirr_task7=0.6, mscoco_task0_test=0.2, webqa_task1=1.0)
    less = mbeir_run(tmp_path, "less", 0.3, cirr_task7=0.5, mscoco_task0_test=0.1)
    monkeypatch.setattr("sys.argv", ["compare", more, less])
    compare_mbeir.main()
    head, *rows, left_out = capsys.readouterr().out.splitlines()
    assert head.split() == ["mscoco_task0_test", "@5", "cirr_task7", "@5", "average"]
    assert [row.split() for row in rows] == [["more", "20.0", "60.0", "40.0"], ["less", "10.0", "50.0", "30.0"]]
    assert left_out == "left out, also of the average, because not every run has them: webqa_task1"

    other = mbeir_run(tmp_path, "other", 1.0, webqa_task1=1.0)
    assert "less, other have no task of M-BEIR in common" in fails(compare_mbeir.main, less, other)
    assert 'is not "name=metrics.json" with a name of its own' in fails(compare_mbeir.main, less, less)
    assert "none.json does not exist: name a file that eval_mbeir.py wrote" in fails(compare_mbeir.main, "a=none.json")
    bare = ("--output_dir", tmp_path)
    assert "less.json has no number for image_retrieval_recall@1: name" in fails(report.main, *bare, less)
    assert "6 runs: the figure tells at most 5 apart" in fails(
        compare_rerank.main, *bare, *(f"{name}={tmp_path}" for name in "abcdef")
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is no json"),
        ("\udcff", "is no json"),
        ("[1]", "holds no json object but a list"),
        ("null", "holds no json object but a NoneType"),
        ('{"cirr_task7": NaN}', "is no json (NaN is no number)"),
        ('{"cirr_task7": 0.5}', "has no number for"),
        ('{"cirr_task7": {"recall@5": "0.5"}}', "has no number for"),
        ('{"cirr_task7": {"before": {"recall@1": true}}}', "has no number for"),
        ('{"cirr_task7": {"before": {"recall@1": 0.5}}}', "has no number for"),
    ],
)
def test_a_file_that_is_no_result_is_one_sentence(content, sentence, tmp_path, fails):
    path = tmp_path / "metrics.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    bare = ("--output_dir", tmp_path / "out")
    for error in (
        fails(report.main, *bare, f"a={path}"),
        fails(compare_mbeir.main, f"a={path}"),
        fails(compare_rerank.main, *bare, f"a={tmp_path}"),
    ):
        assert f"{path} {sentence}" in error and ": name a f" in error
    assert not (tmp_path / "out").exists()


def test_paths_and_flags_that_are_wrong_are_one_sentence(tmp_path, fails):
    bare = ("--output_dir", tmp_path / "out")
    (tmp_path / "metrics.json").mkdir()
    folder = f"a={tmp_path / 'metrics.json'}"
    assert "metrics.json cannot be read (Is a directory): name" in fails(report.main, *bare, folder)
    assert "metrics.json cannot be read (Is a directory): name" in fails(compare_mbeir.main, folder)
    assert "metrics.json cannot be read (Is a directory): name" in fails(compare_rerank.main, *bare, f"a={tmp_path}")
    assert "the following arguments are required: --output_dir" in fails(report.main, folder)
    assert "the following arguments are required: name=metrics.json" in fails(compare_mbeir.main)
    assert "unrecognized arguments: --output" in fails(compare_rerank.main, *bare, "a=b", "--output", "c")


def test_reranked_tasks_stand_in_the_first_runs_order(tmp_path, capsys, monkeypatch):
    tasks = ("text_retrieval", "cirr_task7", "image_retrieval", "mscoco_task0_test")
    recalls = {when: {"recall@1": 0.5} for when in ("before", "after")}
    results.write_json(tmp_path / "metrics.json", dict.fromkeys(tasks, recalls))  # sorts its keys
    monkeypatch.setattr("sys.argv", ["compare", "--output_dir", str(tmp_path), f"a={tmp_path}"])
    compare_rerank.main()
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:5]]
    assert rows == ["mscoco_task0_test", "cirr_task7", "image_retrieval", "text_retrieval"]


def task_of(queries: int, gallery: int, answers, **options) -> RetrievalTask:
    items = [ItemList([Item(str(i), "a") for i in range(n)], "items", "items.jsonl") for n in (queries, gallery)]
    return RetrievalTask("task", *items, answers, **options)


def test_recall_is_over_all_queries():
    task = task_of(2, 2, [[0], [0]])
    found = [RankedQuery(0, [0, 1], [1, 0]), RankedQuery(1, [1, 0], [1, 0])]
    assert measures(task, found)["recall@1"] == measures(task, found[::-1])["recall@1"] == 0.5
    for part in (found[:1], [found[0], found[0]]):
        with pytest.raises(ValueError, match="the ranking is of 1 of the 2 queries: recall is over all of them"):
            measures(task, part)


def test_a_tie_is_a_miss_where_the_task_says_so():
    own = dict(candidates=[[0, 1, 2]] * 4, ks=(1, 2))
    answers = [[0], [0], [0, 1], [2]]
    ranking = [
        RankedQuery(0, [0, 1, 2], [0.5, 0.5, 0.1]),  # the answer ties with a wrong candidate: rank 1, or 2
        RankedQuery(1, [0, 1, 2], [0.5, 0.5, 0.5]),  # with two: rank 1, or 3
        RankedQuery(2, [0, 1, 2], [0.5, 0.5, 0.1]),  # two answers tie: rank 1
        RankedQuery(3, [2, 1, 0], [0.5, 0.4, 0.4]),  # wrong candidates tie: rank 1
    ]
    by_rank = measures(task_of(4, 3, answers, **own), ranking)
    assert by_rank == {"recall@1": 1.0, "recall@2": 1.0, "ndcg@10": 1.0, "mrr@10": 1.0}
    ties = measures(task_of(4, 3, answers, tie_is_miss=True, **own), ranking)
    assert (ties["recall@1"], ties["recall@2"]) == (0.5, 0.75)
    assert ties["mrr@10"] == pytest.approx((1 / 2 + 1 / 3 + 1 + 1) / 4)


def test_chance_by_hand():
    """The recall that counts, over all orders of few candidates, and on average."""
    answers, gallery, ks = [[0], [1, 2], []], 5, (1, 2)
    for counted in ks:
        orders = list(itertools.permutations(range(gallery)))
        expected = sum(recall_at_k(orders, [of_query] * len(orders), counted) for of_query in answers) / 3
        assert chance(task_of(3, gallery, answers, ks=ks, counted=counted)) == pytest.approx(expected)
    for counted in (2, 4, 8):
        found = [average_precision_at_k(order, of_query, counted) for order in orders for of_query in answers]
        task = task_of(3, gallery, answers, ks=(counted,), counted=counted, measure="map")
        assert chance(task) == pytest.approx(sum(found) / len(found))
    assert chance(task_of(2, 9, [[0], [1]], candidates=[[0, 3], [1, 2, 3, 4]])) == (1 / 2 + 1 / 4) / 2
    assert chance(task_of(2, 5, [[0], [1]], excluded=[[3, 4], [2]])) == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert chance(task_of(2, 3, [[0], []], counted=5)) == 0.5  # all are among the first five, if there is one


def test_ndcg_and_mrr_by_hand():
    """Binary relevance: gain 1 / log2(1 + rank), divided by that of all answers in front."""
    answers = [[0, 3], [7], [], [12]]
    rows = list(range(15))
    ranking = [RankedQuery(query, rows, rows[::-1]) for query in (1, 0, 2, 3)]  # in any order
    first = dict.fromkeys(("recall@1", "recall@5", "recall@10"), 0.0)
    found = measures_by_query(task_of(4, 15, answers), ranking)
    assert found[0] == {**first, "recall@10": 1.0, "ndcg@10": 1 / math.log2(9), "mrr@10": 1 / 8}
    assert found[1] == {
        **dict.fromkeys(first, 1.0),
        "ndcg@10": pytest.approx((1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3))),
        "mrr@10": 1.0,
    }
    assert found[2] == found[3] == {**first, "ndcg@10": 0.0, "mrr@10": 0.0}  # no answer; the answer is at rank 13
    mean = measures(task_of(4, 15, answers), ranking)
    assert mean["mrr@10"] == (1 / 8 + 1) / 4 and mean["recall@10"] == 0.5


def test_map_by_hand():
    """As CIRCO's evaluation.py: hits so far / rank, summed over the hits, divided by min(answers, k)."""
    answers = [[4, 0, 2], [1, 0], [], list(range(7))]
    ranking = [
        RankedQuery(0, [0, 1, 2, 3, 5, 4], [6, 5, 4, 3, 2, 1]),  # hits at 1, 3 and, beyond 5, 6
        RankedQuery(2, [0, 1], [1, 0]),  # no answer is known
        RankedQuery(1, [5, 0], [1, 0]),  # a gallery smaller than k: the answer 1 is nowhere
        RankedQuery(3, [0, 1, 2, 9, 3, 4], [6, 5, 4, 3, 2, 1]),  # seven answers, more than 5
    ]
    aspects = [["addition", "negation"], ["addition"], ["viewpoint"], []]
    task = task_of(4, 15, answers, measure="map", ks=(5, 10), counted=5, aspects=aspects)
    by_query = measures_by_query(task, ranking)
    at_5 = [(1 + 2 / 3) / 3, 0.0, (1 / 2) / 2, (3 + 4 / 5) / 5]
    at_10 = [(1 + 2 / 3 + 3 / 6) / 3, 0.0, (1 / 2) / 2, (3 + 4 / 5 + 5 / 6) / 7]
    assert [of["map@5"] for of in by_query] == pytest.approx(at_5)
    assert [of["map@10"] for of in by_query] == pytest.approx(at_10)
    assert [of["recall@5"] for of in by_query] == [0, 0, 0, 1]  # of the first answer: 4, none, 1, 0
    assert [of["recall@10"] for of in by_query] == [1, 0, 0, 1]
    found = measures(task, ranking)
    assert found["map@5"] == pytest.approx(sum(at_5) / 4) and found["recall@5"] == 0.25
    of_aspects = {name.removeprefix("map@10 "): value for name, value in found.items() if name.startswith("map@10 ")}
    assert of_aspects == pytest.approx({"addition": (at_10[0] + at_10[2]) / 2, "negation": at_10[0], "viewpoint": 0})


def test_a_server_measures():
    task = task_of(2, 3, [[], []], measure="map", server="https://example.org")
    assert measures(task, [RankedQuery(0, [0], [1]), RankedQuery(1, [2], [1])]) == {}
    with pytest.raises(ValueError, match="is of 1 of the 2 queries"):  # it wants them all
        measures(task, [RankedQuery(0, [0], [1])])


def test_the_average_is_of_the_recall_that_counts():
    metrics = {"at 1": {"recall@1": 0.2, "recall@5": 1.0}, "at 5": {"recall@1": 0.0, "recall@5": 0.6}}
    assert average({"at 1": 1, "at 5": 5}, metrics) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(answers=[[0]]), "answers of 1 queries, and there are 2"),
        (dict(answers=[[0], [3]]), "answers beyond the 3 rows"),
        (dict(candidates=[[0], [-1]]), "candidates beyond the 3 rows"),
        (dict(candidates=[[0], [1, 1]]), "names a candidate twice"),
        (dict(candidates=[[0], [1]], excluded=[[], []]), "exclude by not naming"),
        (dict(excluded=[[]]), "excluded of 1 queries"),
        (dict(tie_is_miss=True), "only ties among the candidates of a query's own"),
        (dict(aspects=[["addition"]]), "aspects of 1 queries"),
        (dict(server="https://example.org"), "its answers are known, and a server"),
        (dict(measure="map", counted=3), r"map@3 counts"),
        (dict(counted=3), r"recall@3 counts and is not measured \(\(1, 5, 10\)\)"),
    ],
)
def test_a_task_whose_parts_do_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        task_of(2, 3, **{"answers": [[0], [1]], **options})
