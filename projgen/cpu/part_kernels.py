"""The kernels of parts, begun on the way up and ended on the way down: `Chain` and `Group`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.bind import bind
from projgen.compiler import c_strides, compile_binding
from projgen.cpu.ball import Ball
from projgen.cpu.call import Call, Step
from projgen.cpu.group_pull import GroupPullCall
from projgen.cpu.groups import GroupCall
from projgen.cpu.tape import TapeLayout
from projgen.dtypes import arithmetic
from projgen.operands import axis_order, memory_order
from projgen.parts import Part, chain_of
from projgen.plan import Plan

Array = NDArray[Any]
Radii = NDArray[np.float64]


class OutOfRangeError(Exception):
    """Values that a kernel cannot add up: not finite, or beyond what its sums have room for; or
    weights that are none."""


class Chain:
    """A run of levels that one kernel walks, over an array of one shape and layout."""

    def __init__(
        self,
        part: Part,
        axes: Sequence[tuple[int, ...]],
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        out_strides: tuple[int, ...] | None,
        threads: int,
        warm: bool,
        positive: bool = False,
    ) -> None:
        self._binding = bind(chain_of(part, tuple(axes)), len(shape))
        ways = strides, out_strides, out_strides is None
        compiled = compile_binding(self._binding, shape, dtype, *ways, positive=positive)
        self.call = Call(compiled, threads, warm)
        self._shape, self.positive = shape, positive
        batch = self.call.plan.layout.batch
        self.orderly = [*batch] == sorted(batch) and not any(turned for _, turned in batch)

    @property
    def step(self) -> Step | None:
        return self.call.step

    @property
    def plan(self) -> Plan:
        return self.call.plan

    def by_axis(self, values: Radii) -> Radii:
        """Values of the batch as the kernel has them: by axis, or if `orderly` as they come."""
        if self.orderly:
            return values
        return axis_order(values, self._binding, self.plan, self._shape)

    def as_they_lie(self, values: Radii) -> Radii:
        """The inverse of `by_axis`."""
        if self.orderly:
            return values.reshape(-1)
        return memory_order(values, self._binding, self.plan)

    def begin(self, y: int, weights: int) -> tuple[Any, Radii]:
        """What to end with, and the norms of the batch, `by_axis`."""
        begun = self.call.begin(y)
        if begun is None:
            raise OutOfRangeError
        return begun, self.by_axis(self.call.norms_of(begun))

    def end(
        self,
        begun: Any,
        y: int,
        out: int,
        radii: Radii,
        weights: int,
        tapes: list[Radii] | None = None,
    ) -> bool:
        """Whether the result was written: it is not where nothing changes.

        Its tape goes to the end of `tapes`.
        """
        written = self.call.end(begun, y, out, self.as_they_lie(radii), tapes) == Call.PROJECTED
        if tapes is not None and not written:
            self.inside(tapes[-1])
        return written

    def inside(self, tape: Radii) -> None:
        """Make it a tape of groups that are all inside, of which no radii have been found."""
        for _, radii in TapeLayout.of(self.plan).levels(tape):
            radii[:] = np.inf

    def abandon(self, begun: Any) -> None:
        self.call.abandon(begun)


class Group:
    """One level of any norm, over an array of one shape and layout."""

    def __init__(
        self,
        ball: Ball,
        axes: tuple[int, ...],
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        out_strides: tuple[int, ...] | None,
        weight_strides: tuple[int, ...] | None,
        labels: Array | None,
        threads: int,
        weight_dtype: str = "float64",
    ) -> None:
        ways = strides, axes, out_strides, weight_strides, labels
        self._call = GroupCall(ball, dtype, shape, *ways, threads, weight_dtype)
        self.orderly = True
        self.ball, self.axes, self.labels = ball, axes, labels
        self.values_shape = self._call.values_shape
        self._pulled = ball, arithmetic(dtype), shape, strides, axes, weight_strides, labels
        self._weight_dtype = weight_dtype

    @property
    def step(self) -> Step | None:
        return self._call.step

    @property
    def checks_weights(self) -> bool:
        return self._call.checks_weights

    def pull(self, depth: int, threads: int, rescaled: bool = False) -> GroupPullCall | None:
        """What takes gradients back, with `depth` levels of the tree above; None if it is empty.

        `rescaled`: by weights of float64 in C order.
        """
        ball, dtype, shape, strides, axes, own, labels = self._pulled
        if 0 in shape or 0 in self.values_shape:
            return None
        form = self._weight_dtype
        if rescaled:
            own, form = c_strides(shape), "float64"
        return GroupPullCall(ball, dtype, shape, strides, axes, own, labels, form, depth, threads)

    def begin(self, y: int, weights: int) -> tuple[Any, Radii]:
        begun = self._call.begin(y, weights)
        norms = self._call.values(begun)
        if norms is None:
            self._call.abandon(begun)
            raise OutOfRangeError
        return begun, norms

    def end(
        self,
        begun: Any,
        y: int,
        out: int,
        radii: Radii,
        weights: int,
        tapes: list[Radii] | None = None,
    ) -> bool:
        if tapes is not None:
            values = self._call.values(begun)
            assert values is not None
            own = np.broadcast_to(np.asarray(radii, np.float64).reshape(values.shape), values.shape)
            tapes.append(np.concatenate([own.reshape(-1), values.reshape(-1)]))
        self._call.end(begun, y, out, radii, weights)
        return True

    def inside(self, tape: Radii) -> None:
        """Nothing: the radii are at hand."""

    def abandon(self, begun: Any) -> None:
        self._call.abandon(begun)
