"""What a projection does to an array of one shape, told before it is done.

The numbers come from the plan: what is read and written, in how many blocks, how many groups.
What a processor makes of them is an estimate, and is called one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from projgen.bind import Binding
from projgen.norms import NORMS
from projgen.plan import Plan
from projgen.simplify import BATCH
from projgen.stage import Cut, Stage, Threshold, Walk
from projgen.terminal import (
    TIMES,
    WIDTH,
    Terminal,
    format_bytes,
    format_count,
    format_shape,
)

VALUE_BYTES = 8  # of one group's value or radius: float64

_SEARCHES = {
    Threshold.ROW: "Newton steps, group after group, each while it is in cache",
    Threshold.STRIP: "Newton steps on many groups at once, a strip that stays in cache",
    Threshold.TILE: "Newton steps on many groups at once, a tile that is kept in cache",
    Threshold.UPEND: "Newton steps on many groups at once, columns of a tile in cache",
    Threshold.TRANSPOSE: "Newton steps, group after group, in tiles whose columns are rows",
    Threshold.TURN: "Newton steps, group after group, each copied to be adjacent",
    Threshold.SORT: "sums of the largest values, which a sorting network finds",
    Threshold.SWEEP: "Newton steps, each of which reads the values once more",
    Threshold.JOINT: "Newton steps for all groups together; each reads the values once more",
}
_SWEEPING = (Threshold.SWEEP, Threshold.JOINT)
_TILED = (Threshold.STRIP, Threshold.TILE, Threshold.TRANSPOSE, Threshold.UPEND)
_WALKS = {
    Walk.ROWS: "by rows",
    Walk.COLUMNS: "by columns",
    Walk.PACKED: "packed",
}


@dataclass(frozen=True, slots=True)
class LevelNote:
    """A level of the tree on this shape: ``groups`` groups of ``size`` values each."""

    norm: str
    axes: tuple[int, ...]
    groups: int
    size: int


@dataclass(frozen=True, slots=True)
class Step:
    """One level's part of a sweep: "up", "down", or a "search" for thresholds between the two.

    Sizes are in bytes; ``v1`` are values, ``u1`` radii and ``t1`` thresholds of groups. A
    ``repeated`` search is done once for each Newton step, and never counts in a total.
    """

    direction: str
    level: int
    norm: str
    reads: dict[str, int]
    writes: dict[str, int]
    walk: str
    blocks: int
    shared: bool
    threshold: str | None
    repeated: bool

    @property
    def bytes(self) -> int:
        """What it reads and writes."""
        return sum(self.reads.values()) + sum(self.writes.values())


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `explain` found out; `to_json` for programs, `draw` for people.

    ``traffic`` counts the bytes of the sweeps at most, and ``newton_bytes`` what each Newton step
    adds where it is a sweep of its own; ``memcpy`` those of copying the array,
    which reads and writes it once. ``operations`` is an estimate. ``span_log`` is the number of
    steps with unlimited processors and reductions done as trees; ``span_sum`` is the papers' sum
    of the levels' dimensions; ``product`` is the product of the dimensions.
    """

    binding: Binding
    plan: Plan
    shape: tuple[int, ...]
    order: str
    levels: tuple[LevelNote, ...]
    batch: int
    steps: tuple[Step, ...]
    array_bytes: int
    traffic: int
    newton_bytes: int
    operations: int
    span_log: int
    span_sum: int
    product: int

    @property
    def is_euclidean(self) -> bool:
        """Whether the result is the nearest point of the ball."""
        return self.binding.tree.is_euclidean

    @property
    def memcpy(self) -> int:
        """The bytes that a copy of the array moves."""
        return 2 * self.array_bytes

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        plan = self.plan
        return {
            "spec": self.binding.tree.spec,
            "shape": self.shape,
            "dtype": plan.dtype,
            "order": self.order,
            "in_place": plan.in_place,
            "is_euclidean": self.is_euclidean,
            "levels": [asdict(level) for level in self.levels],
            "batch": {"axes": self.binding.batch, "entries": self.batch},
            "simplified": plan.layout.spec,
            "loops": [
                {"level": None if loop.level == BATCH else loop.level, "extent": loop.extent,
                 "stride": loop.stride}
                for loop in plan.layout.loops
            ],
            "steps": [asdict(step) for step in self.steps],
            "bytes": {
                "array": self.array_bytes,
                "memcpy": self.memcpy,
                "at_most": self.traffic,
                "multiple_of_memcpy": self.traffic / self.memcpy,
                "per_newton_step": self.newton_bytes,
            },
            "work": {"product": self.product, "operations_estimate": self.operations},
            "span": {"sum_of_logarithms": self.span_log, "sum_of_dimensions": self.span_sum},
        }  # fmt: skip

    def draw(self, terminal: Terminal) -> None:
        """For people, in 80 columns."""
        for number, section in enumerate(
            (_title, _tree, _loops, _sweeps, _memory, _thresholds, _cost, _nearest)
        ):
            terminal.write(*([""] if number else []), *section(self, terminal))


def explain(binding: Binding, plan: Plan, shape: tuple[int, ...], order: str) -> Explanation:
    """Explain the plan of a binding for arrays of `shape` in memory order `order`."""
    levels = tuple(_level_notes(binding, shape))
    steps = tuple(steps_of(plan))
    array_bytes = plan.leaf.size * plan.itemsize
    sizes = [level.size for level in levels]
    return Explanation(
        binding=binding,
        plan=plan,
        shape=shape,
        order=order,
        levels=levels,
        batch=math.prod(shape[axis] for axis in binding.batch),
        steps=steps,
        array_bytes=array_bytes,
        traffic=sum(step.bytes for step in steps if not step.repeated),
        newton_bytes=sum(step.bytes for step in steps if step.repeated),
        operations=sum(stage.size * NORMS[stage.norm].operations for stage in plan.stages),
        span_log=sum(math.ceil(math.log2(size)) for size in sizes),
        span_sum=sum(sizes),
        product=math.prod(shape),
    )


def _level_notes(binding: Binding, shape: tuple[int, ...]) -> Iterator[LevelNote]:
    groups = math.prod(shape[axis] for axis in binding.batch)
    for level in binding.levels:
        size = math.prod(shape[axis] for axis in level.axes)
        yield LevelNote(level.norm, level.axes, groups, size)
        groups *= size


def steps_of(plan: Plan) -> Iterator[Step]:
    """Up from the leaf to the root, and down again."""
    for stage in reversed(plan.stages):
        values, _ = _groups(stage)
        writes = {values: stage.groups * VALUE_BYTES}
        yield _step("up", stage, stage.cut, _array(stage, plan), writes)
    for stage in plan.stages:
        array = _array(stage, plan)
        (size,) = array.values()
        limits = dict.fromkeys(_groups(stage), stage.groups * VALUE_BYTES)
        if stage.threshold in (*_TILED, *_SWEEPING):
            found = {f"t{stage.level}": stage.groups * (plan.itemsize if stage.leaf else 8)}
            cut = stage.cut if stage.threshold in _SWEEPING else stage.tiles
            yield _step("search", stage, cut, {**array, **limits}, found)
            limits = found
        target = f"u{stage.level}" if not stage.leaf else "y" if plan.in_place else "x"
        yield _step("down", stage, stage.cut, {**array, **limits}, {target: size})


def _groups(stage: Stage) -> tuple[str, str]:
    """The names of the values and of the radii of a level's groups."""
    return (f"v{stage.level - 1}", f"u{stage.level - 1}") if stage.level else ("norm", "radius")


def _array(stage: Stage, plan: Plan) -> dict[str, int]:
    """The array that a level is about, and its bytes."""
    if stage.leaf:
        return {"y": stage.size * plan.itemsize}
    return {f"v{stage.level}": stage.size * VALUE_BYTES}


def _step(
    direction: str, stage: Stage, cut: Cut, reads: dict[str, int], writes: dict[str, int]
) -> Step:
    return Step(
        direction=direction,
        level=stage.level,
        norm=stage.norm,
        reads=reads,
        writes=writes,
        walk=str(stage.walk),
        blocks=cut.blocks,
        shared=stage.shared and cut.blocks > 1,
        threshold=str(stage.threshold) if stage.threshold and direction != "up" else None,
        repeated=direction == "search" and stage.threshold in _SWEEPING,
    )


# The sections of the drawing. Levels keep their colours throughout.


def _title(e: Explanation, terminal: Terminal) -> Iterator[str]:
    spec = e.binding.tree.spec
    facts = (
        f"{e.plan.dtype}  {format_shape(e.shape)}  {e.order} order  "
        f"{format_bytes(e.array_bytes)}  {'in place' if e.plan.in_place else 'to a new array'}"
    )
    if len(spec) + len(facts) + 2 <= WIDTH:
        yield terminal.paint(spec, "bold") + facts.rjust(WIDTH - len(spec))
    else:
        yield terminal.paint(spec, "bold")
        yield facts


def _tree(e: Explanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("TREE", "from the root, which has the radius, to the leaf")
    if e.batch > 1:
        along = _axes(e.binding.batch)
        yield f"  {e.batch:,} projections, one for each index along {along}; for each of them:"
    merged = len(e.plan.layout.norms) != len(e.levels)
    for depth, level in enumerate(e.levels):
        noun = "entry" if depth == len(e.levels) - 1 else "value"
        groups, size = format_count(level.groups // max(e.batch, 1), "group"), level.size
        branch = "   " * (depth - 1) + "└─ " if depth else ""
        name = f"{branch}{level.norm}"
        painted = name if merged else terminal.level(depth, name)
        pad = " " * (3 * len(e.levels) + 3 - len(name))
        yield f"  {painted}{pad}{_axes(level.axes):16}{groups} of {format_count(size, noun)}"
    if merged:
        simple = e.plan.layout.spec
        yield f"  On this shape that is the same as {terminal.paint(simple, 'bold')}, used below."


def _loops(e: Explanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("LOOPS", "in memory order; strides in elements")
    for depth, loop in enumerate(e.plan.layout.loops):
        text = f"{'  ' * depth}for {loop.extent:,}, stride {loop.stride:,}"
        if loop.level == BATCH:
            owner = "the batch"
        else:
            owner = f"level {loop.level}, {e.plan.layout.norms[loop.level]}"
        yield "  " + terminal.level(loop.level, f"{text:40}{owner}")


def _sweeps(e: Explanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("SWEEPS", "v, u, t: values, radii, thresholds of groups")
    yield terminal.paint(f"{'':17}{'reads':27}{'writes':14}cut into", "dim")
    last = len(e.steps) - 1
    for index, step in enumerate(e.steps):
        sweep = {0: "1", last: "2"}.get(index, "n" if step.repeated else " ")
        walk = _WALKS[Walk(step.walk)]
        cut = "one block" if step.blocks == 1 else f"{step.blocks} blocks {walk}"
        head = f"  {sweep} {step.direction:6} {step.norm:5} "
        text = f"{head}{_arrays(step.reads):27}{_arrays(step.writes):14}{cut}"
        yield terminal.level(step.level, text)
    if any(step.repeated for step in e.steps):
        yield "  n: once for each Newton step"


def _arrays(arrays: dict[str, int]) -> str:
    """The first with its size; the sizes of the others are those of an earlier row."""
    (name, size), *others = arrays.items()
    small = ", ".join(other for other, _ in others)
    return f"{name} {format_bytes(size)}{' + ' if small else ''}{small}"


def _memory(e: Explanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("MEMORY", "in multiples of copying the array")
    scale = 20 / max(1.0, e.traffic / e.memcpy)
    for name, size in (("memcpy", e.memcpy), ("at most", e.traffic)):
        bar = "█" * max(1, round(scale * size / e.memcpy))
        colour = "dim" if name == "memcpy" else "green"
        text = f"  {name:8} {size / e.memcpy:5.2f} {TIMES}  "
        yield text + terminal.paint(f"{bar:22}", colour) + format_bytes(size)
    if e.newton_bytes:
        more = e.newton_bytes / e.memcpy
        yield f"  and      {more:5.2f} {TIMES}  for each Newton step that the threshold takes"
    leaf = e.plan.leaf
    if leaf.groups > 1 and leaf.walk is Walk.ROWS and leaf.threshold in (None, Threshold.ROW):
        yield "  Groups that vanish are not read again in sweep 2."
        if e.plan.in_place:
            yield "  Groups that stay as they are, are neither read again nor written."
    if e.plan.streamed:
        yield "  ESTIMATE: larger than the caches, so memory sets the time: this multiple."
    else:
        yield "  ESTIMATE: sweep 2 may find in cache what sweep 1 has read, and take less."


def _thresholds(e: Explanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("THRESHOLDS", "exact")
    for stage in e.plan.stages:
        on = "y" if stage.leaf else f"v{stage.level}"
        name = f"  {stage.norm} of {on}"
        yield f"{terminal.level(stage.level, f'{name:14}')} {NORMS[stage.norm].ball}"
        if stage.threshold:
            yield f"{'':15}{_SEARCHES[stage.threshold]}"


def _cost(e: Explanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("WORK AND SPAN")
    sizes = [level.size for level in e.levels]
    yield f"  work  {e.product:,}, the product of the dimensions"
    searches = any(stage.threshold for stage in e.plan.stages)
    more = ", and the searches for thresholds" if searches else ""
    yield f"        ESTIMATE: {e.operations:,} operations{more}"
    dimensions = _sum([f"{size:,}" for size in sizes], e.span_sum)
    yield f"  span  {dimensions}, the sum of the dimensions: the papers'"
    yield "        claim for unlimited processors, with groups side by side"
    logarithms = _sum([f"log {size:,}" for size in sizes], e.span_log)
    yield f"        {logarithms}, the sum of their logarithms to base 2,"
    yield "        rounded up, if each reduction is a tree as well"
    more = ", and so does each Newton step" if searches else ""
    yield f"        ESTIMATE: the way down takes as long again{more}"


def _nearest(e: Explanation, terminal: Terminal) -> Iterator[str]:
    answer = "yes" if e.is_euclidean else "no"
    yield terminal.heading("EUCLIDEAN", answer)
    if e.is_euclidean:
        yield "  The result is the point of the ball that is nearest to y."
    else:
        yield "  The result lies in the ball, level by level as the papers define it, but some"
        yield "  other point of the ball is nearer to y."


def _sum(terms: list[str], total: int) -> str:
    """``1,000 + 1,000 = 2,000``; just the total where the terms would fill the line."""
    written = " + ".join(terms)
    return f"{written} = {total:,}" if len(terms) > 1 and len(written) <= 36 else f"{total:,}"


def _axes(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"
