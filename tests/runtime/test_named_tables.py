"""Tables whose names are the user's: ``[streams."order-events".groups.NAME]``."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import field, frozen

from penstock.runtime.settings import SettingsError, above_zero, at_least, describe, load, markdown


@frozen(kw_only=True)
class Worker:
    """Has two keys that must go together.

    Attributes:
        batch: how many.
        least: the least.
        most: the most.
        calls: what it calls, by name.
    """

    batch: int | None = field(default=None, validator=at_least(1))
    least: float = field(default=1.0, validator=above_zero)
    most: float = field(default=10.0)
    calls: dict[str, str] = field(factory=dict)

    @most.validator
    def _not_below_least(self, attribute: object, value: float) -> None:
        if value < self.least:
            raise ValueError("must not be below least")


@frozen(kw_only=True)
class Plant:
    """Has workers.

    Attributes:
        size: how big.
        workers: by name.
    """

    size: int = 1
    workers: dict[str, Worker] = field(factory=dict)


@frozen(kw_only=True)
class All:
    """Everything.

    Attributes:
        zone: a key.
        plants: by name.
    """

    zone: str = "here"
    plants: dict[str, Plant] = field(factory=dict)


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("penstock.toml")


def read(toml: Path, text: str, **environ: str) -> All:
    toml.write_text(text)
    return load(All, file=toml, environ=environ)


def problems(toml: Path, text: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refused:
        read(toml, text, **environ)
    return refused.value.problems


def test_names_are_taken_as_they_are_and_in_their_order(toml: Path) -> None:
    made = read(toml, '[plants."b.1"]\nsize = 2\n[plants.a.workers."{x}"]\nbatch = 5\n')
    assert list(made.plants.items()) == [("b.1", Plant(size=2)), ("a", Plant(workers={"{x}": Worker(batch=5)}))]


def test_a_table_that_is_empty_is_there(toml: Path) -> None:
    assert read(toml, "[plants.a.workers.w]\n").plants == {"a": Plant(workers={"w": Worker()})}
    assert read(toml, "[plants]\n").plants == {}


PROFILES = """
[plants.a]
size = 2
[plants.a.workers.w]
batch = 5
least = 2
calls = { x = "one", y = "two" }

[profile.prod.plants.a.workers.w]
batch = 50
calls = { y = "three" }
[profile.prod.plants.b]
size = 9
"""


def test_a_profile_overrides_key_by_key(toml: Path) -> None:
    dev, prod = read(toml, PROFILES), read(toml, PROFILES, PENSTOCK_PROFILE="prod")
    assert dev.plants == {"a": Plant(size=2, workers={"w": Worker(batch=5, least=2.0, calls={"x": "one", "y": "two"})})}
    worker = Worker(batch=50, least=2.0, calls={"x": "one", "y": "three"})
    assert prod.plants == {"a": Plant(size=2, workers={"w": worker}), "b": Plant(size=9)}


def test_what_is_unknown_is_named_with_its_table_and_the_nearest(toml: Path) -> None:
    assert problems(
        toml,
        '[plants."a b"]\nsze = 1\n[plants."a b".workrs.w]\nx = 1\n[plants.c.workers.w]\nbtch = 1\n'
        "[plants.d]\nbatch = 1\n[profile.prod.plants.e]\nbatch = 1\n",
    ) == (
        'unknown key "sze" in penstock.toml, table [plants."a b"]; did you mean "size"?',
        (
            'unknown table [plants."a b".workrs] in penstock.toml, table [plants."a b"]; '
            'did you mean [plants."a b".workers]?'
        ),
        'unknown key "btch" in penstock.toml, table [plants.c.workers.w]; did you mean "batch"?',
        'unknown key "batch" in penstock.toml, table [plants.d]; it belongs into [plants.d.workers.NAME]',
        (
            'unknown key "batch" in penstock.toml, table [profile.prod.plants.e]; '
            "it belongs into [profile.prod.plants.e.workers.NAME]"
        ),
    )


def test_what_is_no_table_is_said_to_have_to_be_one(toml: Path) -> None:
    assert problems(toml, "plants = 3\n") == ("plants in penstock.toml must be a table, [plants]",)
    assert problems(toml, "[plants]\na = 3\n") == ("a in penstock.toml, table [plants], must be a table, [plants.a]",)


def test_a_wrong_value_is_named_with_its_table(toml: Path) -> None:
    assert problems(toml, '[plants.a.workers.w]\nbatch = 0\nleast = "x"\n[plants.a.workers.v]\nleast = 20\n') == (
        'least in penstock.toml, table [plants.a.workers.w], is "x": must be a number',
        "batch in penstock.toml, table [plants.a.workers.w], is 0: must be 1 or more",
        "plants.a.workers.v.most is 10.0 by default: must not be below least",
    )


def test_they_have_no_variables_and_one_that_seems_to_mean_them_is_told_so(toml: Path) -> None:
    assert problems(toml, "", PENSTOCK_PLANTS_A_SIZE="3") == (
        (
            "unknown environment variable PENSTOCK_PLANTS_A_SIZE; "
            "what is in [plants] is set in the file alone, not by variables"
        ),
    )


def test_they_are_described_once_for_all_names() -> None:
    assert [(each.key, each.env, each.default) for each in describe(All)] == [
        ("zone", "PENSTOCK_ZONE", '"here"'),
        ("plants.NAME.size", "", "1"),
        ("plants.NAME.workers.NAME.batch", "", "not set"),
        ("plants.NAME.workers.NAME.least", "", "1.0"),
        ("plants.NAME.workers.NAME.most", "", "10.0"),
        ("plants.NAME.workers.NAME.calls", "", "{}"),
    ]
    assert "### `[plants.NAME.workers.NAME]`" in markdown(All)
    assert "| `size` | — | a whole number | `1` | how big. |" in markdown(All)
