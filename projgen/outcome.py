"""What a projection did to an array: the report of ``projgen run``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.bind import bind
from projgen.compare import compare
from projgen.info import Info, numbers
from projgen.projection import Projection
from projgen.terminal import Terminal, format_ranges, format_shape

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Radius:
    """A radius, or the part of the array's norm that it is: ``2.5``, ``10%``."""

    value: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Radius:
        """A ValueError unless `text` is a number of at least 0, perhaps with a ``%``."""
        relative = text.endswith("%")
        try:
            value = float(text.rstrip("%") if text.count("%") <= 1 else text)
        except ValueError:
            value = math.nan
        if not value >= 0 or (relative and math.isinf(value)):
            raise ValueError(
                f"{text!r} is not a radius: write a number of at least 0, or a part of the norm "
                "such as 10%"
            )
        return cls(value / 100 if relative else value, relative)

    def of(self, norm: Any) -> Any:
        """The radius for an array whose norm is `norm`: a number, or one for each batch entry."""
        return norm * self.value if self.relative else self.value

    def __str__(self) -> str:
        return f"{100 * self.value:.10g}%" if self.relative else f"{self.value:.10g}"


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one level of the tree: one for each index along ``axes``.

    ``zero`` of ``count`` are all zero now, ``zero_before`` were so before. ``indices`` are those
    of the zero ones: integers along a single axis, else one list for each group. ``unused`` are
    those of no group: of numbers that are no place's label.
    """

    level: int
    norm: str
    axes: tuple[int, ...]
    count: int
    zero_before: int
    zero: int
    indices: list[Any]
    unused: list[Any]

    @classmethod
    def of(
        cls, level: int, norm: str, axes: tuple[int, ...], active_before: int, alive: Array,
        filled: Array,
    ) -> Groups:  # fmt: skip
        """Those that `filled` has, of which those `alive` are not all zero."""
        count, zero = int(np.sum(filled)), filled & ~alive
        listed = [np.argwhere(mask) for mask in (zero, ~filled)]
        indices, unused = [(where[:, 0] if len(axes) == 1 else where).tolist() for where in listed]
        return cls(level, norm, axes, count, count - active_before, len(indices), indices, unused)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One array, before and after. Norms and radii are numbers, or lists over batch axes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    radius: Any
    norm_before: Any
    norm_after: Any
    entries: int
    zero_entries_before: int
    zero_entries: int
    threshold: Any
    distance: Any
    largest_change: float
    groups: tuple[Groups, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)

    def draw(self, terminal: Terminal) -> None:
        """For people."""
        paint = terminal.paint
        terminal.write(
            f"{paint(self.name, 'bold')}  {format_shape(self.shape)}  {self.dtype}",
            f"  norm            {numbers(self.norm_after)}, was {numbers(self.norm_before)};"
            f" radius {numbers(self.radius)}",
        )
        for groups in self.groups:
            draw_groups(groups, terminal)
        before = f"{self.zero_entries_before:,} before"
        share = percent_of(self.zero_entries, self.entries)
        terminal.write(
            f"  zero entries    {self.zero_entries:,} of {self.entries:,} ({share}; {before})",
            f"  distance        {numbers(self.distance)}; largest change {self.largest_change:.6g}",
        )


def project(
    projection: Projection,
    name: str,
    y: Array,
    radius: Radius | None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Array, Outcome]:
    """`y` projected, and what became of it; `y` itself is not changed.

    `radius` is None where the spec has the count of l0; `given` are weights and labels.

    Raises:
        SpecError, TypeError, ValueError: as `Projection` does.
    """
    radii: Any = None if radius is None else radius.of(projection.norm(y, **given))
    x = y.copy(order="K")
    # In place, as the norm's kernel is: one to compile, not two.
    if projection.tree.is_plain and radii is not None:
        projection(x, radii, out=x)
        info = compare(projection, bind(projection.tree, y.ndim, y.shape), y, x, radii)
    else:
        _, info = projection(x, radii, out=x, return_info=True, **given)
    (array,) = info.arrays
    outcome = Outcome(
        name=name,
        shape=y.shape,
        dtype=y.dtype.name,
        radius=plain(info.radius if radii is None else radii),
        norm_before=plain(info.norm_before),
        norm_after=plain(info.norm_after),
        entries=y.size,
        zero_entries_before=y.size - int(np.sum(array.nonzero_before)),
        zero_entries=y.size - int(np.sum(array.nonzero)),
        threshold=plain(info.threshold),
        distance=plain(info.distance),
        largest_change=float(np.max(array.largest_change, initial=0.0)),
        groups=tuple(_groups(info)),
    )
    return x, outcome


def _groups(info: Info) -> list[Groups]:
    """Level by level below the root, and the root's own where a batch gives it several."""
    found = []
    for index, level in enumerate(info.levels):
        if level.along and level.alive is not None and level.filled is not None:
            before = int(np.sum(level.active_before))
            found.append(
                Groups.of(index, level.norm, level.along, before, level.alive, level.filled)
            )
    return found


def draw_groups(groups: Groups, terminal: Terminal) -> None:
    """The counts, and the shorter of the lists of groups that vanished and that remain."""
    along = f"axis {groups.axes[0]}" if len(groups.axes) == 1 else f"axes {groups.axes}"
    head = f"{groups.norm} groups along {along}"
    counts = f"{groups.zero:,} of {groups.count:,} zero"
    share = f"({percent_of(groups.zero, groups.count)}; {groups.zero_before:,} before)"
    terminal.write(
        f"  {terminal.level(groups.level, head)}: {terminal.paint(counts, 'bold')} {share}"
    )
    if len(groups.axes) > 1 or groups.zero in (0, groups.count):
        return
    others = {*groups.indices, *groups.unused}
    numbers = range(groups.count + len(groups.unused))
    lists = {
        "zero": groups.indices,
        "kept": [index for index in numbers if index not in others],
    }
    word = min(lists, key=lambda word: len(lists[word]))
    terminal.write(f"    {word}: {format_ranges(lists[word], 60)}")


def percent_of(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "none"


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else float(value)
