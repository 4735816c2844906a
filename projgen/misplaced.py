"""Arguments given in the wrong place: those of `build` in a call, those of a call in `build`."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from projgen.errors import quote
from projgen.tree import NormTree

OF_BUILD = ("backend", "threads", "check_finite", "unmatched", "exact", "warm_start")
OF_CALLS = ("y", "radius", "out", "return_info")


def in_call(tree: NormTree, name: str, value: Any) -> str:
    """What to say of an argument of a call that `tree` does not name."""
    if name in OF_BUILD:
        built = f"projgen.build({tree.spec!r}, {name}={_written(name, value)})"
        return f"{quote(name)} is given to projgen.build: p = {built}, then {_call(tree)}"
    if name in OF_CALLS:
        return f"{quote(name)} is an argument of {_call(tree)} alone"
    names = tree.bound_names
    hint = f"it names {', '.join(map(quote, names))}" if names else "it names no array"
    if close := _nearest(name, *names, *OF_CALLS, *OF_BUILD):
        hint += f"; did you mean {quote(close)}{' of projgen.build' * (close in OF_BUILD)}?"
    elif "place" in name.casefold():
        hint += "; in place is out=y"
    return f"{quote(name)} is not named in {tree.spec}: {hint}"


def in_build(tree: NormTree, name: str, value: Any) -> str:
    """What to say of an argument of `build` that it does not have."""
    if name in OF_CALLS or name in tree.bound_names:
        call = _call(tree, **{name: _written(name, value)})
        return (
            f"{quote(name)} is given with the array: p = projgen.build({tree.spec!r}), then {call}"
        )
    return unknown("projgen.build", name, OF_BUILD)


def unknown(call: str, name: str, known: Sequence[str]) -> str:
    """What to say of an argument that `call` does not have: it has those `known`."""
    if name in OF_BUILD:
        return f"{quote(name)} is given to projgen.build, and what that makes stands for the spec"
    close = _nearest(name, *known)
    hint = f"did you mean {quote(close)}?" if close else f"it has {', '.join(map(quote, known))}"
    return f"{call} has no argument {quote(name)}: {hint}"


def _call(tree: NormTree, y: str = "y", radius: str = "radius", **more: str) -> str:
    """The line to write: ``p(y, radius, out=out)``."""
    given = [y] if tree.root.k is not None else [y, radius]
    given += [f"{name}={value}" for name, value in more.items()]
    return f"{'x, info = ' * ('return_info' in more)}p({', '.join(given)})"


def _written(name: str, value: Any) -> str:
    """A plain value as it is written; anything else by the argument's name."""
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else name


def _nearest(name: str, *known: str) -> str | None:
    return next(iter(get_close_matches(name.casefold(), known, n=1)), None)


__all__ = ["OF_BUILD", "OF_CALLS", "in_build", "in_call", "unknown"]
