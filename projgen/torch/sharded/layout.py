"""How a mesh cuts the levels of a tree: which of them a rank has whole, and what must be joined.

An axis of the mesh cuts one axis of an array into shards, or replicates it. The level that
reduces an axis which is cut has its groups in several pieces, and no rank has all values that the
levels above it aggregate. Nothing here needs processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from projgen.arms import BATCH, Arm
from projgen.errors import quote

JOINED = ("l2", "linf")  # a length of lengths is a length, and a maximum of maxima a maximum


@dataclass(frozen=True, slots=True)
class Sharding:
    """An array of ``shape`` in shards on a mesh of the extents ``mesh``.

    ``axes`` has for each axis of the mesh the array's axis that it cuts; None where it replicates.
    Where several cut the same, the first of them cuts it into the larger pieces.
    """

    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    axes: tuple[int | None, ...]

    @property
    def cuts(self) -> tuple[tuple[int, int], ...]:
        """Which axis of the mesh cuts which of the array, where there is more than one piece."""
        return tuple(
            (along, axis)
            for along, axis in enumerate(self.axes)
            if axis is not None and self.mesh[along] > 1
        )

    def span(self, axis: int, place: Sequence[int], until: int | None = None) -> tuple[int, int]:
        """Where the shard at `place` begins and ends along an axis; with `until`, if only those
        axes of the mesh cut it that come before."""
        start, stop = 0, self.shape[axis]
        for along, own in list(enumerate(self.axes))[:until]:
            if own == axis:
                piece = -(-(stop - start) // self.mesh[along])  # as torch.chunk has it
                first = min(start + place[along] * piece, stop)
                start, stop = first, min(first + piece, stop)
        return start, stop

    def local_shape(self, place: Sequence[int]) -> tuple[int, ...]:
        """The shape of the shard at `place`."""
        spans = (self.span(axis, place) for axis in range(len(self.shape)))
        return tuple(stop - start for start, stop in spans)

    def sizes(self, along: int, place: Sequence[int]) -> list[int]:
        """How many indices each of the shards has that differ from `place` along the axis `along`
        of the mesh alone; axes of the mesh after it do not cut."""
        axis = self.axes[along]
        assert axis is not None
        places = ((*place[:along], i, *place[along + 1 :]) for i in range(self.mesh[along]))
        spans = (self.span(axis, other, along + 1) for other in places)
        return [stop - start for start, stop in spans]


@dataclass(frozen=True, slots=True)
class Seam:
    """Where an array's way to the root leaves the ranks.

    The levels from ``level`` down are done by each rank on its shard. Groups of ``level`` itself
    may have their pieces along the axes ``joins`` of the mesh: their values are joined by one
    reduction. What is above is done by every rank alike, on values that are gathered along those
    axes of the mesh which ``gathers`` pairs with the array's, the last first. Batch axes stay cut.
    """

    level: int
    joins: tuple[int, ...]
    gathers: tuple[tuple[int, int], ...]


@lru_cache(maxsize=1024)
def find_seam(arm: Arm, sharding: Sharding, lowest: int = 0) -> Seam:
    """The seam of an array; at level `lowest` or beneath it: what is above is shared with others.

    It is as near to the root as may be: what is gathered is smaller there. A TypeError for what
    is done by no rank alone, and by no reduction.
    """
    owners = {along: _owner(arm, axis) for along, axis in sharding.cuts}
    deepest = max(owners.values(), default=BATCH)
    joins: tuple[int, ...] = ()
    level = max(deepest + 1, lowest)
    leaf = arm.depth - 1
    if deepest >= lowest:
        norm = arm.nodes[deepest].norm
        if norm in JOINED or (norm == "l1" and deepest == leaf and not arm.cuts):
            level = deepest
            joins = tuple(along for along, owner in owners.items() if owner == deepest)
    if level > leaf:
        axes = sorted({axis for along, axis in sharding.cuts if owners[along] == leaf})
        raise TypeError(
            f"{arm.label} is cut along {_named(axes)}, which {quote(str(arm.nodes[leaf]))} "
            "reduces: l1, l2 and linf alone, without blocks, have their groups on several ranks. "
            "Shard another axis, or y.redistribute(…) it for the projection"
        )
    gathers = [(along, axis) for along, axis in sharding.cuts if BATCH < owners[along] < level]
    return Seam(level, joins, tuple(reversed(gathers)))


def _owner(arm: Arm, axis: int) -> int:
    """The level that reduces an axis of the array."""
    if any(cut.axis == axis for cut in arm.cuts):
        raise TypeError(
            f"{arm.label} is cut along axis {axis}, and the spec cuts that into blocks: shard "
            "another axis, or y.redistribute(…) it for the projection"
        )
    return arm.owners[arm.sources.index(axis)]


def _named(axes: Sequence[int]) -> str:
    return f"ax{'i' if len(axes) == 1 else 'e'}s {', '.join(map(str, axes))}"


__all__ = ["Seam", "Sharding", "find_seam"]
