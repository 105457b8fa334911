"""The page: four files and an icon."""

from __future__ import annotations

from pathlib import Path

from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from .files import File

__all__ = ["page"]

_FOLDER = Path(__file__).parent / "static"
_NAMES = ("index.html", "page.css", "page.js", "delivery.js", "icon.svg")


def page() -> Blueprint:
    """``/`` and the files that it needs."""
    routes = Blueprint("page", __name__)
    files = {name: File.read(_FOLDER / name) for name in _NAMES}

    @routes.get("/")
    async def get_page() -> TrioResponse:
        return await files["index.html"].send()

    @routes.get("/static/<any('page.css','page.js','delivery.js','icon.svg'):name>")
    async def get_static_file(name: str) -> TrioResponse:
        return await files[name].send()

    return routes
