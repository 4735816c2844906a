"""The levels of a CUDA kernel: those with launches of their own, and those of the middle.

Both know how their values are worked on and where they lie: loops are named by their fields in the
``Geometry`` that every launch is given.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from projgen.cuda.plan import PACKED_THREADS, THREADS, WARP, capacity, team
from projgen.norms import NORMS
from projgen.stage import Stage, Walk

REALS = {"float16": "float", "bfloat16": "float", "float32": "float", "float64": "double"}
STORED = {"float16": "__half", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}


@dataclass(frozen=True, slots=True)
class Axis:
    """A loop over an array: the names of its extent and of its steps in the ``Geometry``."""

    extent: str
    stride: str
    out_stride: str


def locate(index: str, axes: tuple[Axis, ...], out: bool = False) -> str:
    """The offset of turn number `index` of the nest `axes`, the last of which turns quickest."""
    terms = []
    for i, axis in enumerate(axes):
        inner = [a.extent for a in axes[i + 1 :]]
        turn = index if not inner else f"{index} / {inner[0]}"
        if len(inner) > 1:
            turn = f"{index} / ({' * '.join(inner)})"
        if i:
            turn = f"{turn} % {axis.extent}"
        terms.append(f"{turn} * {axis.out_stride if out else axis.stride}")
    return " + ".join(terms) or "0"


class Arithmetic:
    """How a level's values are worked on: the same for both kinds of levels."""

    level: int
    norm: str
    dtype: str
    real: str

    @property
    def source(self) -> str:
        """The array that the level is about."""
        return f"v{self.level}"

    @property
    def values(self) -> str:
        """The groups' values."""
        return f"v{self.level - 1}" if self.level else "total"

    @property
    def root(self) -> bool:
        return self.level == 0

    @property
    def macros(self) -> str:
        """The template that holds the norm's macros."""
        return f"cuda/norms/{self.norm}.cu.j2"

    @property
    def searches(self) -> bool:
        """Whether a group's limit is a threshold that has to be searched for."""
        return NORMS[self.norm].searches

    @property
    def sum(self) -> str:
        """The C++ type of a thread's sum of magnitudes."""
        return "Sum" if self.real == "float" else "double"

    @property
    def wide_range(self) -> bool:
        """Whether squares can leave the range of float64."""
        return self.dtype == "float64"

    @property
    def scaled(self) -> bool:
        """Whether sums of float can leave its range."""
        return self.real == "float" and self.dtype != "float16"

    @property
    def partial(self) -> str:
        """The C++ type of a group's partial values."""
        if NORMS[self.norm].accumulates != "max":
            return "double"
        return "int" if self.real == "float" else "long long"

    @property
    def across(self) -> str:
        """What joins partial values."""
        if NORMS[self.norm].accumulates == "max":
            return "max"
        return "length" if NORMS[self.norm].squares and self.wide_range else "sum"

    @property
    def zero_of_sums(self) -> str:
        if self.real == "double":
            return "0.0"
        return "{0.0f, 0.0f, 1.0f}" if self.scaled else "{0.0f, 0.0f}"

    @property
    def zero_of_squares(self) -> str:
        if self.real == "double":
            return "{0.0, 0x1p600}" if self.wide_range else "0.0"
        return "{0.0f, 0.0f, 0x1p100f}" if self.scaled else "{0.0f, 0.0f}"

    def magnitude(self, x: str) -> str:
        return f"fabsf({x})" if self.real == "float" else f"fabs({x})"

    def at(self, index: str, axes: tuple[Axis, ...], out: bool = False) -> str:
        return locate(index, axes, out)

    def rounded_down(self, expression: str) -> str:
        return f"down({expression})" if self.real == "float" else expression

    def down_to_stored(self, expression: str) -> str:
        """A limit that values are clipped to, in the array's type."""
        if self.real == "float" and self.dtype in ("float16", "bfloat16"):
            return f"down_to_stored({expression})"
        return self.rounded_down(expression)

    def rounded_up(self, expression: str) -> str:
        return f"up({expression})" if self.real == "float" else expression

    def place(self, *terms: str) -> str:
        """A sum, without what is nothing."""
        return " + ".join(term for term in terms if term not in ("", "0")) or "0"

    @property
    def size(self) -> str:
        """How many values a group has."""
        return self.geo("size")

    def geo(self, name: str) -> str:
        """A number of this level's own in the geometry."""
        return f"geo.{name}_{self.level}"

    @property
    def label(self) -> str:
        """The level's groups in words."""
        return f"level {self.level}, {self.norm} of {self.source}"


@dataclass(frozen=True)
class StageCode(Arithmetic):
    """The functions of one level that has launches of its own: ``aggregate_1``, ``project_1``..."""

    stage: Stage
    dtype: str
    in_place: bool
    child: "StageCode | Level | None"
    positive: bool = False  # negative values of y count as 0, and become 0

    @property
    def level(self) -> int:  # type: ignore[override]
        return self.stage.level

    @property
    def norm(self) -> str:  # type: ignore[override]
        return self.stage.norm

    is_stage = True

    @property
    def leaf(self) -> bool:
        return self.stage.leaf

    @property
    def skips(self) -> bool:
        """Whether groups that stay as they are need not be written."""
        return self.leaf and self.in_place and not self.positive

    @property
    def walk(self) -> str:
        return str(self.stage.walk)

    @property
    def threshold(self) -> str:
        return str(self.stage.threshold or "")

    @property
    def source(self) -> str:
        """The array that the level is about."""
        return "y" if self.leaf else f"v{self.level}"

    @property
    def stored(self) -> str:
        """The C++ type of the array's elements."""
        return STORED[self.dtype] if self.leaf else "double"

    @property
    def real(self) -> str:  # type: ignore[override]
        """The C++ type that elements are worked on in."""
        return REALS[self.dtype] if self.leaf else "double"

    @property
    def limits(self) -> str:
        """What the level above leaves to each group: l1 is left a radius and looks for the
        threshold itself, other norms are left a limit."""
        return f"radius_{self.level}" if self.searches else f"limit_{self.level}"

    @property
    def limit_type(self) -> str:
        return "double" if self.searches else self.real

    @property
    def pieces(self) -> bool:
        """Whether groups are cut: each piece has partial values of its own, in a slot."""
        return self.stage.cut.blocks > 1

    @property
    def slotted(self) -> bool:
        return not self.stage.direct

    @property
    def slot(self) -> str:
        """The values of one piece's slots: of rows taken side by side, each has one."""
        return self.run.extent if self.stage.lanes > 1 else self.geo("groups")

    @property
    def along(self) -> bool:
        """Whether the innermost loop is cut; else the others that are reduced are."""
        return self.stage.cut.loop == len(self.stage.axes) - 1

    @property
    def vector(self) -> int:
        return self.stage.vector

    @property
    def inner(self) -> int:
        return self.stage.inner

    @property
    def pitch(self) -> int:
        """From one packed group to the next in shared memory: odd, so that threads that read
        the same element of neighbouring groups meet no bank twice."""
        return self.stage.inner | 1

    @property
    def threads(self) -> int:
        return PACKED_THREADS if self.stage.walk is Walk.PACKED else THREADS

    @property
    def team(self) -> int:
        """How many threads work on one group by rows: a warp, or the block."""
        return team(self.stage)

    @property
    def groups_per_block(self) -> int:
        return THREADS // self.team

    @property
    def by_warp(self) -> bool:
        return self.team == WARP

    @property
    def joins(self) -> Iterator[tuple[str, str, str]]:
        """What its teams join: an operation, a C++ type, who."""
        rows = self.stage.walk is Walk.ROWS
        team = "warp" if self.by_warp else "block"
        if rows or self.stage.lanes > 1:
            yield self.across, self.partial, team if rows else "warp"
        if self.threshold == "sweep" or (self.threshold == "row" and rows):
            kind = "block" if self.threshold == "sweep" else team
            yield "sum", "double", kind
            yield "sum", "index", kind

    @property
    def room(self) -> int:
        """How many values a team keeps in shared memory, to look for their threshold."""
        return capacity(self.stage, self.dtype) * self.team // THREADS

    @property
    def capacity(self) -> int:
        return capacity(self.stage, self.dtype)

    def axis(self, i: int) -> Axis:
        return Axis(*(f"geo.{kind}{i}_{self.level}" for kind in "nst"))

    @property
    def outer(self) -> tuple[Axis, ...]:
        """The loops over groups but for those that the body has for itself."""
        axes = self.stage.axes
        own = {Walk.ROWS: 1, Walk.COLUMNS: 1, Walk.PACKED: 2}[self.stage.walk]
        return tuple(self.axis(i) for i in range(len(axes) - own) if not axes[i].reduced)

    @property
    def rows(self) -> tuple[Axis, ...]:
        """The reduced loops but the innermost one."""
        axes = self.stage.axes
        return tuple(self.axis(i) for i in range(len(axes) - 1) if axes[i].reduced)

    @property
    def reduced(self) -> tuple[Axis, ...]:
        """All reduced loops."""
        axes = self.stage.axes
        return tuple(self.axis(i) for i in range(len(axes)) if axes[i].reduced)

    @property
    def over_groups(self) -> tuple[Axis, ...]:
        """All loops over groups."""
        axes = self.stage.axes
        return tuple(self.axis(i) for i in range(len(axes)) if not axes[i].reduced)

    @property
    def run(self) -> Axis:
        """The innermost loop."""
        return self.axis(len(self.stage.axes) - 1)

    @property
    def beside(self) -> Axis:
        """The loop over packed groups."""
        return self.axis(len(self.stage.axes) - 2)

    def step(self, index: str, out: bool = False) -> str:
        """The offset of an element of the innermost loop."""
        if self.stage.unit:
            return index
        return f"{index} * {self.run.out_stride if out else self.run.stride}"


@dataclass(frozen=True)
class Level(Arithmetic):
    """A level whose values are so few that one block has all those of a batch entry.

    ``team``: who works on a group: a "thread", a "warp", or the "block". ``entry``, ``groups`` and
    ``members`` are the loops over the batch, over the level's groups in one entry, and over the
    values in one group; ``out_stride`` of the first two leads through the groups' values.
    ``others`` are all loops but those over the batch.
    """

    level: int
    norm: str
    dtype: str
    team: str
    entry: tuple[Axis, ...]
    groups: tuple[Axis, ...]
    members: tuple[Axis, ...]
    others: tuple[Axis, ...]
    child: "StageCode | Level"

    real = "double"
    is_stage = False

    @property
    def joins(self) -> Iterator[tuple[str, str, str]]:
        """What its teams join: an operation, a C++ type, who."""
        if self.team != "thread":
            yield self.across, self.partial, self.team
            if self.searches:
                yield "sum", "index", self.team

    @property
    def leaf(self) -> bool:
        return False

    @property
    def radii(self) -> str:
        return f"u{self.level - 1}"

    @property
    def limits(self) -> str:
        return f"u{self.level - 1}"

    @property
    def limit_type(self) -> str:
        return "double"
