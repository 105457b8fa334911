"""How the data of events become objects of their classes, and back: strictly, and with the names of JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

__all__ = ["camel", "converter", "scalars", "value_of"]

_TRUTH: Final = re.compile("true|false")
_WHOLE: Final = re.compile(r"-?\d+", re.ASCII)
_LONGEST_NUMBER: Final = 400
"""Characters of a number in a query; Python reads thousands, slowly."""

_DECIMAL: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_BEFORE_POINT: Final = 131_072
_BEHIND_POINT: Final = 16_383
"""The digits of a ``numeric`` in PostgreSQL. More would fail there, and a few bytes could ask for a billion of them."""
_TOO_LONG: Final = "has more digits than PostgreSQL stores"


def camel(name: str) -> str:
    """The name in JSON of an attribute."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


@cache
def scalars(cls: type) -> dict[str, type]:
    """The attributes that are numbers or truth values, also optional ones, by their names in JSON."""
    hints = get_type_hints(cls)
    found: dict[str, type] = {}
    for each in attrs.fields(cls):
        hint = hints.get(each.name)
        kinds = set(get_args(hint)) - {type(None)} if get_origin(hint) in (Union, UnionType) else {hint}
        found |= {camel(each.name): kind for kind in (bool, int, float) if kinds == {kind}}
    return found


def value_of(text: str, kind: type) -> Any:
    """The value of that kind which a text of a query is; the text itself if it is none."""
    pattern = _TRUTH if kind is bool else _WHOLE if kind is int else _DECIMAL
    if pattern.fullmatch(text) is None or len(text) > _LONGEST_NUMBER:
        return text
    value = text == "true" if kind is bool else kind(text)
    return value if math.isfinite(value) else text


def _make_converter() -> cattrs.Converter:
    made = cattrs.Converter(forbid_extra_keys=False)

    def renames(cls: type) -> dict[str, Any]:
        return {each.name: override(rename=camel(each.name)) for each in attrs.fields(cls)}

    made.register_structure_hook_factory(attrs.has, lambda cls: make_dict_structure_fn(cls, made, **renames(cls)))
    made.register_unstructure_hook_factory(attrs.has, lambda cls: make_dict_unstructure_fn(cls, made, **renames(cls)))
    for cls, parse in ((datetime, datetime.fromisoformat), (date, date.fromisoformat), (UUID, UUID)):
        made.register_structure_hook(cls, lambda value, _, parse=parse: parse(_text(value)))
        made.register_unstructure_hook(cls, str if cls is UUID else lambda value: value.isoformat())
    # Strict scalars: cattrs would turn 7 into "7" and "x" into an error that names no type.
    made.register_structure_hook(str, lambda value, _: _text(value))
    made.register_structure_hook(bool, lambda value, _: _exactly(value, bool))
    made.register_structure_hook(int, lambda value, _: _number(value, int))
    made.register_structure_hook(float, lambda value, _: _number(value, float))
    _refuse_what_only_looks_like_a_list(made)
    # As text, which every JSON reader leaves as it is; a number is taken, too, as it is written.
    made.register_structure_hook(Decimal, lambda value, _: _decimal(value))
    made.register_unstructure_hook(Decimal, str)
    return made


def _refuse_what_only_looks_like_a_list(made: cattrs.Converter) -> None:
    """A string, or an object, can be gone through like a list; cattrs would make one of its letters, or names."""
    making: set[Any] = set()

    def is_meant(cls: Any) -> bool:
        origin = get_origin(cls) or cls
        return isinstance(origin, type) and issubclass(origin, Sequence | Set) and not issubclass(origin, str | bytes)

    def factory(cls: Any) -> Callable[[Any, Any], Any]:
        making.add(cls)
        try:
            inside = made.get_structure_hook(cls, cache_result=False)
        finally:
            making.discard(cls)

        def structure(value: Any, _: Any) -> Any:
            if isinstance(value, str | bytes | Mapping):
                raise TypeError(f"expected a list, got {type(value).__name__}")
            return inside(value, cls)

        return structure

    made.register_structure_hook_factory(lambda cls: is_meant(cls) and cls not in making, factory)


def _text(value: Any) -> str:
    return str(_exactly(value, str))


def _exactly(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise TypeError(f"expected a decimal number, got {type(value).__name__}")
    text = str(value)
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError("is no decimal number")
    try:
        number = Decimal(text)
    except InvalidOperation:  # an exponent with twenty digits
        raise ValueError(_TOO_LONG) from None
    if number.adjusted() >= _BEFORE_POINT or -int(number.as_tuple().exponent) > _BEHIND_POINT:
        raise ValueError(_TOO_LONG)
    if isinstance(value, float) and number != Decimal(float.__repr__(value)):
        # Whoever reads JSON keeps how it was written (`str`); but on its way the number would be a float.
        raise ValueError("has more digits than a JSON number keeps; give it as a string")
    return number


def _number(value: Any, kind: type[int] | type[float]) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return kind(value)


converter: cattrs.Converter = _make_converter()
"""The converter of all event data; register your own hooks on it."""
