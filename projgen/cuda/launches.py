"""How to launch a kernel's functions for arrays of one shape: grids, arguments, workspace.

A `Schedule` is all that the host needs: it runs the launches in order, on one stream, and reads
nothing in between. No memory has to be initialised: functions write what later ones read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from projgen.cuda.kernel import Kernel
from projgen.cuda.levels import Level, StageCode
from projgen.cuda.plan import THREADS, blocks, tiles, width
from projgen.plan import Plan
from projgen.stage import Walk

ALIGNMENT = 256  # bytes, of each part of the workspace
MOST_BLOCKS = (1 << 31) - 1  # of a launch, side by side
SIZES = {"double": 8, "long long": 8, "float": 4, "int": 4}


@dataclass(frozen=True, slots=True)
class Launch:
    """``name<<<grid, block, shared>>>(arguments...)``.

    Arguments, in order: "y", "x" (pointers to the arrays' lowest elements; in place, "y" is all),
    "radii" (a pointer to one float64 for each batch entry in memory order, or null), "radius" (a
    float64 by value, used if "radii" is null), "work" (a pointer to the workspace), "geometry" (a
    struct, by value), and whole numbers, which are passed by value as int.
    """

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[str | int, ...]
    shared: int = 0  # bytes of dynamic shared memory: none is used


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the workspace: ``size`` values of a C++ type."""

    name: str
    type: str
    size: int

    @property
    def bytes(self) -> int:
        return self.size * SIZES[self.type]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A call's launches. ``geometry`` is the struct that each is given, as bytes.

    ``norms``: how many of the launches it takes until the norms, one float64 for each batch entry,
    stand at the beginning of the workspace. ``work``: the workspace's bytes, aligned to 256; the
    first ``tape`` of them have what gradients need.
    """

    launches: tuple[Launch, ...]
    norms: int
    tape: int
    work: int
    geometry: bytes
    parts: tuple[Part, ...]

    @property
    def down(self) -> int:
        """The first launch that goes by the radii: the middle goes up, and down as well."""
        return self.norms - (self.launches[self.norms - 1].name == "middle")


def schedule(plan: Plan, kernel: Kernel, source: str) -> Schedule:
    """How to launch the functions of `source`, that of `kernel`, for the arrays of `plan`.

    A ValueError for more groups than a GPU's launch can have blocks for.
    """
    launches = tuple(_launches(plan, kernel))
    check_grids(plan, launches)
    first_down = next(
        (i for i, launch in enumerate(launches) if launch.name.split("_")[0] not in _UPWARD),
        len(launches),
    )
    own = tuple(parts(plan, kernel))
    begins, work = placed(own)
    places = {part.name: begin for part, begin in zip(own, begins, strict=True)}
    return Schedule(
        launches=launches,
        norms=first_down,
        tape=placed(tape_parts(plan, kernel))[1],
        work=work,
        geometry=packed_geometry(kernel, source, places, dict(geometry(plan, kernel))),
        parts=own,
    )


def check_grids(plan: Plan, launches: tuple[Launch, ...]) -> None:
    """A ValueError for more blocks than a GPU's launch can have."""
    most = max(launch.grid[0] for launch in launches)
    if most > MOST_BLOCKS:
        raise ValueError(
            f"{plan.spec} has too many groups here: a launch would need {most} blocks, and can "
            f"have {MOST_BLOCKS}; project the array in parts"
        )


def packed_geometry(
    kernel: Kernel, source: str, places: Mapping[str, int], cells: Mapping[str, int]
) -> bytes:
    """The struct of what `source` looks up: `places` of the workspaces' parts, and `cells`."""
    fields = [places[name.removesuffix("_at")] for name in kernel.used(kernel.offsets, source)]
    indices = [cells[name] for name in kernel.used(kernel.cells, source)]
    index = "q" if kernel.wide else "i"
    return struct.pack(f"@{len(fields)}q{len(indices)}{index}0q", *fields, *indices)


_UPWARD = ("aggregate", "combine", "middle")


def _launches(plan: Plan, kernel: Kernel) -> Iterator[Launch]:
    """Up the tree, through the middle, down the tree."""
    for s in reversed(kernel.stages):
        arguments = _arguments("y" if s.leaf else "")
        grid = (blocks(s.stage), s.stage.cut.blocks, 1)
        yield Launch(f"aggregate_{s.level}", grid, (s.threads, 1, 1), arguments)
        if s.slotted and not (kernel.levels and s.level == kernel.stages[0].level):
            each = 1 if s.stage.lanes == 1 else 32
            grid = (-(-s.stage.groups * each // THREADS), 1, 1)
            yield Launch(f"combine_{s.level}", grid, (THREADS, 1, 1), _arguments())
    if kernel.levels:
        block = (middle_threads(plan, kernel), 1, 1)
        yield Launch("middle", (plan.batch, 1, 1), block, _arguments("radii", "radius"))
    for s in kernel.stages:
        radius = ("radii", "radius") if s.root else ()
        if s.threshold == "sweep":
            yield from _search(s, kernel.sweeps, radius)
            radius = ()
        arrays = (("y",) if s.in_place else ("y", "x")) if s.leaf else ()
        grid = (blocks(s.stage), s.stage.cut.blocks, 1)
        if s.threshold in ("row", "tile"):
            grid = (search_blocks(s), 1, 1)
        arguments = _arguments(*arrays, *radius)
        yield Launch(f"project_{s.level}", grid, (s.threads, 1, 1), arguments)


def _search(s: StageCode, sweeps: int, radius: tuple[str, ...]) -> Iterator[Launch]:
    """Turns that all blocks take part in, then a block for each group that is not settled."""
    groups, block = (s.stage.groups, 1, 1), (THREADS, 1, 1)
    arguments = _arguments("y" if s.leaf else "", *radius)
    yield Launch(f"start_{s.level}", groups, block, arguments)
    for turn in range(sweeps):
        grid = (blocks(s.stage), s.stage.cut.blocks, 1)
        yield Launch(f"above_{s.level}", grid, block, (*arguments, turn))
    yield Launch(f"finish_{s.level}", groups, block, (*arguments, sweeps))


def _arguments(*first: str) -> tuple[str | int, ...]:
    return (*filter(None, first), "work", "geometry")


def middle_threads(plan: Plan, kernel: Kernel) -> int:
    """Enough for the largest level of an entry, in whole warps."""
    largest = max(plan.stages[level.level].size for level in kernel.levels) // plan.batch
    return max(32, min(1024, 1 << (largest - 1).bit_length()))


def search_blocks(s: StageCode) -> int:
    """How many blocks keep whole groups while they look for their thresholds."""
    if s.stage.walk is not Walk.COLUMNS:
        return blocks(s.stage)
    extent = s.stage.axes[-1].extent
    return s.stage.groups // extent * -(-extent // search_columns(s))


def search_columns(s: StageCode) -> int:
    """How many columns a block keeps: whole accesses, at most one for each thread of a warp."""
    most = min(s.capacity // s.stage.group_size // s.vector, 32)
    needed = -(-s.stage.axes[-1].extent // s.vector)
    return s.vector * min(1 << (most.bit_length() - 1), 1 << (needed - 1).bit_length())


def parts(plan: Plan, kernel: Kernel) -> Iterator[Part]:
    """The workspace: what gradients need as well, and then what only the projection does."""
    yield from tape_parts(plan, kernel)
    for s in kernel.stages:
        stage = s.stage
        if s.slotted:
            slots = stage.cut.blocks * stage.lanes * stage.groups
            yield Part(f"slots_{s.level}", s.partial, slots)
        if s.threshold == "sweep":
            pieces = stage.cut.blocks * stage.groups
            yield Part(f"limit_{s.level}", s.real, stage.groups)
            yield Part(f"guess_{s.level}", s.real, (kernel.sweeps + 1) * stage.groups)
            yield Part(f"sums_{s.level}", "double", 2 * pieces)
            yield Part(f"counts_{s.level}", kernel.index, 2 * pieces)


def tape_parts(plan: Plan, kernel: Kernel) -> Iterator[Part]:
    """The norms first, where the host reads them; the levels' values, and what their groups are
    left. Their sizes depend on the shape alone."""
    yield Part("total", "double", plan.batch)
    for level in kernel.levels:
        size = plan.stages[level.level].size
        yield Part(f"v{level.level}", "double", size)
        if isinstance(level.child, Level):
            yield Part(f"u{level.level}", "double", size)
    for s in kernel.stages:
        if not s.leaf:
            yield Part(f"v{s.level}", "double", s.stage.size)
        if not s.root:
            yield Part(s.limits, s.limit_type, s.stage.groups)


def geometry(plan: Plan, kernel: Kernel) -> Iterator[tuple[str, int]]:
    """Extents and steps of all levels, by the names of the struct's fields."""
    for s in kernel.stages:
        stage = s.stage
        for i, axis in enumerate(stage.axes):
            yield f"n{i}_{s.level}", axis.extent
            yield f"s{i}_{s.level}", axis.stride
            yield f"t{i}_{s.level}", axis.out_stride
        yield f"groups_{s.level}", stage.groups
        yield f"size_{s.level}", stage.group_size
        yield f"width_{s.level}", tile_width(s)
        yield f"tiles_{s.level}", blocks_beside(s)
        yield f"pieces_{s.level}", stage.cut.blocks
        yield f"step_{s.level}", stage.cut.step
        yield f"slots_{s.level}", stage.cut.blocks * stage.lanes
        if s.threshold == "tile" and stage.walk is Walk.COLUMNS:
            yield f"kept_{s.level}", search_columns(s)
    for level in kernel.levels:
        yield from level_geometry(plan, level)


def placed(parts: Iterable[Part]) -> tuple[list[int], int]:
    """Where each of these parts of a workspace begins, and the bytes of the whole."""
    at = [0]
    for part in parts:
        at.append(at[-1] + -(-part.bytes // ALIGNMENT) * ALIGNMENT)
    return at[:-1], at[-1]


def tile_width(s: StageCode) -> int:
    """The threads of a block, or the columns of a tile of thresholds, along the innermost loop."""
    return 0 if s.stage.walk is Walk.PACKED else width(s.stage)


def blocks_beside(s: StageCode) -> int:
    return 1 if s.stage.walk is Walk.ROWS else tiles(s.stage)


def level_geometry(plan: Plan, level: Level) -> Iterator[tuple[str, int]]:
    """Extents and steps of a level in the middle, by the kinds of its loops."""
    own = level_loops(plan, level.level)
    yield f"groups_{level.level}", _product(loop[1] for loop in own if loop[0] == "g")
    yield f"size_{level.level}", _product(loop[1] for loop in own if loop[0] == "r")
    counts = dict.fromkeys("bgr", 0)
    for kind, extent, stride, up in own:
        name = f"{kind}{counts[kind]}"
        counts[kind] += 1
        yield f"n_{name}_{level.level}", extent
        yield f"s_{name}_{level.level}", stride
        yield f"t_{name}_{level.level}", up


def level_loops(plan: Plan, level: int) -> list[tuple[str, int, int, int]]:
    """The loops of a dense vector of values, neighbours of one kind merged.

    Each is its kind ("b"atch, "g"roups, "r"educed), its extent, its stride in the level's own
    values and, if not reduced, in those of its groups.
    """
    loops: list[tuple[str, int, int, int]] = []
    stride = up = 1
    for loop in reversed([loop for loop in plan.layout.loops if loop.level <= level]):
        kind = "b" if loop.level < 0 else "r" if loop.level == level else "g"
        if loops and loops[0][0] == kind:
            _, extent, inner, inner_up = loops.pop(0)
            loops.insert(0, (kind, extent * loop.extent, inner, inner_up))
        else:
            loops.insert(0, (kind, loop.extent, stride, 0 if kind == "r" else up))
        stride *= loop.extent
        up *= 1 if kind == "r" else loop.extent
    return loops


def _product(extents: Iterator[int]) -> int:
    result = 1
    for extent in extents:
        result *= extent
    return result
