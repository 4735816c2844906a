"""The way back through the parts of a tree: begun on the way up, ended on the way down.

`ChainPull` has a kernel. `GroupPull` does a single level of any other kind in NumPy, by the norm's
rule: it knows the projection, so that nothing has to be searched for again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from projgen.compiler import compile_pull
from projgen.cpu.budding import enlivened, of_values, thin_out
from projgen.cpu.part_kernels import Chain, Group, Radii
from projgen.cpu.pull import Operands, PullCall, PullStep
from projgen.dtypes import arithmetic
from projgen.gradient_rules import Groups, kept, per_value, shared_out
from projgen.references import rule_of

Array = NDArray[Any]
Index = tuple[Any, ...]  # slices, or one list of indices

SLAB = 16384  # values that NumPy works on together: what is made of them stays in cache


class Views(NamedTuple):
    """Arrays that lie in memory in the same way: y, its projection x, the gradient of x, and where
    that of y goes."""

    y: Array
    x: Array
    g: Array
    out: Array


class ChainPull:
    """A run of levels that one kernel goes back through."""

    def __init__(self, chain: Chain, top: int, threads: int) -> None:
        """`top`: how many levels of the tree stand above these."""
        self._chain, self._plan = chain, chain.plan
        kernel = compile_pull(self._plan.spec, self._plan.layout, self._plan.dtype, top)
        self._call = PullCall(kernel, threads)
        self._parted = kernel.parted

    @property
    def step(self) -> PullStep | None:
        """How to call it in a series; None if that won't do."""
        dtype = self._plan.dtype
        orderly = self._chain.orderly and self._parted and arithmetic(dtype) == dtype
        return self._call.step if orderly else None

    def begin(self, at: Operands, tape: Radii, budding: Radii | None) -> tuple[Any, Radii]:
        """The gradients of the groups' radii, by axis, and what to end with.

        `budding`: see `projgen.cpu.budding`. Where nothing stands above, all is done at once.
        """
        tape, own = enlivened(self._plan, tape, self._as_they_lie(budding))
        if not self._parted:
            return (None, own), self._chain.by_axis(self._call.run(at, tape))
        work = self._call.begin(at, tape)
        return (work, own), self._chain.by_axis(self._call.slopes_of(work))

    def end(self, begun: Any, at: Operands, rise: Radii, result: Array) -> None:
        """Write the gradients of the values to `at.out`, of which `result` is a view. `rise` is
        what reaches the groups' values."""
        work, own = begun
        if work is not None:
            self._call.end(work, at, self._chain.as_they_lie(rise))
        thin_out(self._plan, own, result)

    def buds(self, tape: Radii, budding: Radii | None) -> Radii:
        """Of each value that is 0, what part of it would be left if it grew; in memory order."""
        return of_values(self._plan, *enlivened(self._plan, tape, self._as_they_lie(budding)))

    def _as_they_lie(self, budding: Radii | None) -> Radii | None:
        return None if budding is None else self._chain.as_they_lie(budding)


class GroupPull:
    """One level of any norm.

    Arrays have the axes that its kernel walks. They are worked on in slabs that stay in cache, and
    what the ball hands to the values waits in the result for what reaches them by their groups.
    """

    def __init__(self, group: Group) -> None:
        self._group, self._ball = group, group.ball
        self._rule = rule_of(group.ball.norm)
        self._nonneg = group.ball.nonneg and not self._rule.everywhere

    def begin(
        self, operands: Views, tape: Radii, budding: Radii | None, weights: Array | None
    ) -> tuple[Any, Radii]:
        """As that of a chain."""
        radius, value = self._of_groups(tape)
        buds = np.where(radius > 0, 1.0, 0.0) if budding is None else budding.reshape(value.shape)
        slopes = np.zeros_like(value)
        *_, g, out = map(self._moved, operands)
        masks = self._rule.masks and not self._nonneg and bool(value.all())
        busy = np.ones(value.shape, bool)
        if not masks and (weights is None or weights.all()):
            busy = (radius > 0) | (value == 0)  # nothing of the others is left
            out[~busy if self._group.labels is None else ...] = 0
        for at in self._slabs(out.shape, busy):
            if masks:
                inside = value[at] <= radius[at]
                left = self._arranged(operands.x, at, keep=True) != 0
                left |= per_value(inside, self._group.labels)
                out[at] = 0
                np.copyto(out[at], g[at], where=left.reshape(out[at].shape))
                continue
            groups, signs, real = self._slab(operands, radius, value, weights, at)
            own = signs * self._arranged(operands.g, at)
            direct, slopes[at] = shared_out(self._rule, groups, own, buds[at])
            if self._nonneg:
                direct = np.where(real, direct, 0.0)
            _write(out, at, signs * direct)
        return (operands, radius, value, weights), slopes

    def end(self, begun: Any, rise: Radii) -> None:
        """Write the gradients of the values, with what reaches those of their groups."""
        operands, radius, value, weights = begun
        if not rise.any():
            return
        rise, out = rise.reshape(value.shape), self._moved(operands.out)
        for at in self._slabs(out.shape, rise != 0):
            groups, signs, real = self._slab(operands, radius, value, weights, at)
            lifted = groups.each(rise[at]) * self._rule.lifted(groups)
            _write(out, at, np.where(real, signs * lifted, 0.0), add=True)

    def buds(
        self, operands: Views, tape: Radii, budding: Radii | None, weights: Array | None
    ) -> Radii:
        """As that of a chain, by axis: of values along the last. Of `operands` y and x are read."""
        radius, value = self._of_groups(tape)
        own = np.where(radius > 0, 1.0, 0.0) if budding is None else budding.reshape(value.shape)
        if weights is None:
            return kept(self._rule, value, radius, own, self._ball.p)[..., np.newaxis]
        groups, *_ = self._slab(operands, radius, value, weights, ())
        return shared_out(self._rule, groups, (groups.a == 0).astype(np.float64), own)[0]

    def _slab(
        self, operands: Views, radius: Radii, value: Radii, weights: Array | None, at: Index
    ) -> tuple[Groups, Any, Any]:
        """Some groups; the signs of their values, and which of these are not 0."""
        entries, x = self._arranged(operands.y, at), self._arranged(operands.x, at)
        own = None if weights is None else self._arranged(weights, at)
        known = own, value[at], radius[at], self._ball.p, self._group.labels
        if self._rule.everywhere:
            return Groups(entries, x, *known), 1.0, entries != 0
        if self._nonneg:
            entries = np.maximum(entries, 0.0)
        signs = np.copysign(1.0, entries)
        return Groups(np.abs(entries), np.abs(x), *known), signs, entries != 0

    def _of_groups(self, tape: Radii) -> Radii:
        """The radius and the value of each group."""
        return tape.reshape(2, *self._group.values_shape)

    def _slabs(self, shape: tuple[int, ...], busy: Array) -> Iterator[Index]:
        """Cuts of the groups' axes: a few of what there is most of; where one axis has them all,
        and some are not `busy`, of the others."""
        outer = shape[: len(shape) - len(self._group.axes)]
        if not outer:
            yield ()
            return
        axis = int(np.argmax(outer))
        step = max(1, SLAB * outer[axis] // math.prod(shape))
        if len(outer) == 1 and busy.shape == outer and not busy.all():
            rows = np.flatnonzero(busy)
            yield from ((rows[start : start + step],) for start in range(0, rows.size, step))
            return
        for start in range(0, outer[axis], step):
            yield (*(slice(None),) * axis, slice(start, start + step))

    def _moved(self, array: Array) -> Array:
        """With the axes that groups span at the end, in the order of memory."""
        return np.moveaxis(array, self._group.axes, range(-len(self._group.axes), 0))

    def _arranged(self, array: Array, at: Index, keep: bool = False) -> Array:
        """A slab with groups along the last axis, in float64, or to `keep` its dtype."""
        moved = self._moved(array)[at]
        outer = moved.shape[: moved.ndim - len(self._group.axes)]
        rows = moved.reshape(*outer, -1)
        return rows if keep else np.asarray(rows, np.float64)


def _write(out: Array, at: Index, values: Array, add: bool = False) -> None:
    shaped = values.reshape(out[at].shape)
    with np.errstate(over="ignore"):
        out[at] = out[at] + shaped if add else shaped
