from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.actors.texts import CUT, cut_bytes, storable

# Everything that Python can hold, half surrogate pairs too.
ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


def test_a_nul_is_left_out() -> None:
    assert storable("a\0b") == "ab"


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    assert storable("a\ud800b") == "a?b"


def test_what_is_cut_says_so() -> None:
    assert storable("abcdef", 4) == "abc" + CUT
    assert storable("abcd", 4) == "abcd"


@given(ANY, st.integers(1, 40))
def test_a_storable_text_fits_its_column_and_is_utf_8(text: str, limit: int) -> None:
    kept = storable(text, limit)
    assert len(kept) <= limit
    assert "\0" not in kept
    kept.encode()
    assert storable(kept, limit) == kept


@given(ANY, st.integers(3, 40), st.booleans())
def test_bytes_are_cut_between_characters(text: str, limit: int, keep_end: bool) -> None:
    kept = cut_bytes(text, limit, keep_end=keep_end)
    assert len(kept.encode()) <= limit
    whole = storable(text)
    if len(whole.encode()) <= limit:
        assert kept == whole
    elif keep_end:
        assert kept.startswith(CUT)
        assert whole.endswith(kept.removeprefix(CUT))
    else:
        assert kept.endswith(CUT)
        assert whole.startswith(kept.removesuffix(CUT))
