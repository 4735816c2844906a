"""A tree and the forms of its arrays to the kernels that its parts need, told before any is made.

What `projgen.cpu.compose` does for the arrays of a call, here is planned for arrays that are not
there: which part sweeps what, with which kernel. Equal sources are one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from projgen.bind import Binding, bind
from projgen.compiler import c_strides, compile_binding
from projgen.cpu.ball import Ball
from projgen.cpu.groups import walk_groups
from projgen.cpu.leaf_part import ball_of
from projgen.dtypes import ITEMSIZE
from projgen.loops import Offsets
from projgen.part_sweeps import ChainSweep, GroupSweep, Sweep
from projgen.parts import Part, chain_of, cut_into_parts
from projgen.pieces import Piece, pieces
from projgen.shapes import Outline, outline_of, require_gpu
from projgen.terminal import format_bytes, format_count, format_shape
from projgen.tree import NormTree
from projgen.weights import is_weighted, leaf_weights


@dataclass(frozen=True, eq=False)
class PartPlan:
    """A part, its number, what it sweeps and with which kernels. ``shape`` is that of its array,
    or of the values of its ``children``, joined."""

    part: Part
    number: int
    shape: tuple[int, ...]
    sweeps: tuple[Sweep, ...]
    children: tuple[PartPlan, ...]

    @property
    def subject(self) -> str:
        """What it sweeps: an array's name, or the parts whose values it joins."""
        if self.part.arm is not None:
            return self.part.arm.arm.label
        return f"values of {_listed([child.number for child in self.children])}"

    @property
    def what(self) -> str:
        """Its levels as the spec writes them, without those of other parts."""
        edges = [_level(place.node) for place in self.part.places]
        return "(".join(edges) + ")" * (len(edges) - 1)

    @property
    def kind(self) -> str:
        return f"{self.part.kind} kernel"

    def walk(self) -> Iterator[PartPlan]:
        """This part and those beneath it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, eq=False)
class TreePlan:
    """What projecting a whole tree takes, on the ``backend`` "cpu" or "cuda". ``print`` it."""

    tree: NormTree
    outline: Outline
    root: PartPlan
    backend: str

    @property
    def parts(self) -> tuple[PartPlan, ...]:
        """All parts, parents first."""
        return tuple(self.root.walk())

    @cached_property
    def kernels(self) -> Mapping[str, tuple[Sweep, tuple[PartPlan, ...]]]:
        """The distinct sources, in the order of the parts: each with one of its sweeps, and the
        parts that it is for."""
        found: dict[str, tuple[Sweep, tuple[PartPlan, ...]]] = {}
        for part in self.parts:
            for sweep in part.sweeps:
                first, others = found.get(sweep.kernel.source, (sweep, ()))
                if part not in others:
                    others = (*others, part)
                found[sweep.kernel.source] = first, others
        return found

    @property
    def array_bytes(self) -> int:
        """The bytes of all arrays."""
        return sum(
            math.prod(arm.shape) * ITEMSIZE[self.outline.dtypes[arm.key]]
            for arm in self.outline.bound.arms
        )

    @property
    def traffic(self) -> tuple[int, int]:
        """The bytes that all parts read and write at most."""
        sums = [sweep.traffic for part in self.parts for sweep in part.sweeps]
        return sum(read for read, _ in sums), sum(written for _, written in sums)

    @property
    def source(self) -> str:
        """The distinct modules one after the other, each under a line that says what it is for."""
        modules = []
        mark = "//" if self.backend == "cuda" else "#"
        for number, (source, (sweep, parts)) in enumerate(self.kernels.items(), 1):
            head = f"{mark} kernel {number} of {len(self.kernels)}: {sweep.kernel.title}, for "
            lines = _wrapped([described(part) for part in parts], f"\n{mark}   ")
            modules.append(f"{head}{lines}\n{source}")
        return "\n\n".join(modules)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        names = {source: number for number, source in enumerate(self.kernels, 1)}
        yield str(self.tree)
        shown: set[str] = set()
        for part, lead, below in _drawn(self.root):
            yield f"{lead}part {part.number}  {part.what}  {_facts(part)}"
            for sweep in part.sweeps:
                source = sweep.kernel.source
                name = f"{below}  kernel {names[source]}"
                piece = f", on {format_shape(sweep.shape)}" if len(part.sweeps) > 1 else ""
                again = ", as above" if source in shown else ""
                shown.add(source)
                yield f"{name}: {sweep.title}{piece}{again}"
                yield from (f"{below}  {note}" for note in sweep.notes)
            if not part.sweeps:
                yield f"{below}  no kernel: it has no values"
        reads, writes = self.traffic
        yield (
            f"{format_count(len(self.parts), 'part')}, {format_count(len(names), 'kernel')} to "
            f"compile; reads {format_bytes(reads)} and writes {format_bytes(writes)} at most, of "
            f"{format_count(len(self.outline.bound.arms), 'array')} of "
            f"{format_bytes(self.array_bytes)}"
        )


def plan_tree(
    tree: NormTree,
    shapes: Any,
    dtypes: Any = np.float32,
    given: Mapping[str, Any] = MappingProxyType({}),
    unmatched: str = "error",
    order: str = "C",
    in_place: bool = False,
    backend: str = "cpu",
) -> TreePlan:
    """The plan for arrays of `shapes`, a structure of tuples such as the tree takes of arrays.

    `dtypes` is one for all, or a structure alike. `given` are labels and weights that the spec
    names; without them labels make blocks of equal size, and weights are like their arrays.
    A SpecError if `backend` is "cuda" and the tree runs on the CPU alone.
    """
    kind: type[Planner] = Planner
    if backend == "cuda":
        require_gpu(tree)
        from projgen.cuda.tree_plan import CudaPlanner

        kind = CudaPlanner
    outline = outline_of(tree, shapes, dtypes, given, unmatched)
    numbers = iter(range(1 << 62))
    planner = kind(outline, given, order, in_place)
    root = planner.plan(cut_into_parts(outline.bound), numbers)
    return TreePlan(tree, outline, root, backend)


@dataclass(frozen=True, eq=False)
class Planner:
    """Parts to their plans, on the CPU."""

    outline: Outline
    given: Mapping[str, Any]
    order: str
    in_place: bool

    def plan(self, part: Part, numbers: Iterator[int]) -> PartPlan:
        number = next(numbers)
        children = tuple(self.plan(child, numbers) for child in part.children)
        if part.arm is not None:
            return PartPlan(part, number, part.arm.shape, tuple(self._leaf(part)), ())
        shape = self._joined(part)
        sweeps = () if 0 in shape else (self._junction(part, shape),)
        return PartPlan(part, number, shape, sweeps, children)

    def _leaf(self, part: Part) -> Iterator[Sweep]:
        arm = part.arm
        assert arm is not None
        dtype = self.outline.dtypes[arm.key]
        strides = c_strides(arm.shape)
        if self.order == "F":
            strides = c_strides(arm.shape[::-1])[::-1]
        nonneg = any(node.nonneg for node in arm.arm.nodes)
        own, form = self._weight_form(part) if is_weighted(part.last) else (None, "float64")
        for piece in pieces(arm):
            steps = piece.strides(strides)
            out_steps = None if self.in_place else steps
            groups = _groups(part, piece)
            axes = [
                tuple(i for i, axis in enumerate(piece.axes) if arm.arm.owners[axis] == level)
                for level in part.levels
            ]
            if part.kind == "chain":
                binding = bind(chain_of(part, tuple(axes)), len(piece.shape))
                yield self.chain(binding, piece.shape, dtype, steps, out_steps, groups, nonneg)
                continue
            weight_steps = None if own is None else piece.strides(own)
            ways = steps, out_steps, weight_steps, form
            yield self._group(part, piece, axes[0], dtype, *ways, groups)

    def _group(
        self,
        part: Part,
        piece: Piece,
        axes: tuple[int, ...],
        dtype: str,
        steps: tuple[int, ...],
        out_steps: tuple[int, ...] | None,
        weight_steps: tuple[int, ...] | None,
        weight_dtype: str,
        groups: int,
    ) -> Sweep:
        assert part.arm is not None
        nonneg = any(node.nonneg for node in part.arm.arm.nodes)
        name = part.last.node.groups
        labels = None if name is None else self.outline.labels[name]
        if labels is not None:
            groups *= int(labels.max(initial=-1)) + 1
        ways = steps, axes, out_steps, weight_steps, labels, weight_dtype
        return self.level(ball_of(part, nonneg), dtype, piece.shape, *ways, groups)

    def _weight_form(self, part: Part) -> tuple[tuple[int, ...], str]:
        """Strides, in elements, and dtype of weights that are given; else of float64 in C order."""
        arm, name = part.arm, part.last.node.weights
        assert arm is not None
        if name not in self.given:
            return c_strides(arm.shape), "float64"
        weights = leaf_weights(self.outline.bound, part.last, self.given)
        return tuple(stride // weights.itemsize for stride in weights.strides), weights.dtype.name

    def _joined(self, part: Part) -> tuple[int, ...]:
        bound, level = self.outline.bound, part.levels[-1]
        outer = bound.arms_of(part.last)[0].dims(level - 1)
        inner = (bound.arms_of(child.places[0])[0].dims(level)[-1] for child in part.children)
        return (*outer, sum(inner))

    def _junction(self, part: Part, shape: tuple[int, ...]) -> Sweep:
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        groups = math.prod(shape[: part.top + 1])
        if part.kind == "chain":
            axes = tuple((level + 1,) for level in part.levels)
            binding = bind(chain_of(part, axes), len(shape))
            return self.chain(binding, shape, "float64", strides, strides, groups)
        own = strides if is_weighted(part.last) else None
        ways = strides, (len(shape) - 1,), strides, own, None, "float64"
        return self.level(ball_of(part, False), "float64", shape, *ways, groups)

    def chain(
        self,
        binding: Binding,
        shape: tuple[int, ...],
        dtype: str,
        strides: tuple[int, ...],
        out_strides: tuple[int, ...] | None,
        groups: int,
        positive: bool = False,
    ) -> Sweep:
        """A run of levels on an array that lies so; `out_strides` of None is in place."""
        ways = strides, out_strides, out_strides is None
        compiled = compile_binding(binding, shape, dtype, *ways, positive=positive)
        return ChainSweep(shape, dtype, groups, compiled)

    def level(
        self,
        ball: Ball,
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        axes: tuple[int, ...],
        out_strides: tuple[int, ...] | None,
        weight_strides: tuple[int, ...] | None,
        labels: Offsets | None,
        weight_dtype: str,
        groups: int,
    ) -> Sweep:
        """One level of any norm, on an array and with weights that lie so."""
        ways = strides, axes, out_strides, weight_strides, labels, weight_dtype
        return GroupSweep(shape, dtype, groups, walk_groups(ball, dtype, shape, *ways))


def _groups(part: Part, piece: Piece) -> int:
    """How many values the part gives for a piece; of labels, for each label."""
    assert part.arm is not None
    owners = part.arm.arm.owners
    extents = zip(piece.axes, piece.shape, strict=True)
    return math.prod(extent for axis, extent in extents if owners[axis] < part.top)


def _level(node: Any) -> str:
    arguments = ", ".join(node._arguments())
    return f"{node.norm}({arguments})" if arguments else node.norm


def described(part: PartPlan) -> str:
    """``part 1 (enc)``."""
    return f"part {part.number} ({part.subject})"


def _facts(part: PartPlan) -> str:
    return f"on {part.subject}, {format_shape(part.shape)}"


def _drawn(root: PartPlan, lead: str = "", below: str = "") -> Iterator[tuple[PartPlan, str, str]]:
    """The parts as a tree: each with what stands before its first line, and before the others."""
    has_children = bool(root.children)
    yield root, lead, below + ("│  " if has_children else "   ")
    for remaining, child in zip(range(len(root.children))[::-1], root.children, strict=True):
        branch, rest = ("├─ ", "│  ") if remaining else ("└─ ", "   ")
        yield from _drawn(child, below + branch, below + rest)


def _listed(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"part {numbers[0]}"
    if len(numbers) > 3:
        return f"{len(numbers)} parts"
    return f"parts {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _wrapped(names: list[str], separator: str, width: int = 60) -> str:
    """The names, in lines of about `width` characters."""
    lines, line = [], ""
    for index, name in enumerate(names):
        piece = name + (", " if index + 1 < len(names) else "")
        if line and len(line) + len(piece) > width:
            lines.append(line.rstrip())
            line = ""
        line += piece
    return separator.join([*lines, line])


__all__ = ["PartPlan", "Sweep", "TreePlan", "described", "plan_tree"]
