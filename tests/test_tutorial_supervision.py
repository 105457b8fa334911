"""The tutorial of supervision, and the page on virtual time, say what is so."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from penstock.runtime import testing

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS / "examples"
TUTORIAL = (DOCS / "tutorial-supervision.md").read_text()
HOW_TO = (DOCS / "how-to" / "test-in-virtual-time.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TUTORIAL, flags=re.M | re.S)


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=EXAMPLES, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_its_program_prints_what_the_page_says() -> None:
    assert f"```text\n{run('weather.py')}```" in TUTORIAL


def test_its_tests_pass_without_a_plugin() -> None:
    plain = ("-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-p", "no:trio")
    assert "5 passed" in run("-m", "pytest", "-q", *plain, "test_weather.py")


def test_its_code_stands_in_its_files() -> None:
    files = [(EXAMPLES / name).read_text() for name in ("weather.py", "test_weather.py")]
    assert len(BLOCKS) == 8
    # Methods, and parts of them, stand on the page without their indentation.
    shown = [[indent(block, "    " * depth) for depth in range(3)] for block in BLOCKS]
    assert [each[0] for each in shown if not any(text in file for text in each for file in files)] == []


@pytest.mark.parametrize("name", testing.__all__)
def test_each_public_name_stands_on_the_page_of_virtual_time(name: str) -> None:
    assert re.search(rf"[`@ ]{name}\b", HOW_TO)
    assert inspect.getdoc(getattr(testing, name)), f"{name} has no docstring"


def test_the_numbers_on_the_page_are_the_defaults() -> None:
    for function in (testing.run_virtual, testing.virtual_time):
        parameters = inspect.signature(function).parameters
        assert (parameters["limit"].default, parameters["watchdog"].default) == (30 * testing.DAY, 60.0)
    parameters = inspect.signature(testing.cut_everywhere).parameters
    assert "seed=0, first=1, every=1, most=10_000" in HOW_TO
    assert [parameters[name].default for name in ("seed", "first", "every", "most")] == [0, 1, 1, 10_000]


def test_the_harness_is_loaded_without_pytest_and_what_else_tests_need() -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(("pytest", "hypothesis", "fakeredis")))  # importing one of them fails
import penstock.runtime.testing
"""
    run("-c", program)
