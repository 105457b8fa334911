"""A new user: builds the wheel, installs it in a fresh environment, drives commands and HTTP as the README says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import STREAM, Installation, access_event, until

ROOT = Path(__file__).parents[2]
SHIPPED = ("runtime", "actors", "http", ".build", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with nothing but the wheel and what it needs."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "build"))
        else:
            shutil.copy(ROOT / name, checkout / name)
    wheels, fresh = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("venv")
    quiet = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(wheels), str(checkout)]
    subprocess.run(build, check=True, env=quiet)
    (wheel,) = wheels.glob("*.whl")
    venv.create(fresh)
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(fresh),
        "install",
        "-q",
        "--no-compile",
        f"{wheel}[embedded]",
    ]
    subprocess.run(install, check=True, env=quiet)
    yield fresh
    shutil.rmtree(fresh)


@pytest.fixture
def user(environment: Path, place: Path) -> Iterator[Installation]:
    made = Installation(place, program=str(environment / "bin" / "penstock"))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.timeout(300)
def test_the_readme_as_a_new_user_follows_it(user: Installation) -> None:
    checked = user.command("check")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("an embedded server will be started") == 2
    assert not (user.directory / ".penstock").exists()

    assert user.start() < 60
    address = f"http://127.0.0.1:{user.port}"
    assert user.get("/")[0] == 200
    checked = user.command("check")
    assert checked.returncode == 0, checked.stderr
    assert user.process is not None
    assert f"pid {user.process.pid}" in checked.stdout
    assert checked.stdout.count("an embedded server is running") == 2
    assert user.get("/admin/api/v1/event/access/categories")[0] == 200

    tree = user.command("tree", "--url", address)
    assert tree.returncode == 0, tree.stderr
    for name in ("event-system", "redis-server", "handler-pool", "listener-1", "http"):
        assert name in tree.stdout
    data = json.loads(user.command("tree", "--json", "--url", address).stdout)
    assert data["tree"]["path"] == "event-system"

    lines = "\n".join(json.dumps(access_event(number)) for number in range(200))
    (user.directory / "events.ndjson").write_text(lines)
    published = user.command("publish", STREAM, "events.ndjson", "--url", address)
    assert published.returncode == 0, published.stderr
    event = json.dumps(access_event("one")["data"])
    published = user.command("publish", STREAM, "--type", "ACCESS", "--data", event, "--url", address)
    assert published.returncode == 0, published.stderr
    until(lambda: user.rows() == 201, 30.0, "201 rows")

    unknown = user.command("publish", "NO_STREAM", "--type", "ACCESS", "--data", "{}", "--url", address)
    assert unknown.returncode != 0
    assert STREAM in unknown.stderr

    assert user.terminate() == 0
    gone = user.command("tree", "--url", address)
    assert gone.returncode != 0
    (line,) = gone.stderr.strip().splitlines()
    assert str(user.port) in line

    user.start()
    assert user.rows() == 201


def test_tail_shows_what_comes(user: Installation) -> None:
    user.start()
    output = user.directory / "tail.txt"
    with output.open("w") as shown:
        command = [user.program, "tail", STREAM, "--url", f"http://127.0.0.1:{user.port}"]
        tail = subprocess.Popen(command, cwd=user.directory, stdout=shown)
    try:
        # It shows what comes after it has begun, and does not say when that is: so publish until it shows.
        def seen() -> bool:
            assert user.post(access_event("tail-marker"))[0] == 202
            return "/load/tail-marker" in output.read_text()

        until(seen, 20.0, "the tail shows the event")
    finally:
        tail.terminate()
        tail.wait(10)
