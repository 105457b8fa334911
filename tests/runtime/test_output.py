from __future__ import annotations

import enum
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import frozen

from penstock.runtime.output import duration, echo_json, echo_table, table, width
from penstock.runtime.printable import printable, printable_json


def test_columns_are_aligned_numbers_to_the_right_and_no_line_ends_in_blanks() -> None:
    rows = [["EVENT_STREAM", 12, None], ["x", 3400, "ok"]]
    assert table(rows, ["STREAM", "LAG", "STATE"]).split("\n") == [
        "STREAM         LAG  STATE",
        "EVENT_STREAM    12  -",
        "x             3400  ok",
    ]


def test_a_column_that_holds_any_text_is_no_column_of_numbers() -> None:
    assert table([[1], ["many"]], ["N"]) == "N\n1\nmany"
    assert table([[True], [1]], ["N"]) == "N\nyes\n1"


def test_wide_letters_count_two_columns() -> None:
    assert table([["주문", 1], ["abcd", 2]], ["NAME", "N"]) == "NAME  N\n주문  1\nabcd  2"


def test_nothing_in_a_cell_breaks_the_line_or_reaches_the_terminal_as_a_code() -> None:
    assert table([["a\nb\x1b[2J"]], ["X"]) == "X\na\\nb\\x1b[2J"


def test_text_from_outside_stays_on_its_line() -> None:
    assert printable("주문\r\n\x1b[2J\u202e") == "주문\\r\\n\\x1b[2J\\u202e"


def test_json_with_codes_in_it_is_fit_for_a_terminal_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"주문": "\x1b[2J\x7f\x9b2J\u202e\u2028\U000e0001"}
    assert printable_json(json.dumps(value, ensure_ascii=False)) == (
        r'{"주문": "\u001b[2J\u007f\u009b2J\u202e\u2028\udb40\udc01"}'
    )
    echo_json(value)
    said = capsys.readouterr().out
    assert said.rstrip("\n").isprintable()
    assert json.loads(said) == value


def test_a_table_wider_than_its_room_is_folded_between_words_and_keeps_its_names_and_numbers_whole() -> None:
    rows = [["redis.url 127.0.0.1:7001", 5461, "master, 5461 slots; it keeps each write"], ["settings", 3, "fine"]]
    assert table(rows, ["what", "n", "found"], within=50).split("\n") == [
        "what                         n  found",
        "redis.url 127.0.0.1:7001  5461  master, 5461",
        "                                slots; it keeps",
        "                                each write",
        "settings                     3  fine",
    ]
    assert table(rows, ["what", "n", "found"], within=200) == table(rows, ["what", "n", "found"])


def test_a_word_that_has_no_room_is_cut_a_list_after_its_commas() -> None:
    nodes = "10.0.0.1:7001,10.0.0.2:7002,10.0.0.3:7003"
    assert table([["", nodes]], ["", "nodes"], within=32).split("\n")[1:] == [
        "  10.0.0.1:7001,10.0.0.2:7002,",
        "  10.0.0.3:7003",
    ]
    folded = table([["", "주" * 20]], ["", "word"], within=4).split("\n")
    assert [width(line.strip()) for line in folded[1:]] == [16, 16, 8]


def test_a_width_is_what_a_terminal_shows() -> None:
    assert [width(text) for text in ("abc", "주문", "e\u0301", "")] == [3, 4, 1, 0]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.0123, "0.012 s"),
        (8.13, "8.1 s"),
        (9.99, "10 s"),
        (12.9, "12 s"),
        (99.9, "99 s"),
        (185, "3 min 05 s"),
        (7440, "2 h 04 min"),
        (356_400, "99 h 00 min"),
    ],
)
def test_a_duration_has_the_digits_that_matter(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_without_rows_there_are_the_headers(capsys: pytest.CaptureFixture[str]) -> None:
    echo_table([], ["STREAM", "LAG"])
    assert capsys.readouterr().out == "STREAM  LAG\n"


def test_a_row_of_the_wrong_length_is_a_mistake_in_code() -> None:
    with pytest.raises(ValueError, match="row"):
        table([[1, 2]], ["A"])


def test_json_is_one_line_and_knows_our_types(capsys: pytest.CaptureFixture[str]) -> None:
    class Colour(enum.Enum):
        RED = "red"

    @frozen
    class Inner:
        colours: tuple[Colour, ...]

    @frozen
    class Outer:
        inner: Inner
        when: datetime
        where: Path

    echo_json(Outer(Inner((Colour.RED,)), datetime(2026, 1, 2, tzinfo=UTC), Path("주문")))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "주문" in out
    assert json.loads(out) == {"inner": {"colours": ["red"]}, "when": "2026-01-02T00:00:00+00:00", "where": "주문"}
