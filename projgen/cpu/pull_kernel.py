"""The kernel that takes gradients back through a projection: what its source depends on.

A level has two sweeps over its array y and the gradient g of its projection. The first sums what
each group's radius gets, which is the gradient of a value of the level above; so it goes up the
tree, from the leaf to the root. The second goes down again and gives the values their gradients:
their share of g, and what reached the group's value from above. Both read what the projection
found, its tape: see `projgen.cpu.tape`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from projgen.cpu.kernel import CELL, Segment
from projgen.cpu.lower import VERSION
from projgen.cpu.stages import StageCode
from projgen.cpu.tape import TapeLayout
from projgen.dtypes import ITEMSIZE, arithmetic
from projgen.plan import plain_stage
from projgen.render import render_pull
from projgen.simplify import Layout

CHUNK = 1024  # values of a sum in float32
STRIP = 512  # columns that are gathered from together: what is known of them stays near


@dataclass(frozen=True)
class PullCode:
    """The functions of one level, named after it: ``gather_1``, ``share_1``...

    ``depth``: how many levels of its tree stand above it, in this kernel or others; 2 for more.
    """

    code: StageCode
    depth: int

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
    def averages(self) -> bool:
        """Whether a radius gets the mean of some gradients; else their sum."""
        return self.code.norm == "l1"

    @property
    def compares(self) -> bool:
        """Whether values are compared with their group's limit before anything is gathered."""
        return self.code.norm == "linf"

    @property
    def counts(self) -> bool:
        """Whether some of a group's values are counted."""
        return self.averages or self.compares

    @property
    def rises(self) -> bool:
        """Whether anything reaches its groups' values: nothing does at the root."""
        return self.depth > 0

    @property
    def idles(self) -> bool:
        """Whether groups that vanish, or are inside their balls, can be passed over, and with them
        what reaches their values. It is 0 for certain only where the level above is the root: a
        root hands nothing to values that it thins out, nor to those that it leaves as they are,
        whose radii get 0. Of a level in between, values get something from above it as well."""
        return self.depth < 2

    @property
    def zero(self) -> str:
        return f"np.{self.code.dtype}(0)"

    @property
    def one(self) -> str:
        return f"np.{self.code.dtype}(1)"

    def read(self, y: str) -> str:
        """What counts of a value."""
        return f"max({y}, {self.zero})" if self.code.positive else y

    def passed(self, gradient: str) -> str:
        """What a value of ``y_row`` gets of a gradient: nothing where it is as good as 0."""
        return f"chosen(y_row[j] > 0, {gradient}, {self.zero})" if self.code.positive else gradient

    @property
    def gathered(self) -> str:
        """The type of what a value adds to its group's sum: products leave the range of float32."""
        return "float64" if self.code.norm == "l2" else self.code.dtype

    @property
    def chunked(self) -> bool:
        """Whether short sums are in float32, and only these in float64."""
        short = bool(self.code.stage.inner) or self.gathered == "float64"
        return self.code.walk == "rows" and self.code.stage.unit and not short

    @property
    def strips(self) -> bool:
        """Whether columns are gathered from in strips."""
        return self.code.walk == "columns" and self.code.leaf and self.code.stage.unit

    @property
    def turns(self) -> int:
        """How many rows of columns are gathered together: a loop over more than eight arrays would
        not be made of vectors, for fear that they overlap."""
        known = 2 if self.compares else 1
        return (9 - known) // len(self.arrays) if self.code.leaf else 1

    @property
    def coefficients(self) -> tuple[str, ...]:
        """What `share` needs to know of each group, in the type of its arithmetic."""
        names = {"l1": ("floor", "mean"), "l2": ("scale", "tilt"), "linf": ("limit", "top")}
        lift = ("lift",) if self.rises and self.code.norm != "l2" else ()
        return names[self.code.norm] + lift

    @property
    def arrays(self) -> tuple[str, ...]:
        """What its sweeps read, at one offset: of l1 the projection says which values survived."""
        return ("y", "x", "g") if self.averages else ("y", "g")

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Vectors over groups that a walk of columns has at hand, and what it calls them."""
        found = [("sums", "a")] + [("tallies", "n")] * self.counts
        if self.compares:
            found += [("limits", "limit_row"), ("tops", "top_row")]
        return tuple(found)

    # What its functions take, by the names that they have there.

    @property
    def prepares(self) -> tuple[str, ...]:
        return ("values", "radii", "limit", "top") if self.compares else ()

    @property
    def gathers(self) -> tuple[str, ...]:
        known = ("limits", "tops") if self.compares else ()
        own = (*self.arrays, *self._passing, *known, *self._sums)
        return (*own, *(("scratch",) if self.scratches else ()), *self._block, "axes")

    @property
    def settles(self) -> tuple[str, ...]:
        blocks = ("blocks",) if self.code.partial else ()
        sums = self._sums if self.averages or blocks else ("sums",)
        return ("values", "radii", *sums, "slope", *blocks)

    @property
    def weighs(self) -> tuple[str, ...]:
        own = tuple(name for name in self.coefficients if name not in ("limit", "top"))
        if not own:
            return ()
        rise = ("rise",) if self.rises else ()
        known = ("tallies",) if self.compares else ("values", "radii", *self._sums)
        return (*known, *rise, *own)

    @property
    def shares(self) -> tuple[str, ...]:
        own = (*self.arrays, "out", *self._passing, *(f"{name}s" for name in self.coefficients))
        return (*own, *(("scratch",) if self.scratches else ()), *self._block, "axes")

    @property
    def _passing(self) -> tuple[str, ...]:
        return ("values", "radii") if self.idles and self.code.walk == "rows" else ()

    @property
    def _sums(self) -> tuple[str, ...]:
        return ("sums", "tallies") if self.counts else ("sums",)

    @property
    def _block(self) -> tuple[str, ...]:
        return ("first", "last") if self.code.leaf else ()

    def argument(self, parameter: str) -> str:
        """What the driver passes for one of these."""
        level, above = self.level, self.level - 1
        if parameter in ("values", "radii"):
            return {"values": self.code.values, "radii": self.code.radii}[parameter]
        if parameter in ("y", "x", "g", "out"):
            vector = {"y": "v", "x": "u"}.get(parameter, "h")
            return parameter if self.code.leaf else f"{vector}{level}"
        if parameter in ("slope", "rise"):  # the one in the place of the other
            return f"h{above}" if level else "slope"
        if parameter in ("sums", "tallies") and self.code.partial:
            size = f"{self.code.values}.size"
            return f"{parameter}_{level}[block * {size} : (block + 1) * {size}]"
        if parameter in ("first", "last", "scratch"):
            return parameter
        singular = {f"{name}s": name for name in self.coefficients}
        return f"{singular.get(parameter, parameter)}_{level}"

    def argument_of_all(self, parameter: str) -> str:
        """The same, for a function that takes what all blocks have gathered."""
        whole = parameter in ("sums", "tallies")
        return f"{parameter}_{self.level}" if whole else self.argument(parameter)

    # Short groups side by side, many at a time.

    @property
    def scratches(self) -> bool:
        return self.code.walk == "packed"

    @property
    def width(self) -> int:
        """How many short groups are worked on together: what they need stays near."""
        return self.code.width

    @property
    def tile(self) -> int:
        """How many values these have, and some more: vectors at steps of a power of two would get
        in each other's way."""
        return self.width * self.code.stage.inner + 64

    @property
    def few(self) -> int:
        """How many neighbours are added in one long loop, of a group that is a multiple of them."""
        size = self.code.stage.inner
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        return min(divisors, key=lambda n: size * n / 11 * (n > 1) + size // n)

    @property
    def scratch(self) -> int:
        """The room that a thread needs, in float64."""
        itemsize = ITEMSIZE[self.code.dtype]
        gathered = [ITEMSIZE[self.gathered]] + [itemsize] * (len(self.columns) - 1)
        sizes = sum(gathered), itemsize * len(self.coefficients)
        return -(-self.tile * max(sizes) // 64) * 8 if self.scratches else 0


@dataclass(frozen=True)
class PullKernel:
    """A kernel; equal ones have equal sources.

    ``parted``: it is one of several of a tree, and waits after its first sweep for what reaches its
    groups' values.
    """

    title: str
    dtype: str
    levels: tuple[PullCode, ...]
    parted: bool = False
    version: int = VERSION

    @property
    def leaf(self) -> PullCode:
        return self.levels[-1]

    @property
    def above(self) -> tuple[PullCode, ...]:
        """The levels above the leaf, from the root."""
        return self.levels[:-1]

    @property
    def tape(self) -> TapeLayout:
        """What the projection found, with which the workspace begins."""
        sizes = tuple(p.code.stage.size for p in self.above)
        return TapeLayout(self.levels[0].groups, sizes)

    @property
    def counts(self) -> bool:
        """Whether values are counted at some level."""
        return any(p.counts for p in self.levels)

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
    def chunks(self) -> int:
        """The longest sum in float32, if there are any."""
        return CHUNK if any(p.chunked for p in self.levels) else 0

    @property
    def strip(self) -> int:
        """How many columns make a strip, if there are any."""
        return STRIP if self.leaf.strips else 0

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


def lower_pull(
    spec: str, layout: Layout, dtype: str, top: int = 0, positive: bool = False
) -> PullKernel:
    """The kernel for arrays of one layout, which y, x, g and the result share.

    ``top``: how many levels of a tree stand above these, done by other kernels. ``positive``: the
    projection was on the part of the ball that has no negative values.
    """
    levels = []
    for level in range(len(layout.norms)):
        leaf = level == len(layout.norms) - 1
        stored = dtype if leaf else "float64"
        code = StageCode(
            plain_stage(layout, level, leaf, dtype),
            arithmetic(stored),
            stored,
            in_place=False,
            streamed=False,
            levels=(level,),
            searchers=(level,),
            positive=leaf and positive,
        )
        levels.append(PullCode(code, min(top + level, 2)))
    return PullKernel(spec, dtype, tuple(levels), top > 0)


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
    at, dense = 0, kernel.tape.slices
    for segment in segments(kernel):
        yield f"{segment.name}_at", at
        yield f"{segment.name}_end", at + -(-segment.size * segment.itemsize // 8)
        at += segment.size if segment.name in dense else segment.cells
    scratch = kernel.leaf.scratch
    if scratch:
        yield "scratch_at", at
        yield "scratch_size", scratch
    yield "seats", threads
    yield "memory_size", at + scratch * threads


def segments(kernel: PullKernel) -> list[Segment]:
    """The workspace: the tape, densely, then gradients and what is known of each group."""
    found = [Segment(name, "float64", size) for name, size in kernel.tape.parts]
    found.append(Segment("slope", "float64", kernel.tape.batch))
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


__all__ = ["PullCode", "PullKernel", "cells", "lower_pull"]
