"""What each norm's macros in ``templates/cpu/group_pulls`` read and make: a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """What the macros of a norm read and make, by the names that they have there.

    ``gathered`` are the arrays that the first sweep reads, ``sums`` what it sums of a group, and
    ``asks`` what it has to know of the group: its radius u, its value v. ``shared`` are the arrays
    that the second sweep reads, ``known`` what it has to know of the group. ``by`` is what that is
    worked out of; ``slope`` what the gradient of the radius is, beside u and v. ``rising``: what
    comes to it in a level to whose values something rises.
    """

    shared: str
    known: tuple[str, ...]
    gathered: str = ""
    sums: tuple[str, ...] = ()
    asks: str = ""
    by: tuple[str, ...] = ("v", "u")
    slope: tuple[str, ...] = ()
    rising: Rule | None = None


_BOTH = ("total", "square")
RULES: Mapping[str, Rule] = {
    "l1": Rule(
        "xg",
        ("floor", "drop"),
        gathered="xg",
        sums=_BOTH,
        by=("v", "u", *_BOTH),
        slope=_BOTH,
        rising=Rule("y", ("lift",), by=("rise",)),
    ),
    "l2": Rule(
        "yg",
        ("scale", "tilt"),
        gathered="yg",
        sums=("total",),
        by=("v", "u", "total"),
        slope=("total",),
        rising=Rule("", (), by=("rise",)),
    ),
    "l2 with weights": Rule(
        "yxg",
        ("shrink", "tilt"),
        gathered="yxg",
        sums=(*_BOTH, "lost", "steep"),
        asks="u",
        by=("v", "u", *_BOTH, "lost", "steep"),
        slope=_BOTH,
        rising=Rule("", ("lift",), by=("rise",)),
    ),
    "linf": Rule(
        "yg",
        ("limit",),
        gathered="yg",
        sums=("total",),
        asks="u",
        slope=("total",),
        rising=Rule("", ("top", "lift"), sums=("tie",), asks="v", by=("tie", "rise")),
    ),
    "lp": Rule(
        "yxg",
        ("bare", "size", "drop"),
        gathered="yxg",
        sums=_BOTH,
        asks="u",
        by=("v", "u", *_BOTH),
        slope=_BOTH,
        rising=Rule("", ("top", "lift"), by=("rise",)),
    ),
    "l0": Rule("xg", ("floor",)),
    "simplex": Rule(
        "xg",
        ("floor", "drop"),
        gathered="xg",
        sums=("total", "count"),
        by=("u", "total", "count"),
        slope=("total", "count"),
    ),
}

__all__ = ["RULES", "Rule"]
