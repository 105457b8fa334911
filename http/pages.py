"""Static pages of a system's own.

    pages(system, "/dashboard", Path(__file__).parent / "dashboard")

The content security policy of every answer forbids scripts and styles inside of the HTML, and whatever is fetched from
elsewhere: put them in files beside it.
"""

from __future__ import annotations

from pathlib import Path

from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import NotFound

from ..actors.system import System
from .files import File
from .routes import routes
from .running import RunningSystem

__all__ = ["pages"]

INDEX = "index.html"


def pages(system: System, at: str, folder: Path) -> None:
    """Serve the files of `folder`, and of the folders in it, below the path `at`; ``at/`` is its ``index.html``.

    They are read when the front end starts, and held in memory: large files are better served by a route of your own,
    and a change is seen after a restart. Files and folders whose names begin with a dot are left out. Browsers ask
    each time, and are sent only what has changed.

    Raises:
        ValueError: `at` is no path such as ``/dashboard``.
        NotADirectoryError: there is no such folder.
    """
    if not at.startswith("/") or at.endswith("/") or "<" in at:
        raise ValueError(f'pages are served below a path such as "/dashboard", not {at!r}')
    if not folder.is_dir():
        raise NotADirectoryError(f"there is no folder {folder}")

    @routes(system)
    def made(_: RunningSystem) -> Blueprint:
        return _blueprint(at, _read(folder))


def _blueprint(at: str, files: dict[str, File]) -> Blueprint:
    made = Blueprint(f"pages at {at}".replace(".", "_"), __name__, url_prefix=at)

    @made.get("/")
    async def get_index() -> TrioResponse:
        if not request.path.endswith("/"):  # what the page links to would be looked for beside it, not below
            query = request.query_string.decode("latin1")
            return TrioResponse("", 308, headers={"Location": f"{request.path}/{query and '?'}{query}"})
        return await _found(files, INDEX).send()

    @made.get("/<path:name>")
    async def get_file(name: str) -> TrioResponse:
        return await _found(files, name).send()

    return made


def _found(files: dict[str, File], name: str) -> File:
    if name not in files:
        raise NotFound
    return files[name]


def _read(folder: Path) -> dict[str, File]:
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    shown = {name: path for name, path in paths.items() if not any(part.startswith(".") for part in name.parts)}
    return {name.as_posix(): File.read(path) for name, path in shown.items()}
