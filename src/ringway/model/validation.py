"""What texts have to be like, and msgspec's refusals in a person's words.

msgspec quotes the pattern that a text does not match. Nobody should have to read one: each pattern is made
here, with words for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import Meta

_MAX_SHOWN: Final = 80
_words: Final[dict[str, str]] = {}


def text(pattern: str, words: str, *, max_length: int | None = None) -> Meta:
    """Say what a text has to be like, from its first character to its last.

    :param words: the same for a person, behind "has to be".
    """
    # msgspec looks for the pattern anywhere, and a line end may follow what $ matches.
    whole = rf"^(?:{pattern})$(?!\n)"
    _words[repr(whole)] = words
    return Meta(pattern=whole, description=words, max_length=max_length)


def reason(error: Exception, given: object = None) -> str:
    """Say what msgspec found wrong: ``luns[0].target is 256, and has to be at most 255``.

    :param error: of decoding or conversion; its own words are kept where there are no others.
    :param given: what was converted; its value at the place is shown then.
    """
    found, _, place = str(error).partition(" - at `$")
    path = place.rstrip("`").removeprefix(".")
    for pattern, say in _SENTENCES:
        if match := re.fullmatch(pattern, found, re.DOTALL):
            return say(path, _shown(path, given), match)
    return str(error).replace("`", "'")


def _has_to(words: Callable[[re.Match[str]], str]) -> Callable[[str, str | None, re.Match[str]], str]:
    def say(path: str, shown: str | None, match: re.Match[str]) -> str:
        subject = path or "it"
        return f"{subject} {'' if shown is None else f'is {shown}, and '}has to be {words(match)}"

    return say


def _within(path: str) -> str:
    return f" in {path}" if path else ""


_KINDS: Final = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


def _kind(names: str) -> str:
    return " or ".join(_KINDS.get(name, name) for name in names.split(" | "))


def _like(pattern: str) -> str:
    return _words.get(pattern, f"like {pattern}")


_SENTENCES: Final[Sequence[tuple[str, Callable[[str, str | None, re.Match[str]], str]]]] = (
    (r"Expected `str` matching regex (.+)", _has_to(lambda match: _like(match[1]))),
    (r"Expected `str` of length <= (\d+)", _has_to(lambda match: f"of {match[1]} characters at most")),
    (r"Expected `array` of length <= (\d+)", _has_to(lambda match: f"of {match[1]} entries at most")),
    (r"Expected `\w+` >= ([^ ]+)", _has_to(lambda match: f"{match[1]} at least")),
    (r"Expected `\w+` <= ([^ ]+)", _has_to(lambda match: f"{match[1]} at most")),
    (r"Expected `\w+` > ([^ ]+)", _has_to(lambda match: f"more than {match[1]}")),
    (r"Expected `([^`]+)`, got `[^`]+`", _has_to(lambda match: _kind(match[1]))),
    (r"Invalid enum value (.+)", lambda path, _, match: f"{path or 'it'} cannot be {match[1]}"),
    (
        r"Object missing required field `(.+)`",
        lambda path, _, match: f"field '{match[1]}' is missing{_within(path)}",
    ),
    (
        r"Object contains unknown field `(.+)`",
        lambda path, _, match: f"unknown field '{match[1]}'{_within(path)}",
    ),
)


def _shown(path: str, given: object) -> str | None:
    """The value at a path, as it is shown; ``None``: it cannot be told."""
    value: Any = given
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", path):
        if name and isinstance(value, Mapping):
            value = value.get(name)
        elif index.isdigit() and isinstance(value, Sequence) and int(index) < len(value):
            value = value[int(index)]
        else:
            return None
    return repr(value)[:_MAX_SHOWN] if isinstance(value, str | int | float) else None
