"""scripts/download.sh against a small server on this machine that answers like a Hugging Face hub."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import threading
import zipfile
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from PIL import Image

from lamra.common import cli
from lamra.datasets.zeroshot.sugar_crepe import sugar_crepe_tasks
from lamra.eval.zeroshot_sets import SETS
from lamra.scripts import download
from lamra.scripts.download import Hub, extract

NLI = "datasets/princeton-nlp/datasets-for-simcse"
EVAL = "datasets/code-kunkun/LamRA_Eval"
MBEIR = "datasets/TIGER-Lab/M-BEIR"
MODEL = "Qwen/Qwen2-VL-2B-Instruct"
CSV = b"sent0,sent1,hard_neg\n" + b"a dog runs,an animal moves,a dog sleeps\n" * 5000


class FakeHub(ThreadingHTTPServer):
    """Serves `files` (repo -> name -> bytes); `breaks` are answers that stop half-way, `refuses` are answers 503."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, dict[str, bytes]] = {}
        self.others: dict[str, bytes] = {}  # path -> content, as servers that are no hub answer
        self.breaks = self.refuses = 0
        self.log: list[str] = []  # "GET /path" or "GET /path bytes=17-"
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: FakeHub
    revision = "c0ffee" * 6 + "c0ff"

    def do_GET(self):
        self.server.log.append(" ".join([self.command, self.path, *self.headers.get_all("Range", [])]))
        if self.server.refuses:
            self.server.refuses -= 1
            return self.reply(503)
        if listing := re.fullmatch(r"/api/(?:models/)?(.+?)(?:/revision/main)?(?:\?.*)?", self.path):
            repo = self.server.files.get(listing[1])
            if repo is None:
                return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name} for name in repo]
            return self.reply(200, json.dumps({"id": listing[1], "sha": self.revision, "siblings": siblings}).encode())
        if self.path in self.server.others or not re.search("/(resolve|cdn)/", self.path):
            content = self.server.others.get(self.path)
            return self.reply(404) if content is None else self.ranged(content, {"ETag": '"of-no-digest"'})
        repo, kind, name = re.fullmatch(r"/(.+)/(resolve/\w+|cdn)/(.+)", self.path).groups()
        content = self.server.files.get(repo, {}).get(name)
        if content is None:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        if Path(name).suffix in (".txt", ".json", ".jinja"):  # small files lie in git, the others in a store elsewhere
            etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        else:
            etag = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
            if kind != "cdn":
                store = f"http://localhost:{self.server.server_port}/{repo}/cdn/{name}"
                return self.reply(302, headers={**etag, "X-Repo-Commit": self.revision, "Location": store})
        self.ranged(content, {**etag, "X-Repo-Commit": self.revision})

    do_HEAD = do_GET

    def ranged(self, content: bytes, headers: dict):
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.reply(206 if start else 200, content[start:], headers)

    def reply(self, status: int, content: bytes = b"", headers: dict | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and self.server.breaks and "/cdn/" in self.path:
            self.server.breaks -= 1
            content = content[: len(content) // 2]
            self.close_connection = True
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # whatever the tests' environment says
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(hub, tmp_path, capsys, monkeypatch):
    """Call the command in this process: run(names...) -> (exit status, what it printed)."""

    def call(*names: str, tries: int = 2) -> tuple[int, str]:
        folders = ["--models_dir", str(tmp_path / "models"), "--data_dir", str(tmp_path / "data")]
        command = [*names, "--endpoint", hub.url, "--max_tries", str(tries), "--pause", "0", *folders]
        monkeypatch.setattr("sys.argv", ["download.py", *command])
        status = 0
        try:
            cli.run(download.main, online=True)
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return status, out + err.removeprefix("\n")

    return call


def archive(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def flickr(**more: bytes) -> dict[str, bytes]:
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    captions = json.dumps([f"caption {i}" for i in range(10)]).encode()
    return {"images/0.png": png.getvalue(), "images/1.png": png.getvalue(), "flickr_text.json": captions, **more}


def test_the_script_downloads_resumes_and_skips(hub, tmp_path):
    content = CSV * 120  # huggingface_hub writes 10 MB at a time
    hub.files[NLI] = {"nli_for_simcse.csv": content}
    hub.breaks = 1
    environment = dict(os.environ, HF_ENDPOINT=hub.url, DATA_DIR=str(tmp_path), MAX_TRIES="2", PAUSE="0")
    command = ["bash", str(ROOT / "scripts/download.sh"), "nli"]

    first = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "nli_for_simcse.csv").read_bytes() == content
    assert re.search(r"bytes=\d{8,}-$", hub.log[-1])  # went on where it broke off
    assert sorted(path.name for path in tmp_path.iterdir()) == [".datasets-for-simcse.sizes.json", "nli_for_simcse.csv"]

    hub.log.clear()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert second.returncode == 0 and "already complete" in second.stdout
    assert hub.log == []  # not even asked


def test_a_new_start_goes_on_from_the_partial_file(hub, run, tmp_path):
    hub.files[NLI] = {"nli_for_simcse.csv": CSV}
    (tmp_path / "data").mkdir()
    partial = tmp_path / "data" / f".nli_for_simcse.csv.{hashlib.sha256(CSV).hexdigest()[:16]}.incomplete"
    partial.write_bytes(CSV[:1000])
    with partial.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, printed = run("nli")
        assert status == 2 and "another process is downloading" in printed
    assert run("nli")[0] == 0
    assert hub.log[-1].endswith("bytes=1000-")
    assert (tmp_path / "data/nli_for_simcse.csv").read_bytes() == CSV

    (tmp_path / "data/nli_for_simcse.csv").unlink()
    partial.write_bytes(b"x" * 1000)  # not what the hub holds: the SHA-256 tells, and the second try starts anew
    status, printed = run("nli")
    assert status == 0 and "try 1 of 2 failed (nli_for_simcse.csv arrived damaged)" in printed
    assert (tmp_path / "data/nli_for_simcse.csv").read_bytes() == CSV


def test_a_model_is_safetensors_and_text_only(hub, run, tmp_path):
    wanted = {
        "config.json": b"{}",
        "merges.txt": b"a b",
        "model-1.safetensors": b"w" * 999,
        "chat_template.jinja": b"{}",
    }
    unwanted = {"model.bin": b"", "code.py": b"", "README.md": b"", "nested/config.json": b"", "../../up.json": b""}
    hub.files[MODEL] = wanted | unwanted
    hub.refuses = 1
    status, printed = run("qwen2-vl-2b")
    assert status == 0 and "try 1 of 2 failed" in printed
    folder = tmp_path / "models" / "Qwen2-VL-2B-Instruct"
    assert {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")} == wanted
    assert "already complete" in run("qwen2-vl-2b")[1]

    hub.files["code-kunkun/LamRA-Ret"] = wanted
    assert run("lamra-ret")[0] == 0 and (tmp_path / "models/LamRA-Ret/config.json").is_file()

    (folder / "merges.txt").unlink()  # a file is lost: only that one is downloaded again
    hub.log.clear()
    assert run("qwen2-vl-2b")[0] == 0
    assert [line.split("/")[-1] for line in hub.log if line.startswith("GET /Qwen")] == ["merges.txt"]

    record = next(folder.glob(".*.sizes.json"))
    record.write_text('{"config.json": 2, "mer')  # killed while it was written
    assert run("qwen2-vl-2b")[0] == 0 and "already complete" in run("qwen2-vl-2b")[1]


def test_an_archive_is_extracted_once(hub, run, tmp_path):
    hub.files[EVAL] = {"flickr.tar.gz": archive(flickr())}
    assert run("flickr")[0] == 0
    assert sorted(path.name for path in (tmp_path / "data/flickr").iterdir()) == ["flickr_text.json", "images"]
    assert not list((tmp_path / "data").glob(".*/*"))  # no archive, nothing half extracted is left
    hub.log.clear()
    status, printed = run("flickr")
    assert status == 0 and "already complete" in printed and hub.log == []

    (tmp_path / "data/flickr/images/1.png").unlink()
    status, printed = run("flickr")
    assert status == 2 and "flickr is not complete: move it away" in printed


@pytest.mark.parametrize("name", ["../escaped.txt", "images/../../escaped.txt", "/tmp/lamra-escaped.txt"])
def test_a_malicious_archive_is_refused(hub, run, tmp_path, name):
    hub.files[EVAL] = {"flickr.tar.gz": archive(flickr(**{name: b"gotcha"}))}
    status, printed = run("flickr")
    assert status == 2 and "flickr.tar.gz is refused, it may be malicious" in printed
    assert not list(tmp_path.rglob("*escaped*")) and not Path("/tmp/lamra-escaped.txt").exists()
    assert not (tmp_path / "data/flickr").exists()


def test_archives_that_are_damaged_or_others_are_named(tmp_path):
    path = tmp_path / "flickr.tar.gz"
    for content, sentence in (
        (archive(flickr())[:-40], "is damaged"),
        (b"no archive", "is damaged"),
        (archive({"images/0.png": b""}), "holds 0 of flickr_text.json"),
        (archive(flickr(**{"flickr_text.json": b'["one"]'})), "has 1 captions"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            extract(path, tmp_path / "flickr", "images", "flickr_text.json")
        assert list(tmp_path.iterdir()) == [path]


def mbeir() -> dict[str, bytes]:
    """M-BEIR with two tasks and a training set; its pictures as an archive in three parts."""
    rows = {
        "query/test/mbeir_cirr_task7_test.jsonl": [{"qid": "8:1", "query_img_path": "mbeir_images/cirr_images/q.jpg"}],
        "query/val/mbeir_cirr_task7_val.jsonl": [{"qid": "8:2", "query_img_path": None}],
        "cand_pool/local/mbeir_cirr_task7_cand_pool.jsonl": [
            {"did": "8:1", "img_path": "mbeir_images/cirr_images/c.jpg"},
            {"did": "8:2", "img_path": "mbeir_images/cirr_images/lost.jpg"},
        ],
        "query/test/mbeir_mscoco_task0_test.jsonl": [{"qid": "9:1", "query_img_path": None}],
        "cand_pool/local/mbeir_mscoco_task0_test_cand_pool.jsonl": [{"did": "9:1", "img_path": "mbeir_images/9.jpg"}],
        "query/union_train/mbeir_union_up_train.jsonl": [{"qid": "9:3", "query_img_path": "mbeir_images/train.jpg"}],
        "cand_pool/global/mbeir_union_train_cand_pool.jsonl": [{"did": "9:3", "img_path": None}],
        "cand_pool/global/mbeir_union_test_cand_pool.jsonl": [{"did": "9:4", "img_path": None}],
    }
    files = {name: "".join(json.dumps(row) + "\n" for row in lines).encode() for name, lines in rows.items()}
    files["qrels/test/mbeir_cirr_task7_test_qrels.txt"] = b"8:1 0 8:1 1 7\n"
    files["instructions/query_instructions.tsv"] = b"query_modality\n"
    names = ["cirr_images/q.jpg", "cirr_images/c.jpg", "9.jpg", "train.jpg"]
    pictures = archive({f"./mbeir_images/{name}": name.encode() * 99 for name in names})
    third = len(pictures) // 3
    for number, part in enumerate((pictures[:third], pictures[third : 2 * third], pictures[2 * third :])):
        files[f"mbeir_images.tar.gz.part-{number:02d}"] = part
    return files | {"README.md": b"", ".gitattributes": b"", "query/../../up.jsonl": b"", "train/old.jsonl": b""}


def test_of_mbeir_come_the_tasks_that_are_named(hub, run, tmp_path):
    hub.files[MBEIR], folder = mbeir(), tmp_path / "data/M-BEIR"
    hub.refuses = 1
    status, printed = run("mbeir:cirr_task7")
    assert status == 0 and "try 1 of 2 failed" in printed, printed
    assert "1 pictures that the files name are not in the archive, the first: mbeir_images/cirr_images/lost" in printed
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith(".")} == {
        *(name for name in hub.files[MBEIR] if "cirr_task7" in name),
        "instructions/query_instructions.tsv",
        "mbeir_images/cirr_images/q.jpg",
        "mbeir_images/cirr_images/c.jpg",
    }
    assert (folder / "mbeir_images/cirr_images/c.jpg").read_bytes() == b"cirr_images/c.jpg" * 99

    hub.log.clear()
    status, printed = run("mbeir:cirr_task7")
    assert status == 0 and "already complete" in printed and hub.log == []

    # Another task and the training: the archive is there already. `_test` is how this project calls COCO's tasks.
    assert run("mbeir:mscoco_task0_test,train")[0] == 0
    assert not [line for line in hub.log if line.startswith("GET") and "/cdn/" in line and "part-" in line]
    assert (folder / "mbeir_images/9.jpg").is_file() and (folder / "mbeir_images/train.jpg").is_file()
    assert not (folder / "cand_pool/global/mbeir_union_test_cand_pool.jsonl").exists()

    assert run("mbeir")[0] == 0  # all, after which the archive is not needed
    assert (folder / "cand_pool/global/mbeir_union_test_cand_pool.jsonl").is_file()
    assert not (folder / ".download").exists() and not list(tmp_path.rglob("*up.jsonl"))
    hub.log.clear()
    assert run("mbeir", "mbeir:cirr_task7")[0] == 0 and hub.log == []


def test_what_is_wrong_with_mbeir_is_named(hub, run, tmp_path):
    hub.files[MBEIR] = mbeir()
    status, printed = run("mbeir:cirr_task8")
    assert status == 2 and "mbeir:cirr_task8 is unknown: choose train, or of cirr_task7, mscoco_task0" in printed
    part = hub.files[MBEIR].pop("mbeir_images.tar.gz.part-01")
    status, printed = run("mbeir:cirr_task7")
    assert status == 2 and "holds the archive's parts [0, 2]" in printed
    hub.files[MBEIR]["mbeir_images.tar.gz.part-01"] = part[:-20]
    status, printed = run("mbeir:cirr_task7")
    assert status == 2 and "part-00 and the other parts are damaged" in printed
    for name in hub.files[MBEIR]:
        if "part-" in name:
            hub.files[MBEIR][name] = archive({"../../escaped.txt": b"gotcha"}) if name.endswith("00") else b""
    (tmp_path / "data/M-BEIR/.download/mbeir_images.tar.gz.part-00").unlink()
    for number in (1, 2):
        (tmp_path / f"data/M-BEIR/.download/mbeir_images.tar.gz.part-0{number}").write_bytes(b"")
    status, printed = run("mbeir:cirr_task7")
    assert status == 2 and "are refused, it may be malicious: it holds '../../escaped.txt'" in printed
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.fixture
def zeroshot(hub, monkeypatch):
    """The addresses of the zero-shot suite, served by `hub`: name -> content of its files, in their order."""

    def serve(name: str, *contents: bytes):
        licence, files = download.ZEROSHOT[name]
        served = []
        for file, content in zip(files, contents, strict=True):
            algorithm = {64: hashlib.sha256, 32: hashlib.md5}.get(len(file.digest))
            url = re.sub("^http[s]?://[^/]+", hub.url, file.url)
            served.append(replace(file, url=url, digest=algorithm(content).hexdigest() if algorithm else ""))
            hub.others[url.removeprefix(hub.url)] = content
        monkeypatch.setitem(download.ZEROSHOT, name, (licence, served))

    return serve


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def test_a_set_of_files_comes_with_its_licence(hub, run, zeroshot, tmp_path):
    row = {"filename": "1.jpg", "caption": "A cat sits.", "negative_caption": "A dog sits."}
    zeroshot("sugarcrepe", *(json.dumps({"0": row}).encode() for _ in range(7)))
    status, printed = run("sugarcrepe")
    assert status == 0 and "sugarcrepe: licence MIT" in printed, printed
    texts = SETS["sugarcrepe"].arguments.annotation_path_prefix
    assert len(sugar_crepe_tasks(tmp_path / texts, "pictures", "clean")) == 7
    hub.log.clear()
    assert "already complete" in run("sugarcrepe")[1] and hub.log == []


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("sugarcrepe", "sugarcrepe"),
        ("coco-val2017", "sugarcrepe"),
        ("circo", "circo"),
        ("coco-unlabeled2017", "circo"),
        ("genecis", "genecis"),
        ("urban1k", "urban1k"),
    ],
)
def test_what_is_downloaded_goes_to_where_its_evaluation_looks(name, of):
    looks = [f"{field.default}/" for field in fields(SETS[of].arguments)]
    for file in download.ZEROSHOT[name][1]:
        folder = file.target if file.folder else file.target.rpartition("/")[0]
        assert any(place.startswith(f"./data/{folder}/") for place in looks), folder


def test_of_an_archive_comes_its_folder(hub, run, zeroshot, tmp_path):
    more = {"__MACOSX/annotations/x": b"", "annotations/image_info_unlabeled2017.json": b'{"images": []}'}
    zeroshot("circo", b"[1]", b"[2]", zipped(**more))
    hub.refuses = 1
    status, printed = run("circo")
    assert status == 0 and "try 1 of 2 failed" in printed and "licence CC BY-NC 4.0" in printed, printed
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert {str(path.relative_to(tmp_path / "data/circo/annotations")): path.read_bytes() for path in files} == {
        "val.json": b"[1]", "test.json": b"[2]", "image_info_unlabeled2017.json": b'{"images": []}',
    }  # fmt: skip
    (tmp_path / "data/circo/annotations/image_info_unlabeled2017.json").unlink()
    hub.log.clear()
    assert run("circo")[0] == 0  # what is lost comes again, and of what is there only the size is asked
    assert [line.split("/")[-1] for line in hub.log if line.startswith("GET")] == ["image_info_unlabeled2017.zip"]

    content = zipped(**{"Urban1k/image/1.jpg": b"picture", "Urban1k/caption/1.txt": b"A street."})
    hub.files["datasets/BeichenZhang/Urban1k"] = {"Urban1k.zip": content}
    assert run("urban1k")[0] == 0 and (tmp_path / "data/Urban1k/caption/1.txt").read_bytes() == b"A street."


def test_what_is_wrong_with_a_set_is_named(hub, run, zeroshot, tmp_path, monkeypatch):
    zeroshot("coco-val2017", zipped(**{"val2017/1.jpg": b"picture"}))
    path, content = next(iter(hub.others.items()))
    hub.others[path] = content[:-1] + b"x"  # http: whoever stands between may exchange it
    status, printed = run("coco-val2017")
    assert status == 2 and "try 2 of 2 failed (val2017.zip arrived damaged)" in printed
    assert not list((tmp_path / "data").rglob("*.zip"))

    hub.others.clear()
    status, printed = run("coco-val2017", tries=50)  # no reason to try again
    assert status == 2 and "zips/val2017.zip cannot be downloaded: Client error '404 Not Found'" in printed, printed

    zeroshot("coco-val2017", zipped(**{"other/1.jpg": b"picture"}))
    status, printed = run("coco-val2017")
    assert status == 2 and "val2017.zip holds no folder val2017: its authors changed it" in printed

    zeroshot("coco-unlabeled2017", zipped(**{"unlabeled2017/1.jpg": b"picture"}))
    monkeypatch.setattr("shutil.disk_usage", lambda path: Free(10))
    status, printed = run("coco-unlabeled2017")
    assert status == 2 and "unlabeled2017.zip needs 0.0 GB more, and 0.0 GB are free: make room" in printed


class Free(NamedTuple):
    free: int


def test_errors_are_one_sentence_and_a_status(hub, run, tmp_path, monkeypatch):
    assert run("qwen9") == (
        2,
        "error: 'qwen9' is unknown: choose from qwen2-vl-2b qwen2-vl-7b qwen2.5-vl-3b qwen2.5-vl-7b qwen3-vl-2b "
        "qwen3-vl-4b qwen3-vl-8b lamra-ret-pretrained lamra-ret lamra-rank nli flickr coco mbeir sugarcrepe "
        "coco-val2017 circo coco-unlabeled2017 genecis fashioniq urban1k\n",
    )
    assert hub.log == []

    status, printed = run("qwen2-vl-2b", tries=50)  # no such repository: no reason to try again
    assert status == 2 and "Qwen/Qwen2-VL-2B-Instruct cannot be downloaded" in printed and len(hub.log) == 1

    hub.refuses = 100
    status, printed = run("nli", tries=2)
    assert status == 2 and "could not be downloaded in 2 tries: check the network" in printed

    hub.refuses = 0
    hub.files[NLI] = {"nli_for_simcse.csv": CSV}
    (tmp_path / "data/nli_for_simcse.csv").write_bytes(b"own")
    status, printed = run("nli")
    assert status == 2 and f"has 3 bytes, the server's {len(CSV)}: move it away" in printed
    (tmp_path / "data/nli_for_simcse.csv").unlink()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "http_get", full)
    status, printed = run("nli", tries=50)
    assert status == 2 and "data cannot be written ([Errno 28] No space left on device)" in printed


def test_nothing_listens(hub, tmp_path):
    with pytest.raises(ValueError, match="could not be downloaded in 2 tries"):
        Hub("http://127.0.0.1:9", max_tries=2, pause=0).fetch("a/b", "dataset", tmp_path, ["c"])
