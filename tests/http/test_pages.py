"""Static pages of a system's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quart import Blueprint

from penstock.actors.system import System
from penstock.http.pages import pages
from penstock.http.routes import RunningSystem, routes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "dashboard"
    (made / "deep").mkdir(parents=True)
    (made / ".git").mkdir()
    (made / "index.html").write_text("<!doctype html><script src=app.js></script>")
    (made / "app.js").write_text("'주문'")
    (made / "deep" / "photo.png").write_bytes(b"\x89PNG")
    (made / ".git" / "config").write_text("secret")
    (tmp_path / "shop.py").write_text("secret")
    return made


async def test_files_are_served_with_their_types(make_app: Any, deployment: Any, folder: Path) -> None:
    pages(deployment.system, "/dashboard", folder)
    client = make_app().test_client()
    for name, content_type in (
        ("", "text/html; charset=utf-8"),
        ("index.html", "text/html; charset=utf-8"),
        ("app.js", "text/javascript; charset=utf-8"),
        ("deep/photo.png", "image/png"),
    ):
        answer = await client.get(f"/dashboard/{name}")
        assert (answer.status_code, answer.content_type) == (200, content_type)
        assert answer.headers["Cache-Control"] == "no-cache"
        assert await answer.get_data(as_text=False) == (folder / (name or "index.html")).read_bytes()
        again = await client.get(f"/dashboard/{name}", headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status_code == 304
        assert (await client.head(f"/dashboard/{name}")).status_code == 200


@pytest.mark.parametrize(
    "name", ["nope.js", ".git/config", "../shop.py", "%2e%2e/shop.py", "deep", "deep/", "/app.js", "app.js/", "%00"]
)
async def test_nothing_else_is(make_app: Any, deployment: Any, folder: Path, name: str) -> None:
    pages(deployment.system, "/dashboard", folder)
    assert (await make_app().test_client().get(f"/dashboard/{name}")).status_code == 404


async def test_the_path_without_its_slash_leads_to_the_page(make_app: Any, deployment: Any, folder: Path) -> None:
    pages(deployment.system, "/v1.2/dashboard", folder)
    answer = await make_app().test_client().get("/v1.2/dashboard?of=today")
    assert (answer.status_code, answer.headers["Location"]) == (308, "/v1.2/dashboard/?of=today")


async def test_a_path_that_is_taken_is_an_error(make_app: Any, deployment: Any, folder: Path) -> None:
    pages(deployment.system, "/static", folder)
    pages(deployment.system, "/static", folder)
    with pytest.raises(ValueError, match="/static"):
        make_app()


@pytest.mark.parametrize("at", ["dashboard", "/dashboard/", "/", "", "/<name>"])
def test_pages_have_a_path(folder: Path, at: str) -> None:
    with pytest.raises(ValueError, match="below a path"):
        pages(System("shop"), at, folder)


def test_a_folder_that_is_none_is_told_at_once(folder: Path) -> None:
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        pages(System("shop"), "/dashboard", folder / "nope")


async def test_a_blueprint_serves_files_too(make_app: Any, deployment: Any, folder: Path) -> None:
    @routes(deployment.system)
    def large(_: RunningSystem) -> Blueprint:
        return Blueprint("large", __name__, static_folder=str(folder), static_url_path="/files")

    client = make_app().test_client()
    answer = await client.get("/files/app.js", headers={"Range": "bytes=0-0"})
    assert (answer.status_code, await answer.get_data()) == (206, b"'")
    assert "max-age=0" in answer.headers["Cache-Control"]
    assert (await client.get("/files/../shop.py")).status_code == 404
