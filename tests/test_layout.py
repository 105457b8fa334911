"""The layout that the customer fixed, the three floors, and what keeps the folder mapping working."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("runtime", "actors", "http")
"""From the lowest up: a floor may import from itself and from those before it."""

TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", *FLOORS, "compose", "tests", "docs"}


def modules() -> list[Path]:
    return [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def package_of(module: Path) -> tuple[str, ...]:
    """``("penstock", "runtime", "redis")`` for a module or an ``__init__`` in runtime/redis."""
    return ("penstock", *module.relative_to(ROOT).parent.parts)


def imported(module: Path) -> Iterator[tuple[int, str]]:
    """Every module that a module imports, as an absolute name, with its line; also imports inside of functions."""
    package = package_of(module)
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, name
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)


def test_the_arrows_between_the_floors_run_only_downwards() -> None:
    wrong = []
    for module in modules():
        floor = module.relative_to(ROOT).parts[0]
        above = {f"penstock.{each}" for each in FLOORS[FLOORS.index(floor) + 1 :]}
        wrong += [
            f"{module.relative_to(ROOT)}:{line} imports {name}"
            for line, name in imported(module)
            if ".".join(name.split(".")[:2]) in above
        ]
    assert wrong == []


def test_imports_within_the_distribution_are_relative_and_stay_in_it() -> None:
    wrong = []
    for module in modules():
        depth = len(package_of(module))
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if node.level == 0 else []
                if node.level > depth:
                    wrong.append(f"{module.relative_to(ROOT)}:{node.lineno} leaves the three floors")
            if any(name.split(".")[0] in ("penstock", "runtime", "actors") for name in names):
                wrong.append(f"{module.relative_to(ROOT)}:{node.lineno} imports {names} absolutely")
    assert wrong == []


def test_the_reader_of_imports_sees_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two tests above would pass over an empty list as well."""
    module = tmp_path / "runtime" / "redis" / "link.py"
    module.parent.mkdir(parents=True)
    module.write_text("import trio.testing\nfrom ..settings import load\ndef f():\n    from ...http import app\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert list(imported(module)) == [
        (1, "trio.testing"),
        (2, "penstock.runtime.settings"),
        (2, "penstock.runtime.settings.load"),
        (4, "penstock.http"),
        (4, "penstock.http.app"),
    ]


@pytest.mark.parametrize("how", [["-c"], ["-I", "-c"], ["-P", "-c"]])
def test_python_started_in_the_root_finds_the_standard_library_s_http(how: list[str]) -> None:
    program = "import http.client, http; print(http.client.HTTPConnection.__name__, http.__file__)"
    done = subprocess.run([sys.executable, *how, program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("HTTPConnection ")
    assert str(ROOT / "http") not in done.stdout


def test_http_has_no_init_module() -> None:
    assert not (ROOT / "http" / "__init__.py").exists()


def test_the_top_level_holds_what_was_agreed_and_nothing_else() -> None:
    """Tracked files in a clone; whatever is there in an unpacked archive."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    else:
        names = {path.name for path in ROOT.iterdir()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def shipped() -> Iterator[Path]:
    """Every file below the floors, relative to the root."""
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT)


def test_every_folder_is_listed_for_the_wheel() -> None:
    """A list is what setuptools leaves us with mapped folders; a folder missing here is missing in the wheel only."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(("penstock", *path.parent.parts)) for path in shipped()}
    assert set(listed) - {"penstock.http.static"} == found - {"penstock.http.static"}


def test_every_dependency_has_its_reason_with_the_range_it_really_has() -> None:
    page = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text()
    rows = re.findall(r"^\| ([a-z][^|]*) \| ([^|]*) \| [^|]+ \| \w+ \|$", page, re.MULTILINE)
    stated = [name.strip() + bounds.strip(" `") for name, bounds in rows if name != "package"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["embedded"], *extras["publisher"], *extras["test"]]
    assert stated == [each for each in required if not each.startswith("penstock[")]  # those are ourselves


@pytest.mark.parametrize("floor", FLOORS)
def test_each_floor_tells_type_checkers_that_it_is_typed(floor: str) -> None:
    assert (ROOT / floor / "py.typed").is_file()


@pytest.mark.parametrize("floor", FLOORS)
def test_the_type_checker_s_tree_leads_to_the_folders(floor: str) -> None:
    assert (ROOT / ".typing" / "penstock" / floor).resolve() == ROOT / floor


def test_test_modules_have_names_of_their_own() -> None:
    """`conftest` apart: a name that stands twice makes reports and `-k` ambiguous."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
