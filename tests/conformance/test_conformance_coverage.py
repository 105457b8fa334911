"""Every line of the conformance list has a test, or a decision against it that can be read.

Lines 1 to 112 restate OTP's suite (``test_otp_NNN_…``), 113 to 145 are our own (``test_own_NNN_…``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
DECISIONS = HERE.parent.parent / "docs" / "decisions" / "0006-supervision.md"

LINES = range(1, 146)
LAST_OF_OTP = 112

DECIDED_AGAINST: tuple[int, ...] = ()
"""Lines that Penstock does not follow at all; the page of the decision says of each, as ``line N``, why."""


class Numbered(NamedTuple):
    """A test function: where it stands, what it is called, whose line it is for, its rule."""

    module: str
    name: str
    source: str
    line: int
    rule: str | None

    def __str__(self) -> str:
        return f"{self.module}::{self.name}"


def numbered_below(folder: Path) -> Iterator[Numbered]:
    """All that carry the number of a line; those over the core (``test_core_NNN_…``) only add to another."""
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                match = re.match(r"test_(otp|own)_(\d{3})_\w", node.name)
                if match is not None:
                    yield Numbered(path.name, node.name, match[1], int(match[2]), ast.get_docstring(node))


def misnumbered(tests: list[Numbered]) -> list[str]:
    """Those whose number is none of the list, or one of the list's other half."""
    return [
        str(test)
        for test in tests
        if test.line not in LINES or (test.source == "otp") is not (test.line <= LAST_OF_OTP)
    ]


def undecided(lines: tuple[int, ...], page: str) -> list[int]:
    """Those of which the page does not say why."""
    return [line for line in lines if not re.search(rf"\bline {line}\b", page)]


def test_every_line_of_the_list_has_a_test_or_a_decision_against_it() -> None:
    covered = {test.line for test in numbered_below(HERE)}
    assert [line for line in LINES if line not in covered and line not in DECIDED_AGAINST] == []


def test_every_number_is_one_of_the_list() -> None:
    assert misnumbered(list(numbered_below(HERE))) == []


def test_every_test_of_a_line_states_its_rule() -> None:
    assert [str(test) for test in numbered_below(HERE) if not test.rule] == []


def test_every_decision_against_a_line_can_be_read() -> None:
    assert undecided(DECIDED_AGAINST, DECISIONS.read_text() if DECIDED_AGAINST else "") == []
    assert [line for line in DECIDED_AGAINST if line not in LINES] == []


def test_no_line_is_tested_and_decided_against() -> None:
    assert [str(test) for test in numbered_below(HERE) if test.line in DECIDED_AGAINST] == []


def test_the_reader_of_tests_sees_what_it_must(tmp_path: Path) -> None:
    """The tests above would pass over an empty list as well."""
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "test_a.py").write_text(
        '@mark\nasync def test_otp_001_x() -> None:\n    """Rule."""\n'
        "def test_own_112_y(): ...\n"
        "def test_otp_113_y(): ...\n"
        "class TestZ:\n    def test_own_145_z(self): ...\n"
        "def test_otp_000_y(): ...\n"
        "def test_own_146_y(): ...\n"
        "def test_otp_12_too_short(): ...\n"
        "def test_core_050_only_adds(): ...\n"
        "def test_otp_050(): ...\n"
        "# def test_otp_051_commented_out(): ...\n"
    )
    (tmp_path / "helper.py").write_text("def test_otp_052_not_collected(): ...\n")
    found = list(numbered_below(tmp_path))
    assert sorted(test.line for test in found) == [0, 1, 112, 113, 145, 146]
    assert [test.rule for test in found if test.line == 1] == ["Rule."]
    assert [test.rule for test in found if test.line == 145] == [None]
    assert sorted(misnumbered(found)) == [
        "test_a.py::test_otp_000_y",
        "test_a.py::test_otp_113_y",
        "test_a.py::test_own_112_y",
        "test_a.py::test_own_146_y",
    ]


@pytest.mark.parametrize(
    ("page", "left"), [("", [1, 12]), ("Of line 12: no.", [1]), ("- line 1: no\n- line 120: no", [12])]
)
def test_a_decision_is_found_by_its_whole_number(page: str, left: list[int]) -> None:
    assert undecided((1, 12), page) == left
