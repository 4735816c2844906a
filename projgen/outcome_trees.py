"""What a projection did to the arrays of a tree with branches: the report of ``projgen run``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.calls import counted
from projgen.info import Info, numbers
from projgen.outcome import Groups, Radius, draw_groups, percent_of, plain
from projgen.projection import Projection
from projgen.shapes import arrange
from projgen.structure import at, places, rebuilt
from projgen.terminal import Terminal, format_count, format_shape
from projgen.trees import BoundArm, bind_tree
from projgen.weights import read_labels

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ArrayOutcome:
    """One of several arrays, before and after; ``groups`` are those of the levels that it has for
    itself."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    entries: int
    zero_entries_before: int
    zero_entries: int
    distance: Any
    largest_change: float
    groups: tuple[Groups, ...]

    def draw(self, terminal: Terminal) -> None:
        """For people."""
        terminal.write(
            f"{terminal.paint(self.name, 'bold')}  {format_shape(self.shape)}  {self.dtype}"
        )
        for groups in self.groups:
            draw_groups(groups, terminal)
        share = percent_of(self.zero_entries, self.entries)
        terminal.write(
            f"  zero entries    {self.zero_entries:,} of {self.entries:,} ({share}; "
            f"{self.zero_entries_before:,} before)",
            f"  distance        {numbers(self.distance)}; largest change {self.largest_change:.6g}",
        )


@dataclass(frozen=True, slots=True)
class TreeOutcome:
    """All arrays of a tree, before and after. Numbers are lists where there is a batch."""

    radius: Any
    norm_before: Any
    norm_after: Any
    threshold: Any
    distance: Any
    arrays: tuple[ArrayOutcome, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)

    def draw(self, terminal: Terminal) -> None:
        """For people."""
        for array in self.arrays:
            array.draw(terminal)
        entries = sum(array.entries for array in self.arrays)
        zero = sum(array.zero_entries for array in self.arrays)
        before = sum(array.zero_entries_before for array in self.arrays)
        title = f"{format_count(len(self.arrays), 'array')} together"
        terminal.write(
            terminal.paint(title, "bold"),
            f"  norm            {numbers(self.norm_after)}, was {numbers(self.norm_before)};"
            f" radius {numbers(self.radius)}",
            f"  zero entries    {zero:,} of {entries:,} ({percent_of(zero, entries)}; "
            f"{before:,} before)",
            f"  distance        {numbers(self.distance)}",
        )


def project_arrays(
    projection: Projection,
    named: Mapping[str, Array],
    radius: Radius | None,
    given: Mapping[str, Any],
) -> tuple[dict[str, Array], TreeOutcome]:
    """The arrays, by the names that the tree knows them by, projected as one; they themselves are
    not changed. `radius` is None where the spec has the count of l0.

    Raises:
        SpecError, TypeError, ValueError: as `Projection` does.
    """
    tree = projection.tree
    y = arrange(tree, named)
    place = places(tree, y)
    radii = None if radius is None else radius.of(projection.norm(y, **given))
    x = rebuilt(y, {leaf.key: at(y, leaf.key).copy(order="K") for leaf in place.arms})
    _, info = projection(x, radii, out=x, return_info=True, **given)
    shapes = {leaf.key: at(y, leaf.key).shape for leaf in place.arms}
    labels = read_labels(tree, given)
    bound = bind_tree(tree, place, shapes, labels)
    outcome = TreeOutcome(
        radius=plain(info.radius if radii is None else radii),
        norm_before=plain(info.norm_before),
        norm_after=plain(info.norm_after),
        threshold=plain(info.threshold),
        distance=plain(info.distance),
        arrays=tuple(_outcomes(bound.arms, info, y, x, labels)),
    )
    return {arm.arm.label: at(x, arm.key) for arm in bound.arms}, outcome


def _outcomes(
    arms: tuple[BoundArm, ...], info: Info, y: Any, x: Any, labels: Mapping[str, Array]
) -> Iterator[ArrayOutcome]:
    for arm, array in zip(arms, info.arrays, strict=True):
        before, after = at(y, arm.key), at(x, arm.key)
        yield ArrayOutcome(
            name=arm.arm.label,
            shape=after.shape,
            dtype=after.dtype.name,
            entries=after.size,
            zero_entries_before=before.size - int(np.sum(array.nonzero_before)),
            zero_entries=after.size - int(np.sum(array.nonzero)),
            distance=plain(array.distance),
            largest_change=float(np.max(array.largest_change, initial=0.0)),
            groups=tuple(_groups(arm, before != 0, after != 0, labels)),
        )


def _groups(
    arm: BoundArm, before: Array, after: Array, labels: Mapping[str, Array]
) -> Iterator[Groups]:
    """Level by level below the last branch."""
    nodes, path = arm.arm.nodes, arm.arm
    own = 1 + max(level for level, node in enumerate(nodes) if node.is_branch)
    was, now = (counted(arm, entries, labels) for entries in (before, after))
    for level in range(own, len(nodes)):
        reduced = path.axes(*range(level, len(nodes)))
        along = tuple(path.sources[axis] for axis in range(len(path.owners)) if axis not in reduced)
        if not along:
            continue
        active_before = int(np.sum(np.any(was, axis=reduced)))
        alive, filled = np.any(now, axis=reduced), arm.filled(level, labels)
        yield Groups.of(level, nodes[level].norm, along, active_before, alive, filled)


__all__ = ["ArrayOutcome", "TreeOutcome", "project_arrays"]
