"""A level of a plan as functions: their names, what they read, and how they go about it."""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from projgen.cpu.nest import Nest, nest
from projgen.cpu.searches import SearchCode
from projgen.dtypes import FRACTION_BITS, ITEMSIZE
from projgen.norms import NORMS
from projgen.searches import tile_width
from projgen.stage import UNCUT

STRETCH_BYTES = 512


@dataclass(frozen=True)
class StageCode(SearchCode):
    """The functions of one level, named after it: ``aggregate_1``, ``project_1``...

    ``positive``: it reads negative values as 0, and writes them so.

    ``levels`` are those whose functions these are: levels above the leaf that are alike share
    theirs, whose arguments then have names that fit each of them (``generic``). ``searchers`` are
    those that share a search for thresholds.
    """

    in_place: bool
    streamed: bool
    levels: tuple[int, ...]
    searchers: tuple[int, ...]
    positive: bool = False
    generic: bool = False

    @property
    def rows(self) -> int:
        """How many rows of columns are read together: more streams, when they come from afar; of
        maxima, half as many took less time."""
        if not self.stage.shared:  # a small level, where a short function counts for more
            return 1
        return (8 if self.bitwise else 16) if self.streamed else 4

    @property
    def rows_of_sweep(self) -> int:
        """The same in a sweep that looks for thresholds, which keeps two sums of each column."""
        return 8 if self.stage.shared else 1

    @property
    def stretched(self) -> bool:
        """Whether runs come from main memory and are long: what lies ahead is worth asking for."""
        return self._streams_runs_of(8 * STRETCH_BYTES, self.stage.axes[-1].extent)

    @property
    def poured(self) -> bool:
        """Whether its projection goes to main memory past the caches: in runs that are worth it, of
        words, since no less can be stored so."""
        if self.in_place or self.half or self.turned:
            return False
        loops = self.stage.axes[-2 if self.walk == "packed" else -1 :]
        return self._streams_runs_of(STRETCH_BYTES, prod(axis.extent for axis in loops))

    def _streams_runs_of(self, least: int, values: int) -> bool:
        """Whether `values` that lie side by side come from main memory, and have `least` bytes."""
        return self.streamed and self.stage.unit and values * ITEMSIZE[self.stored] >= least

    @property
    def level(self) -> int:
        return self.stage.level

    @property
    def name(self) -> str:
        """What its functions' names end in."""
        return "_".join(_counted(self.levels))

    @property
    def search(self) -> str:
        """What the name of the search for thresholds ends in."""
        return "_".join(_counted(self.searchers))

    @property
    def first_to_search(self) -> bool:
        return self.level == self.searchers[0]

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
        return "array" if self.generic else "y" if self.leaf else f"v{self.level}"

    @property
    def target(self) -> str:
        """Where its projection goes; in place, the same array."""
        if self.generic:
            return "result"
        return self.source if self.in_place else "x" if self.leaf else f"u{self.level}"

    @property
    def values(self) -> str:
        """The groups' values."""
        if self.generic:
            return "norms"
        return f"v{self.level - 1}" if self.level else "total"

    @property
    def radii(self) -> str:
        """The groups' radii."""
        if self.generic:
            return "radii"
        return f"u{self.level - 1}" if self.level else "radius"

    @property
    def wide(self) -> "StageCode":
        """The same level on a copy of its values in the type of its arithmetic."""
        return replace(self, stored=self.dtype)

    @property
    def measured_as(self) -> "StageCode":
        """The level on the values that are measured: where groups are dealt, on their copy."""
        return self.wide if self.dealt else self

    def load(self, value: str) -> str:
        """A value of its array, to work with."""
        return f"widen({value})" if self.half else value

    def store(self, value: str) -> str:
        """A value as its array holds it."""
        return f"narrow({value})" if self.half else value

    @property
    def zero(self) -> str:
        """In the type of its arithmetic."""
        return f"np.{self.dtype}(0)"

    def measured(self, value: str) -> str:
        """What counts of a value that may not be finite, and then stays so."""
        loaded = self.load(value)
        return f"positive({loaded})" if self.positive else f"abs({loaded})"

    def compared(self, value: str) -> str:
        """What of a value may be above a threshold of 0 or more."""
        return self.load(value) if self.positive else f"abs({self.load(value)})"

    def kept(self, value: str) -> str:
        """What a value of a group inside its ball becomes, as its array holds it: even of the bits
        of halves, those below 0 are negative."""
        stored = "int16" if self.half else self.stored
        return f"max({value}, np.{stored}(0))" if self.positive else value

    @property
    def bits(self) -> str:
        return f"int{8 * ITEMSIZE[self.stored]}"

    @property
    def fraction_bits(self) -> int:
        """How many bits of a value in its array come after its exponent."""
        return FRACTION_BITS[self.stored]

    @property
    def magnitude(self) -> str:
        return f"MAGNITUDE_{8 * ITEMSIZE[self.stored]}"

    @property
    def viewed(self) -> bool:
        """Whether the aggregation has to look at its array as bits: as what halves are anyway."""
        return self.bitwise and not self.half

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
    def scratches(self) -> bool:
        """Whether its sweeps need scratch memory."""
        return self.walk == "packed" or self.turned or self.copied

    @property
    def width(self) -> int:
        """How many values a row of a tile has room for."""
        if self.walk == "packed":
            return self.stage.bundle * self.bundles
        if self.sorted_aside:
            return self.bundles
        return tile_width(self.stage.group_size, ITEMSIZE[self.dtype])

    @property
    def bundled(self) -> int:
        """How many adjacent values the groups of a bundle have."""
        return self.stage.group_size * self.stage.bundle

    @property
    def spread(self) -> str:
        """The name of what spreads the limits of its packed groups over their values."""
        bundle = f"_{self.stage.bundle}" if self.stage.bundle > 1 else ""
        return f"spread_{self.bundled}{bundle}"

    @property
    def bundles(self) -> int:
        """How many bundles of packed groups, or columns to sort, a tile has: a few thousand bytes,
        which are in the first-level cache beside what is read and written."""
        values = 8192 // ITEMSIZE[self.dtype]
        return max(values // 32, values // self.bundled // 16 * 16)

    @property
    def dealt(self) -> bool:
        """Whether packed groups become vectors by shuffles of our own: for a few values the
        compiler finds them itself."""
        return self.walk == "packed" and self.bundled >= 8

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
        if self.stage.bundle > 1:
            return 1
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
        if not self.generic:
            return f"level {self.level}, {self.norm} of {self.source}"
        *others, last = _counted(self.levels)
        words = (
            f"{' '.join(others)} {last}" if "to" in others else f"{', '.join(others)} and {last}"
        )
        return f"levels {words}, {self.norm} of {self.source}"

    def rounded_down(self, expression: str) -> str:
        """A limit in the array's type, rounded so that the group stays inside its ball."""
        return f"down({expression})" if self.dtype == "float32" else expression

    def rounded_up(self, expression: str) -> str:
        return f"up({expression})" if self.dtype == "float32" else expression

    def run(self, array: str, nest: Nest, at: str, out: bool = False) -> str:
        """The run of a flat array from offset `at`."""
        first, last = nest.run.first, nest.run.last
        start, size = (at, last) if first == "0" else (f"{at} + {first}", f"{last} - {first}")
        if self.stage.unit:
            return f"span({array}, {start}, {size})"
        step = nest.run.out_stride if out else nest.run.stride
        start = at if first == "0" else f"{at} + {first} * {step}"
        return f"{array}[{start} : {at} + ({last} - 1) * {step} + 1 : {step}]"

    def span(self, vector: str, nest: Nest) -> str:
        """The part of a vector over groups that a run of a columns walk covers."""
        first, last = nest.run.first, nest.run.last
        start, size = (
            (nest.group, last) if first == "0" else (f"{nest.group} + {first}", f"{last} - {first}")
        )
        if nest.group == "0":
            start = first
        return f"span({vector}, {start}, {size})"

    def unpack(self, body: str) -> str:
        """The line that names those extents and strides that a function's `body` uses."""
        used = [name for name in self.names if re.search(rf"\b{name}\b", body)]
        cells = ", ".join(f"axes[{self.names.index(name)}]" for name in used)
        return f"    {', '.join(used)} = {cells}\n" if used else ""


def _counted(levels: tuple[int, ...], last: str = "") -> list[str]:
    """``1 to 4`` for neighbours, else one by one, with a word before the last."""
    if levels[-1] - levels[0] == len(levels) - 1 >= 2:
        return [str(levels[0]), "to", str(levels[-1])]
    words = [str(level) for level in levels]
    return [*words[:-1], *filter(None, [last]), words[-1]]
