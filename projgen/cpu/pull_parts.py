"""The way back through the parts of a tree: begun on the way up, ended on the way down.

`ChainPull` is for what `projgen.cpu.part_kernels.Chain` projects, `GroupPull` for a `Group`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from projgen.arrays import address
from projgen.compiler import compile_pull
from projgen.cpu.budding import enlivened, of_values, thin_out
from projgen.cpu.group_pull import GroupPullCall
from projgen.cpu.part_kernels import Chain, Group, Radii
from projgen.cpu.pull import Operands, PullCall, PullStep
from projgen.dtypes import arithmetic
from projgen.gradient_rules import Groups, kept, per_value, shared_out, units
from projgen.references import rule_of

Array = NDArray[Any]

FAINT = 1e-70  # a weight whose fourth power is in float64's range, as is that of one over it


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
        plan = self._plan
        kernel = compile_pull(plan.spec, plan.layout, plan.dtype, top, chain.positive)
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

    A kernel takes its gradients back. It takes a group of zeros for one inside its ball, or for a
    dead one; what lies between is multiplied in afterwards, as `projgen.cpu.budding` has it.
    """

    def __init__(self, group: Group, top: int, threads: int) -> None:
        """`top`: how many levels of the tree stand above it."""
        self._group = group
        self._rule = rule_of(group.ball.norm)
        self._top, self._threads = top, threads
        self._call = group.pull(top, threads)
        self._rescaled: GroupPullCall | None = None

    def begin(
        self, operands: Views, tape: Radii, budding: Radii | None, weights: Array | None
    ) -> tuple[Any, Radii]:
        """As that of a chain."""
        radius, value = self._of_groups(tape)
        if self._call is None:
            return None, np.zeros_like(value)
        buds = None
        if not self._rule.everywhere and not value.all():
            buds = self._own(radius, value, budding)
            radius = np.where(value > 0, radius, np.where(buds > 0, np.inf, 0.0))
            buds = np.where(value > 0, 1.0, buds)
        at, call, scaled = Operands(*map(address, operands)), self._call, weights
        unit = None if weights is None else self._units(operands.x, weights, value)
        if unit is not None:
            assert weights is not None
            call, scaled = self._in_units(weights, unit)
            radius, value = np.ldexp(radius, -unit), np.ldexp(value, -unit)
        own = 0 if scaled is None else address(scaled)
        work, slopes = call.begin(at, own, radius, value)
        slopes = slopes if unit is None else np.ldexp(slopes, -unit)
        return (call, work, at, scaled, operands.out, buds, unit), slopes

    def end(self, begun: Any, rise: Radii) -> None:
        """Write the gradients of the values, with what reaches those of their groups."""
        if self._call is None:
            return
        call, work, at, weights, out, buds, unit = begun
        rise = rise if unit is None else np.ldexp(rise.reshape(unit.shape), unit)
        call.end(work, at, 0 if weights is None else address(weights), rise)
        if buds is None or not np.any((buds > 0) & (buds < 1)):
            return
        moved = self._moved(out)
        part = per_value(buds, self._group.labels)
        part = part.reshape(*part.shape, *[1] * (moved.ndim - part.ndim))
        if weights is not None:  # what weighs nothing is left as it is
            part = np.where(self._moved(weights) == 0, 1.0, part)
        moved *= part

    def buds(
        self, operands: Views, tape: Radii, budding: Radii | None, weights: Array | None
    ) -> Radii:
        """As that of a chain, by axis: of values along the last. Of `operands` y and x are read."""
        radius, value = self._of_groups(tape)
        own = self._own(radius, value, budding)
        if weights is None:
            return kept(self._rule, value, radius, own, self._group.ball.p)[..., np.newaxis]
        y, x = np.abs(operands.y), np.abs(operands.x)
        groups = Groups(y, x, weights, value, radius, self._group.ball.p)
        return shared_out(self._rule, groups, (y == 0).astype(np.float64), own)[0]

    def _units(self, x: Array, weights: Array, value: Radii) -> NDArray[np.int32] | None:
        """See `projgen.gradient_rules.units`; None where powers of the weights have room."""
        once = weights[tuple(slice(None) if step else slice(1) for step in weights.strides)]
        if weights.dtype != np.float64 or not once.size:
            return None
        lightest, heaviest = once.min(), once.max()
        if lightest < FAINT:
            lightest = once.min(where=once > 0, initial=np.inf)
        if lightest >= FAINT and heaviest <= 1 / FAINT:
            return None
        left = self._moved(np.where(x != 0, weights, 0.0))
        rows = left.reshape(*left.shape[: left.ndim - len(self._group.axes)], -1)
        values = value.reshape(*rows.shape[:-1], *value.shape[rows.ndim - 1 :])
        found = units(Groups(rows, rows, rows, values, values, labels=self._group.labels))
        return found.reshape(value.shape)

    def _in_units(self, weights: Array, unit: NDArray[np.int32]) -> tuple[GroupPullCall, Array]:
        """The kernel for weights in such units, and they."""
        if self._rescaled is None:
            self._rescaled = self._group.pull(self._top, self._threads, rescaled=True)
        assert self._rescaled is not None
        of_values = per_value(unit, self._group.labels)
        of_values = of_values.reshape(*of_values.shape, *[1] * (weights.ndim - of_values.ndim))
        axes = self._group.axes
        natural = np.moveaxis(of_values, range(-len(axes), 0), axes)
        return self._rescaled, np.ascontiguousarray(np.ldexp(weights, -natural))

    @staticmethod
    def _own(radius: Radii, value: Radii, budding: Radii | None) -> Radii:
        """Of each group, if its value is 0, what part of it would be left if it grew."""
        return np.where(radius > 0, 1.0, 0.0) if budding is None else budding.reshape(value.shape)

    def _of_groups(self, tape: Radii) -> Radii:
        """The radius and the value of each group."""
        return tape.reshape(2, *self._group.values_shape)

    def _moved(self, array: Array) -> Array:
        """With the axes that groups span at the end."""
        return np.moveaxis(array, self._group.axes, range(-len(self._group.axes), 0))
