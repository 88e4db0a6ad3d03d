"""What stands before Gradio: the few addresses that the page needs, from this machine's browser alone.

Gradio has many more: it streams files of other servers, edits its own code in development, keeps histories elsewhere.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Scope = MutableMapping[str, Any]
LARGEST_UPLOAD = 25 * 2**20  # bytes
LARGEST_QUESTION = 2**20
API = "/gradio_api"
FILE, JOIN = f"{API}/file=", f"{API}/queue/join"
# Of the page itself, of its uploads, and of its events.
OPEN = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/[^?]*"
    rf"|{API}/(theme\.css|startup-events|upload|upload_progress|queue/join|queue/data|cancel|reset/?|heartbeat/\w+)"
)
# Nothing is loaded or sent anywhere but here, whatever a page's script tries.
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Gate:
    """ASGI middleware: 403 for another host's name and for files that are no uploads, 404 for other addresses.

    Args:
        uploads: the folder of uploaded pictures, the only one that files are served from.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], uploads: Path):
        self.app, self.uploads = app, Path(os.path.realpath(uploads))

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        status = 404 if scope["type"] != "http" else self.refusal(scope)
        if not status and scope["path"] == JOIN:
            status, receive = await self.read_question(receive)
        if status:
            await _answer(send, status)
            return

        async def with_headers(message: Scope) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        await self.app(scope, receive, with_headers)

    def refusal(self, scope: Scope) -> int | None:
        """The status that a request is refused with."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        # A page of another site that has its name lead here would read the user's pictures.
        for name in (headers.get("host", ""), headers.get("origin", "")):
            if name and not re.fullmatch(r"(https?://)?(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", name):
                return 403
        if re.fullmatch(r"\d+", length := headers.get("content-length", "")) and int(length) > LARGEST_UPLOAD + 4096:
            return 413
        path = scope["path"]
        if path.startswith(FILE):
            return None if self.is_upload(path.removeprefix(FILE)) else 403
        return None if OPEN.fullmatch(path) else 404

    async def read_question(self, receive: Callable) -> tuple[int | None, Callable]:
        """The status that a question to the page is refused with, and what receives it once more.

        Gradio would copy what an address in it leads to.
        """
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > LARGEST_QUESTION:
                return 413, receive
        try:
            wrong = not all(map(self.is_upload, _paths(json.loads(body or b"null"))))
        except (ValueError, RecursionError):
            wrong = True
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Scope:
            return waiting.pop() if waiting else await receive()

        return (403 if wrong else None), again

    def is_upload(self, name: str) -> bool:
        """Whether a path, decoded or not, is a file in the folder of uploads once all links are followed."""
        for spelt in {name, unquote(name)}:
            if "\0" in spelt or not os.path.isabs(spelt):
                return False
            path = Path(os.path.realpath(spelt))
            if self.uploads not in path.parents or not path.is_file():
                return False
        return True


def _paths(value: Any) -> Iterator[str]:
    """What stands as "path" anywhere in a json value."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield str(value["path"])
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _paths(part)


async def _answer(send: Callable, status: int) -> None:
    words = {403: b"forbidden", 404: b"not found", 413: b"too large"}[status]
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": words})
