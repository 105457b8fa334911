"""Hiding secrets in what an access event keeps of a request and its answer.

It works on text, not on parsed values: a body may be cut in the middle, be broken JSON, be many lines of JSON, or hold
JSON as a string inside JSON, and must come out safe all the same. Everything here is pure, takes time linear in the
text, and errs on the side of hiding.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from urllib.parse import parse_qsl

from ..runtime.masking import MASK, is_secret_key, mask_text

__all__ = ["is_secret", "redact_pairs", "redact_text"]

# With case, dashes and blanks taken out, for `ACCESSTOKEN` and `card_number` alike.
_SECRET_ENDINGS = (
    "accesskey",
    "apikey",
    "authorization",
    "cardno",
    "cardnumber",
    "cookie",
    "creditcard",
    "credential",
    "credentials",
    "iban",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "pwd",
    "secret",
    "sessionid",
    "token",
)
_SECRET_NAMES = frozenset({"auth", "cvc", "cvv", "otp", "pan", "pass", "pin", "pw", "ssn"})
_NO_LETTER_OR_DIGIT = re.compile(r"[^a-z0-9]+")

# A key with its colon. It may stand inside a JSON string, where every quote has backslashes before it. The lengths are
# bounded so that a search through quotes that are no keys stays linear.
_KEY = re.compile(
    r"""(?<!\\)(?P<quote>\\{0,15}")(?P<key>(?:[^"\\]|\\[^"]){1,128}?)(?<!\\)(?P=quote)\s{0,64}:\s{0,64}""",
    re.DOTALL,
)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+\\?"?', re.DOTALL)
_PLAIN = re.compile(r'[^,}\]\s"\\]*')
_BRACKETS_AND_STRINGS = re.compile(r'[{}\[\]]|"(?:[^"\\]|\\.)*+\\?"?', re.DOTALL)


def is_secret(key: str) -> bool:
    """Whether a value under this key is to be hidden, in whatever case or joining it is written."""
    return _is_secret_name(key) if len(key) <= _NAME_LIMIT else _is_secret(key)


def _is_secret(key: str) -> bool:
    if is_secret_key(key):
        return True
    compact = _NO_LETTER_OR_DIGIT.sub("", key.lower())
    return compact in _SECRET_NAMES or compact.endswith(_SECRET_ENDINGS)


# The same few names come with every request. What is longer is no name, and must not fill the memory.
_NAME_LIMIT = 64
_is_secret_name = lru_cache(1024)(_is_secret)


def redact_text(text: str) -> str:
    """`text` with the values of secret JSON members replaced by ``"***"``, and what `mask_text` hides, hidden.

    A value that does not end, because the text was cut, is hidden to the end. NULs, which UTF-16 puts between the
    letters of a key, come out.
    """
    text = text.replace("\0", "")
    parts: list[str] = []
    position = 0
    while found := _KEY.search(text, position):
        value = found.end()
        parts.append(text[position:value])
        position = value
        if is_secret(_unescape(found["key"])):
            position = _end_of_value(text, value, found["quote"])
            parts.append(f"{found['quote']}{MASK}{found['quote']}")
    parts.append(text[position:])
    return mask_text("".join(parts))


def redact_pairs(text: str) -> dict[str, str | list[str]]:
    """The pairs of a query or an urlencoded form, secrets hidden; a name that occurs more than once has a list.

    The names are redacted as text too: ``curl -d`` calls whatever it sends a form, also JSON.
    """
    pairs: dict[str, str | list[str]] = {}
    for name, value in parse_qsl(text, keep_blank_values=True, errors="replace"):
        shown = MASK if is_secret(name) and value else redact_text(value)
        name = redact_text(name)
        before = pairs.get(name)
        if before is None:
            pairs[name] = shown
        elif isinstance(before, list):
            before.append(shown)
        else:
            pairs[name] = [before, shown]
    return pairs


def _unescape(key: str) -> str:
    """The key itself; deep inside strings, escapes are escaped themselves."""
    for _ in range(4):
        if "\\" not in key:
            break
        try:
            key = str(json.loads(f'"{key}"'))
        except ValueError:
            break
    return key


def _end_of_value(text: str, start: int, quote: str) -> int:
    """Where the value that begins at `start` ends; `quote` is how quotes look at this level."""
    if text.startswith(quote, start):
        return _end_of_string(text, start, quote)
    if text.startswith(("{", "["), start):
        return _end_of_brackets(text, start) if quote == '"' else len(text)
    plain = _PLAIN.match(text, start)
    return plain.end() if plain is not None else start


def _end_of_string(text: str, start: int, quote: str) -> int:
    if quote == '"':
        string = _STRING.match(text, start)
        return string.end() if string is not None else len(text)
    closing = re.compile(r"(?<!\\)" + re.escape(quote)).search(text, start + len(quote))
    return closing.end() if closing is not None else len(text)


def _end_of_brackets(text: str, start: int) -> int:
    depth = 0
    for found in _BRACKETS_AND_STRINGS.finditer(text, start):
        if found[0] in "{[":
            depth += 1
        elif found[0] in "}]":
            depth -= 1
            if depth == 0:
                return found.end()
    return len(text)
