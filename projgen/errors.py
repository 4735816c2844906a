"""What is wrong with a spec, and a caret under every place that takes part in it.

A span carries its text along, so every stage can point into the spec. Nobody else draws carets.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LINE = 72  # characters; a longer spec is shown in windows around its carets
_CONTEXT = 24  # characters on each side of a window's caret
_DRAWN = 4  # spans; more would hide the problem
_GAP = "..."


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `start` to `stop` (exclusive) of `text`; ``str()`` gives just those."""

    text: str
    start: int
    stop: int

    def __str__(self) -> str:
        return self.text[self.start : self.stop]


class SpecError(ValueError):
    """A spec that cannot be used, alone or with the array at hand.

    ``message`` says what is wrong, ``spans`` are the places (possibly none) and ``hint``, if not
    None, is the way out. ``str()`` puts the three together, with carets.
    """

    def __init__(self, message: str, *spans: Span, hint: str | None = None) -> None:
        super().__init__(message, *spans)
        self.message = message
        self.spans = spans
        self.hint = hint

    def __str__(self) -> str:
        drawings = [
            _draw(text, [span for span in self.spans if span.text == text][:_DRAWN])
            for text in dict.fromkeys(span.text for span in self.spans)
        ]
        return "\n".join([self.message, *drawings, *filter(None, [self.hint])])


def quote(text: str, limit: int = 40) -> str:
    """`text` between quotes, on one line, shortened and with nothing invisible in it."""
    shown = text if len(text) <= limit else text[: limit - len(_GAP)] + _GAP
    mark = '"' if "'" in shown else "'"
    return mark + "".join(map(_visible, shown)) + mark


def _visible(char: str) -> str:
    """How one character is shown: each takes its own columns, and none can move the others."""
    if char in "\t\r\n":
        return " "
    # A combining mark has no column of its own for a caret, so it is spelled out, like controls.
    if char.isprintable() and not unicodedata.category(char).startswith("M"):
        return char
    return ascii(char)[1:-1]


def _width(shown: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in shown)


def _draw(text: str, spans: Sequence[Span]) -> str:
    """The text and, beneath it, the carets. An empty span points between two characters."""
    marks = [range(span.start, max(span.stop, span.start + 1)) for span in spans]
    line = carets = ""
    end = 0
    for window in _windows(len(text), marks):
        if window.start > end:
            line += _GAP
            carets += ("^" if any(end in mark for mark in marks) else " ") * len(_GAP)
        for position in window:
            shown = _visible(text[position]) if position < len(text) else " "
            line += shown
            carets += ("^" if any(position in mark for mark in marks) else " ") * _width(shown)
        end = window.stop
    if end < len(text):
        line += _GAP
    return f"  {line.rstrip()}\n  {carets.rstrip()}"


def _windows(length: int, marks: Sequence[range]) -> Iterator[range]:
    """The parts of a text to show; one position past its end counts as a part of it."""
    if length <= _LINE:
        yield range(length + 1)
        return
    start = stop = 0
    for end in sorted(end for mark in marks for end in (mark.start, mark.stop - 1)):
        if end - _CONTEXT > stop + len(_GAP):
            if stop:
                yield range(start, stop)
            start = end - _CONTEXT
        stop = min(end + _CONTEXT, length) + 1
    yield range(start, stop)


class CacheWarning(RuntimeWarning):
    """The kernel cache could not be used as it should; results are right, but slower to get."""
