"""What keys a settings class has: their tables, variables, types and defaults.

A field of the type ``dict[str, X]``, X a settings class, is a table of *named* tables, whose names are the user's:
``[streams."order-events"]``. In the paths here each of these names is `ANY`. They have no environment variables, for
`PENSTOCK_STREAMS_A_B_MAX_LEN` could be a key of the stream ``a.b``, ``a-b`` or ``A_b``.
"""

from __future__ import annotations

import functools
import re
import types
import typing
from typing import Any

import attrs
from attrs import field, frozen

from ..masking import is_secret_key

__all__ = ["ANY", "ENV_PREFIX", "Key", "Path", "Schema", "table_name", "without_none"]

ANY = "*"
"""A name that is the user's."""

ENV_PREFIX = "PENSTOCK_"
"""What every environment variable of ours begins with."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")

Path = tuple[str, ...]
"""Where a key or a table stands, from the top: ``("redis", "url")``."""


@frozen
class Key:
    """One setting.

    Attributes:
        path: where it stands.
        env: its environment variable; empty below a table of named tables.
        type: its type, with ``| None`` where it may be left out.
        default: what holds when nobody sets it.
        attribute: the attrs field behind it.
    """

    path: Path
    env: str
    type: Any
    default: Any = field(repr=False)
    attribute: attrs.Attribute[Any] = field(repr=False)

    @property
    def name(self) -> str:
        """Its last part, as it stands in the file."""
        return self.path[-1]

    @property
    def secret(self) -> bool:
        """Whether its value must not be shown at all; URLs are shown, without their password."""
        return bool(self.attribute.metadata.get("secret")) or is_secret_key(self.name)


@frozen
class Schema:
    """All keys and tables of a settings class.

    Attributes:
        keys: every key by its path, in the order of declaration.
        tables: the class of every table by its path; the top is ``()``.
        named: the class of the tables in each table of named tables, by its path.
    """

    keys: dict[Path, Key]
    tables: dict[Path, type]
    named: dict[Path, type]

    @staticmethod
    @functools.cache
    def of(cls: type) -> Schema:
        """The schema of an attrs class all of whose fields have defaults.

        Raises:
            TypeError: it is none, or two of its keys have the same environment variable. Both are mistakes in code.
        """
        schema = Schema(keys={}, tables={}, named={})
        schema._add_table((), cls, _default_instance(cls))
        variables: dict[str, Path] = {}
        for path, key in schema.keys.items():
            if not key.env:
                continue
            other = variables.setdefault(key.env, path)
            if other != path:
                raise TypeError(f"{cls.__name__}: {'.'.join(other)} and {'.'.join(path)} are both {key.env}")
        return schema

    def at(self, path: Path) -> Path:
        """Where the class has what stands at `path` in a file: with `ANY` for each name that is the user's."""
        known: Path = ()
        for name in path:
            known = (*known, ANY if known in self.named else name)
        return known

    def in_table(self, path: Path) -> list[str]:
        """The names that may stand in the table at `path` of a file: keys first, then the tables below."""
        path = self.at(path)
        keys = [key[-1] for key in self.keys if key[:-1] == path]
        tables = [*self.tables, *self.named]
        return keys + [table[-1] for table in tables if table and table[:-1] == path and table[-1] != ANY]

    def _add_table(self, path: Path, cls: type, instance: Any) -> None:
        self.tables[path] = cls
        hints = typing.get_type_hints(cls)
        for attribute in attrs.fields(cls):
            below, default = (*path, attribute.name), getattr(instance, attribute.name)
            if attrs.has(hints[attribute.name]):
                self._add_table(below, hints[attribute.name], default)
            elif (named := _named(hints[attribute.name])) is not None:
                self.named[below] = named
                self._add_table((*below, ANY), named, _default_instance(named))
            else:
                env = "" if ANY in below else ENV_PREFIX + "_".join(below).upper()
                self.keys[below] = Key(below, env, hints[attribute.name], default, attribute)


def table_name(path: Path) -> str:
    """A table's name as it stands between brackets in a file, quoted where TOML wants that; `ANY` is ``NAME``."""
    return ".".join("NAME" if name == ANY else name if _BARE.fullmatch(name) else _quoted(name) for name in path)


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if escaped.isprintable() else f'"{escaped.encode("unicode_escape").decode()}"'


def _named(kind: Any) -> type | None:
    """``X`` of ``dict[str, X]`` where X is a settings class."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is dict and arguments[0] is str and attrs.has(arguments[1]):
        found: type = arguments[1]
        return found
    return None


def without_none(kind: Any) -> Any:
    """``X`` of ``X | None``; every other type as it is."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [each for each in typing.get_args(kind) if each is not types.NoneType]
        if len(rest) == 1:
            return rest[0]
    return kind


def _default_instance(cls: type) -> Any:
    if not attrs.has(cls):
        raise TypeError(f"{cls.__name__} is no attrs class")
    try:
        return cls()
    except TypeError as error:
        raise TypeError(f"{cls.__name__}: every field of a settings class needs a default: {error}") from error
