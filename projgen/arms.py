"""A path of a tree and an array's rank to an arm: which level reduces which axes of that array.

What `projgen.bind` does for a chain and one array, here is done for each array of a tree, along
the path from the root to its leaf. An axis that is cut into blocks, or into groups of given
sizes, becomes two: the number of the block, and the place in it. All axes below are counted so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from projgen.bind import interval
from projgen.errors import SpecError
from projgen.tree import Node

BATCH = -1


@dataclass(frozen=True, slots=True)
class Cut:
    """An axis of the array (``axis``), cut into blocks of ``block`` places, or by the labels that
    the call binds to the name ``groups``; by the level ``level`` of the arm."""

    axis: int
    level: int
    block: int = 0
    groups: str | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One array's way to the root. ``nodes`` run from the root to its leaf.

    ``owners`` has the level that reduces each axis, counted with cut axes as two, or `BATCH`;
    ``sources`` the axis of the array that it comes from.
    """

    label: str
    nodes: tuple[Node, ...]
    owners: tuple[int, ...]
    sources: tuple[int, ...]
    cuts: tuple[Cut, ...]

    def axes(self, *levels: int) -> tuple[int, ...]:
        """The axes of these levels, ascending."""
        return tuple(axis for axis, owner in enumerate(self.owners) if owner in levels)

    @property
    def batch(self) -> tuple[int, ...]:
        """The array's own axes that no level reduces."""
        return tuple(self.sources[axis] for axis in self.axes(BATCH))

    @property
    def depth(self) -> int:
        return len(self.nodes)

    def cut_of(self, axis: int) -> Cut | None:
        """The cut that makes the counted axis `axis`, as number of blocks or place in them."""
        return next((cut for cut in self.cuts if cut.axis == self.sources[axis]), None)

    def number_axis(self, cut: Cut) -> int:
        """The counted axis of a cut's blocks' numbers; the places in them are the next one."""
        return self.sources.index(cut.axis)


def bind_arm(nodes: Sequence[Node], rank: int, label: str, shape: Sequence[int]) -> Arm:
    """Give each level of a path its axes of an array of rank `rank`, called `label` in messages.

    The rule is that of `projgen.bind.bind`; but with too few axes, branches go without: their
    values are those of their children. The outermost ones first.
    """
    array = f"shape {tuple(shape)}"
    array = f"an array of {array}" if label == "y" else f"{label} of {array}"
    cuts = tuple(_cuts(nodes, rank, array))
    sources: list[int] = []
    for axis in range(rank):
        sources += [axis] * (2 if any(cut.axis == axis for cut in cuts) else 1)
    owners: list[int | None] = [None] * len(sources)
    for level, node in reversed(list(enumerate(nodes))):  # places in blocks before their numbers
        for axis, span in zip(node.axis or (), node.axis_spans or (node.span,) * 64, strict=False):
            own = _in_range(axis, rank, array, span)
            counted = [i for i, source in enumerate(sources) if source == own]
            mine = any(cut.axis == own and cut.level == level for cut in cuts)
            at = counted[-1] if mine else counted[0]
            if owners[at] is not None:
                raise SpecError(f"axis {own} of {array} is named twice", *filter(None, [span]))
            owners[at] = level
    free = [axis for axis, owner in enumerate(owners) if owner is None]
    unnamed = [level for level, node in enumerate(nodes) if node.axis is None]
    lacking = len(unnamed) - len(free)
    for level in [level for level in unnamed if nodes[level].is_branch][: max(0, lacking)]:
        unnamed.remove(level)
    if len(unnamed) > len(free):
        raise _too_few(nodes, unnamed[len(free) :], array, rank)
    for position, axis in enumerate(free):
        if unnamed:
            owners[axis] = unnamed[min(position, len(unnamed) - 1)]
    arm = Arm(
        label,
        tuple(nodes),
        tuple(BATCH if owner is None else owner for owner in owners),
        tuple(sources),
        cuts,
    )
    for cut in cuts:
        owner = arm.owners[arm.number_axis(cut)]
        if owner >= cut.level:
            raise SpecError(
                f"the blocks of axis {cut.axis} of {array} would fall to {nodes[owner].norm!r}, "
                "which does not stand above the level that cuts them",
                *filter(None, [nodes[owner].span, nodes[cut.level].span]),
                hint=f"say who spans them, as in axis={cut.axis}",
            )
    return arm


def _cuts(nodes: Sequence[Node], rank: int, array: str) -> Iterator[Cut]:
    for level, node in enumerate(nodes):
        spans = node.axis_spans or (node.span,) * 64
        if node.groups is not None and node.axis:
            yield Cut(_in_range(node.axis[0], rank, array, spans[0]), level, groups=node.groups)
        for axis, block, span in zip(node.axis or (), node.block or (), spans, strict=False):
            yield Cut(_in_range(axis, rank, array, span), level, block)


def _in_range(axis: int, rank: int, array: str, span: object) -> int:
    from projgen.errors import Span

    if not -rank <= axis < rank:
        raise SpecError(
            f"axis {axis} is out of range for {array}",
            *([span] if isinstance(span, Span) else []),
            hint=f"its axes are {interval(rank)}" if rank else "it has no axes",
        )
    return axis % rank


def _too_few(nodes: Sequence[Node], left: Sequence[int], array: str, rank: int) -> SpecError:
    names = " and ".join(f"'{nodes[level].norm}'" for level in left)
    return SpecError(
        f"too few axes: {array} has {rank}",
        *(span for level in left if (span := nodes[level].span)),
        hint=f"no axis is left for {names}",
    )
