"""The way back through the parts of a tree: begun on the way up, ended on the way down.

`ChainPull` has a kernel. `GroupPull` does a single level of any other kind in NumPy, by the norm's
rule: it knows the projection, so that nothing has to be searched for again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.compiler import compile_pull
from projgen.cpu.budding import enlivened, of_values, thin_out
from projgen.cpu.part_kernels import Chain, Group, Radii
from projgen.cpu.pull import Operands, PullCall, PullStep
from projgen.dtypes import arithmetic
from projgen.gradient_rules import Groups, kept, shared_out
from projgen.references import rule_of

Array = NDArray[Any]


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
    """One level of any norm."""

    def __init__(self, group: Group) -> None:
        self._group, self._ball = group, group.ball
        self._rule = rule_of(group.ball.norm)

    def begin(
        self,
        y: Array,
        x: Array,
        g: Array,
        tape: Radii,
        budding: Radii | None,
        weights: Array | None,
    ) -> tuple[Any, Radii]:
        """As that of a chain, of arrays with the axes that its kernel walks."""
        entries = self._arranged(y)
        if self._ball.nonneg and not self._rule.everywhere:
            entries = np.maximum(entries, 0.0)
        radius, value = self._of_groups(tape)
        if self._rule.everywhere:
            signs: Any = 1.0
            a, u = entries, self._arranged(x)
        else:
            signs = np.where(entries < 0, -1.0, 1.0)
            a, u = np.abs(entries), np.abs(self._arranged(x))
        own = None if weights is None else self._arranged(weights)
        groups = Groups(a, u, own, value, radius, self._ball.p, self._group.labels)
        if budding is None:
            budding = np.where(radius > 0, 1.0, 0.0)
        direct, slopes = shared_out(
            self._rule, groups, signs * self._arranged(g), budding.reshape(value.shape)
        )
        return (groups, entries, signs, direct), slopes

    def end(self, begun: Any, rise: Radii, result: Array) -> None:
        """Write the gradients of the values."""
        groups, entries, signs, direct = begun
        if rise.any():
            lifted = groups.each(rise.reshape(groups.value.shape)) * self._rule.lifted(groups)
            direct = direct + np.where(entries != 0, lifted, 0.0)
        full = signs * direct
        if self._ball.nonneg and not self._rule.everywhere:
            full = np.where(entries > 0, full, 0.0)
        moved = self._moved(result)
        with np.errstate(over="ignore"):
            moved[...] = full.reshape(moved.shape)

    def buds(self, tape: Radii, budding: Radii | None) -> Radii:
        """As that of a chain, by axis: of values along the last."""
        radius, value = self._of_groups(tape)
        if budding is None:
            budding = np.where(radius > 0, 1.0, 0.0)
        return kept(self._rule, value, radius, budding.reshape(value.shape), self._ball.p)[
            ..., np.newaxis
        ]

    def _of_groups(self, tape: Radii) -> Radii:
        """The radius and the value of each group."""
        return tape.reshape(2, *self._group.values_shape)

    def _moved(self, array: Array) -> Array:
        """With the axes that groups span at the end, in the order of memory."""
        return np.moveaxis(array, self._group.axes, range(-len(self._group.axes), 0))

    def _arranged(self, array: Array) -> Array:
        moved = self._moved(array)
        outer = moved.shape[: moved.ndim - len(self._group.axes)]
        return np.asarray(moved.reshape(*outer, -1), np.float64)
