"""An index of pictures, texts and mixed items: kept up to date, searched exactly, refused to another model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import call, run_script
from PIL import Image

from lamra import load
from lamra.common.errors import UserError
from lamra.eval.search import top_k

pytest.importorskip("lancedb", reason="LanceDB is not installed: the index is not tried")

from lamra.app import index as entrypoint
from lamra.eval.index import held, ivf_pq
from lamra.eval.index.index import VERSION, Index
from lamra.eval.index.make import arguments_of, make_index
from lamra.eval.index.rows import Row

ODD = 'it\'s <b>50% "x" _ü狗'  # a file's name


@pytest.fixture(scope="module")
def retriever(tiny_model):
    return load(tiny_model)


@pytest.fixture
def source(world, tmp_path):
    """Eleven pictures in three folders."""
    folder = tmp_path / "my pictures"
    for number in range(11):
        path = folder / ("" if number < 3 else "a's" if number < 7 else "a's/b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world / "test" / "images" / f"{number}.png", path)
    (folder / "0.png").rename(folder / f"{ODD}.png")
    return folder


def same_rows(one: Index, other: Index) -> None:
    """The same but for the vectors' last bits: batches were others."""
    tables = [{row["key"]: row for row in index.table.to_arrow().to_pylist()} for index in (one, other)]
    assert tables[0].keys() == tables[1].keys()
    for key, row in tables[0].items():
        np.testing.assert_allclose(row.pop("vector"), tables[1][key].pop("vector"), atol=1e-6)
        assert row == tables[1][key]


def keys(hits) -> list[str]:
    return [hit.key for hit in hits]


def test_new_changed_gone_and_broken(retriever, source, tmp_path, capsys):
    folder = tmp_path / "index"

    def said(**options) -> str:
        sentences = []
        make_index(retriever, source, folder, report=sentences.append, **options)
        return " ".join(sentences).split(": ", 1)[1]

    assert said() == "11 new, 0 changed, 0 gone, 0 as they were"
    index = Index.open(folder, retriever)
    version = index.table.version
    assert said() == "0 new, 0 changed, 0 gone, 11 as they were" and index.table.version == version
    shutil.copy(source / "1.png", source / "2.png")  # changed
    (source / "a's/4.png").write_bytes(b"broken")
    shutil.copy(source / "1.png", source / "new.png")
    with pytest.raises(UserError, match=r"4\.png cannot be read"):
        said()
    (source / "a's/3.png").unlink()
    assert said(skip_unreadable=1) == "1 new, 1 changed, 1 gone, 8 as they were, 1 left out"
    assert "1 of 11 items are left out, because a picture cannot be read; the first: picture" in capsys.readouterr().out
    # It is looked at again each time, as it may be mended, and costs nothing else.
    assert said(skip_unreadable=1) == "0 new, 0 changed, 0 gone, 10 as they were, 1 left out"
    (source / "a's/4.png").unlink()
    anew = make_index(retriever, source, tmp_path / "anew")
    same_rows(index, anew)
    assert len(index) == len(anew) == 10
    assert index.root == source and index.about["model_id"] == retriever.args.model_id


def test_search_is_exact_and_filters(retriever, source, tmp_path, monkeypatch):
    lines = [
        {"id": "t<1>", "text": "a red circle"},
        {"id": "both", "image": "1.png", "text": 'and it\'s "blue"'},
        {
            "id": "many",
            "content": [{"image": "a's/3.png"}, {"text": "x"}, {"image": "a's/b/8.png"}],
            "instruction": "I.",
        },
        *({"id": f"p{number}", "image": f"a's/{number}.png"} for number in (3, 4, 5, 6)),
        *({"id": f"q{number}", "image": f"a's/b/{number}.png"} for number in (7, 8)),
    ]
    file = source / "items.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    index = make_index(retriever, file, tmp_path / "index")
    assert index.kinds() == ["picture", "text", "mixed"] and index.folders() == ["a's", "a's/b"]

    # Against the plain product of all vectors.
    items = [index.item(hit) for hit in index.search("x", 99)]
    gallery = retriever.encode(items)
    query = {"image": source / "2.png", "text": "now in blue"}
    scores, found = top_k(retriever.encode([query], instruction="Find it."), gallery, 9)
    hits = index.search(query, 9, instruction="Find it.")
    assert keys(hits) == [items[row].id for row in found[0]]
    np.testing.assert_allclose([hit.score for hit in hits], scores[0], atol=1e-6)
    by_key = {hit.key: hit for hit in hits}
    assert by_key["many"].folder == "a's" and index.item(by_key["many"]).instruction == "I."
    assert by_key["both"].text == 'and it\'s "blue"' and by_key["both"].kind == "mixed"
    assert by_key["t<1>"].thumbnail == b"" and by_key["t<1>"].path == ""

    order = keys(hits)
    assert keys(index.search(query, 9, "text", instruction="Find it.")) == ["t<1>"]
    inside = [key for key in order if by_key[key].folder.startswith("a's")]
    assert keys(index.search(query, 9, folder="a's", instruction="Find it.")) == inside and len(inside) == 7
    assert keys(index.search(query, 9, "picture", "a's/b/", instruction="Find it.")) == [
        k for k in order if k[0] == "q"
    ]
    # The same where the vectors are too many to be held.
    filters = ((None, None), ("picture", "a's/b"), ("text", None), ("video", None))
    in_memory = [index.search(query, 9, *some, instruction="Find it.") for some in filters]
    monkeypatch.setattr(held, "MOST", 0)
    for some, expected in zip(filters, in_memory):
        found = index.search(query, 9, *some, instruction="Find it.")
        assert keys(found) == keys(expected)
        np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-6)
    like = index.like("p3", 3)
    assert keys(like) == keys(index.search(items[keys(index.search("x", 99)).index("p3")], 4))[1:]
    with pytest.raises(UserError, match="no item"):
        index.like("p3' OR '1'='1")
    with pytest.raises(UserError, match="--kind x: expected picture or text"):
        index.search("a", kind="x")


def test_thumbnails_are_upright(retriever, tmp_path):
    image, exif = Image.new("RGB", (600, 200)), Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "pictures").mkdir()
    image.save(tmp_path / "pictures" / "turned.jpg", exif=exif)
    (hit,) = make_index(retriever, tmp_path / "pictures", tmp_path / "index").search("a")
    path = tmp_path / "thumbnail.jpg"
    path.write_bytes(hit.thumbnail)
    with Image.open(path) as small:
        assert small.size == (85, 256) and small.format == "JPEG"


def test_what_is_refused(retriever, tiny_model, stage1, source, tmp_path, fails):
    folder = tmp_path / "index"
    make_index(retriever, source, folder)
    flags = dict(source=source, output_dir=folder)
    error = fails(entrypoint.main, model_id=stage1, **flags)
    assert "was made by another model or with other settings (not the same: max_pixels" in error
    assert "truncate_dim" in fails(entrypoint.main, model_id=tiny_model, truncate_dim=8, **flags)
    other = tmp_path / "other"
    shutil.copytree(source, other)
    assert f"is the index of {source}: choose another for {other}" in fails(
        entrypoint.main, model_id=tiny_model, source=other, output_dir=folder
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"--source {empty} holds no picture or video" in fails(
        entrypoint.main, model_id=tiny_model, source=empty, output_dir=other
    )
    (other / "items.jsonl").write_text('{"id": "1", "image": "1.png"}')
    of_file = dict(model_id=tiny_model, source=other / "items.jsonl", output_dir=tmp_path / "of file")
    call(entrypoint.main, **of_file)
    error = fails(entrypoint.main, image_root=source, **of_file)
    assert f"--image_root {source}: the pictures of --output_dir" in error and f"were in {other}" in error
    error = fails(entrypoint.main, model_id=tiny_model, ivf_pq=True, **flags)
    assert "--ivf_pq True: 11 items are too few, it needs 256 or more" in error
    assert "--image_root" in fails(entrypoint.main, model_id=tiny_model, image_root=source, **flags)
    with pytest.raises(UserError, match="is no index: bash scripts/index.sh FOLDER makes one"):
        Index.open(empty)
    about = Index.open(folder).about
    with pytest.raises(UserError, match="does not exist: give --model_id where it is now"):
        arguments_of(about | {"model_id": str(tmp_path / "gone")})
    assert arguments_of(about).bf16 is False
    # Another job writes: the lock's owner is a process that lives.
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command) as job:
        from lamra.common.processes import Owner, start_of

        owner = Owner(Owner.this().host, job.pid, start_of(job.pid))
        (folder / ".lock").write_text(json.dumps({"owner": str(owner), "since": "today", "job": [None, None]}))
        assert "is written by another job, process" in fails(entrypoint.main, model_id=tiny_model, **flags)
        job.kill()
    call(entrypoint.main, model_id=tiny_model, **flags)  # that job is gone
    assert not (folder / ".lock").exists()


def test_another_vector_size_is_remembered(retriever, source, tmp_path):
    index = make_index(retriever, source, tmp_path / "index", truncate_dim=16)
    assert index.table.schema.field("vector").type.list_size == 16
    hits = Index.open(tmp_path / "index", retriever).search("a red circle", 1)
    scores, _ = retriever.search(["a red circle"], [index.item(hits[0])], 1, truncate_dim=16)
    assert abs(hits[0].score - scores.item()) < 1e-6


def test_ivf_pq_and_its_recall(retriever, tmp_path, monkeypatch):
    words = ["red", "blue", "green", "black", "white", "circle", "square", "star", "line", "dot"]
    texts = [f"{a} {b} {c}" for a in words for b in words for c in words][:400]
    file = tmp_path / "items.jsonl"

    def write(count: int) -> None:
        file.write_text("\n".join(json.dumps({"id": text, "text": text}) for text in texts[:count]))

    write(380)
    sentences = []
    index = make_index(retriever, file, tmp_path / "index", ivf_pq=True, report=sentences.append)
    kept = json.loads((tmp_path / "index" / "ivf_pq.json").read_text())
    # Against a plain count.
    vectors = {row["key"]: np.array(row["vector"]) for row in index.table.to_arrow().to_pylist()}
    names, matrix = list(vectors), np.stack(list(vectors.values()))
    shares = []
    for row in np.random.default_rng(0).permutation(380)[:100]:
        exact = [names[i] for i in np.argsort(-matrix @ matrix[row]) if i != row][:10]
        shares.append(len(set(exact) & set(keys(index.like(names[row], 10)))) / 10)
    assert kept["recall@10"] == pytest.approx(np.mean(shares), abs=0.02) and kept["items"] == 380
    assert 0.5 < kept["recall@10"] <= 1 and f"{100 * kept['recall@10']:.1f}%" in sentences[1]
    # What comes later is searched, too, and measured again; nothing is learned anew for so few.
    write(400)
    make_index(retriever, file, tmp_path / "index", report=sentences.append)
    kept = json.loads((tmp_path / "index" / "ivf_pq.json").read_text())
    assert (kept["items"], kept["learned_from"]) == (400, 380) and "recall@10" in sentences[3]
    make_index(retriever, file, tmp_path / "index", report=sentences.append)
    assert sentences[5] == sentences[3]
    assert Index.open(tmp_path / "index", retriever).search(texts[399], 1)[0].key == texts[399]
    write(100)
    index = make_index(retriever, file, tmp_path / "index", report=sentences.append)
    assert sentences[-1] == "100 items are too few for IVF-PQ: search is exact"
    assert not index.is_approximate and not (tmp_path / "index" / "ivf_pq.json").exists()


def test_ivf_pq_looks_through_as_much_as_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(ivf_pq, "FEWEST", 1)
    index, rng = Index(tmp_path / "index"), np.random.default_rng(0)
    rows = [Row(f"{number}", "text" if number % 2000 else "picture", "", "", "", "{}", "") for number in range(6000)]
    vectors = rng.standard_normal((len(rows), 8), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index.write(rows, [b""] * len(rows), vectors, {"version": VERSION})
    recall = ivf_pq.build(index)
    chosen = ivf_pq.partitions_of(index)
    # Against a plain count.
    found = {partitions: [] for partitions in (chosen, chosen // 2)}
    for row in range(0, 6000, 60):
        exact = set(np.argsort(-vectors @ vectors[row])[:10].tolist())
        for partitions, shares in found.items():
            shares.append(len(exact & {int(hit.key) for hit in index.nearest(vectors[row], 10, partitions=partitions)}))
    assert chosen > 1 and np.mean(found[chosen // 2]) / 10 < ivf_pq.WANTED + 0.02
    assert recall >= ivf_pq.WANTED and np.mean(found[chosen]) / 10 == pytest.approx(recall, abs=0.03)
    assert json.loads((tmp_path / "index" / "ivf_pq.json").read_text())["partitions"] == chosen
    # A filter that leaves few rows finds them wherever they lie.
    assert {hit.key for hit in index.nearest(vectors[3], 12, kind="picture", partitions=1)} == {"0", "2000", "4000"}


def test_killed_at_any_moment(retriever, tiny_model, source, tmp_path):
    folder = tmp_path / "index"
    done = run_script("python", "tests/support/index_worker.py", tiny_model, source, folder, "2", timeout=60)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["found"] == sorted(found["found"]) and len(found["found"]) == 3  # nothing is lost
    index = Index.open(folder, retriever)
    assert sorted(index._column("key")) == sorted(index._known()) and len(index) == 11  # and nothing is there twice
    same_rows(index, make_index(retriever, source, tmp_path / "anew"))


def test_without_lancedb(retriever, tiny_model, source, tmp_path, fails, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = fails(entrypoint.main, model_id=tiny_model, source=source, output_dir=tmp_path / "x")
    assert 'an index needs LanceDB, which is not installed: pip install -e ".[gallery]"' in error
