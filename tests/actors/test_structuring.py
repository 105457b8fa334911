"""What the data of an event may be, and what they may not."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from attrs import field, frozen

from penstock.actors.event import JSON_CODEC, Envelope, InvalidEvent, event, event_type_of


@frozen
class Line:
    number: int


@event("ORDER")
@frozen
class Order:
    price: Decimal = Decimal(0)
    quantity: int = 1
    discount: float | None = None
    is_gift: bool = False
    tags: list[str] = field(factory=list)
    codes: set[str] | None = None
    lines: Sequence[Line] = ()
    pair: tuple[int, str] = (1, "a")
    by_day: dict[str, list[int]] = field(factory=dict)


DECLARED = event_type_of(Order)


@pytest.mark.parametrize(
    "data",
    [
        {"tags": "abc"},
        {"tags": {"abc": 1}},
        {"codes": "abc"},
        {"lines": "abc"},
        {"pair": "1a"},
        {"byDay": {"monday": "12"}},
    ],
)
def test_a_string_is_no_list_of_its_letters(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent, match="expected"):
        DECLARED.structure(data)


def test_lists_are_lists() -> None:
    data = {"tags": ["a"], "codes": ["b"], "lines": [{"number": 3}], "pair": [2, "c"], "byDay": {"monday": [1]}}
    made = DECLARED.structure(data)
    assert (made.tags, made.codes, list(made.lines), made.pair) == (["a"], {"b"}, [Line(3)], (2, "c"))
    assert DECLARED.structure(DECLARED.unstructure(made)) == made


@pytest.mark.parametrize("price", ["1_0", " 1", "\uff11", "NaN", "Infinity", "0x1", "", "1e", float("inf"), True])
def test_what_is_no_decimal_number_is_refused(price: Any) -> None:
    with pytest.raises(InvalidEvent, match=r"price: .*(decimal number|Decimal)"):
        DECLARED.structure({"price": price})


@pytest.mark.parametrize("price", ["1e131072", "1e-16384", "1e999999999", "1e99999999999999999999999"])
def test_a_decimal_that_postgresql_cannot_store_is_refused(price: str) -> None:
    with pytest.raises(InvalidEvent, match="more digits than PostgreSQL stores"):
        DECLARED.structure({"price": price})


@pytest.mark.parametrize("price", ["1e131071", "1e-16383", "-0.50", "+7", ".5", "5.", 12, 0.1, 1e30])
def test_other_decimals_are_taken_as_they_are_written(price: Any) -> None:
    assert DECLARED.structure({"price": price}).price == Decimal(str(price))


def test_the_texts_of_a_query_are_numbers_where_the_event_has_them() -> None:
    texts = {"price": "1.50", "quantity": "-3", "discount": "1e-1", "isGift": "true", "tags": "a", "other": "7"}
    read = {**texts, "quantity": -3, "discount": 0.1, "isGift": True}
    assert DECLARED.read_texts(texts) == read
    assert DECLARED.read_texts({"isGift": "false"}) == {"isGift": False}


@pytest.mark.parametrize(
    "texts",
    [
        {"quantity": "1_0"},
        {"quantity": "3.0"},
        {"quantity": "\uff19"},
        {"quantity": "9" * 5000},
        {"discount": "nan"},
        {"discount": "1e999"},
        {"isGift": "True"},
        {"isGift": "1"},
        {"isGift": ""},
    ],
)
def test_other_texts_are_none(texts: dict[str, str]) -> None:
    assert DECLARED.read_texts(texts) == texts
    with pytest.raises(InvalidEvent, match="expected"):
        DECLARED.structure(texts)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), {1, 2}])
def test_what_json_cannot_hold_is_not_written(value: Any) -> None:
    with pytest.raises(InvalidEvent, match="data: cannot be written as JSON"):
        JSON_CODEC.encode(Envelope(event_type="ORDER", data={"lines": [value]}))
