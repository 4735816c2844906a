"""A plan to a kernel: every decision that the generated CPU source shows, and none of its text.

A `Kernel` says which functions the source has, which loops they nest, how they find an offset in
memory and the index of a group, and in which order the driver calls them. It holds no extents but
those that are baked in, so calls of many shapes share one kernel: the others arrive at run time
in the ``geometry`` of a `Call`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from projgen.plan import UNCUT, Cut, Plan, Stage, Walk, tile_width

VERSION = 1  # of the generated code
NEWTON_TURNS = 24  # threshold sweeps shared among the threads, before one of them goes on alone
TOGETHER = 4  # rows of a tile that are worked on at once
CELL = 16  # int64 from one counter of the desk to the next: two cache lines


@dataclass(frozen=True, slots=True)
class Counter:
    """``for name in range(first, last)``; the strides name its steps in memory."""

    name: str
    first: str
    last: str
    stride: str
    out_stride: str


@dataclass(frozen=True, slots=True)
class Nest:
    """How a function visits its block of a stage's array.

    ``loops`` enclose the innermost ``run``; ``groups`` are those of them that run over groups.
    ``beside`` is the reduced loop next to the run of a columns walk, which is not in ``loops``:
    several of its turns are read together. ``group`` is the index of the run's (first) group.
    """

    loops: tuple[Counter, ...]
    groups: tuple[Counter, ...]
    beside: Counter | None
    run: Counter
    group: str

    def at(self, *also: Counter) -> str:
        """The offset in the array of what `loops` and `also` have come to."""
        return _sum(f"{c.name} * {c.stride}" for c in (*self.loops, *also))

    def out_at(self, *also: Counter) -> str:
        return _sum(f"{c.name} * {c.out_stride}" for c in (*self.loops, *also))


@dataclass(frozen=True)
class StageCode:
    """The functions of one level, named after it: ``aggregate_1``, ``project_1``..."""

    stage: Stage
    dtype: str
    in_place: bool
    streamed: bool

    @property
    def rows(self) -> int:
        """How many rows of columns are read together: more streams, when they come from afar."""
        return 16 if self.streamed else 4

    @property
    def level(self) -> int:
        return self.stage.level

    @property
    def norm(self) -> str:
        return self.stage.norm

    @property
    def leaf(self) -> bool:
        return self.stage.leaf

    @property
    def source(self) -> str:
        """The array that the level is about."""
        return "y" if self.leaf else f"v{self.level}"

    @property
    def target(self) -> str:
        """Where its projection goes; in place, the same array."""
        return self.source if self.in_place else "x" if self.leaf else f"u{self.level}"

    @property
    def values(self) -> str:
        """The groups' values."""
        return f"v{self.level - 1}" if self.level else "total"

    @property
    def radii(self) -> str:
        """The groups' radii."""
        return f"u{self.level - 1}" if self.level else "radius"

    @property
    def bits(self) -> str:
        return "int32" if self.dtype == "float32" else "int64"

    @property
    def magnitude(self) -> str:
        return "MAGNITUDE_32" if self.dtype == "float32" else "MAGNITUDE_64"

    @property
    def accumulator(self) -> str:
        return self.bits if self.norm == "linf" else "float64"

    @property
    def walk(self) -> str:
        return str(self.stage.walk)

    @property
    def threshold(self) -> str:
        return str(self.stage.threshold or "")

    @property
    def limited(self) -> bool:
        """Whether each group's limit is worked out ahead of the last sweep, into a vector."""
        return self.threshold in ("sweep", "tile") or self.walk == "columns"

    @property
    def rows_of_tile(self) -> str:
        """How many rows a tile has: one for each value of a group."""
        return str(self.stage.inner) if self.walk == "packed" else f"n{len(self.stage.axes) - 2}"

    @property
    def hinting(self) -> int:
        """How many turns of the loop that is cut say where the others should start."""
        if self.walk == "packed":
            return _pitch(self) if self.stage.tiles.loop == len(self.stage.axes) - 2 else 1
        return 16 if self.stage.tiles.loop == len(self.stage.axes) - 1 else 1

    @property
    def sum_dtype(self) -> str:
        """The type of short sums; a loop over strided values does not vectorise, and adds one
        value after the other."""
        return self.dtype if self.stage.unit else "float64"

    @property
    def sampled(self) -> bool:
        """Whether a long group's threshold is guessed from a sample."""
        stage = self.stage
        alone = sum(axis.reduced for axis in stage.axes) == 1
        return self.threshold == "sweep" and self.walk == "rows" and alone and stage.unit

    @property
    def pitch(self) -> str:
        """From one row of a tile to the next: packed tiles have a fixed width."""
        return str(_pitch(self)) if self.walk == "packed" else "pitch"

    @property
    def block(self) -> str:
        """How a function is told its block; a level that one thread does has but one."""
        return "first, last, " if self.stage.shared else ""

    @property
    def widened(self) -> bool:
        """Whether several rows of columns are taken as one."""
        return self.stage.lanes > 1

    @property
    def few(self) -> int:
        """How many neighbours of a packed group are joined in advance: a vector's share of that
        loop, against the scalar steps that then remain."""
        size = self.stage.inner
        return min(range(1, size + 1), key=lambda n: size * n / 11 * (n > 1) + size // n + size % n)

    @property
    def partial(self) -> bool:
        """Whether each block of the aggregation has a slot of its own."""
        return self.stage.shared and self.stage.axes[self.stage.cut.loop].reduced

    @cached_property
    def whole(self) -> Nest:
        """All of the array, uncut."""
        return _nest(self.stage, UNCUT)

    @cached_property
    def nest(self) -> Nest:
        """A block of the level, in both sweeps."""
        return _nest(self.stage, self.stage.cut)

    @cached_property
    def tiles(self) -> Nest:
        """A block of the search for thresholds."""
        return _nest(self.stage, self.stage.tiles)

    @property
    def size(self) -> str:
        """How many values a group has."""
        axes = enumerate(self.stage.axes)
        extents = [f"n{i}" for i, axis in axes if axis.reduced]
        return (
            str(self.stage.inner)
            if self.stage.inner and len(extents) == 1
            else (" * ".join(extents))
        )

    @property
    def label(self) -> str:
        """The level's groups in words."""
        return f"level {self.level}, {self.norm} of {self.source}"

    def rounded_down(self, expression: str) -> str:
        """A limit in the array's type, rounded so that the group stays inside its ball."""
        return f"down({expression})" if self.dtype == "float32" else expression

    def rounded_up(self, expression: str) -> str:
        return f"up({expression})" if self.dtype == "float32" else expression

    def slice(self, nest: Nest, at: str, out: bool = False) -> str:
        """The run from offset `at`, as an index of the flat array."""
        first, last = nest.run.first, nest.run.last
        start = at if first == "0" else f"{at} + {first}"
        if self.stage.unit:
            stop = f"{at} + {last}"
            return f"{start} : {stop}"
        step = nest.run.out_stride if out else nest.run.stride
        start = at if first == "0" else f"{at} + {first} * {step}"
        return f"{start} : {at} + ({last} - 1) * {step} + 1 : {step}"

    def span(self, nest: Nest) -> str:
        """The slice of a vector over groups that a run of a columns walk covers."""
        first, last = nest.run.first, nest.run.last
        if nest.group == "0":
            return f"{first} : {last}"
        start = nest.group if first == "0" else f"{nest.group} + {first}"
        return f"{start} : {nest.group} + {last}"

    def unpack(self, body: str) -> str:
        """The line that names those extents and strides that a function's `body` uses."""
        rank = len(self.stage.axes)
        names = [f"{kind}{i}" for kind in "nst" for i in range(rank)] + ["pitch"]
        used = [name for name in names if re.search(rf"\b{name}\b", body)]
        cells = ", ".join(f"axes[{names.index(name)}]" for name in used)
        return f"    {', '.join(used)} = {cells}\n" if used else ""


@dataclass(frozen=True, slots=True)
class Phase:
    """A step of the driver that ends when all threads are done with it.

    ``kind``: "aggregate", "project" (the stage's blocks, shared), "newton" (its threshold sweeps)
    or "solo": ``steps`` (action, stage), done by whoever comes first. ``counter`` is its first
    counter on the desk.
    """

    kind: str
    stage: StageCode | None
    steps: tuple[tuple[str, StageCode | None], ...]
    counter: int

    @property
    def checks(self) -> bool:
        return ("check", None) in self.steps

    @property
    def title(self) -> str:
        """What the phase is for, in words."""
        if self.stage is None:
            return "the levels above, up to the root" if self.checks else "between the sweeps"
        s = self.stage
        if self.kind in ("newton", "thresholds"):
            return f"the thresholds of {s.label}"
        verb = "aggregate" if self.kind == "aggregate" else "project"
        return f"sweep {1 if verb == 'aggregate' else 2}: {verb} {s.label}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the workspace: ``size`` values of ``dtype``, an upper bound on what is used."""

    name: str
    dtype: str
    size: int

    @property
    def cells(self) -> int:
        """Its room in float64, in whole cache lines."""
        itemsize = 4 if self.dtype in ("float32", "int32") else 8
        return -(-self.size * itemsize // 64) * 8


@dataclass(frozen=True)
class Kernel:
    """All that the templates of the CPU backend may know."""

    title: str
    dtype: str
    notes: tuple[str, ...]
    in_place: bool
    stages: tuple[StageCode, ...]
    phases: tuple[Phase, ...]
    segments: tuple[tuple[str, str], ...]  # (name, dtype)
    cells: tuple[str, ...]
    counters: int
    scratch: bool
    newton_turns: int
    version: int

    @property
    def status_cell(self) -> int:
        """Where the driver's verdict stands on the desk, after the counters and the seats."""
        return CELL * (self.counters + 1)

    @property
    def desk_size(self) -> int:
        """The int64 cells of a desk, all zero when a call begins."""
        return CELL * (self.counters + 2)

    def unpack(self, body: str) -> str:
        """The lines that name those cells of the geometry that the driver's `body` uses."""
        used = set(re.findall(r"\w+", body))
        return "".join(
            f"    {name} = cells[{i}]\n" for i, name in enumerate(self.cells) if name in used
        )

    @property
    def masks_32(self) -> bool:
        return any(s.norm == "linf" and s.dtype == "float32" for s in self.stages)

    @property
    def masks_64(self) -> bool:
        return any(s.norm == "linf" and s.dtype == "float64" for s in self.stages)

    @property
    def searches(self) -> bool:
        return any(s.threshold for s in self.stages)

    @property
    def sums_in_float32(self) -> bool:
        return self.dtype == "float32" and bool(self.stages[-1].threshold)

    @property
    def spreads(self) -> int:
        """The size of packed groups, whose limits are spread over their values; or 0."""
        leaf = self.stages[-1]
        return leaf.stage.inner if leaf.walk == "packed" else 0

    @property
    def squares(self) -> bool:
        return any(s.norm == "l2" for s in self.stages)

    @property
    def rounds_down(self) -> bool:
        return self.dtype == "float32" and self.stages[-1].norm in ("linf", "l2")

    @property
    def rounds_up(self) -> bool:
        return self.dtype == "float32" and self.stages[-1].norm == "l1"


def lower(plan: Plan) -> Kernel:
    """The kernel of `plan`. Plans that differ only in extents, strides and blocks share it."""
    stages = _stage_codes(plan)
    phases = tuple(_phases(stages))
    segments = _segments(plan, stages, 1)
    return Kernel(
        title=plan.spec,
        dtype=plan.dtype,
        notes=tuple(_notes(plan)),
        in_place=plan.in_place,
        stages=stages,
        phases=phases,
        segments=tuple((segment.name, segment.dtype) for segment in segments),
        cells=tuple(name for name, _ in _geometry(plan, stages, 1)),
        counters=phases[-1].counter + 1,
        scratch=_scratch(plan, stages) > 0,
        newton_turns=NEWTON_TURNS,
        version=VERSION,
    )


def geometry(plan: Plan, threads: int) -> dict[str, int]:
    """What a kernel needs to know of one call's extents, by name and in `Kernel.cells` order."""
    return dict(_geometry(plan, _stage_codes(plan), threads))


def _stage_codes(plan: Plan) -> tuple[StageCode, ...]:
    return tuple(
        StageCode(stage, plan.dtype, plan.in_place, plan.streamed)
        if stage.leaf
        else StageCode(stage, "float64", False, False)
        for stage in plan.stages
    )


def _segments(plan: Plan, stages: tuple[StageCode, ...], threads: int) -> list[Segment]:
    """The workspace: radii and norms first, where the caller writes and reads them."""
    segments = [Segment("radius", "float64", plan.batch), Segment("total", "float64", plan.batch)]
    for s in stages:
        stage = s.stage
        if not s.leaf:
            segments.append(Segment(f"v{s.level}", "float64", stage.size))
            segments.append(Segment(f"u{s.level}", "float64", stage.size))
        slots = stage.groups * stage.lanes * (stage.cut.blocks if s.partial else 1)
        if not stage.direct or s.threshold == "sweep":
            segments.append(Segment(f"slots_{s.level}", s.accumulator, slots))
        if s.limited:
            segments.append(Segment(f"limit_{s.level}", s.dtype, stage.groups * stage.lanes))
        if s.threshold == "tile":
            segments.append(Segment(f"hints_{s.level}", "float64", 8))
        if s.threshold == "sweep":
            segments.append(Segment(f"counts_{s.level}", "float64", slots))
            segments.append(Segment(f"count_{s.level}", "float64", stage.groups))
            segments.append(Segment(f"open_{s.level}", "float64", NEWTON_TURNS))
    return segments


def _scratch(plan: Plan, stages: tuple[StageCode, ...]) -> int:
    """The float64 cells of one thread's scratch memory."""
    sizes = [0]
    for s in stages:
        itemsize = 4 if s.dtype == "float32" else 8
        rows, pitch = s.stage.group_size, _pitch(s)
        if s.sampled:
            sizes.append(4096 * itemsize // 8)
        if s.threshold == "tile":
            sizes.append(8 + 3 * pitch + (rows + TOGETHER + 2) * pitch * itemsize // 8)
        if s.walk == "packed":
            sizes.append(max((rows + 1) * pitch * itemsize // 8, rows * pitch))
    return -(-max(sizes) // 8) * 8


def _pitch(s: StageCode) -> int:
    if s.walk == "packed":  # a few thousand values: in the first-level cache
        return max(64, 2048 // s.stage.inner // 16 * 16)
    return tile_width(s.stage.group_size, 4 if s.dtype == "float32" else 8, s.streamed)


def _geometry(plan: Plan, stages: tuple[StageCode, ...], threads: int) -> Iterator[tuple[str, int]]:
    loops = plan.layout.loops
    yield "y_size", 1 + sum((loop.extent - 1) * loop.stride for loop in loops)
    yield "x_size", 1 + sum((loop.extent - 1) * loop.out_stride for loop in loops)
    for s in stages:
        axes = list(enumerate(s.stage.axes))
        yield from ((f"n{i}_{s.level}", axis.extent) for i, axis in axes)
        yield from ((f"s{i}_{s.level}", axis.stride) for i, axis in axes)
        yield from ((f"t{i}_{s.level}", axis.out_stride) for i, axis in axes)
        yield f"pitch_{s.level}", _pitch(s)
        yield f"lanes_{s.level}", s.stage.lanes
        for prefix, cut in (("", s.stage.cut), ("tile_", s.stage.tiles)):
            yield f"{prefix}blocks_{s.level}", cut.blocks
            yield f"{prefix}step_{s.level}", cut.step
            yield f"{prefix}end_{s.level}", s.stage.axes[cut.loop].extent
    at = 0
    for segment in _segments(plan, stages, threads):
        itemsize = 4 if segment.dtype in ("float32", "int32") else 8
        yield f"{segment.name}_at", at
        yield f"{segment.name}_end", at + -(-segment.size * itemsize // 8)
        at += segment.cells
    scratch = _scratch(plan, stages)
    if scratch:
        yield "scratch_at", at
        yield "scratch_size", scratch
        yield "seats", threads
    yield "memory_size", at + scratch * threads


def _phases(stages: tuple[StageCode, ...]) -> Iterator[Phase]:
    """Up the tree, check, down the tree; what one thread does in a row is one phase."""
    actions: list[tuple[str, StageCode | None]] = []
    for s in reversed(stages):
        actions.append(("aggregate", s))
        if not s.stage.direct:
            actions.append(("combine", s))
    actions.append(("check", None))
    for s in stages:
        if s.threshold == "sweep":
            actions += [("start", s), ("newton", s)]
        elif s.threshold == "tile":
            actions += [("hint", s)] if s.stage.shared else []
            actions.append(("thresholds", s))
        elif s.limited:
            actions.append(("limits", s))
        actions.append(("project", s))
    counter = 0
    solo: list[tuple[str, StageCode | None]] = []
    for action, stage in actions:
        blocks = action in ("aggregate", "project", "thresholds")
        if not (action == "newton" or (blocks and stage and stage.stage.shared)):
            solo.append((action, stage))
            continue
        if solo:
            yield Phase("solo", None, tuple(solo), counter)
            solo, counter = [], counter + 1
        yield Phase(action, stage, (), counter)
        counter += 2 * NEWTON_TURNS + 1 if action == "newton" else 1
    assert not solo, "the leaf's projection comes last, and it is shared"


def _nest(stage: Stage, cut: Cut) -> Nest:
    axes = stage.axes
    counters = [
        Counter(
            f"i{i}", *(("first", "last") if i == cut.loop else ("0", f"n{i}")), f"s{i}", f"t{i}"
        )
        for i in range(len(axes))
    ]
    if stage.inner and cut.loop != len(axes) - 1:
        counters[-1] = replace(counters[-1], last=str(stage.inner))
    # Two loops are the body's own in packed groups, and in columns with a reduction beside them.
    beside = stage.walk is Walk.PACKED or (stage.walk is Walk.COLUMNS and _reduced_beside(stage))
    outside = range(len(axes) - (2 if beside else 1))
    across = [i for i in outside if not axes[i].reduced]
    # Where groups lie beside each other in the body, the index is that of the first one.
    body_groups = {
        Walk.ROWS: "",
        Walk.COLUMNS: f"n{len(axes) - 1}",
        Walk.PACKED: f"n{len(axes) - 2}",
    }
    return Nest(
        loops=tuple(counters[i] for i in outside),
        groups=tuple(counters[i] for i in across),
        beside=counters[-2] if beside else None,
        run=counters[-1],
        group=_index(across, body_groups[stage.walk]),
    )


def _reduced_beside(stage: Stage) -> bool:
    return len(stage.axes) > 1 and stage.axes[-2].reduced


def _index(loops: list[int], times: str) -> str:
    """The dense index over the turns of `loops`, in memory order, times `times`."""
    index = ""
    for i in loops:
        index = (
            f"({index}) * n{i} + i{i}"
            if "+" in index
            else (f"{index} * n{i} + i{i}" if index else f"i{i}")
        )
    if index and times:
        index = f"({index}) * {times}" if "+" in index else f"{index} * {times}"
    return index or "0"


def _sum(terms: Iterator[str]) -> str:
    return " + ".join(terms) or "0"


def _notes(plan: Plan) -> Iterator[str]:
    """What the source's docstring says of the plan: nothing that depends on extents."""
    for stage in plan.stages:
        order = ", ".join("reduced" if axis.reduced else "groups" for axis in stage.axes)
        source = "y" if stage.leaf else f"v{stage.level}"
        way = f"; threshold by {stage.threshold}" if stage.threshold else ""
        yield f"level {stage.level}  {stage.norm:4}  of {source}: {stage.walk} ({order}){way}"
