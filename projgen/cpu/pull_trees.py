"""Gradients of whole trees on the CPU: the parts' ways back one after the other, up and down.

On the way up each part sums what its groups' radii get, which are values of the part above; on the
way down it hands on what reaches its groups' values, which is what the part above says of these.
A tape has what the projection found, so nothing is projected again: see `projgen.cpu.compose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.arrays import Array, address, addresses
from projgen.cpu.compose import Composition, JoinedPart, Run, TreeTape, Weights, part_weights
from projgen.cpu.leaf_part import LeafPart, view_of
from projgen.cpu.part_kernels import Chain, Group, Radii
from projgen.cpu.pull import Operands, PullStep, laid_out_like
from projgen.cpu.pull_parts import ChainPull, GroupPull, Views
from projgen.cpu.pull_series import PullSeries, PullSeriesCall
from projgen.cpu.schedule import Rows
from projgen.cpu.tape import TapeLayout
from projgen.dtypes import is_half


class LeafPull:
    """The way back through a part at a leaf."""

    def __init__(self, leaf: LeafPart, threads: int) -> None:
        self._leaf = leaf
        self._pulls = [_pull_of(walk.kernel, leaf.part.top, threads) for walk in leaf.walks]

    @property
    def step(self) -> PullStep | None:
        """How to call its kernel in a series; None if that won't do."""
        pull = self._pulls[0] if self._leaf.straight else None
        return pull.step if isinstance(pull, ChainPull) else None

    def begin(
        self, arrays: Views, tapes: list[Radii], budding: Radii | None, weights: Array | None
    ) -> tuple[Any, Radii]:
        """The gradients of the groups' radii, in the order of `BoundArm.dims`."""
        y, x, g, out = arrays
        result = out
        if is_half(y.dtype):  # gradients overflow, and have to be seen to: in halves they may not
            y, x, g = (np.array(array, np.float32, order="K") for array in (y, x, g))
            result = np.empty_like(y)
        own = Views(y, x, laid_out_like(y, g), result)
        begun: list[Any] = []
        slopes: list[Radii] = []
        dealt = [None] * len(self._pulls) if budding is None else self._leaf.dealt(budding)
        for walk, pull, tape, buds in zip(self._leaf.walks, self._pulls, tapes, dealt, strict=True):
            if isinstance(pull, ChainPull):
                at = Operands(*(address(a) + walk.piece.offset(a.strides) for a in own))
                state, found = pull.begin(at, tape, buds)
                begun.append((at, state))
            else:
                piece = walk.piece
                weighed = None if weights is None else view_of(piece, weights)
                views = Views(*(view_of(piece, array) for array in own))
                state, found = pull.begin(views, tape, buds, weighed)
                begun.append(state)
            slopes.append(found)
        return (begun, own, out), self._leaf.joined(slopes)

    def end(self, begun: Any, rise: Radii) -> None:
        """Write the gradient of the array; `rise` is what reaches the groups' values."""
        states, own, out = begun
        result = own.out
        dealt = self._leaf.dealt(rise)
        for walk, pull, state, up in zip(self._leaf.walks, self._pulls, states, dealt, strict=True):
            if isinstance(pull, ChainPull):
                at, begun = state
                pull.end(begun, at, up, view_of(walk.piece, result))
            else:
                pull.end(state, up)
        if result is not out:
            with np.errstate(over="ignore"):
                np.copyto(out, result, casting="unsafe")


class JoinedPull:
    """The way back through a part above the leaves."""

    def __init__(self, work: JoinedPart, threads: int) -> None:
        self._work = work
        self._pull = None if work.kernel is None else _pull_of(work.kernel, work.part.top, threads)

    def begin(
        self, arrays: Views, tapes: list[Radii], budding: Radii | None, weights: Array | None
    ) -> tuple[Any, Radii]:
        if self._pull is None:
            return None, np.zeros(self._work.outer)
        if isinstance(self._pull, ChainPull):
            at = Operands(*map(address, arrays))
            state, slopes = self._pull.begin(at, tapes[0], budding)
            return (at, state, arrays[3]), slopes.reshape(self._work.outer)
        state, slopes = self._pull.begin(arrays, tapes[0], budding, weights)
        return (None, state, arrays.out), slopes.reshape(self._work.outer)

    def end(self, begun: Any, rise: Radii) -> None:
        if self._pull is None:
            return
        at, state, out = begun
        if isinstance(self._pull, ChainPull):
            self._pull.end(state, at, rise, out)
        else:
            self._pull.end(state, rise)

    def buds(
        self, arrays: Views, tapes: list[Radii], budding: Radii | None, weights: Array | None
    ) -> Radii:
        """Of each of its values that is 0, what part of it would be left if it grew."""
        if self._pull is None:
            return np.zeros(self._work.shape)
        if isinstance(self._pull, ChainPull):
            return self._pull.buds(tapes[0], budding).reshape(self._work.shape)
        found = self._pull.buds(arrays, tapes[0], budding, weights)
        return np.broadcast_to(found, self._work.shape)


def _pull_of(kernel: Chain | Group, top: int, threads: int) -> ChainPull | GroupPull:
    if isinstance(kernel, Chain):
        return ChainPull(kernel, top, threads)
    return GroupPull(kernel, top, threads)


class TreePull:
    """The ways back through the parts of a composition, made ready.

    Those of small arrays go in a series, if none of their groups has the value 0.
    """

    def __init__(self, composition: Composition, threads: int) -> None:
        self._composition = composition
        self._pulls: list[tuple[Run, LeafPull | JoinedPull]] = []  # parents first
        self._serial: list[Run] = []
        tracks: list[tuple[PullStep, Rows]] = []
        for run in composition.runs:
            if isinstance(run.work, JoinedPart):
                self._pulls.append((run, JoinedPull(run.work, threads)))
                continue
            leaf = LeafPull(run.work, threads)
            self._pulls.append((run, leaf))
            if run.parent is not None and leaf.step is not None:
                self._serial.append(run)
                tracks.append((leaf.step, composition.rows_of(run)))
        places = {run.place for run in self._serial}
        self._apart = [each for each in self._pulls if each[0].place not in places]
        self._series = PullSeries(tracks, composition.starts[-1])
        self._values = self._values_of_tapes()
        self._idle: list[PullSeriesCall] = []

    def pull(
        self,
        ys: Sequence[Array],
        xs: Sequence[Array],
        gs: Sequence[Array],
        outs: Sequence[Array],
        tape: TreeTape,
        given: Weights,
    ) -> Radii:
        """Write the gradients of `ys` to `outs`, by those of their projections `xs`, as these were
        left; the gradients of the radii, one for each index of the batch.

        The arrays lie densely in memory, those of one place in the tree in the same way.
        """
        try:
            series = self._idle.pop()
        except IndexError:
            series = PullSeriesCall(self._series)
        leaves = [Views(*own) for own in zip(ys, xs, gs, outs, strict=True)]
        buds = self._buds(tape, given)
        # The series has the addresses of these arrays, of which some may be copies, until its end.
        kept = self._begin_series(series, leaves, tape, buds)
        pulls = self._pulls if kept is None else self._apart
        begun, slopes = self._up(pulls, series, leaves, tape, buds, given)
        self._down(pulls, series, begun, np.zeros_like(slopes))
        if kept is not None:
            series.end()
        self._idle.append(series)
        return slopes.reshape(-1)

    def _begin_series(
        self, series: PullSeriesCall, leaves: list[Views], tape: TreeTape, buds: list[Radii | None]
    ) -> list[Views] | None:
        """The arrays of the series, which has begun; None where each has to go by itself."""
        if not self._serial or any(own is not None for own in buds):
            return None
        tapes = np.concatenate([tape.parts[run.place][0] for run in self._serial])
        if not tapes[self._values].all():
            return None
        own = [leaves[run.number] for run in self._serial]
        own = [views._replace(g=laid_out_like(views.y, views.g)) for views in own]
        series.begin([*map(addresses, zip(*own, strict=True))], tapes)
        return own

    def _up(
        self,
        pulls: list[tuple[Run, LeafPull | JoinedPull]],
        series: PullSeriesCall,
        leaves: list[Views],
        tape: TreeTape,
        buds: list[Radii | None],
        given: Weights,
    ) -> tuple[list[Any], Radii]:
        """What each has begun, in the order of `pulls`; the gradients of the root's radii."""
        slopes, rises = (self._composition.views(own) for own in (series.slopes, series.rises))
        joined = [Views(*own) for own in zip(tape.values, tape.shares, slopes, rises, strict=True)]
        begun: list[Any] = []
        found: Radii = np.zeros(0)
        for run, pull in reversed(pulls):  # children first, the root last
            views = (leaves if isinstance(pull, LeafPull) else joined)[run.number]
            above = None if run.parent is None else _at(buds[run.parent], run.at)
            weights = self._weights(run, given)
            state, found = pull.begin(views, tape.parts[run.place], above, weights)
            begun.append(state)
            if run.parent is not None:
                slopes[run.parent][..., run.at] = found
        return begun[::-1], np.array(found)

    def _down(
        self,
        pulls: list[tuple[Run, LeafPull | JoinedPull]],
        series: PullSeriesCall,
        begun: list[Any],
        root: Radii,
    ) -> None:
        """End what has begun: each part says what reaches the values of those below, `root` what
        reaches its own."""
        rises = self._composition.views(series.rises)
        for (run, pull), state in zip(pulls, begun, strict=True):
            pull.end(state, root if run.parent is None else rises[run.parent][..., run.at])

    def _values_of_tapes(self) -> NDArray[np.int64]:
        """Where the tapes of the series, one after the other, have groups' values."""
        found, at = [np.zeros(0, np.int64)], 0
        for run in self._serial:
            assert isinstance(run.work, LeafPart)
            kernel = run.work.walks[0].kernel
            assert isinstance(kernel, Chain)
            layout = TapeLayout.of(kernel.plan)
            found.append(at + layout.found())
            at += layout.size
        return np.concatenate(found)

    def _buds(self, tape: TreeTape, given: Weights) -> list[Radii | None]:
        """By part above the leaves, `JoinedPull.buds`; None where no value is 0."""
        found: list[Radii | None] = [None] * len(tape.values)
        for run, pull in self._pulls:
            if isinstance(pull, JoinedPull) and not tape.values[run.number].all():
                own = None if run.parent is None else _at(found[run.parent], run.at)
                values, shares = tape.values[run.number], tape.shares[run.number]
                arrays = Views(values, shares, values, values)  # gradients are not asked for
                weights = self._weights(run, given)
                found[run.number] = pull.buds(arrays, tape.parts[run.place], own, weights)
        return found

    def _weights(self, run: Run, given: Weights) -> Array | None:
        if not run.weighted or run.weights is not None:
            return run.weights
        return part_weights(self._composition.bound, run.part, given)


def _at(buds: Radii | None, at: slice) -> Radii | None:
    return None if buds is None else buds[..., at]
