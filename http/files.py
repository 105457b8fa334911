"""Files that are read once and served from memory."""

from __future__ import annotations

import mimetypes
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Self

from attrs import frozen
from quart import request
from quart_trio.wrappers import TrioResponse

__all__ = ["File"]

_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".woff2": "font/woff2",
}
"""Those that every machine has to know alike: browsers are told not to guess."""


@frozen
class File:
    """One file.

    Attributes:
        content: all of it.
        content_type: by its name.
        etag: another one for another content.
    """

    content: bytes
    content_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it now; blocks, and raises OSError."""
        content = path.read_bytes()
        return cls(content, _type_of(path), sha256(content).hexdigest()[:16])

    async def send(self) -> TrioResponse:
        """The answer. Always asked for again, and not sent again unless it changed: an update is seen at once."""
        response = TrioResponse(self.content, content_type=self.content_type)
        response.headers["Cache-Control"] = "no-cache"
        response.set_etag(self.etag)
        await response.make_conditional(request)
        return response


def _type_of(path: PurePath) -> str:
    found = _TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"{found}; charset=utf-8" if found.startswith("text/") else found
