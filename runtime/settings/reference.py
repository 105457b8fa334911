"""The reference of a settings class, taken from the class itself, so that the documented numbers are the real ones."""

from __future__ import annotations

import inspect
import re
from typing import Any

from attrs import frozen

from .schema import Schema, table_name, without_none
from .values import expected

__all__ = ["SettingDoc", "describe", "markdown"]

_ENTRY = re.compile(r"    (\w+): (.*)")


@frozen
class SettingDoc:
    """One setting, as it is documented.

    Attributes:
        key: its name with its tables, ``redis.connect_timeout``; ``NAME`` stands for a name that is the user's.
        env: its environment variable; empty if it has none.
        type: its type in words, ``a number``.
        default: its default as it would stand in the file; ``not set`` for None.
        doc: its line of the class's ``Attributes:`` block.
    """

    key: str
    env: str
    type: str
    default: str
    doc: str


def describe(cls: type) -> list[SettingDoc]:
    """Every setting of a settings class, in the order of declaration.

    Raises:
        TypeError: the class is unfit, or a field has no line in its class's ``Attributes:`` block.
    """
    schema = Schema.of(cls)
    lines = {path: _attribute_docs(table) for path, table in schema.tables.items()}
    found = []
    for path, key in schema.keys.items():
        doc = lines[path[:-1]].get(key.name)
        if doc is None:
            raise TypeError(f"{schema.tables[path[:-1]].__name__}.{key.name} has no line under Attributes:")
        optional = " or nothing" if without_none(key.type) is not key.type and key.default is not None else ""
        found.append(SettingDoc(table_name(path), key.env, expected(key.type) + optional, _written(key.default), doc))
    return found


def markdown(cls: type) -> str:
    """The settings as Markdown tables, one for each table of the file; ends with a newline."""
    parts: dict[str, list[str]] = {}
    for setting in describe(cls):
        table, _, name = setting.key.rpartition(".")
        rows = parts.setdefault(table, [])
        doc = setting.doc.replace("|", "\\|")
        variable = f"`{setting.env}`" if setting.env else "—"
        rows.append(f"| `{name}` | {variable} | {setting.type} | `{setting.default}` | {doc} |")
    head = "| key | variable | type | default | meaning |\n|---|---|---|---|---|\n"
    sections = []
    for table, rows in parts.items():
        title = f"### `[{table}]`" if table else "### Top of the file"
        sections.append(f"{title}\n\n{head}" + "\n".join(rows) + "\n")
    return "\n".join(sections)


def _written(default: Any) -> str:
    if default is None:
        return "not set"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        return repr(default)
    if isinstance(default, list | tuple | set | frozenset):
        return "[" + ", ".join(_written(item) for item in default) + "]"
    if isinstance(default, dict):
        return "{" + ", ".join(f"{name} = {_written(item)}" for name, item in default.items()) + "}"
    return f'"{getattr(default, "value", default)}"'


def _attribute_docs(cls: type) -> dict[str, str]:
    """What the ``Attributes:`` blocks of a class and its bases say of each name, joined to one line each."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _attributes_block(inspect.cleandoc(base.__doc__ or ""))
    return found


def _attributes_block(doc: str) -> dict[str, str]:
    _, _, block = doc.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        if entry := _ENTRY.fullmatch(line):
            name = entry[1]
            found[name] = entry[2]
        elif line.startswith("        ") and name:
            found[name] += " " + line.strip()
        elif line.strip():
            break
    return found
