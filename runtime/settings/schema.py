"""What keys a settings class has: their tables, variables, types and defaults."""

from __future__ import annotations

import functools
import types
import typing
from typing import Any

import attrs
from attrs import field, frozen

from ..masking import is_secret_key

__all__ = ["ENV_PREFIX", "Key", "Path", "Schema", "without_none"]

ENV_PREFIX = "PENSTOCK_"
"""What every environment variable of ours begins with."""

Path = tuple[str, ...]
"""Where a key or a table stands, from the top: ``("redis", "url")``."""


@frozen
class Key:
    """One setting.

    Attributes:
        path: where it stands.
        env: its environment variable.
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
    """

    keys: dict[Path, Key]
    tables: dict[Path, type]

    @staticmethod
    @functools.cache
    def of(cls: type) -> Schema:
        """The schema of an attrs class all of whose fields have defaults.

        Raises:
            TypeError: it is none, or two of its keys have the same environment variable. Both are mistakes in code.
        """
        schema = Schema(keys={}, tables={})
        schema._add_table((), cls, _default_instance(cls))
        variables: dict[str, Path] = {}
        for path, key in schema.keys.items():
            other = variables.setdefault(key.env, path)
            if other != path:
                raise TypeError(f"{cls.__name__}: {'.'.join(other)} and {'.'.join(path)} are both {key.env}")
        return schema

    def in_table(self, path: Path) -> list[str]:
        """The names that may stand in the table at `path`: keys first, then the tables below."""
        keys = [key[-1] for key in self.keys if key[:-1] == path]
        return keys + [table[-1] for table in self.tables if table and table[:-1] == path]

    def _add_table(self, path: Path, cls: type, instance: Any) -> None:
        self.tables[path] = cls
        hints = typing.get_type_hints(cls)
        for attribute in attrs.fields(cls):
            below, default = (*path, attribute.name), getattr(instance, attribute.name)
            if attrs.has(hints[attribute.name]):
                self._add_table(below, hints[attribute.name], default)
            else:
                env = ENV_PREFIX + "_".join(below).upper()
                self.keys[below] = Key(below, env, hints[attribute.name], default, attribute)


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
