"""The page: four files and an icon, read once, served from memory."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from attrs import frozen
from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse

__all__ = ["page"]

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "delivery.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@frozen
class _File:
    content: bytes
    content_type: str
    etag: str


def page() -> Blueprint:
    """``/`` and the files that it needs."""
    routes = Blueprint("page", __name__)
    files = {name: _load(name) for name in _TYPES}

    @routes.get("/")
    async def get_page() -> TrioResponse:
        return await _send(files["index.html"])

    @routes.get("/static/<any('page.css','page.js','delivery.js','icon.svg'):name>")
    async def get_static_file(name: str) -> TrioResponse:
        return await _send(files[name])

    return routes


def _load(name: str) -> _File:
    content = (_FOLDER / name).read_bytes()
    return _File(content, _TYPES[name], sha256(content).hexdigest()[:16])


async def _send(file: _File) -> TrioResponse:
    """Always asked for again, and not sent again unless it changed: an update is seen at the next look."""
    response = TrioResponse(file.content, content_type=file.content_type)
    response.headers["Cache-Control"] = "no-cache"
    response.set_etag(file.etag)
    await response.make_conditional(request)
    return response
