"""The gallery's page: what its server gives out, and in headless Chromium what a user does with it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import struct
import zlib
from pathlib import Path

import pytest
from conftest import ROOT

from lamra import load
from lamra.app import gallery as entrypoint
from lamra.app.gallery import free_port, serve, stay_here
from lamra.app.gate import LARGEST_UPLOAD, Gate

for library, name in (("lancedb", "LanceDB"), ("gradio", "Gradio")):
    pytest.importorskip(library, reason=f"{name} is not installed: the page is not tried")

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{constructor}} `x`"  # a file's name and a caption
PATIENCE = 30_000  # milliseconds
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def source(world, tmp_path_factory):
    """Eleven pictures in two folders, two of them with captions, and a text."""
    folder = tmp_path_factory.mktemp("source")
    lines = [{"id": "text", "text": f"a text {HOSTILE}"}, {"id": "both", "image": "0.png", "text": "a wish"}]
    for number in range(11):
        name = f"{HOSTILE}.png" if number == 1 else f"{'' if number < 6 else 'blue/'}{number}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(world / "test" / "images" / f"{number}.png", folder / name)
        lines.append({"id": name, "image": name})
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def page(source, tiny_model, tmp_path_factory):
    """The address of a page of two indexes with a reranker, and the folder of its uploads."""
    folder = tmp_path_factory.mktemp("page")
    uploads = folder / "uploads"
    uploads.mkdir()
    before = dict(os.environ)
    stay_here(str(uploads))
    from lamra.app.page import Gallery, build_page, instructions_of, translations

    retriever = load(tiny_model)
    indexes = [
        retriever.index(source / "items.jsonl", folder / f"index{size}", truncate_dim=size) for size in (None, 16)
    ]
    say = translations()
    built = build_page(Gallery(indexes, load(tiny_model, role="reranker"), uploads), instructions_of(None), say)
    with socket.socket() as taken:  # in use
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1] if taken.getsockname()[1] < 65000 else 7860
        address = serve(built, say, port, uploads)
    assert address.startswith("http://127.0.0.1:")
    yield address, uploads
    built.close(verbose=False)
    os.environ.clear()
    os.environ.update(before)


def ask(page, method: str, path: str, body: bytes = b"", **headers) -> tuple[int, bytes, dict]:
    """Status, body and headers of an answer; the path goes as it is."""
    connection = http.client.HTTPConnection(page[0].removeprefix("http://"), timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in ({"Content_Length": str(len(body))} | headers).items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body or None)
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def upload(page, name: str, data: bytes) -> tuple[int, bytes]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    kind = "multipart/form-data; boundary=x"
    return ask(page, "POST", "/gradio_api/upload", head + data + b"\r\n--x--\r\n", Content_Type=kind)[:2]


def bomb(side: int = 60_000) -> bytes:
    """A PNG of few bytes that states side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def test_no_file_outside_of_the_uploads(page, source, tmp_path):
    picture = (source / "0.png").read_bytes()
    status, answer = upload(page, "../../x.png", picture)
    assert status == 200
    (mine,) = json.loads(answer)
    assert Path(mine).parents[1] == page[1] and Path(mine).name == "x.png"
    assert ask(page, "GET", f"/gradio_api/file={mine}")[:2] == (200, picture)
    (page[1] / "link.png").symlink_to("/etc/passwd")
    wrong = ["/etc/passwd", "%2Fetc%2Fpasswd", "../../../etc/passwd", f"{mine}/../../../../../../etc/passwd"]
    wrong += [
        "file:///etc/passwd",
        page[1] / "link.png",
        source / "0.png",
        ROOT / "README.md",
        "README.md",
        "/dev/zero",
    ]
    wrong += ["http://127.0.0.1:1/x.png", page[1], f"{mine}%00"]
    for path in wrong:
        assert ask(page, "GET", f"/gradio_api/file={path}")[0] == 403, path
        question = {"data": ["", {"path": str(path), "meta": {"_type": "gradio.FileData"}}], "fn_index": 1}
        body = json.dumps(question | {"session_hash": "s"}).encode()
        status = ask(page, "POST", "/gradio_api/queue/join", body, Content_Type="application/json")[0]
        assert status == 403, path
    paths = ["/assets/../../../../etc/passwd", "/static/..%2f..%2f..%2fetc/passwd", "/file=/etc/passwd", "/docs"]
    paths += [f"/gradio_api/{name}" for name in ("proxy=http://127.0.0.1:1/", "info", "vibe-code", "file/etc/passwd")]
    for path in [*paths, "/monitoring", "/openapi.json", "/gradio_api/stream/a/b/c/playlist.m3u8"]:
        assert ask(page, "GET", path)[0] in (403, 404), path


def test_this_machine_alone_and_nothing_from_outside(page):
    status, html, headers = ask(page, "GET", "/")
    assert status == 200 and headers["content-security-policy"].startswith("default-src 'self'")
    loaded = re.findall(rb'(?:src|href)="(https?:)?//[^"]*"', html)
    assert not loaded
    for name in ("Host", "Origin"):
        assert ask(page, "GET", "/", **{name: "evil.example"})[0] == 403
        assert ask(page, "GET", "/", **{name: "127.0.0.1.evil.example"})[0] == 403
    assert ask(page, "GET", "/", Origin="null")[0] == 403
    config = json.loads(ask(page, "GET", "/config")[1])
    assert config["analytics_enabled"] is False


def test_what_is_too_large(page, source):
    huge = str(100 * 2**20)
    assert ask(page, "POST", "/gradio_api/upload", Content_Length=huge, Content_Type="multipart/form-data")[0] == 413
    size = LARGEST_UPLOAD + 10
    assert upload(page, "a.png", b"x" * size)[0] == 413
    assert ask(page, "POST", "/gradio_api/queue/join", b" " * (2**20 + 1), Content_Type="application/json")[0] == 413


def test_a_port_in_use_is_told(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = free_port(port)
    assert found > port and f"note: port {port} is in use: this page has {found}" in capsys.readouterr().out


def test_what_the_page_refuses(tiny_model, tmp_path, fails, monkeypatch):
    assert "is no index: bash scripts/index.sh FOLDER makes one" in fails(entrypoint.main, index=tmp_path)
    (tmp_path / "items.lance").mkdir()
    error = fails(entrypoint.main, index=tmp_path, other_model_id=tmp_path)
    assert "--other_model_id" in error and "expected --other_index beside it" in error
    assert "--rerank" in fails(entrypoint.main, index=tmp_path, rerank="nowhere/x")
    monkeypatch.setattr(entrypoint, "stay_here", lambda uploads: None)
    assert "holds an index that was never finished" in fails(entrypoint.main, index=tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else name)
    error = fails(entrypoint.main, index=tmp_path)
    assert 'the page needs Gradio, which is not installed: pip install -e ".[gallery]"' in error


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: the page is not driven by a browser"
    )
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium: the page is not driven by a browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Browser:
    """A window on the page. `outside`: the addresses elsewhere that it asked for; `dialogs`: what scripts opened."""

    def __init__(self, chromium, address: str, width: int, language: str):
        self.outside, self.dialogs = [], []
        self.context = chromium.new_context(viewport={"width": width, "height": 900}, locale=language)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda of: self.outside.append(of.url) if not _here(of.url, address) else None)
        self.page.on("dialog", lambda of: (self.dialogs.append(of.message), of.dismiss()))
        self.page.goto(address)
        self.page.wait_for_selector(".lamra-hit")

    def search(self, text: str | None = None, picture: Path | None = None) -> None:
        if text is not None:
            self.page.fill("#lamra-query textarea", text)
        if picture is not None:
            if self.page.locator("#lamra-picture img").count():
                self.page.locator("#lamra-picture .icon-button-wrapper button").last.click()
            self.page.set_input_files("#lamra-picture input[type=file]", str(picture))
            self.page.wait_for_selector("#lamra-picture img")
        self.page.click("#lamra-search")
        self.settled()

    def settled(self) -> None:
        """Gradio marks what waits for an answer."""
        self.page.wait_for_timeout(250)
        self.page.wait_for_function("!document.querySelector('.generating, .pending, .translucent')")
        self.page.wait_for_timeout(250)

    def names(self, number: int = 0) -> list[str]:
        return self.page.locator(f"#lamra-results-{number} .lamra-name").all_inner_texts()

    def choose(self, menu: str, entry: str) -> None:
        self.page.click(f"#lamra-{menu} input")
        self.page.get_by_role("option", name=entry, exact=True).click()
        self.settled()


def _here(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def test_in_a_browser(chromium, page, source, tiny_model, tmp_path, world):
    window = Browser(chromium, page[0], 1200, "en-US")
    retriever, images = load(tiny_model), world / "test" / "images"
    index = retriever.index(source / "items.jsonl", tmp_path / "index")

    def expected(query, **options) -> list[str]:
        return [hit.path or hit.key for hit in index.search(query, 12, **options)]

    assert len(window.names()) == len(window.names(1)) == 12  # it opens on what there is
    window.search("a red circle")
    assert window.names() == expected("a red circle") and HOSTILE in " ".join(window.names())
    assert len(window.names(1)) == 12
    window.search("now in blue", images / "7.png")
    both = {"image": images / "7.png", "text": "now in blue"}
    assert window.names() == expected(both)
    window.choose("folder", "blue")
    assert window.names() == expected(both, folder="blue") and len(window.names()) == 5
    window.choose("folder", "all")
    window.choose("kind", "text")
    assert window.names() == ["text"] and HOSTILE in window.page.inner_text("#lamra-results-0")
    window.choose("kind", "all")
    window.search("")
    assert window.names() == expected(images / "7.png")
    window.page.check("#lamra-rerank input")
    window.settled()
    shown = window.page.inner_text("#lamra-results-0")
    assert shown.count("P(Yes)") == 12 and sorted(window.names()) == sorted(expected(images / "7.png"))
    window.page.uncheck("#lamra-rerank input")
    window.settled()
    window.page.locator("#lamra-results-0 .lamra-hit", has_text="blue/8.png").locator("button").click()
    window.settled()
    assert window.names() == [hit.path or hit.key for hit in index.like("blue/8.png", 12)]
    assert "More like blue/8.png" in window.page.inner_text("#lamra-status")
    for name, data, words in (
        ("broken.png", b"\x89PNG nothing", "broken.png cannot be read"),
        ("bomb.png", bomb(), "(Image size (3600000000 pixels) exceeds limit"),
    ):
        (tmp_path / name).write_bytes(data)
        window.page.click("#lamra-clear")
        window.settled()
        window.page.set_input_files("#lamra-picture input[type=file]", str(tmp_path / name))
        window.page.wait_for_timeout(500)
        window.page.click("#lamra-search")
        window.page.wait_for_selector(".lamra-error")
        said = window.page.inner_text("#lamra-status")
        assert words in said and str(page[1]) not in said and window.names() == []
    assert window.outside == [] and window.dialogs == []
    window.context.close()


def test_chinese_in_a_narrow_window(chromium, page):
    window = Browser(chromium, page[0], 380, "zh-CN")
    text = window.page.inner_text("body")
    for word in ("想找什么", "指令", "文件夹", "类型", "搜索", "清空", "重排", "更多相似", "图片"):
        assert word in text, word
    window.search("红色的圆")
    assert len(window.names()) == 12
    assert window.page.evaluate("document.documentElement.scrollWidth") <= 380
    for box in (window.page.locator(name).bounding_box() for name in ("#lamra-search", ".lamra-hit >> nth=1")):
        assert box["x"] >= 0 and box["x"] + box["width"] <= 380
    assert window.outside == []
    window.context.close()


def test_the_gate_follows_links(tmp_path):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "a.png").write_bytes(b"a")
    (tmp_path / "uploads" / "out.png").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(b"s")
    gate = Gate(None, tmp_path / "uploads")
    assert gate.is_upload(str(tmp_path / "uploads/a.png"))
    for wrong in (
        "uploads/out.png",
        "uploads/../secret",
        "secret",
        "uploads",
        "uploads/none.png",
        "uploads/%2e%2e/secret",
    ):
        assert not gate.is_upload(str(tmp_path / wrong)), wrong
