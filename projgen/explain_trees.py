"""What a projection of a whole tree does, told before it is done: see `projgen.explain`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any

from projgen.cuda.traffic import BANDWIDTH, LAUNCH
from projgen.terminal import (
    TIMES,
    Terminal,
    format_bytes,
    format_count,
    format_seconds,
    format_shape,
)
from projgen.tree import Node, NormTree
from projgen.tree_plan import PartPlan, TreePlan


@dataclass(frozen=True, slots=True)
class PartNote:
    """A part: what it is about, and the bytes that its kernels read and write at most.

    ``newton_bytes`` are read once more for each Newton step of a search that sweeps its array.
    ``operations`` is an estimate. ``span`` is the sum of the sizes of its levels' groups, and
    ``span_log`` that of their logarithms.
    """

    number: int
    levels: str
    subject: str
    shape: tuple[int, ...]
    kernels: tuple[int, ...]
    reads: int
    writes: int
    newton_bytes: int
    operations: int
    span: int
    span_log: int


@dataclass(frozen=True, slots=True)
class TreeExplanation:
    """What `explain_tree` found out; `to_json` for programs, `draw` for people.

    ``span_sum`` and ``span_log`` are those of the longest way from the root to an array.
    """

    plan: TreePlan
    order: str
    parts: tuple[PartNote, ...]
    span_sum: int
    span_log: int

    @property
    def traffic(self) -> int:
        return sum(part.reads + part.writes for part in self.parts)

    @property
    def memcpy(self) -> int:
        """The bytes that a copy of all arrays moves."""
        return 2 * self.plan.array_bytes

    @property
    def on_gpu(self) -> bool:
        return self.plan.backend == "cuda"

    @property
    def launches(self) -> int:
        """Those of a GPU."""
        return sum(sweep.launches for part in self.plan.parts for sweep in part.sweeps)

    @property
    def prediction(self) -> float:
        """Seconds that a GPU takes, an H100, if memory and launches are all that counts."""
        return self.traffic / BANDWIDTH + self.launches * LAUNCH

    @property
    def product(self) -> int:
        """How many values all arrays have."""
        return sum(math.prod(arm.shape) for arm in self.plan.outline.bound.arms)

    @property
    def operations(self) -> int:
        return sum(part.operations for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        plan = self.plan
        on_gpu = {
            "launches": self.launches,
            "prediction": {
                "device": "H100",
                "seconds": self.prediction,
                "bytes_per_second": BANDWIDTH,
                "seconds_per_launch": LAUNCH,
            },
        }
        return {
            "spec": plan.tree.spec,
            "order": self.order,
            "backend": plan.backend,
            "is_euclidean": plan.tree.is_euclidean,
            "arrays": [
                {"name": arm.arm.label, "shape": arm.shape, "dtype": plan.outline.dtypes[arm.key]}
                for arm in plan.outline.bound.arms
            ],
            "batch": math.prod(plan.outline.bound.batch),
            "parts": [asdict(part) for part in self.parts],
            "kernels": [sweep.kernel.title for sweep, _ in plan.kernels.values()],
            "bytes": {
                "array": plan.array_bytes,
                "memcpy": self.memcpy,
                "at_most": self.traffic,
                "multiple_of_memcpy": self.traffic / self.memcpy,
                "per_newton_step": sum(part.newton_bytes for part in self.parts),
            },
            "work": {"product": self.product, "operations_estimate": self.operations},
            "span": {"sum_of_logarithms": self.span_log, "sum_of_dimensions": self.span_sum},
            **(on_gpu if self.on_gpu else {}),
        }

    def draw(self, terminal: Terminal) -> None:
        """For people, as wide as the terminal."""
        cost = _prediction if self.on_gpu else _cost
        sections = (_title, _tree, _arrays, _parts, _memory, cost, _nearest)
        for number, section in enumerate(sections):
            terminal.write(*([""] if number else []))
            for line in section(self, terminal):
                terminal.write(*_sentence(line, terminal.width))


def explain_tree(plan: TreePlan, order: str) -> TreeExplanation:
    """Explain the plan of a tree for arrays in memory order `order`."""
    numbers = {source: number for number, source in enumerate(plan.kernels, 1)}
    notes = tuple(_note(part, numbers) for part in plan.parts)
    span_sum, span_log = _longest(plan.root, notes)
    return TreeExplanation(plan, order, notes, span_sum, span_log)


def _note(part: PartPlan, numbers: dict[str, int]) -> PartNote:
    traffic = [sweep.traffic for sweep in part.sweeps]
    sizes = _sizes(part)
    return PartNote(
        number=part.number,
        levels=part.what,
        subject=part.subject,
        shape=part.shape,
        kernels=tuple(dict.fromkeys(numbers[sweep.kernel.source] for sweep in part.sweeps)),
        reads=sum(read for read, _ in traffic),
        writes=sum(written for _, written in traffic),
        newton_bytes=sum(sweep.newton_bytes for sweep in part.sweeps),
        operations=sum(sweep.operations for sweep in part.sweeps),
        span=sum(sizes),
        span_log=sum(math.ceil(math.log2(size)) if size else 0 for size in sizes),
    )


def _sizes(part: PartPlan) -> list[int]:
    """How many values a group has, level by level of the part: of labels, the most it may have."""
    arm = part.part.arm
    if arm is None:
        return [*part.shape[part.part.top + 1 :]]
    return [math.prod(arm.owned(level)) for level in part.part.levels]


def _longest(part: PartPlan, notes: tuple[PartNote, ...]) -> tuple[int, int]:
    own = notes[part.number]
    below = [_longest(child, notes) for child in part.children]
    return (
        own.span + max((total for total, _ in below), default=0),
        own.span_log + max((total for _, total in below), default=0),
    )


# The sections of the drawing. Levels of the tree keep their colours throughout.


def _sentence(line: str, width: int) -> list[str]:
    """A line of words in as many lines as it takes; one with colours has been fitted already."""
    if len(line) <= width or "\x1b" in line:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    return wrap(line, width, subsequent_indent=indent, replace_whitespace=False)


def _title(e: TreeExplanation, terminal: Terminal) -> Iterator[str]:
    arrays = e.plan.outline.bound.arms
    yield from _folded(e.plan.tree.spec, terminal)
    yield (
        f"{format_count(len(arrays), 'array')}, {format_bytes(e.plan.array_bytes)}, {e.order} "
        f"order; {format_count(len(e.parts), 'part')}, "
        f"{format_count(len(e.plan.kernels), 'kernel')}{'; on a GPU' * e.on_gpu}"
    )


def _folded(spec: str, terminal: Terminal) -> Iterator[str]:
    """The spec, in lines that end after a comma."""
    line = ""
    for piece in spec.replace(", ", ", \0").split("\0"):
        if line and len(line) + len(piece) > terminal.width:
            yield terminal.paint(line.rstrip(), "bold")
            line = "  "
        line += piece
    yield terminal.paint(line, "bold")


def _tree(e: TreeExplanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("TREE", "from the root, which has the radius", terminal.width)
    batch = math.prod(e.plan.outline.bound.batch)
    if batch > 1:
        yield f"  {batch:,} projections, one for each index of the batch; for each of them:"
    yield from (f"  {line}" for line in _drawn(e.plan.tree.root, terminal, 0, "", ""))


def _drawn(node: Node, terminal: Terminal, depth: int, lead: str, below: str) -> Iterator[str]:
    head, *_ = NormTree(node).pretty().splitlines()
    yield lead + terminal.level(depth, head)
    for remaining, child in zip(range(len(node.children))[::-1], node.children, strict=True):
        branch, rest = ("├─ ", "│  ") if remaining else ("└─ ", "   ")
        yield from _drawn(child, terminal, depth + 1, below + branch, below + rest)


def _arrays(e: TreeExplanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("ARRAYS", "which level has which axes", terminal.width)
    arms = e.plan.outline.bound.arms
    shapes = [f"{format_shape(arm.shape)} {e.plan.outline.dtypes[arm.key]}" for arm in arms]
    wide = max(map(len, shapes))
    names = min(max(len(arm.arm.label) for arm in arms), terminal.width - wide - 6)
    for arm, shape in zip(arms, shapes, strict=True):
        levels = []
        for level, node in enumerate(arm.arm.nodes):
            axes = sorted({arm.arm.sources[axis] for axis in arm.arm.axes(level)})
            if axes:
                levels.append((level, f"{node.norm} {_axes(axes)}"))
        head = f"  {_short(arm.arm.label, names):{names}}  {shape:{wide}}"
        text = ", ".join(text for _, text in levels)
        painted = ", ".join(terminal.level(level, text) for level, text in levels)
        if len(head) + 2 + len(text) <= terminal.width:
            yield f"{head}  {painted}"
        else:
            yield head
            yield f"      {painted}"


def _axes(axes: list[int]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {' '.join(map(str, axes))}"


def _parts(e: TreeExplanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("SWEEPS", "each part up, then down", terminal.width)
    room = terminal.width - 34  # for two columns of text; the others have numbers
    longest = max(6, *(len(part.levels) for part in e.parts))
    names = max(7, *(len(part.subject) for part in e.parts))
    levels = min(longest, max(room // 2, room - names))
    names = min(names, room - levels)
    yield terminal.paint(
        f"  {'part':>4} {'levels':{levels}}  {'sweeps':{names}} {'reads':>8}{'writes':>9} kernel",
        "dim",
    )
    tops = {part.number: part.part.top for part in e.plan.parts}
    for part in e.parts:
        kernels = ", ".join(map(str, part.kernels)) or "none"
        head = f"{part.number:>4} {_short(part.levels, levels):{levels}}"
        yield (
            f"  {terminal.level(tops[part.number], head)}  {_short(part.subject, names):{names}} "
            f"{format_bytes(part.reads):>8}{format_bytes(part.writes):>9} {kernels}"
        )
    yield "  Up from the arrays to part 0, then down: all are read before one is written."


def _memory(e: TreeExplanation, terminal: Terminal) -> Iterator[str]:
    note = "in multiples of copying the arrays"
    yield terminal.heading("MEMORY", note, terminal.width)
    scale = 20 / max(1.0, e.traffic / e.memcpy)
    for name, size in (("memcpy", e.memcpy), ("at most", e.traffic)):
        bar = "█" * max(1, round(scale * size / e.memcpy))
        colour = "dim" if name == "memcpy" else "green"
        text = f"  {name:8} {size / e.memcpy:5.2f} {TIMES}  "
        yield text + terminal.paint(f"{bar:22}", colour) + format_bytes(size)
    newton = sum(part.newton_bytes for part in e.parts)
    if newton:
        yield f"  and      {newton / e.memcpy:5.2f} {TIMES}  for each Newton step at most"


def _cost(e: TreeExplanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("WORK AND SPAN", "", terminal.width)
    yield f"  work  {e.product:,}, the values of all arrays"
    yield f"        ESTIMATE: {e.operations:,} operations, and the searches"
    yield f"  span  {e.span_sum:,}, the sum of the groups' sizes on the longest way"
    yield f"        {e.span_log:,}, the sum of their logarithms to base 2, rounded up"


def _prediction(e: TreeExplanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("PREDICTION", "for an H100; nothing was measured", terminal.width)
    launches = format_count(e.launches, "launch")
    yield (
        f"  {format_seconds(e.prediction)}: {format_bytes(e.traffic)} at "
        f"{BANDWIDTH / 1e12:.2f} TB/s, and {launches} of {format_seconds(LAUNCH)} each"
    )
    yield "  One stream, no host in between. Few small arrays: launches are what counts."


def _nearest(e: TreeExplanation, terminal: Terminal) -> Iterator[str]:
    is_euclidean = e.plan.tree.is_euclidean
    yield terminal.heading("EUCLIDEAN", "yes" if is_euclidean else "no", terminal.width)
    if is_euclidean:
        yield "  The result is the point of the ball that is nearest to y."
    else:
        yield "  The result lies in the ball, level by level as the papers define it."
        yield "  Some other point of the ball is nearer to y."


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


__all__ = ["PartNote", "TreeExplanation", "explain_tree"]
