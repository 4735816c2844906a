"""What a CPU kernel is: all that the templates may know, and nothing that they need not.

A `Kernel` says which functions the source has, which loops they nest, how they find an offset in
memory and the index of a group, and in which order the driver calls them. It holds no extents but
those that are baked in, so calls of many shapes share one kernel: the others arrive at run time
in the ``geometry`` of a `Call`.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from projgen.cpu.nest import Counter, Nest, nest
from projgen.norms import NORMS
from projgen.plan import UNCUT, Plan, Stage, tile_width

STRETCH_BYTES = 512
DISTANCE = 8 << 10  # bytes from a stretch to what is asked for meanwhile: past the current page
CELL = 16  # int64 from one counter of the desk to the next: two cache lines


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
    def stretched(self) -> bool:
        """Whether runs come from main memory and are long: what lies ahead is worth asking for."""
        itemsize = 4 if self.dtype == "float32" else 8
        long = self.stage.axes[-1].extent * itemsize >= 8 * STRETCH_BYTES
        return self.streamed and self.stage.unit and long

    @property
    def level(self) -> int:
        return self.stage.level

    @property
    def norm(self) -> str:
        return self.stage.norm

    @property
    def macros(self) -> str:
        """The template of its norm: how to aggregate and to project one value."""
        return f"cpu/norms/{self.norm}.py.j2"

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
    def bitwise(self) -> bool:
        """Whether the aggregation reads values as bits: for largest magnitudes."""
        return NORMS[self.norm].accumulates == "max"

    @property
    def sized(self) -> bool:
        """Whether a group's value depends on how many it has."""
        return NORMS[self.norm].sized

    @property
    def accumulator(self) -> str:
        return self.bits if self.bitwise else "float64"

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
            return self.width if self.stage.tiles.loop == len(self.stage.axes) - 2 else 1
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
    def width(self) -> int:
        """How many values a row of a tile has room for."""
        if self.walk == "packed":  # a few thousand values: in the first-level cache
            return max(64, 2048 // self.stage.inner // 16 * 16)
        itemsize = 4 if self.dtype == "float32" else 8
        return tile_width(self.stage.group_size, itemsize, self.streamed)

    @property
    def pitch(self) -> str:
        """From one row of a tile to the next: packed tiles have a fixed width."""
        return str(self.width) if self.walk == "packed" else "pitch"

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
        return nest(self.stage, UNCUT)

    @cached_property
    def nest(self) -> Nest:
        """A block of the level, in both sweeps."""
        return nest(self.stage, self.stage.cut)

    @cached_property
    def tiles(self) -> Nest:
        """A block of the search for thresholds."""
        return nest(self.stage, self.stage.tiles)

    @property
    def size(self) -> str:
        """How many values a group has."""
        extents = [f"n{i}" for i, axis in enumerate(self.stage.axes) if axis.reduced]
        if self.stage.inner and len(extents) == 1:
            return str(self.stage.inner)
        together = [str(self.stage.together)] if self.stage.together > 1 else []
        return " * ".join([*extents, *together, *(["lanes"] if self.widened else [])])

    @property
    def names(self) -> tuple[str, ...]:
        """What ``axes`` holds: neighbours in the geometry of a call."""
        rank = range(len(self.stage.axes))
        extents = [f"{kind}{i}" for kind in "nst" for i in rank]
        return (*extents, "pitch", *(["lanes"] if self.widened else []))

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
        used = [name for name in self.names if re.search(rf"\b{name}\b", body)]
        cells = ", ".join(f"axes[{self.names.index(name)}]" for name in used)
        return f"    {', '.join(used)} = {cells}\n" if used else ""


@dataclass(frozen=True, slots=True)
class Phase:
    """Blocks that the threads share, and what the one that ends them does before the next phase.

    ``kind``: "aggregate", "thresholds", "project" (blocks of the stage), or "newton" (threshold
    sweeps over all of them). ``number`` is its place on the desk, the first of several for
    "newton". ``after``: (action, stage) in order. After the ``final`` phase nobody waits.
    """

    kind: str
    stage: StageCode
    number: int
    after: tuple[tuple[str, StageCode | None], ...]
    final: bool

    @property
    def checks(self) -> bool:
        return ("check", None) in self.after

    @property
    def title(self) -> str:
        """What the phase is for, in words."""
        if self.kind in ("newton", "thresholds"):
            return f"the thresholds of {self.stage.label}"
        verb = "aggregate" if self.kind == "aggregate" else "project"
        return f"sweep {1 if verb == 'aggregate' else 2}: {verb} {self.stage.label}"

    @property
    def aside(self) -> str:
        """What is done after it, in words."""
        return "the levels above, up to the root" if self.checks else "between the sweeps"


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
    numbers: int  # of phases
    scratch: bool
    newton_turns: int
    version: int

    @property
    def shares_cell(self) -> int:
        """Where the counters of the threads' shares stand on the desk, after the phases."""
        return CELL * (self.numbers + 1)

    def desk_size(self, threads: int) -> int:
        """The int64 cells of a desk, all zero when a call begins."""
        return self.shares_cell + CELL * threads

    def unpack(self, body: str) -> str:
        """The lines that name those cells of the geometry that the driver's `body` uses."""
        used = set(re.findall(r"\w+", body))
        return "".join(
            f"    {name} = cells[{i}]\n" for i, name in enumerate(self.cells) if name in used
        )

    def axes(self, s: StageCode) -> str:
        """The cells of the geometry that a level's functions take as ``axes``."""
        first = self.cells.index(f"n0_{s.level}")
        return f"{first} : {first + len(s.names)}"

    @property
    def masks_32(self) -> bool:
        return any(s.bitwise and s.dtype == "float32" for s in self.stages)

    @property
    def masks_64(self) -> bool:
        return any(s.bitwise and s.dtype == "float64" for s in self.stages)

    @property
    def stretches(self) -> bool:
        leaf = self.stages[-1]
        return leaf.stretched and (self.in_place or leaf.walk == "rows")

    @property
    def stretch(self) -> int:
        """How many values a stretch has."""
        return STRETCH_BYTES // (4 if self.dtype == "float32" else 8)

    @property
    def lines_ahead(self) -> range:
        """Where the cache lines lie that are asked for, in bytes from the start of a stretch."""
        return range(DISTANCE, DISTANCE + STRETCH_BYTES, 64)

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
        return any(NORMS[s.norm].squares for s in self.stages)

    @property
    def rounds_down(self) -> bool:
        return self.dtype == "float32" and NORMS[self.stages[-1].norm].rounds == "down"

    @property
    def rounds_up(self) -> bool:
        return self.dtype == "float32" and NORMS[self.stages[-1].norm].rounds == "up"


def stage_codes(plan: Plan) -> tuple[StageCode, ...]:
    """Above the leaf, levels work on dense vectors of float64."""
    return tuple(
        StageCode(stage, plan.dtype, plan.in_place, plan.streamed)
        if stage.leaf
        else StageCode(stage, "float64", False, False)
        for stage in plan.stages
    )


__all__ = ["Counter", "Kernel", "Nest", "Phase", "Segment", "StageCode", "stage_codes"]
