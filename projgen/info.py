"""What a projection did, in numbers: what ``p(y, radius, return_info=True)`` returns beside x."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from projgen import measure
from projgen.arrays import Array
from projgen.terminal import format_count, format_shape

Numbers = Any  # a number, or an array of numbers over the batch axes

_THRESHOLDS = {
    "l1": "subtracted from the values of l1",
    "l2": "a factor of the values of l2",
    "linf": "where the values of linf are clipped",
}


@dataclass(frozen=True, slots=True, eq=False)
class LevelInfo:
    """One level of the tree: which of its groups are not all zero.

    ``groups`` is how many groups the level has in a batch entry: one at the root, and elsewhere
    as many as there are values of the levels above, without those of labels that no place has.
    ``active`` of them have an entry that is not
    zero, ``active_before`` had one before. Of a pattern, all arrays that it matches count.
    ``name`` is the node's name or pattern in the spec, if it has one.

    Where there is one array beneath the level, ``alive`` is a bool for each group, over the
    array's axes ``along``: those that neither this level nor one beneath it reduces (the batch's
    among them; one that is cut into blocks or by labels stands for their numbers). ``filled``
    likewise: false for a number that is no place's label, and so no group. Elsewhere all are None.
    """

    norm: str
    name: str
    groups: int
    active: Numbers
    active_before: Numbers
    along: tuple[int, ...] | None
    alive: Array | None = field(repr=False)
    filled: Array | None = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class ArrayInfo:
    """One array: ``nonzero`` of the ``entries`` of a batch entry are not zero.

    ``distance`` is the Euclidean distance that it moved, ``largest_change`` that of the entry that
    changed most. ``name`` is empty where the tree has one array only.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    entries: int
    nonzero: Numbers
    nonzero_before: Numbers
    distance: Numbers
    largest_change: Numbers


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Info:
    """What a projection did. ``print`` it.

    Numbers are floats and ints, or NumPy arrays over the batch axes if there are any, whatever
    kind of array was projected.

    Attributes:
        spec: the canonical spec.
        radius: that of the ball.
        norm_before: the tree's norm of y: infinite if it is beyond float64.
        norm_after: that of the result, which rounding may put a little above the radius.
        threshold: what the root's values met. ``l1``: what was subtracted from each (times its
            weight), down to 0 at least. ``l2``: the factor that all were multiplied by. ``linf``:
            what they were clipped at (times their weights). For y inside the ball 0, 1 and inf.
            NaN for other norms, and for ``l2`` with weights, which have no such number. The root's
            values are the magnitudes of y where the root is the leaf, else the norms of the groups
            beneath it.
        distance: the Euclidean distance from y to the result, over all arrays.
        levels: the levels, in the order of ``tree.levels``.
        arrays: the arrays, in the tree's order.
    """

    spec: str
    radius: Numbers
    norm_before: Numbers
    norm_after: Numbers
    threshold: Numbers
    distance: Numbers
    levels: tuple[LevelInfo, ...]
    arrays: tuple[ArrayInfo, ...]

    @property
    def active(self) -> tuple[Numbers, ...]:
        """How many groups of each level are not all zero, root first; see `LevelInfo`."""
        return tuple(level.active for level in self.levels)

    @property
    def sparsity(self) -> Numbers:
        """The fraction of entries that are zero, over all arrays; 0 where there are none."""
        entries = sum(array.entries for array in self.arrays)
        nonzero = sum(array.nonzero for array in self.arrays)
        return 1 - nonzero / entries if entries else 0.0 * nonzero

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it, without the masks; infinities are floats."""
        return {**_plain(self), "sparsity": _plain(self.sparsity)}

    def __repr__(self) -> str:
        return (
            f"<projgen.Info of {self.spec}: norm {numbers(self.norm_before)} -> "
            f"{numbers(self.norm_after)}, {percent(self.sparsity)} zero>"
        )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        batch = np.size(self.norm_before)
        each = f"; {format_count(batch, 'projection')}" if np.ndim(self.norm_before) else ""
        yield f"{self.spec}, radius {numbers(self.radius)}{each}"
        yield f"  norm       {numbers(self.norm_after)}, was {numbers(self.norm_before)}"
        if np.all(self.threshold == measure.INSIDE.get(self.levels[0].norm)):
            yield "  threshold  none: inside the ball"
        elif not np.all(np.isnan(self.threshold)):
            yield f"  threshold  {numbers(self.threshold)}, {_THRESHOLDS[self.levels[0].norm]}"
        yield f"  distance   {numbers(self.distance)}"
        for level in self.levels[0 if batch > 1 else 1 :]:
            total = format_count(batch * level.groups, "group")
            before = int(np.sum(level.active_before))
            name = f" of {level.name}" if level.name else ""
            yield (f"  {level.norm:9}  {int(np.sum(level.active)):,} of {total}{name} "
                   f"not all zero; {before:,} before")  # fmt: skip
        for array in self.arrays:
            left, entries = int(np.sum(array.nonzero)), batch * array.entries
            share = percent(1 - left / entries) if entries else "none"
            name = f"{array.name}, " if array.name else ""
            yield (f"  entries    {left:,} of {entries:,} not zero ({share} zero); "
                   f"{name}{format_shape(array.shape)}, {array.dtype}")  # fmt: skip


def numbers(value: Numbers) -> str:
    """A number, or the range of a batch's."""
    flat = np.ravel(value)
    if flat.size == 1:
        return f"{flat[0]:.6g}"
    ends = [f"{end:.6g}" for end in (flat.min(), flat.max())] if flat.size else ["none"]
    return " to ".join(dict.fromkeys(ends))


def percent(fraction: Numbers) -> str:
    """``33.3%``; of a batch, the mean."""
    return f"{100 * np.mean(fraction):.1f}%" if np.size(fraction) else "none"


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.repr}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


__all__ = ["ArrayInfo", "Info", "LevelInfo", "numbers", "percent"]
