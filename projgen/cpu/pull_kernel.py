"""The kernel that takes gradients back through a projection: what its source depends on.

A level has two sweeps over its array y and the gradient g of its projection. The first gathers for
each group what its radius is owed, which is the gradient of a value of the level above; so it goes
up the tree, from the leaf to the root. The second goes down again and spreads over each group what
its values are owed: their share of g, and what reached the group's value from above. Both read what
the projection found: see `projgen.cpu.pull.Tape`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from projgen.cpu.kernel import CELL, Segment
from projgen.cpu.lower import VERSION
from projgen.cpu.stages import StageCode
from projgen.dtypes import arithmetic
from projgen.plan import plain_stage
from projgen.render import render_pull
from projgen.simplify import Layout

@dataclass(frozen=True)
class PullCode:
    """The functions of one level, named after it: ``gather_1``, ``spread_1``..."""

    code: StageCode

    @property
    def level(self) -> int:
        return self.code.level

    @property
    def groups(self) -> int:
        return self.code.stage.groups

    @property
    def macros(self) -> str:
        """The template of its norm's rule."""
        return f"cpu/pulls/{self.code.norm}.py.j2"

    @property
    def reads_x(self) -> bool:
        """Whether the projection itself says which values survived."""
        return self.code.norm == "l1"

    @property
    def counts(self) -> bool:
        """Whether some of a group's values are counted."""
        return self.code.norm in ("l1", "linf")

    @property
    def compares(self) -> bool:
        """Whether values are compared with their group's limit before anything is gathered."""
        return self.code.norm == "linf"

    @property
    def turns(self) -> int:
        """How many rows of columns are gathered together."""
        return 4 if self.code.stage.shared else 1

    @property
    def rises(self) -> bool:
        """Whether anything reaches its groups' values: nothing does at the root."""
        return self.level > 0

    @property
    def idles(self) -> bool:
        """Whether groups that vanish, or are inside their balls, can be passed over: what reaches
        their values is 0 for certain only where the level above is the root."""
        return self.level < 2

    @property
    def coefficients(self) -> tuple[str, ...]:
        """What `spread` needs to know of each group, in the type of its arithmetic."""
        names = {"l1": ("floor", "mean"), "l2": ("scale", "tilt"), "linf": ("limit", "top")}
        lift = ("lift",) if self.rises and self.code.norm != "l2" else ()
        return names[self.code.norm] + lift

    @property
    def arrays(self) -> tuple[str, ...]:
        """What its sweeps read, at one offset."""
        return ("y", "x", "g") if self.reads_x else ("y", "g")

    def array(self, name: str) -> str:
        """One of `arrays`, or ``out``, as the driver calls it."""
        if self.code.leaf:
            return name
        return {"y": f"v{self.level}", "x": f"u{self.level}"}.get(name, f"h{self.level}")

    @property
    def slope(self) -> str:
        """Where the gradients of its groups' radii go."""
        return f"h{self.level - 1}" if self.level else "slope"


@dataclass(frozen=True)
class PullKernel:
    """A kernel; equal ones have equal sources."""

    title: str
    dtype: str
    levels: tuple[PullCode, ...]
    version: int = VERSION

    @property
    def leaf(self) -> PullCode:
        return self.levels[-1]

    @property
    def above(self) -> tuple[PullCode, ...]:
        """The levels above the leaf, from the root."""
        return self.levels[:-1]

    @property
    def element(self) -> str:
        return "int16" if self.leaf.code.half else self.dtype

    @property
    def builders(self) -> tuple[str, ...]:
        """What Numba offers to intrinsics, and the source's intrinsics use."""
        return ("ir",) if self.dtype == "float16" else ()

    @property
    def first(self) -> int:
        """The phase of the first shared sweep."""
        return 2 if self.leaf.compares else 1

    @property
    def shares_cell(self) -> int:
        return CELL * (self.first + 2)

    def desk_size(self, threads: int) -> int:
        """The int64 cells of a desk, all zero but for two addresses when a call begins."""
        return self.shares_cell + CELL * threads

    @property
    def notes(self) -> Iterator[str]:
        for level in self.levels:
            s = level.code
            order = ", ".join("reduced" if axis.reduced else "groups" for axis in s.stage.axes)
            source = "y" if s.leaf else f"v{s.level}"
            yield f"level {s.level}  {s.norm:4}  of {source}: {s.walk} ({order})"

    @property
    def rounds_down(self) -> bool:
        return any(p.compares and p.code.dtype == "float32" for p in self.levels)

    @cached_property
    def cells(self) -> tuple[str, ...]:
        return tuple(name for name, _ in cells(self, 1))

    @property
    def segments(self) -> tuple[tuple[str, str], ...]:
        return tuple((segment.name, segment.dtype) for segment in segments(self))

    def axes(self, p: PullCode) -> str:
        """The cells of the geometry that a level's functions take as ``axes``."""
        first = self.cells.index(f"n0_{p.level}")
        return f"{first} : {first + len(p.code.names)}"

    def unpack(self, body: str) -> str:
        """The lines that name those cells of the geometry that the driver's `body` uses."""
        used = set(re.findall(r"\w+", body))
        return "".join(
            f"    {name} = cells[{i}]\n" for i, name in enumerate(self.cells) if name in used
        )

    @cached_property
    def source(self) -> str:
        return render_pull(self)


def lower_pull(spec: str, layout: Layout, dtype: str) -> PullKernel:
    """The kernel for arrays of one layout, which y, x, g and the result share."""
    levels = []
    for level in range(len(layout.norms)):
        leaf = level == len(layout.norms) - 1
        stored = dtype if leaf else "float64"
        code = StageCode(
            plain_stage(layout, level, leaf, dtype),
            arithmetic(stored),
            in_place=False,
            streamed=False,
            levels=(level,),
            searchers=(level,),
            stored=stored,
        )
        levels.append(PullCode(code))
    return PullKernel(spec, dtype, tuple(levels))


def cells(kernel: PullKernel, threads: int) -> Iterator[tuple[str, int]]:
    """The geometry, cell by cell: extents and blocks, then where things lie in the workspace."""
    leaf = kernel.leaf.code.stage
    yield "y_size", 1 + sum((axis.extent - 1) * axis.stride for axis in leaf.axes)
    for p in kernel.levels:
        s = p.code
        axes = list(enumerate(s.stage.axes))
        yield from ((f"n{i}_{s.level}", axis.extent) for i, axis in axes)
        yield from ((f"s{i}_{s.level}", axis.stride) for i, axis in axes)
        yield from ((f"t{i}_{s.level}", axis.out_stride) for i, axis in axes)
        yield f"pitch_{s.level}", 0
    cut = leaf.cut
    yield f"blocks_{leaf.level}", cut.blocks
    yield f"step_{leaf.level}", cut.step
    yield f"end_{leaf.level}", leaf.axes[cut.loop].extent
    at = 0
    for segment in segments(kernel):
        yield f"{segment.name}_at", at
        yield f"{segment.name}_end", at + -(-segment.size * segment.itemsize // 8)
        at += segment.size if segment.name in tape(kernel) else segment.cells
    yield "seats", threads
    yield "memory_size", at


def tape(kernel: PullKernel) -> tuple[str, ...]:
    """The parts of the workspace that come from the projection: they lie densely at its start."""
    vectors = (f"{name}{p.level}" for p in kernel.above for name in "vu")
    return ("radius", "total", *vectors)


def segments(kernel: PullKernel) -> list[Segment]:
    """The workspace: what the projection found, then gradients and what is known of each group."""
    batch = kernel.levels[0].groups
    found = [Segment("radius", "float64", batch), Segment("total", "float64", batch)]
    for p in kernel.above:
        found += [Segment(f"{name}{p.level}", "float64", p.code.stage.size) for name in "vu"]
    found.append(Segment("slope", "float64", batch))
    found += [Segment(f"h{p.level}", "float64", p.code.stage.size) for p in kernel.above]
    for p in kernel.levels:
        stage = p.code.stage
        slots = stage.groups * (stage.cut.blocks if p.code.partial else 1)
        found.append(Segment(f"sums_{p.level}", "float64", slots))
        if p.counts:
            found.append(Segment(f"tallies_{p.level}", "float64", slots))
        found += [
            Segment(f"{name}_{p.level}", p.code.dtype, stage.groups) for name in p.coefficients
        ]
    return found


__all__ = ["PullCode", "PullKernel", "cells", "lower_pull", "tape"]
