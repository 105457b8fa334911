"""Filling a settings class from a TOML file and the environment.

From the weakest to the strongest: the class's defaults, the file's tables, the file's ``[profile.NAME]`` tables, the
environment. Each overrides what is weaker key by key, also below names that are the user's. Whatever cannot be used is
a problem, and all problems are collected before any is reported.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
from attrs import define, evolve, field, frozen

from ..masking import MASK, mask_text, mask_url
from .schema import ENV_PREFIX, Key, Schema, table_name
from .schema import Path as KeyPath
from .values import from_text, structure

__all__ = ["CONTROLS", "ENV_PREFIX", "PROFILES", "SettingsError", "find_file", "load"]

PROFILES = ("dev", "prod")
"""The profiles; the first is the default."""

CONTROLS = ("PENSTOCK_CONFIG", "PENSTOCK_PROFILE", "PENSTOCK_DEBUG")
"""Variables that steer the loading or the command line, and are no settings."""

_FILE_NAME = "penstock.toml"
_PROFILE = ("profile",)

# Kubernetes and Docker links set these in every container that can see a service named "penstock…": nobody's typing
# errors, and no reason to refuse the start. `PENSTOCK_HTTP_PORT=8080` is one: theirs is a URL.
_SERVICE_LINK = re.compile(
    r"PENSTOCK_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)

T = TypeVar("T", bound=attrs.AttrsInstance)


class SettingsError(Exception):
    """Settings that cannot be used.

    Its text is one line: the first problem, and how many more there are. No secret stands in it.

    Attributes:
        problems: every problem, one line each, in the order of file, then environment.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        more = len(self.problems) - 1
        return self.problems[0] + (f" (and {more} more)" if more else "")


def find_file(option: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file to load: the one that was asked for, else ``PENSTOCK_CONFIG``, else ``./penstock.toml`` if there is one.

    Raises:
        SettingsError: a file was asked for, and there is none.
    """
    for asked, who in ((option, "--config"), (environ.get("PENSTOCK_CONFIG") or None, "PENSTOCK_CONFIG")):
        if asked is not None:
            if not Path(asked).exists():  # a pipe will do: --config <(generate)
                raise SettingsError(f"there is no configuration file {asked} (asked for by {who})")
            return Path(asked)
    here = Path(_FILE_NAME)
    return here if here.is_file() else None


def load(cls: type[T], *, file: Path | None, environ: Mapping[str, str]) -> T:
    """An instance of a settings class, filled from the file and the environment.

    A field named ``profile`` at the top gets the name of the chosen profile. Keys and types of both profiles' tables
    are checked, so that a typing error in ``[profile.prod]`` is found before it is deployed. An empty variable counts
    as not set.

    Args:
        cls: an attrs class as the package's docstring describes.
        file: the TOML file, read here (blocking; it is small), or None.
        environ: the environment; only ``PENSTOCK_…`` is looked at.

    Raises:
        SettingsError: the file cannot be read, a key or variable is unknown, a value is wrong.
        TypeError: the class itself is unfit; see `Schema.of`.
    """
    loading = _Loading(Schema.of(cls))
    profile = loading.choose_profile(environ)
    if file is not None:
        loading.take_file(file, profile)
    loading.take_environment(environ)
    settings: T = loading.build((), cls())
    if loading.problems:
        raise SettingsError(*loading.problems)
    return settings


@frozen
class _Place:
    """Where a value stands, for people.

    Attributes:
        file: the file, or None for the environment.
        path: of the file's table; empty for the top.
    """

    file: Path | None
    path: KeyPath = ()

    @property
    def table(self) -> str:
        """The table, as written between its brackets."""
        return _table(self.path)

    def of(self, key: Key) -> str:
        if self.file is None:
            return key.env
        return f"{key.name} in {self}"

    def __str__(self) -> str:
        return f"{self.file}, table [{self.table}]," if self.path else str(self.file)

    def below(self, *names: str) -> _Place:
        return _Place(self.file, (*self.path, *names))


@frozen
class _Found:
    """A value of the right type, and how and where it was written; of a table that the user has named, that it is."""

    value: Any
    written: Any
    place: _Place

    def over(self, weaker: _Found | None) -> _Found:
        """What holds when this was written, and something weaker before it."""
        if weaker is None or self.place.file is None or not isinstance(self.value, dict):
            return self
        return evolve(self, value={**weaker.value, **self.value})


@define
class _Loading:
    """One run of `load`: what was found so far, and what was wrong with it."""

    schema: Schema
    found: dict[KeyPath, _Found] = field(factory=dict)
    problems: list[str] = field(factory=list)

    def choose_profile(self, environ: Mapping[str, str]) -> str:
        name = environ.get("PENSTOCK_PROFILE") or PROFILES[0]
        if name not in PROFILES:
            self.problems.append(f'PENSTOCK_PROFILE is "{name}": must be one of {", ".join(PROFILES)}')
        elif _PROFILE in self.schema.keys:
            self.found[_PROFILE] = _Found(name, name, _Place(None))
        return name

    def take_file(self, file: Path, profile: str) -> None:
        """Take the file's tables, then the chosen profile's; the other profile's are only checked."""
        document = _read(file)
        profiles = document.pop(_PROFILE[0], {})
        self._take(self._from_table(document, (), _Place(file)))
        if not isinstance(profiles, dict):
            self.problems.append(
                f"profile in {file} must be tables, [profile.{PROFILES[0]}]: which one is taken, PENSTOCK_PROFILE says"
            )
            return
        for name, table in profiles.items():
            if name not in PROFILES:
                unknown = f"[{_table((*_PROFILE, name))}]"
                self.problems.append(f"unknown profile {unknown} in {file}; there are {' and '.join(PROFILES)}")
            elif not isinstance(table, dict):
                self.problems.append(f"profile.{name} in {file} must be a table, [profile.{name}]")
            else:
                found = dict(self._from_table(table, (), _Place(file, ("profile", name))))
                if name == profile:
                    self._take(found.items())

    def take_environment(self, environ: Mapping[str, str]) -> None:
        """Take every ``PENSTOCK_…`` variable that is not empty."""
        keys = {key.env: key for key in self.schema.keys.values() if key.env}
        for variable, text in environ.items():
            if not variable.startswith(ENV_PREFIX) or variable in CONTROLS:
                continue
            if key := keys.get(variable):
                if text:
                    self._take(self._typed(key, key.path, text, _Place(None)))
            elif not _SERVICE_LINK.fullmatch(f"{variable}={text}"):
                hint = self._in_file_only(variable) or _did_you_mean(variable, [*keys, *CONTROLS], str)
                self.problems.append(f"unknown environment variable {variable}{hint}")

    def _in_file_only(self, variable: str) -> str:
        """What is to be said of a variable that seems to mean a table whose name is the user's."""
        for path in self.schema.named:
            if variable.startswith(ENV_PREFIX + "_".join(path).upper() + "_"):
                return f"; what is in [{table_name(path)}] is set in the file alone, not by variables"
        return ""

    def _take(self, found: Iterable[tuple[KeyPath, _Found]]) -> None:
        """Note what is stronger than what was noted before."""
        for path, each in found:
            self.found[path] = each.over(self.found.get(path))

    def build(self, path: KeyPath, default: Any) -> Any:
        """The instance for the table at `path`: its default with what was found put in, and validated as a whole."""
        changes = {}
        for attribute in attrs.fields(type(default)):
            below = (*path, attribute.name)
            if self.schema.at(below) in self.schema.tables:
                changes[attribute.name] = self.build(below, getattr(default, attribute.name))
            elif self.schema.at(below) in self.schema.named:
                changes[attribute.name] = self._build_named(below, getattr(default, attribute.name))
            elif below in self.found:
                changes[attribute.name] = self.found[below].value
        try:
            with (
                attrs.validators.disabled()
            ):  # they are run below, one by one: attrs would stop at the first that fails
                instance = attrs.evolve(default, **changes)
        except ValueError as error:
            self._refuse(path, error)
            return default
        for attribute in attrs.fields(type(default)):
            try:
                if attribute.validator is not None:
                    attribute.validator(instance, attribute, getattr(instance, attribute.name))
            except ValueError as error:
                self._refuse((*path, attribute.name), error)
        return instance

    def _build_named(self, path: KeyPath, default: dict[str, Any]) -> dict[str, Any]:
        """The tables whose names are the user's in the table at `path`, in the order in which the file has them."""
        cls = self.schema.named[self.schema.at(path)]
        names = dict.fromkeys([*default, *(found[-1] for found in self.found if found[:-1] == path)])
        return {name: self.build((*path, name), default.get(name) or cls()) for name in names}

    def _refuse(self, path: KeyPath, error: ValueError) -> None:
        """Note what a validator said of the key or table at `path`."""
        key, found = self.schema.keys.get(self.schema.at(path)), self.found.get(path)
        if key is None:
            self.problems.append(f"settings of [{_table(path)}]: {mask_text(str(error))}" if path else str(error))
        elif found is None:  # it does not go with what was set beside it
            self.problems.append(f"{_table(path)} is {_shown(key, key.default)} by default: {error}")
        else:
            self.problems.append(
                f"{found.place.of(key)} is {_shown(key, found.written)}: {_reason(key, error, found.written)}"
            )

    def _from_table(self, table: dict[str, Any], path: KeyPath, place: _Place) -> Iterator[tuple[KeyPath, _Found]]:
        for name, value in table.items():
            below = (*path, name)
            known = self.schema.at(below)
            if (known in self.schema.tables or known in self.schema.named) and isinstance(value, dict):
                if self.schema.at(path) in self.schema.named:
                    yield below, _Found(None, None, place.below(name))  # it is there, also if it is empty
                yield from self._from_table(value, below, place.below(name))
            elif known in self.schema.tables or known in self.schema.named:
                self.problems.append(f"{name} in {place} must be a table, [{place.below(name).table}]")
            elif known in self.schema.keys and below != _PROFILE:
                yield from self._typed(self.schema.keys[known], below, value, place)
            else:
                self.problems.append(self._unknown(name, value, path, place))

    def _typed(self, key: Key, path: KeyPath, written: Any, place: _Place) -> Iterator[tuple[KeyPath, _Found]]:
        """The path and the key's value; nothing but a problem if it is not of the right type."""
        try:
            raw = from_text(key.type, written) if place.file is None else written
            yield path, _Found(structure(key.type, raw), written, place)
        except ValueError as error:
            self.problems.append(f"{place.of(key)} is {_shown(key, written)}: {error}")

    def _unknown(self, name: str, value: Any, path: KeyPath, place: _Place) -> str:
        known = self.schema.in_table(path)
        if isinstance(value, dict):
            what = f"table [{place.below(name).table}]"
            hint = _did_you_mean(name, known, lambda nearest: f"[{place.below(nearest).table}]")
        else:
            what = f'key "{mask_url(name)}"'
            hint = _did_you_mean(name, known, lambda nearest: f'"{nearest}"')
        hint = hint or self._elsewhere(name, path, place) or "; known here: " + ", ".join(known)
        return f"unknown {what} in {str(place).rstrip(',')}{hint}"

    def _elsewhere(self, name: str, path: KeyPath, place: _Place) -> str:
        """Where a key of this name belongs: rather below this table than anywhere else."""
        here = self.schema.at(path)
        found = [key.path[:-1] for key in self.schema.keys.values() if key.name == name]
        below = [each[len(here) :] for each in found if here and each[: len(here)] == here]
        if below:
            return f"; it belongs into [{place.below(*below[0]).table}]"
        return f"; it belongs into [{table_name(found[0])}]" if found else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}") from error


def _table(path: KeyPath) -> str:
    """The table's name as it may be printed: a URL may have come where a name should stand."""
    return mask_url(table_name(path))


def _did_you_mean(name: str, known: list[str], shown: Callable[[str], str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {shown(nearest[0])}?" if nearest else ""


def _shown(key: Key, value: Any) -> str:
    """The value as it may be printed: short, on one line, without secrets."""
    if key.secret:
        return MASK
    text = f'"{mask_url(value)}"' if isinstance(value, str) else mask_url(repr(value))
    text = text if text.isprintable() else text.encode("unicode_escape").decode()
    return text if len(text) <= 80 else text[:77] + "..."


def _reason(key: Key, error: ValueError, found: Any) -> str:
    """Why a value will not do. A foreign validator's text may hold the value, which may be a secret."""
    text = str(error.args[0]) if error.args else "is not valid"
    shown, written = mask_text(text), str(found)
    secret = key.secret or shown != text or mask_url(written) != written
    return "is not valid" if secret and written in text else shown
