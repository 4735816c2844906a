"""The kernels of parts, begun on the way up and ended on the way down: `Chain` and `Group`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.bind import bind
from projgen.compiler import compile_binding
from projgen.cpu.call import Call, Step
from projgen.cpu.groups import Ball, GroupCall
from projgen.operands import axis_order, memory_order
from projgen.parts import Part, chain_of

Array = NDArray[Any]
Radii = NDArray[np.float64]


class OutOfRangeError(Exception):
    """Values that a kernel cannot add up: not finite, or beyond what its sums have room for."""


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
    ) -> None:
        self._binding = bind(chain_of(part, tuple(axes)), len(shape))
        in_place = out_strides is None
        compiled = compile_binding(
            self._binding, shape, dtype, strides, out_strides, in_place=in_place
        )
        self._call = Call(compiled, threads, warm)
        self._shape = shape
        batch = self._call.plan.layout.batch
        self.orderly = [*batch] == sorted(batch) and not any(turned for _, turned in batch)

    @property
    def step(self) -> Step | None:
        return self._call.step

    def begin(self, y: int, weights: int) -> tuple[Any, Radii]:
        """What to end with, and the norms of the batch: by axis, or if `orderly` as they come."""
        begun = self._call.begin(y)
        if begun is None:
            raise OutOfRangeError
        norms = self._call.norms_of(begun)
        if not self.orderly:
            norms = axis_order(norms, self._binding, self._call.plan, self._shape)
        return begun, norms

    def end(self, begun: Any, y: int, out: int, radii: Radii, weights: int) -> bool:
        """Whether the result was written: it is not where nothing changes."""
        if not self.orderly:
            radii = memory_order(radii, self._binding, self._call.plan)
        return self._call.end(begun, y, out, radii.reshape(-1)) == Call.PROJECTED

    def abandon(self, begun: Any) -> None:
        self._call.abandon(begun)


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

    @property
    def step(self) -> Step | None:
        return self._call.step

    def begin(self, y: int, weights: int) -> tuple[Any, Radii]:
        begun = self._call.begin(y, weights)
        norms = self._call.values(begun)
        if norms is None:
            self._call.abandon(begun)
            raise OutOfRangeError
        return begun, norms

    def end(self, begun: Any, y: int, out: int, radii: Radii, weights: int) -> bool:
        self._call.end(begun, y, out, radii, weights)
        return True

    def abandon(self, begun: Any) -> None:
        self._call.abandon(begun)
