from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import pytest

from penstock.actors.dead_letter import DeadLetter, fingerprint, unpack_fields
from penstock.actors.letter_terms import Reason
from penstock.runtime.masking import mask_text


def _caught(work: Any, *args: Any) -> Exception:
    try:
        work(*args)
    except (ValueError, RuntimeError) as error:
        return error
    raise AssertionError("nothing was raised")


def _charge(order: str) -> None:
    raise ValueError(f"order {order} cannot be paid")


def _refund(order: str) -> None:
    raise ValueError(f"order {order} cannot be paid")


def _descend(depth: int) -> None:
    if depth == 0:
        raise RecursionError("too deep")
    _descend(depth - 1)


def _wrapped(cause: Exception) -> None:
    raise RuntimeError("wrapped") from cause


def _letter(error: BaseException, **facts: Any) -> DeadLetter:
    return DeadLetter.of(
        error,
        stream="orders",
        entry_id="1-0",
        consumer_group="payment",
        consumer="payment-1",
        reason="permanent",
        deliveries=5,
        **{"fields": {}, **facts},
    )


def test_one_fault_has_one_fingerprint_whatever_its_message_says() -> None:
    assert fingerprint(_caught(_charge, "1")) == fingerprint(_caught(_charge, "2"))


def test_another_place_or_class_or_cause_has_another_fingerprint() -> None:
    prints = {
        fingerprint(_caught(_charge, "1")),
        fingerprint(_caught(_refund, "1")),
        fingerprint(_caught(int, "x")),
        fingerprint(_caught(_wrapped, _caught(_charge, "1"))),
        fingerprint(_caught(_wrapped, _caught(_refund, "1"))),
    }
    assert len(prints) == 5


def test_the_depth_of_a_recursion_does_not_matter() -> None:
    assert fingerprint(_caught(_descend, 50)) == fingerprint(_caught(_descend, 60))


def test_a_fingerprint_survives_a_circle_of_causes() -> None:
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert len(fingerprint(one)) == 16


def test_a_letter_tells_the_error() -> None:
    letter = _letter(_caught(_charge, "1"))
    assert letter.reason is Reason.PERMANENT
    assert (letter.error_class, letter.error_message) == ("builtins.ValueError", "order 1 cannot be paid")
    assert letter.traceback is not None
    assert letter.traceback.rstrip().endswith("ValueError: order 1 cannot be paid")


def test_a_letter_is_bounded_and_keeps_the_end_of_its_traceback() -> None:
    letter = _letter(_caught(_charge, "ü" * 20_000))
    assert letter.error_message is not None
    assert letter.traceback is not None
    assert 2000 < len(letter.error_message.encode()) <= 2048
    assert 16_000 < len(letter.traceback.encode()) <= 16 * 1024
    assert letter.traceback.rstrip().endswith("cannot be paid")


def test_an_error_that_quotes_a_huge_input_costs_little_more_than_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is masked in the one thread of the run, at each attempt: what is thrown away afterwards is not searched."""
    searched: list[int] = []

    def counting(text: str) -> str:
        searched.append(len(text))
        return mask_text(text)

    monkeypatch.setattr("penstock.actors.dead_letter.mask_text", counting)
    letter = _letter(_caught(_charge, "a://" * 1_000_000))
    assert sum(searched) < 100_000
    assert letter.traceback is not None
    assert letter.traceback.startswith("…")
    assert letter.traceback.rstrip().endswith("cannot be paid")


def test_a_letter_tells_no_password() -> None:
    letter = _letter(_caught(_charge, "postgresql://me:s3cret@db/x"))
    assert "s3cret" not in f"{letter.error_message}{letter.traceback}"


def test_fields_come_as_bytes_or_text_or_not_at_all() -> None:
    error = ValueError()
    assert _letter(error, fields={b"a": "ü".encode()}).fields == {"a": "ü"}
    assert _letter(error, fields={"a": "ü"}).raw is None
    assert _letter(error, fields=None).fields == {}


def test_fields_that_json_cannot_hold_are_kept_beside_it() -> None:
    letter = _letter(ValueError(), fields={b"a\0": b"\xff", b"b": b"1"})
    assert letter.shown_fields == {"a": "?", "b": "1"}
    assert letter.raw is not None
    back = {name.encode(): text.encode(errors="surrogateescape") for name, text in unpack_fields(letter.raw).items()}
    assert back == {b"a\0": b"\xff", b"b": b"1"}


def test_an_unknown_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="mood"):
        DeadLetter(stream="s", entry_id="1-0", consumer_group="g", consumer="c", reason="mood", fields={}, deliveries=1)


def test_a_letter_says_which_process_gave_up() -> None:
    letter = _letter(ValueError())
    assert (letter.host, letter.pid, letter.version) == (platform.node(), os.getpid(), metadata.version("penstock"))


def test_a_mirror_shows_the_original_s_fields_and_why_it_is_there() -> None:
    letter = _letter(ValueError("no funds"), fields={b"eventId": b"e", b"data": b"\xff"})
    assert letter.mirror_fields == {
        "eventId": "e",
        "data": "\udcff",
        "originalRecordId": "1-0",
        "errorMessage": "no funds",
        "failedAt": letter.dead_at.isoformat(),
    }


def test_a_mirror_says_the_reason_where_no_error_was_raised() -> None:
    letter = DeadLetter(
        stream="s", entry_id="1-0", consumer_group="g", consumer="c", reason="expired", fields={}, deliveries=1
    )
    assert letter.mirror_fields["errorMessage"] == "expired"
