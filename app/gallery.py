"""A page to search an index with words and pictures, for this machine's browser.

python app/gallery.py --index INDEX [--other_index INDEX] [--rerank RERANKER]
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamra.common.cli import note, parse, run
from lamra.common.errors import UserError
from lamra.common.flags import FILE, FOLDER, Flags, flag, require
from lamra.eval.index.extra import GET_GALLERY, require_index, require_lancedb
from lamra.models.folders import local_folder

if TYPE_CHECKING:
    from gradio import Blocks, I18n

    from lamra.eval.index.index import Index

HOST = "127.0.0.1"
PORTS = 100  # that are tried, one after the other


@dataclass
class GalleryArguments(Flags):
    index: str = flag("", "to search: a folder that scripts/index.sh made", path=FOLDER)
    other_index: str | None = flag(None, "to search beside it, of another model for example", path=FOLDER)
    model_id: str | None = flag(None, "of --index; default: where it was when it made the index", path=FOLDER)
    other_model_id: str | None = flag(None, "the same of --other_index", path=FOLDER)
    rerank: str | None = flag(None, "a reranker that looks at the results once more, on request", path=FOLDER)
    instructions: str | None = flag(None, "more for the menu: M-BEIR's query_instructions.tsv", path=FILE)
    trust_remote_code: bool = flag(False, "run the Python files of a guest's folder: read them first")
    port: int = flag(7860, "of the page; the next free one where it is in use", low=1024, high=65535 - PORTS)

    def __post_init__(self):
        super().__post_init__()
        alone = self.other_model_id is None or self.other_index is not None
        require(alone, "other_model_id", self.other_model_id, "--other_index beside it")
        if self.rerank:
            self.rerank = local_folder(self.rerank, "rerank")


def main() -> None:
    (args,) = parse(GalleryArguments)
    require_lancedb()
    if importlib.util.find_spec("gradio") is None:
        raise UserError(f"the page needs Gradio, which is not installed: {GET_GALLERY}")
    require_index(args.index)
    if args.other_index:
        require_index(args.other_index, "other_index")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C: uploads are deleted
    with tempfile.TemporaryDirectory(prefix="lamra_gallery_") as uploads:
        stay_here(uploads)
        from lamra.app.page import Gallery, build_page, instructions_of, translations

        instructions = instructions_of(args.instructions)
        indexes = [opened(args.index, args.model_id, args.trust_remote_code, "index", "model_id")]
        if args.other_index:
            of_other = args.other_index, args.other_model_id, args.trust_remote_code
            indexes.append(opened(*of_other, "other_index", "other_model_id"))
        say = translations()
        gallery = Gallery(indexes, judge_of(args), Path(uploads))
        page = build_page(gallery, instructions, say)
        address = serve(page, say, args.port, Path(uploads))
        print(f"the gallery is at {address} (Ctrl+C ends it)", flush=True)
        page.block_thread()


def stay_here(uploads: str) -> None:
    """Tell Gradio, before it is imported, to send nothing anywhere and to keep uploads in this folder."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads, "GRADIO_RUN_HISTORY": "False"}
    for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_SHARE", "GRADIO_ROOT_PATH", "GRADIO_MCP_SERVER", "GRADIO_NUM_WORKERS"):
        os.environ.pop(name, None)
    # It asks its own page whether it is there, which no proxy knows.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST, "localhost"]))


def opened(folder: str, model_id: str | None, trust_remote_code: bool, flag: str, model_flag: str) -> Index:
    """An index with its model."""
    from lamra.eval.index.index import Index
    from lamra.eval.index.make import arguments_of
    from lamra.eval.inference import load_retriever

    about = Index.open(folder, flag=flag).about  # no model is loaded yet
    others: dict[str, Any] = {"model_id": model_id, "trust_remote_code": trust_remote_code, "num_workers": 0}
    return Index.open(folder, load_retriever(arguments_of(about, flag=model_flag, **others)), flag)


def judge_of(args: GalleryArguments):
    """The reranker that --rerank names; None without."""
    if not args.rerank:
        return None
    from lamra.eval.flags import RetrieverArguments
    from lamra.eval.rerank.judge import load_judge

    return load_judge(RetrieverArguments(args.rerank, num_workers=0))


def free_port(port: int) -> int:
    """The port, or the next that is free.

    Raises:
        UserError: none of PORTS is.
    """
    for tried in range(port, port + PORTS):
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind((HOST, tried))
            except OSError:
                continue
        if tried != port:
            note(f"port {port} is in use: this page has {tried}")
        return tried
    raise UserError(f"--port {port}: this and the next {PORTS - 1} ports are in use, give another")


def serve(page: Blocks, say: I18n, port: int, uploads: Path) -> str:
    """Show the page to this machine, from a thread; its address."""
    import gradio as gr
    from starlette.middleware import Middleware

    from lamra.app.gate import LARGEST_UPLOAD, Gate
    from lamra.app.page import CSS

    port = free_port(port)
    fonts = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        allowed_paths=[],
        max_file_size=LARGEST_UPLOAD,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        app_kwargs={"middleware": [Middleware(Gate, uploads=uploads)], "docs_url": None, "redoc_url": None},
        i18n=say,
        theme=gr.themes.Base(**fonts),
        css=CSS,
    )
    return f"http://{HOST}:{port}"


if __name__ == "__main__":
    run(main)
