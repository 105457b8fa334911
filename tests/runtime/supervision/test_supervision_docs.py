"""The documentation of supervision is held to the code: the example runs, the tables say what is so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import penstock.runtime as runtime
from penstock.runtime import mailbox, supervision

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "reference" / "supervision.md").read_text()


def test_the_example_runs_and_shows_what_its_page_says() -> None:
    example = DOCS / "examples" / "supervision.py"
    run = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() in PAGE


def test_the_program_with_signals_and_a_log_does_what_its_page_says() -> None:
    """It says what its check finds and what happens, stops at a SIGTERM, and ends with 0; the page shows its heart."""
    example = DOCS / "examples" / "service.py"
    heart = example.read_text().partition("    async with trio.open_nursery()")[2].partition("\n\n")[0]
    assert heart in PAGE
    with subprocess.Popen([sys.executable, "-u", example], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stderr is not None
        told = b""
        while b"service is up" not in told:
            told += program.stderr.readline()
        program.terminate()
        out, rest = program.communicate(timeout=60)
    assert program.returncode == 0
    assert b"an ordered stop takes 5 s at the most" in out
    assert b"service stops, children in reverse order" in rest
    assert b"SIGTERM" in rest


@pytest.mark.parametrize("name", runtime.__all__)
def test_each_public_name_is_what_its_module_has_and_stands_on_the_page(name: str) -> None:
    home = mailbox if name in mailbox.__all__ else supervision
    assert getattr(runtime, name) is getattr(home, name)
    assert f"`{name}" in PAGE


def test_all_public_names_of_supervision_and_mailboxes_are_public_here() -> None:
    assert set(runtime.__all__) == {*supervision.__all__, *mailbox.__all__}
    with pytest.raises(AttributeError, match="Tres"):
        runtime.Tres  # noqa: B018 - the access is the test


def test_trio_is_not_loaded_before_it_is_needed() -> None:
    program = (
        "import sys, penstock.runtime; assert 'trio' not in sys.modules; penstock.runtime.Tree; sys.modules['trio']"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    "kind",
    [
        supervision.ChildSpec,
        supervision.Backoff,
        supervision.Intensity,
        supervision.Decay,
        supervision.Rule,
        supervision.Plan,
    ],
)
def test_each_field_stands_on_the_page_with_its_default(kind: type) -> None:
    for field in attrs.fields(kind):
        if not field.init:
            continue
        default = field.default
        if default is attrs.NOTHING:
            said = "required"
        elif field.name == "stop_within":
            said = f"`{supervision.ChildSpec(id='a', body=print).stop_within}`"
        elif isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            said = f"`{default.factory.__name__}()`"
        else:
            said = f"`{getattr(default, 'name', default)}`"
        assert f"| `{field.name}` | {said} |" in PAGE


@pytest.mark.parametrize("kind", list(supervision.LifecycleKind))
def test_each_kind_of_event_stands_on_the_page(kind: supervision.LifecycleKind) -> None:
    assert f"| `{kind.name}` |" in PAGE
