"""From what stands in a file or a variable to a value of the right type, strictly: nothing is guessed.

cattrs does the structuring. Its own hooks for the plain types convert (``int("7")``, ``bool("false")`` is true), so
here they are replaced by checks.
"""

from __future__ import annotations

import enum
import math
import tomllib
import typing
from pathlib import Path
from typing import Any

import cattrs

from .schema import without_none

__all__ = ["expected", "from_text", "structure"]

_COLLECTIONS = (list, tuple, set, frozenset)
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def structure(kind: Any, value: Any) -> Any:
    """The value as this type. A list of one text may stand without its brackets.

    Raises:
        ValueError: it is no such value; the text is what it must be, and does not hold the value.
    """
    base = without_none(kind)
    if typing.get_origin(base) in _COLLECTIONS and not isinstance(value, list):
        if not isinstance(value, str) or typing.get_args(base)[:1] != (str,):
            raise ValueError(f"must be {expected(kind)}")
        value = [value]  # cattrs would take the text for a list of letters
    try:
        return _converter.structure(value, kind)
    except cattrs.BaseValidationError as error:  # from a table or list: says what is wrong where in it
        raise ValueError(f"must be {expected(kind)} ({'; '.join(cattrs.transform_error(error))})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"must be {expected(kind)}") from None


def from_text(kind: Any, text: str) -> Any:
    """What the text of an environment variable would be in the file.

    Numbers and truth values are read as such, lists are divided at commas, and what has no plain form is written as in
    TOML.

    Raises:
        ValueError: it cannot be read as this type; the text is what it must be.
    """
    base = without_none(kind)
    try:
        if base is bool:
            return _truth(text)
        if base in (int, float):
            return base(text)
        if typing.get_origin(base) in _COLLECTIONS and not text.lstrip().startswith("["):
            return [part.strip() for part in text.split(",") if part.strip()]
        if base in (str, Path) or _is_literal(base) or _is_enum(base):
            return text
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # TOMLDecodeError is one
        raise ValueError(f"must be {expected(kind)}") from None


def expected(kind: Any) -> str:
    """A type in words: ``a number``, ``one of debug, info``, ``a list of text``."""
    base = without_none(kind)
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    if base in plain:
        return plain[base]
    arguments = typing.get_args(base)
    if _is_literal(base):
        return "one of " + ", ".join(str(option) for option in arguments)
    if _is_enum(base):
        return "one of " + ", ".join(str(option.value) for option in base)
    if typing.get_origin(base) in _COLLECTIONS:
        return f"a list of {expected(arguments[0])}" if arguments else "a list"
    return "a table" if typing.get_origin(base) is dict else str(getattr(base, "__name__", base))


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _truth(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE + _FALSE:
        raise ValueError
    return word in _TRUE


def _exactly(kind: type) -> typing.Callable[[Any, Any], Any]:
    def check(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"must be {expected(kind)}")
        return value

    return check


def _one_of(value: Any, kind: Any) -> Any:
    if not any(type(value) is type(option) and value == option for option in typing.get_args(kind)):
        raise ValueError(f"must be {expected(kind)}")
    return value


def _number(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError(f"must be {expected(float)}")
    return float(value)


def _path(value: Any, _: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be {expected(Path)}")
    return Path(value).expanduser()


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, int, str):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_func(_is_literal, _one_of)
    return converter


_converter = _make_converter()
