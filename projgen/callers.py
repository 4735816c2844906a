"""Whose line a warning is about."""

from __future__ import annotations

import sys


def outside(*packages: str) -> int:
    """The ``stacklevel`` with which the caller warns at the line that called `packages`.

    That is the nearest frame beneath the caller's that is in none of these top-level packages.
    Code without a module, as templates are once they are loaded, counts as theirs.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back and _package(frame.f_globals.get("__name__")) in (None, *packages):
        level, frame = level + 1, frame.f_back
    return level


def _package(module: str | None) -> str | None:
    return module and module.partition(".")[0]


__all__ = ["outside"]
