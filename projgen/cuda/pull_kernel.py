"""What a CUDA kernel that takes gradients back is: the levels of the projection's, and their rules.

Two sweeps go over the arrays, as in the projection. The first *gathers*: it sums what each group's
radius gets, which is the gradient of a value of the level above, and so it goes up to the root. The
second *shares*: values get their part of the gradient, and of what *rises* to their group's value
from above. What the projection left in its workspace is the tape that both go by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from projgen.cuda.kernel import Kernel
from projgen.cuda.levels import Level, StageCode
from projgen.cuda.lower import lower
from projgen.cuda.plan import THREADS
from projgen.dtypes import arithmetic
from projgen.plan import Plan

MARKS = {"l1": (), "l2": ("unit",), "linf": ("limit", "top")}
COEFFICIENTS = {
    "l1": ("floor", "mean", "lift"),
    "l2": ("unit", "scale", "tilt"),
    "linf": ("bound", "top", "lift"),
}
OF_RISES = ("top", "lift")  # what only matters if something rises to the groups' values


class Ruled:
    """What both kinds of levels have on the way back."""

    level: int
    norm: str
    dtype: str
    real: str
    leaf: bool
    source: str
    child: PullStage | PullLevel | None

    @property
    def rule(self) -> str:
        """The template that holds the norm's rule."""
        return f"cuda/pulls/{self.norm}.cu.j2"

    @property
    def rises(self) -> bool:
        """Whether anything rises to its groups' values: nothing does at the root."""
        return self.level > 0

    @property
    def averages(self) -> bool:
        """Whether a radius gets the mean of some gradients; else their sum."""
        return self.norm == "l1"

    @property
    def shares_top(self) -> bool:
        """Whether what rises goes to the largest values alone, which have to be counted."""
        return self.norm == "linf" and self.rises

    @property
    def counts(self) -> bool:
        """Whether some of a group's values are counted."""
        return self.averages or self.shares_top

    @property
    def rests(self) -> bool:
        """Whether groups that vanish, or are inside their balls, have nothing to gather: neither
        for the radius nor, beneath the root, for what rises to their value, as that is 0."""
        return not self.shares_top or self.level == 1

    @property
    def gathers(self) -> tuple[str, ...]:
        """What the first sweep reads: of l1 the projection says which values survived. Those have
        y's signs."""
        if not self.averages:
            return "y", "dx"
        return ("x", "dx") if self.leaf else ("y", "x", "dx")

    @property
    def shares(self) -> tuple[str, ...]:
        """What the second sweep reads. Levels above the leaf tell the next what it goes by."""
        if self.child is not None:
            return ("y", "x", "dx") if self.averages or self.child.is_stage else ("y", "dx")
        return ("y", *self.gathers) if self.averages and self.rises else self.gathers

    @property
    def marks(self) -> tuple[str, ...]:
        """What the first sweep has to know of each group."""
        return tuple(m for m in MARKS[self.norm] if self.rises or m not in OF_RISES)

    @property
    def marks_by(self) -> tuple[str, ...]:
        """What these are made of."""
        known = {"unit": "value", "limit": "limit", "top": "value"}
        return tuple(dict.fromkeys(known[mark] for mark in self.marks))

    known_by = ("value", "limit")

    def typed(self, names: tuple[str, ...]) -> str:
        """Parameters of a function of one value."""
        return ", ".join(f"{self.real} {name}" for name in names)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """What the second sweep has to know of each group, in the type of its arithmetic."""
        own = tuple(c for c in COEFFICIENTS[self.norm] if self.rises or c not in OF_RISES)
        return own if self.leaf else (*own, "kept")

    @property
    def slopes(self) -> str:
        """The gradients of the groups' radii."""
        return f"h{self.level - 1}" if self.level else "slope"

    @property
    def gradients(self) -> str:
        """Those of the projection of its values."""
        return "dx" if self.leaf else f"h{self.level}"

    def type_of(self, array: str) -> str:
        """The C++ type that elements of `y`, `x` or `dx` are worked on in."""
        return self.child.limit_type if array == "x" and self.child else self.real

    def name_of(self, array: str) -> str:
        """Where these lie: above the leaf the values, what their groups are left, and gradients."""
        if self.child is None:
            return array
        return {"y": self.source, "x": self.child.limits, "dx": self.gradients}[array]

    def one(self, array: str) -> str:
        """What one such element is called."""
        return f"{array}_one" if self.leaf else {"y": "below", "x": "left", "dx": "gradient"}[array]

    # How the numbers that a rule goes by are called: where a thread works on one group, on columns
    # side by side, and on packed groups.

    def alone(self, name: str) -> str:
        return name

    def of_column(self, name: str) -> str:
        return f"{name}s[k]"

    def of_group(self, name: str) -> str:
        return f"{name}s[group]"

    @property
    def zero(self) -> str:
        return "0.0f" if self.real == "float" else "0.0"

    @property
    def gathered(self) -> str:
        """The C++ type of a thread's sum of gradients: those of halves are coarse already."""
        return self.real if self.real == "double" or arithmetic(self.dtype) != self.dtype else "Sum"

    @property
    def zero_of_gathered(self) -> str:
        return "{0.0f, 0.0f}" if self.gathered == "Sum" else self.zero

    def survives(self, y: str, x: str) -> str:
        """Whether a value is left: above the leaf, `x` is what a value's group is left, and of
        values that are 0 may be as if they were inside their ball."""
        return f"{x} != 0" if self.leaf else f"{y} > 0.0 && {x} > 0"

    def size_of(self, y: str) -> str:
        """Values above the leaf have no signs."""
        if not self.leaf:
            return y
        return f"fabsf({y})" if self.real == "float" else f"fabs({y})"

    def toward(self, y: str, g: str) -> str:
        """A gradient in the direction in which the magnitude of `y` grows."""
        return f"toward({y}, {g})" if self.leaf else g


@dataclass(frozen=True)
class PullStage(Ruled, StageCode):
    """A level with launches of its own: ``gather_1``, ``share_1``...

    ``thinned``: a group of zeros may have a part of its gradient left, as some level above scales.
    """

    thinned: bool = False

    @property
    def coefficients(self) -> tuple[str, ...]:
        return (*super().coefficients, *(("part",) if self.thinned else ()))

    @property
    def gathers_by(self) -> tuple[str, ...]:
        """What the first sweep asks of its groups: those that it settles itself all."""
        late = self.slotted and self.walk == "columns"
        both = "limit" in self.marks_by and self.root  # a root's limit comes from both
        return self.marks_by if late and not both else self.known_by

    # What its functions take: names of a launch's arguments.

    @property
    def gathers_of(self) -> tuple[str, ...]:
        arrays = self.gathers if self.leaf else ()
        tape = ("tape",) if self.gathers_by or not self.leaf else ()
        radius = ("radii", "radius") if self.root and "limit" in self.gathers_by else ()
        return (*arrays, *radius, *tape, "work", "geometry")

    @property
    def joins_of(self) -> tuple[str, ...]:
        return (*(("radii", "radius") if self.root else ()), "tape", "work", "geometry")

    @property
    def shares_of(self) -> tuple[str, ...]:
        return (*((*self.shares, "dy") if self.leaf else ("tape",)), "work", "geometry")

    joiners = THREADS

    @property
    def abreast(self) -> int:
        """How many rows of columns a thread asks for at once: as many as there are registers for,
        beside what it knows of its columns."""
        return 16 // max(self.vector, 4)

    @property
    def joins(self) -> Iterator[tuple[str, str, str]]:
        """What its teams join: an operation, a C++ type, who."""
        rows = self.walk == "rows"
        if rows or self.stage.lanes > 1:
            team = "warp" if self.by_warp or not rows else "block"
            yield "sum", "double", team
            if self.counts:
                yield "sum", "index", team


@dataclass(frozen=True)
class PullLevel(Ruled, Level):
    """A level of the middle."""

    @property
    def rise(self) -> str:
        """What rises to its groups' values."""
        return f"r{self.level - 1}"

    @property
    def joins(self) -> Iterator[tuple[str, str, str]]:
        """What its teams join: an operation, a C++ type, who."""
        if self.team != "thread":
            yield "sum", "double", self.team
            if self.counts:
                yield "sum", "index", self.team


@dataclass(frozen=True)
class PullKernel(Kernel):
    """All that the templates of a way back may know."""

    stages: tuple[PullStage, ...]
    levels: tuple[PullLevel, ...]

    middle_of = "radii", "radius", "tape", "work", "geometry"

    @property
    def ruled(self) -> tuple[PullLevel | PullStage, ...]:
        return (*self.levels, *self.stages)

    @property
    def gathered(self) -> tuple[str, ...]:
        """The C++ types of sums of gradients."""
        return tuple(sorted({p.gathered for p in self.ruled}))

    @property
    def units(self) -> tuple[str, ...]:
        """The C++ types of values that are worked on in units of their group's value."""
        return tuple(sorted({p.real for p in self.ruled if "unit" in p.coefficients}))

    @property
    def signed(self) -> bool:
        """Whether gradients are turned by the signs of values."""
        return self.leaf.norm != "l2"


def lower_pull(plan: Plan) -> PullKernel:
    """The kernel that goes back through projections of `plan`, whose arrays lie alike."""
    from projgen.cuda.launches import geometry
    from projgen.cuda.pull_launches import offsets

    kernel = lower(plan)
    child: PullStage | PullLevel | None = None
    stages: list[PullStage] = []
    levels: list[PullLevel] = []
    for s in reversed(kernel.stages):
        scaled = any(stage.norm == "l2" for stage in plan.stages[: s.level])
        thinned = s.leaf and s.norm != "l2" and scaled
        child = PullStage(s.stage, s.dtype, False, child, thinned=thinned)
        stages.insert(0, child)
    for level in reversed(kernel.levels):
        own = {field.name: getattr(level, field.name) for field in fields(level)}
        child = PullLevel(**{**own, "child": child})
        levels.insert(0, child)
    made = PullKernel(
        **{
            **{field.name: getattr(kernel, field.name) for field in fields(kernel)},
            "notes": tuple(note.split(";")[0] for note in kernel.notes),  # no search is done here
            "stages": tuple(stages),
            "levels": tuple(levels),
        }
    )
    return replace(
        made,
        offsets=tuple(f"{name}_at" for name, _ in offsets(plan, made)),
        cells=tuple(name for name, _ in geometry(plan, made)),
    )
