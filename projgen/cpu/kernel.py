"""What a CPU kernel is: all that the templates may know, and nothing that they need not.

A `Kernel` says which functions the source has, which loops they nest, how they find an offset in
memory and the index of a group, and in which order the driver calls them. It holds no extents but
those that are baked in, so calls of many shapes share one kernel: the others arrive at run time
in the ``geometry`` of a `Call`.
"""

import re
from dataclasses import dataclass, replace

from projgen.cpu.stages import STRETCH_BYTES, StageCode
from projgen.dtypes import ITEMSIZE
from projgen.norms import NORMS

DISTANCE = 8 << 10  # bytes from a stretch to what is asked for meanwhile: past the current page
CELL = 16  # int64 from one counter of the desk to the next: two cache lines


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
    def upward(self) -> tuple[tuple[str, StageCode | None], ...]:
        """What is done after it and before the check."""
        return self.after[: self.after.index(("check", None))]

    @property
    def downward(self) -> tuple[tuple[str, StageCode | None], ...]:
        """The check, and what is done after it."""
        return self.after[self.after.index(("check", None)) :]

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
    def itemsize(self) -> int:
        return 2 if self.dtype == "int16" else 4 if self.dtype in ("float32", "int32") else 8

    @property
    def cells(self) -> int:
        """Its room in float64, in whole cache lines."""
        return -(-self.size * self.itemsize // 64) * 8


@dataclass(frozen=True)
class Kernel:
    """All that the templates of the CPU backend may know."""

    title: str
    dtype: str
    notes: tuple[str, ...]
    in_place: bool
    positive: bool
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

    @property
    def functions(self) -> tuple[StageCode, ...]:
        """The functions of all levels, each once: those of the outermost level that has them."""
        return tuple(
            replace(s, generic=len(s.levels) > 1) for s in self.stages if s.level == s.levels[0]
        )

    @property
    def joint(self) -> bool:
        """Whether all limits of the leaf's groups are searched for together."""
        return self.leaf.joint

    @property
    def starts(self) -> bool:
        """Whether a search may start from an earlier call's limits."""
        return self.joint or any(s.threshold == "sweep" for s in self.stages)

    @property
    def projected(self) -> tuple[StageCode, ...]:
        """Those of `functions` whose groups are projected one by one."""
        return tuple(s for s in self.functions if s.leaf or not self.joint)

    def axes(self, s: StageCode) -> str:
        """The cells of the geometry that a level's functions take as ``axes``."""
        first = self.cells.index(f"n0_{s.level}")
        return f"{first} : {first + len(s.names)}"

    @property
    def leaf(self) -> StageCode:
        return self.stages[-1]

    @property
    def builders(self) -> tuple[str, ...]:
        """What Numba offers to intrinsics, and the source's intrinsics use."""
        names: set[str] = set()
        if self.pours:
            names |= {"for_range_slice", "ir"}
        if self.leaf.walk == "packed" or self.stretches or self.dtype == "float16":
            names |= {"ir"}
        if self.leaf.dealt:
            names |= {"get_or_insert_function"}
        if self.sorts:
            names |= {"ir"} if self.positive else {"get_or_insert_function", "ir"}
        if self.transposers or self.leaf.squared:
            names |= {"ir"}
        if self.surveyors:
            names |= {"alloca_once_value", "for_range", "ir"}
        return tuple(sorted(names))

    @property
    def element(self) -> str:
        """What the arrays are to Numba, which knows no halves on a CPU."""
        return "int16" if self.leaf.half else self.dtype

    @property
    def masks(self) -> tuple[int, ...]:
        """The sizes in bits of what largest magnitudes are found among."""
        found = {s.measured_as for s in self.stages if s.bitwise}
        return tuple(sorted(8 * ITEMSIZE[s.stored] for s in found))

    @property
    def stretches(self) -> bool:
        return self.leaf.stretched and (self.in_place or self.leaf.walk == "rows")

    @property
    def pours(self) -> bool:
        return self.leaf.poured

    @property
    def stretch(self) -> int:
        """How many values a stretch has."""
        return STRETCH_BYTES // ITEMSIZE[self.dtype]

    @property
    def lines_ahead(self) -> range:
        """Where the cache lines lie that are asked for, in bytes from the start of a stretch."""
        return range(DISTANCE, DISTANCE + STRETCH_BYTES, 64)

    @property
    def searches(self) -> bool:
        """Whether thresholds are searched for by Newton's method."""
        return any(s.threshold not in ("", "sort") for s in self.stages)

    @property
    def sorts(self) -> bool:
        """Whether the leaf's thresholds are found by sorting."""
        return self.leaf.threshold == "sort"

    @property
    def surveyors(self) -> tuple[StageCode, ...]:
        """Levels that survey 16 groups at a time: one for each type, the leaf if it is one of them,
        whose reading will do for values above it."""
        return tuple({s.dtype: s for s in self.stages if s.abreast}.values())

    @property
    def strips(self) -> bool:
        """Whether surveys copy groups."""
        return any(s.threshold == "strip" for s in self.stages)

    @property
    def transposers(self) -> tuple[StageCode, ...]:
        """Levels whose tiles are transposed: one for each type."""
        return tuple({s.dtype: s for s in self.stages if s.transposed or s.upended}.values())

    @property
    def sums_in_float32(self) -> bool:
        return self.leaf.dtype == "float32" and bool(self.leaf.threshold)

    @property
    def largest(self) -> str:
        """The largest norm that it takes."""
        return "1e34" if self.sums_in_float32 else "1.7976931348623157e308"

    @property
    def reads_positive(self) -> bool:
        """Whether values that are not checked yet are read as 0 where they are below."""
        return self.positive and not self.leaf.bitwise

    @property
    def squares(self) -> bool:
        return any(NORMS[s.norm].squares for s in self.stages)

    @property
    def vanishes(self) -> bool:
        """Whether the squares of values may be zero where the values are not."""
        return self.dtype == "float64" and self.squares

    @property
    def rounds_down(self) -> bool:
        return self.leaf.dtype == "float32" and NORMS[self.leaf.norm].rounds == "down"

    @property
    def rounds_up(self) -> bool:
        sorts = self.leaf.threshold == "sort"  # in the array's own type
        return self.leaf.dtype == "float32" and NORMS[self.leaf.norm].rounds == "up" and not sorts
