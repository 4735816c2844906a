"""What the commands draw with: colour, line drawing or ASCII, numbers for people, progress."""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TextIO

WIDTH = 80
TIMES = "\N{MULTIPLICATION SIGN}"
LEVEL_COLOURS = ("cyan", "magenta", "yellow", "green", "blue")

_CODES = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34",
    "magenta": "35", "cyan": "36",
}  # fmt: skip
# Each is replaced by one character, so that columns stay where they are.
_ASCII = str.maketrans(f"─│├└█▌░▒▓·…✓µ{TIMES}", "-||`#-.:%.~+ux")


class Terminal:
    """A stream, and what it can show.

    Colours are for terminals, unless ``NO_COLOR`` is set or ``TERM`` is dumb; ``FORCE_COLOR``
    wants them everywhere. Line drawing needs an encoding that has it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.colour = _wants_colour(stream)
        self.unicode = _encodes(stream, "".join(map(chr, _ASCII)))

    def paint(self, text: str, *styles: str) -> str:
        """`text` in colour, where there is colour. Pad it first: escapes have no width."""
        if not (self.colour and styles and text):
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def level(self, index: int, text: str) -> str:
        """`text` in the colour that a level of the tree has everywhere."""
        return self.paint(text, LEVEL_COLOURS[index % len(LEVEL_COLOURS)]) if index >= 0 else text

    @property
    def width(self) -> int:
        """How many columns to use: as a terminal has, if they are not too many; else a page's."""
        if not self.stream.isatty():
            return WIDTH
        return max(36, min(shutil.get_terminal_size((WIDTH, 24)).columns, 120))

    def heading(self, title: str, note: str = "", width: int = WIDTH) -> str:
        """A line as wide as a page, with a title at its beginning and a note at its end."""
        rule = "─" * (width - len(title) - len(note) - 5 - bool(note))
        return (
            self.paint("── ", "dim")
            + self.paint(title, "bold")
            + self.paint(f" {rule}{' ' if note else ''}{note}", "dim")
        )

    def write(self, *lines: str) -> None:
        """The lines, with a line end after each, in characters that the stream has."""
        for line in lines:
            line = line if self.unicode else line.translate(_ASCII)
            encoding = self.stream.encoding or "utf-8"
            line = line.encode(encoding, "backslashreplace").decode(encoding)
            self.stream.write(line.rstrip() + "\n")


def _wants_colour(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _encodes(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """While the body runs: `label` and the seconds so far on stderr, if that is a terminal.

    The body may tell how many of how many things are done.
    """
    count = ""

    def tell(ready: int, total: int) -> None:
        nonlocal count
        count = f" {ready} of {total},"

    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield tell
        return
    dots = "…" if _encodes(sys.stderr, "…") else "..."
    started, done = perf_counter(), threading.Event()
    room = WIDTH - 30
    label = label if len(label) < room else label[: room - 3] + dots

    def tick() -> None:
        while not done.wait(0.1):
            sys.stderr.write(f"\r{label} {dots}{count} {perf_counter() - started:.1f} s")
            sys.stderr.flush()

    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    try:
        yield tell
    finally:
        done.set()
        clock.join()
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def format_bytes(size: float) -> str:
    """``4.0 MB``: in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"


_UNITS = {"s": 1.0, "ms": 1e3, "µs": 1e6}


def time_unit(seconds: float) -> str:
    """The unit that suits a time best."""
    return next((unit for unit in ("s", "ms") if seconds * _UNITS[unit] >= 0.1), "µs")


def format_seconds(seconds: float, unit: str = "") -> str:
    """``1.90 s``, ``0.147 ms``, ``3.50 µs``: three digits, in `unit` or the one that suits."""
    unit = unit or time_unit(seconds)
    value = seconds * _UNITS[unit]
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{min(digits, 5)}f} {unit}"


def format_count(count: int, noun: str) -> str:
    """``1 group``, ``1,000 groups``."""
    return f"{count:,} {noun if count == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    for end, plural in {"ch": "ches", "ry": "ries", "us": "i"}.items():
        if noun.endswith(end):
            return noun.removesuffix(end) + plural
    return f"{noun}s"


def format_shape(shape: Sequence[int]) -> str:
    """The extents with a multiplication sign between them."""
    return f" {TIMES} ".join(f"{extent:,}" for extent in shape) or "a number"


def format_ranges(indices: Sequence[int], width: int) -> str:
    """Ascending indices in at most about `width` characters: ``0-3, 7, 9-12 … 40 more``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], index]
        else:
            runs.append([index])
    text, shown = "", 0
    for run in runs:
        piece = (", " if text else "") + "-".join(map(str, run))
        if len(text) + len(piece) > width:
            return f"{text} … {len(indices) - shown:,} more"
        text += piece
        shown += run[-1] - run[0] + 1
    return text
