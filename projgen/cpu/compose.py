"""A whole tree on the CPU: the parts' kernels one after the other, up to the root and down.

On the way up each array is swept once for its values, on the way down once more for its result.
Nothing is written before the root is reached, so bad input leaves every `out` as it was.
Small arrays go together, in a `Series`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from projgen.arrays import Array, address, addresses
from projgen.cpu.call import Call, Step
from projgen.cpu.leaf_part import LeafPart, ball_of
from projgen.cpu.part_kernels import Chain, Group, OutOfRangeError, Radii
from projgen.cpu.schedule import Rows
from projgen.cpu.series import Series, SeriesCall
from projgen.parts import Part, cut_into_parts
from projgen.references import REFERENCES
from projgen.trees import BoundTree
from projgen.weights import is_weighted, leaf_weights, level_weights

Weights = Mapping[str, Any]


class JoinedPart:
    """A part above the leaves: it works on the values of others."""

    def __init__(
        self,
        part: Part,
        bound: BoundTree,
        weighted: bool,
        threads: int,
        warm: bool,
    ) -> None:
        self.part = part
        level = part.levels[-1]
        outer = bound.arms_of(part.last)[0].dims(level - 1)
        counts = [bound.arms_of(child.places[0])[0].dims(level)[-1] for child in part.children]
        ends = np.cumsum(counts)
        self.slices = [slice(int(e) - n, int(e)) for e, n in zip(ends, counts, strict=True)]
        self.shape = (*outer, int(ends[-1]))
        self.outer = self.shape[: part.top + 1]
        strides = tuple(int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape)))
        self.kernel: Chain | Group | None = None
        if 0 in self.shape:
            return
        if part.kind == "chain":
            axes = [(level + 1,) for level in part.levels]
            self.kernel = Chain(part, axes, "float64", self.shape, strides, strides, threads, warm)
        else:
            own = strides if weighted else None
            self.kernel = Group(
                ball_of(part, nonneg=False),
                (len(self.shape) - 1,),
                "float64",
                self.shape,
                strides,
                strides,
                own,
                None,
                threads,
            )

    def begin(self, joined: Radii, weights: Array | None) -> tuple[Any, Radii]:
        """The part's values, from those of its children, and what to end with."""
        if self.kernel is None:
            return None, np.zeros(self.outer)
        state, norms = self.kernel.begin(address(joined), _address(weights))
        return state, norms.reshape(self.outer)

    def end(
        self,
        begun: Any,
        joined: Radii,
        shares: Radii,
        radii: Radii,
        weights: Array | None,
        tapes: list[Radii] | None = None,
    ) -> None:
        """The radii that the part leaves to its children, into `shares`."""
        if self.kernel is None:
            return
        own = _address(weights)
        if not self.kernel.end(begun, address(joined), address(shares), radii, own, tapes):
            np.copyto(shares, joined)

    def abandon(self, begun: Any) -> None:
        if self.kernel is not None:
            self.kernel.abandon(begun)


@dataclass(frozen=True, slots=True)
class Run:
    """A part made ready, and where it stands among the others: in ``place`` of all.

    ``number`` counts the arrays of a call, for a leaf, and the parts above them, for others.
    ``parent`` is the run that its values go to, ``at`` where along the last axis they do.
    ``weights`` are those of its children, if the spec alone says them; ``checks_weights``: those
    of a call are looked at by its kernels.
    """

    place: int
    part: Part
    work: LeafPart | JoinedPart
    number: int
    parent: int | None
    at: slice
    weighted: bool
    weights: Array | None = None
    checks_weights: bool = False


@dataclass(frozen=True, slots=True)
class TreeTape:
    """What a projection found on its way: see `projgen.cpu.pull_trees`.

    ``values`` are those that the parts above the leaves work on, ``shares`` their projections.
    ``parts`` has the tapes of each run's kernels, by the run's place; it is empty where all was
    inside, so that nothing changed.
    """

    values: list[Radii]
    shares: list[Radii]
    parts: dict[int, list[Radii]]


class Composition:
    """The parts of a tree over arrays of certain shapes and layouts, made ready."""

    def __init__(
        self,
        bound: BoundTree,
        ys: Sequence[Array],
        outs: Sequence[Array | None],
        given: Weights,
        labels: Mapping[str, Array],
        threads: int,
        warm: bool,
    ) -> None:
        """`ys` and `outs` are like those of its calls, in the order of ``bound.arms``; an `out` of
        None: in place."""
        self.bound = bound
        nodes = bound.tree.levels
        self._moves = bound.tree.root.norm == "simplex" or any(node.nonneg for node in nodes)
        self._vanishes = any(y.dtype == np.float64 for y in ys)  # squares may be 0, values not
        numbers = {arm.key: number for number, arm in enumerate(bound.arms)}
        self.joined: list[JoinedPart] = []
        self.runs: list[Run] = []  # parents first
        self.root = cut_into_parts(bound)

        def make_ready(part: Part, parent: int | None, at: slice) -> None:
            place, node, weighted = len(self.runs), part.last.node, is_weighted(part.last)
            weights = part_weights(bound, part, given) if weighted else None
            if part.arm is not None:
                number = numbers[part.arm.key]
                own = None if node.groups is None else labels[node.groups]
                leaf = LeafPart(part, ys[number], outs[number], weights, own, threads, warm)
                checks = weighted and leaf.checks_weights
                self.runs.append(Run(place, part, leaf, number, parent, at, weighted, None, checks))
                return
            number, work = len(self.joined), JoinedPart(part, bound, weighted, threads, warm)
            self.joined.append(work)
            constant = weights if node.weights is None else None
            self.runs.append(Run(place, part, work, number, parent, at, weighted, constant))
            for child, along in zip(part.children, work.slices, strict=True):
                make_ready(child, number, along)

        make_ready(self.root, None, slice(None))
        sizes = [int(np.prod(work.shape)) for work in self.joined]
        self.starts = [0, *np.cumsum(sizes, dtype=int).tolist()]
        self.in_series = [run for run in self.runs if self._is_serial(run)]
        self.apart = [run for run in self.runs if not self._is_serial(run)]
        self.serial = [run.number for run in self.in_series]
        self.series = Series([self._track(run) for run in self.in_series], self.starts[-1])
        self._idle: list[_Call] = []

    @property
    def alone(self) -> Call | None:
        """What does all there is to do, if that is one kernel of a chain."""
        work = self.runs[0].work
        if len(self.runs) > 1 or not isinstance(work, LeafPart) or not work.straight:
            return None
        kernel = work.walks[0].kernel
        return kernel.call if isinstance(kernel, Chain) else None

    @staticmethod
    def _is_serial(run: Run) -> bool:
        leaf = isinstance(run.work, LeafPart) and run.work.step is not None
        return leaf and run.parent is not None

    def _track(self, run: Run) -> tuple[Step, Rows]:
        assert isinstance(run.work, LeafPart) and run.work.step
        return run.work.step, self.rows_of(run)

    def rows_of(self, run: Run) -> Rows:
        """Where a leaf's values lie among those of the parts above."""
        assert isinstance(run.work, LeafPart) and run.parent is not None
        start = self.starts[run.parent] + run.at.start
        return Rows(start, *run.work.shape, self.joined[run.parent].shape[-1])

    def views(self, memory: Radii) -> list[Radii]:
        """The values of each part above the leaves, in memory that has those of all."""
        ends = zip(self.starts, self.starts[1:], self.joined, strict=False)
        return [memory[start:end].reshape(work.shape) for start, end, work in ends]

    def norms(self, ys: Sequence[Array], given: Weights) -> Radii:
        """The norm of each index of the batch."""
        call = self._borrow()
        try:
            found = call.up(ys, given).copy()  # what it gives lies in a workspace
            if self._vanishes and np.any(found < Call.VANISHING):
                raise OutOfRangeError
            return found
        finally:
            self._give_back(call)

    def root_values(self, ys: Sequence[Array], given: Weights) -> Radii | None:
        """What the root aggregates, along the last axis; None if its part sweeps an array."""
        if not self.joined or 0 in self.joined[0].shape:
            return None
        call = self._borrow()
        try:
            call.up(ys, given)
            values = call.values[0]
            for place in self.root.places[:0:-1]:
                values = REFERENCES[place.node.norm].norm(values, (-1,))[..., 0]
            return np.array(values)
        finally:
            self._give_back(call)

    def project(
        self,
        ys: Sequence[Array],
        outs: Sequence[Array | None],
        radii: Radii,
        given: Weights,
        taped: bool = False,
    ) -> TreeTape | None:
        """Project the arrays; those inside are copied. An OutOfRangeError writes nothing.

        The tape, if `taped` asks for it.
        """
        call = self._borrow()
        try:
            total = call.up(ys, given)
            if _vanish(total, radii):
                raise OutOfRangeError  # squares may have vanished on the way
            if not self._moves and _inside(total, radii):
                for y, out in zip(ys, outs, strict=True):
                    if out is not None:
                        np.copyto(out, y)
                return TreeTape([], [], {}) if taped else None
            tapes: dict[int, list[Radii]] | None = {} if taped else None
            call.down(ys, outs, radii, tapes)
            if tapes is None:
                return None
            values, shares = ([v.copy() for v in own] for own in (call.values, call.shares))
            return TreeTape(values, shares, tapes)
        finally:
            self._give_back(call)

    def begin(self, ys: Sequence[Array]) -> tuple[_Call, Radii]:
        """What to `end` with, and the norm of each index of the batch. No level has weights that a
        call binds. An OutOfRangeError as `project` has it."""
        call = self._borrow()
        try:
            return call, call.up(ys, {}).copy()
        except BaseException:
            self._give_back(call)
            raise

    def end(
        self, call: _Call, ys: Sequence[Array], outs: Sequence[Array | None], radii: Radii
    ) -> None:
        """Project the arrays of `begin`, on these radii."""
        try:
            call.down(ys, outs, radii, None)
        finally:
            self._give_back(call)

    def abandon(self, call: _Call) -> None:
        """Leave it at what `begin` gave."""
        self._give_back(call)

    def _borrow(self) -> _Call:
        try:
            return self._idle.pop()
        except IndexError:
            return _Call(self)

    def _give_back(self, call: _Call) -> None:
        call.abandon()
        self._idle.append(call)


class _Call:
    """One call of a composition at a time: its workspace, and what its parts have begun."""

    def __init__(self, composition: Composition) -> None:
        self._composition = composition
        self._serial = SeriesCall(composition.series)
        self._begun: dict[int, Any] = {}
        self._weights: dict[int, Array | None] = {}
        self.values = composition.views(self._serial.values)
        self.shares = composition.views(self._serial.shares)

    def up(self, ys: Sequence[Array], given: Weights) -> Radii:
        """The root's values: the norms."""
        composition = self._composition
        serial = composition.serial
        if serial and not self._serial.begin(addresses([ys[number] for number in serial])):
            raise OutOfRangeError
        norms: Radii
        for run in reversed(composition.apart):  # children first, the root last
            weights, work = self._level_weights(run, given), run.work
            try:
                if isinstance(work, LeafPart):
                    begun, norms = work.begin(ys[run.number], weights)
                else:
                    begun, norms = work.begin(self.values[run.number], weights)
            except OutOfRangeError:
                if run.checks_weights:
                    part_weights(composition.bound, run.part, given)
                raise
            self._begun[run.place] = begun
            if run.parent is not None:
                self.values[run.parent][..., run.at] = norms
        return norms

    def down(
        self,
        ys: Sequence[Array],
        outs: Sequence[Array | None],
        radii: Radii,
        tapes: dict[int, list[Radii]] | None,
    ) -> None:
        """Project; `tapes` is for those of the runs' kernels."""
        composition = self._composition
        for run in composition.apart:
            begun, work = self._begun.pop(run.place), run.work
            weights = self._weights.pop(run.place, None)
            own = radii if run.parent is None else self.shares[run.parent][..., run.at]
            found: list[Radii] | None = None if tapes is None else tapes.setdefault(run.place, [])
            if isinstance(work, LeafPart):
                work.end(begun, ys[run.number], outs[run.number], own, weights, found)
            else:
                joined, shares = self.values[run.number], self.shares[run.number]
                work.end(begun, joined, shares, own, weights, found)
        inside: list[int] = []
        if composition.serial:
            targets = [(ys[n] if (out := outs[n]) is None else out) for n in composition.serial]
            inside = self._serial.end(addresses(targets))
        for kept in inside:
            number = composition.serial[kept]
            out = outs[number]
            if out is not None:
                np.copyto(out, ys[number])
        if tapes is not None:
            for run, tape in zip(composition.in_series, self._serial.tapes(), strict=True):
                tapes[run.place] = [tape]
            for run in (composition.in_series[kept] for kept in inside):
                assert isinstance(run.work, LeafPart)
                run.work.walks[0].kernel.inside(tapes[run.place][0])

    def abandon(self) -> None:
        """Give back what was begun and not ended."""
        for run in self._composition.apart if self._begun else ():
            if run.place in self._begun:
                run.work.abandon(self._begun.pop(run.place))
        self._weights.clear()

    def _level_weights(self, run: Run, given: Weights) -> Array | None:
        if not run.weighted:
            return None
        weights, part = run.weights, run.part
        if weights is None:
            checked = not run.checks_weights
            weights = part_weights(self._composition.bound, part, given, checked)
        self._weights[run.place] = weights
        return weights


def _vanish(norms: Radii, radii: Radii) -> bool:
    """Whether some norm may be above its radius, and sums say otherwise."""
    if norms.size == 1:  # plain numbers are compared in a fraction of the time
        return max(norms.item(), radii.item()) < Call.VANISHING
    own = radii if any(radii.strides) else radii[:1]
    small = own.min(initial=np.inf) < Call.VANISHING
    return bool(small and np.any((norms < Call.VANISHING) & (own < Call.VANISHING)))


def _inside(norms: Radii, radii: Radii) -> bool:
    if norms.size == 1:
        return bool(norms.item() <= radii.item())
    return bool((norms <= (radii if any(radii.strides) else radii[:1])).all())


def part_weights(bound: BoundTree, part: Part, given: Weights, checked: bool = True) -> Array:
    """Those of the part's last level, in the type that its kernel reads. `checked`: a ValueError
    for what are no weights; those of a level above the leaves are anyway."""
    if part.arm is not None:
        return leaf_weights(bound, part.last, given, checked)
    return level_weights(bound, part.last, part.levels[-1], given)


def _address(array: Array | None) -> int:
    return 0 if array is None else address(array)
