"""A binding and an array's place in memory to loops: proved rewrites only, nothing is decided here.

- An axis of length 1 vanishes, and so does a level that is left without axes: the norm of one
  value is that value, and projecting it on radius u gives min(a, u), which its child does itself.
- ``linf(linf)`` and ``l2(l2)`` merge: their values and their projections are those of the flat
  norm. ``l1(l1)`` does not: it has the flat norm's value but not its projection.
- Directions do not matter, so a negative stride is walked from its other end.
- Loops run in memory order, and neighbours of one level that lie densely become one loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from projgen.bind import Binding
from projgen.norms import NORMS

BATCH = -1


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop over one axis, or over several that lie densely in memory.

    ``level`` is the index of the level that reduces it, or `BATCH`. Strides are positive and in
    elements; ``out_stride`` is the same axis in the result.
    """

    level: int
    extent: int
    stride: int
    out_stride: int

    def __str__(self) -> str:
        owner = "batch" if self.level == BATCH else f"level {self.level}"
        strides = (
            f"{self.stride}"
            if self.stride == self.out_stride
            else (f"{self.stride} -> {self.out_stride}")
        )
        return f"{owner:8} extent {self.extent:<8} stride {strides}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Levels and loops of one call: all that later stages know of the array.

    ``norms`` are the levels' norms, root first. ``loops`` run in memory order, outermost first.
    ``offset`` and ``out_offset`` lead from the array's data pointer to its lowest address, in
    elements. ``batch`` holds (axis, reversed) for each batch axis, in memory order.
    """

    norms: tuple[str, ...]
    loops: tuple[Loop, ...]
    batch: tuple[tuple[int, bool], ...]
    offset: int = 0
    out_offset: int = 0

    @property
    def spec(self) -> str:
        """The simplified tree: ``l1(linf)``."""
        return "(".join(self.norms) + ")" * (len(self.norms) - 1)

    def loops_above(self, level: int) -> list[Loop]:
        """The loops over what level `level` aggregates, outermost first."""
        return [loop for loop in self.loops if loop.level <= level]

    def __str__(self) -> str:
        return "\n".join([self.spec, *(f"  {loop}" for loop in self.loops)])


def simplify(
    binding: Binding,
    shape: Sequence[int],
    strides: Sequence[int],
    out_strides: Sequence[int] | None = None,
) -> Layout:
    """The loops over an array of `shape`, none of whose axes is empty or repeats an element.

    `strides` and `out_strides` (default: the same) are in elements, and not 0 where the axis is
    longer than 1.
    """
    out_strides = strides if out_strides is None else out_strides
    norms, owner = _levels(binding, shape)
    axes = [axis for axis in range(binding.rank) if shape[axis] != 1]
    axes.sort(key=lambda axis: (-abs(strides[axis]), -abs(out_strides[axis])))
    loops: list[Loop] = []
    for axis in axes:
        loop = Loop(owner[axis], shape[axis], abs(strides[axis]), abs(out_strides[axis]))
        if loops and _dense(loops[-1], loop):
            outer = loops.pop()
            loop = Loop(loop.level, outer.extent * loop.extent, loop.stride, loop.out_stride)
        loops.append(loop)
    if not any(loop.level == len(norms) - 1 for loop in loops):  # every group has one value
        loops.append(Loop(len(norms) - 1, 1, 1, 1))
    return Layout(
        norms=norms,
        loops=tuple(loops),
        batch=tuple((axis, strides[axis] < 0) for axis in axes if owner[axis] == BATCH),
        offset=_lowest(shape, strides),
        out_offset=_lowest(shape, out_strides),
    )


def _levels(binding: Binding, shape: Sequence[int]) -> tuple[tuple[str, ...], dict[int, int]]:
    """The norms that remain, and the level of each axis."""
    norms: list[str] = []
    owner = dict.fromkeys(binding.batch, BATCH)
    for level in binding.levels:
        if all(shape[axis] == 1 for axis in level.axes):
            continue
        if not (norms and norms[-1] == level.norm and NORMS[level.norm].merges):
            norms.append(level.norm)
        owner.update(dict.fromkeys(level.axes, len(norms) - 1))
    return tuple(norms) or ("linf",), owner


def _dense(outer: Loop, inner: Loop) -> bool:
    """Whether both are one loop: the outer step is where the inner loop ends, in both arrays."""
    return (
        outer.level == inner.level
        and outer.stride == inner.stride * inner.extent
        and outer.out_stride == inner.out_stride * inner.extent
    )


def _lowest(shape: Sequence[int], strides: Sequence[int]) -> int:
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if s < 0)
