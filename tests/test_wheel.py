from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("runtime", "actors", "http")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build needs, copied, so that nothing of earlier builds gets in, and nothing of this one stays."""
    there = tmp_path_factory.mktemp("checkout")
    for name in (*FLOORS, ".build"):
        shutil.copytree(ROOT / name, there / name, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, there / name)
    return there


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    there = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(there), str(checkout)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (built,) = there.glob("penstock-*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_file_of_the_three_floors_and_nothing_else(
    checkout: Path, wheel: zipfile.ZipFile
) -> None:
    """Migrations, pages and `py.typed` included."""
    files = (path for floor in FLOORS for path in (checkout / floor).rglob("*") if path.is_file())
    expected = {f"penstock/{path.relative_to(checkout)}" for path in files}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_the_wheel_carries_the_licence(wheel: zipfile.ZipFile) -> None:
    (licence,) = (name for name in wheel.namelist() if name.endswith("/licenses/LICENSE"))
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_a_build_leaves_nothing_in_the_top_level(checkout: Path, wheel: zipfile.ZipFile) -> None:
    left = {path.name for path in checkout.iterdir()}
    assert left == {*FLOORS, ".build", "pyproject.toml", "README.md", "LICENSE"}
