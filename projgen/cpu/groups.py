"""A group kernel made ready for arrays of one shape, dtype and layout: all but the pointers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.cpu import call as cpu  # a module: tests replace what it loads kernels with
from projgen.cpu.ball import Ball
from projgen.cpu.group_kernel import GroupKernel
from projgen.cpu.sharing import Sharing
from projgen.cpu.walks import BESIDE, CELLS, Form, Offsets, Walk, plan_walk
from projgen.dtypes import ITEMSIZE, arithmetic

__all__ = ["GroupCall", "walk_groups"]

Array = NDArray[Any]

_INFINITE = int(np.array(np.inf).view(np.int64))  # its bits


def walk_groups(
    ball: Ball,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    axes: Sequence[int],
    out_strides: Sequence[int] | None,
    weight_strides: Sequence[int] | None,
    labels: Offsets | None,
    weight_dtype: str = "float64",
) -> Walk[GroupKernel]:
    """Plan the walk over arrays of `shape`, no axis of which is empty. See `GroupCall`."""

    def kernel(form: Form) -> GroupKernel:
        way = form.lanes, form.contiguous, form.direct, form.ranked, form.spread
        turned = form.stripped, form.surveyed, form.crossed, form.huge, form.sliced
        own = weight_dtype if ball.weighted else "float64"
        return GroupKernel(ball, dtype, out_strides is None, *way, *turned, own)

    halves, weighted = ITEMSIZE[dtype] == 2, weight_strides is not None
    spreads = int(ball.norm == "linf" or (ball.norm == "l2" and not weighted))
    if spreads and not (halves or weighted or ball.nonneg):
        spreads = BESIDE
    ways = strides, axes, out_strides, weight_strides, labels
    return plan_walk(kernel, ball, shape, *ways, spreads, halves, shares=True)


@np.errstate(invalid="ignore")  # what is not finite is noticed by the kernel
def _length(lengths: Array, axis: int) -> Any:
    """The length of vectors that consist of some of these lengths."""
    top = lengths.max(axis=axis, keepdims=True)
    shares = lengths / np.where(top > 0, top, 1.0)
    return np.sqrt(np.square(shares).sum(axis=axis)) * top.squeeze(axis)


class GroupCall:
    """Values and projections of the groups of one level.

    `shape` and `strides` (in elements) are the array's, `axes` those that a group spans; each index
    along the others is a group. `out_strides` are the result's, None for in place. `weight_strides`
    are those of weights of the same shape (0 where they are broadcast), of dtype `weight_dtype`.
    `labels` say which group each index along the only one of `axes` belongs to: groups of a batch
    index then are numbered along a last axis of the values.
    """

    def __init__(
        self,
        ball: Ball,
        dtype: str,
        shape: Sequence[int],
        strides: Sequence[int],
        axes: Sequence[int],
        out_strides: Sequence[int] | None,
        weight_strides: Sequence[int] | None,
        labels: Offsets | None,
        threads: int,
        weight_dtype: str = "float64",
    ) -> None:
        numbers = [] if labels is None else [int(labels.max(initial=-1)) + 1]
        outer = [axis for axis in range(len(shape)) if axis not in axes]
        self.values_shape = (*(shape[axis] for axis in outer), *numbers)
        self._walk: Walk[GroupKernel] | None = None
        if 0 in shape or 0 in numbers:
            return
        ways = strides, axes, out_strides, weight_strides, labels, weight_dtype
        walk = walk_groups(ball, dtype, shape, *ways)
        self._walk = walk
        # From the shape of values as the kernel walks them, to their order by axis.
        self._walked = (*(shape[axis] for axis in walk.batch), *numbers)
        self._natural = (*np.argsort(walk.batch).tolist(), *range(len(outer), len(self._walked)))
        self._memory = tuple(np.argsort(self._natural).tolist())
        self._module = cpu.load_kernel(walk.kernel)  # keeps the machine code alive
        self._address = int(self._module.project.address)
        self._entry = cpu.ENTRY(self._address)
        threads = max(1, min(threads, walk.cells["blocks"]))
        groups, itemsize = walk.cells["groups"], ITEMSIZE[dtype]
        self._groups = groups
        slots = walk.cells["slots_size"]
        self._slots = slice(2 * groups, 2 * groups + slots)
        joined = walk.cells["extent" if walk.kernel.sliced else "labels"]
        self._slots_shape = groups // joined, -1, joined
        self._combine = np.maximum.reduce if ball.norm == "linf" else _length
        size = 2 * groups + slots + threads * walk.cells["scratch_size"]
        cells = {**dict.fromkeys(CELLS, 0), **walk.cells, "seats": threads, "memory_size": size}
        self._cells = np.concatenate([[cells[name] for name in CELLS], walk.index]).astype(np.int64)
        self._cells_at = int(self._cells.ctypes.data)
        shares = walk.kernel.shares_cell
        self._sizes = size, shares + 16 * threads
        self._highest = slice(shares + 1, None, 16)
        self._offset = walk.offset["y"] * itemsize
        self._out_offset = walk.offset.get("x", walk.offset["y"]) * itemsize
        self._own_offset = walk.offset.get("w", 0) * np.dtype(weight_dtype).itemsize
        work = int(np.prod(shape, dtype=np.int64)) * ITEMSIZE[arithmetic(dtype)]
        if ball.norm == "lp":
            work *= 16  # its arithmetic is what takes long
        self._followers = threads - 1 if work >= cpu.SHARED_BYTES else 0
        self._sharing = {False: Sharing(), True: Sharing()}  # by whether a call projects
        self._idle: list[cpu.Workspace] = []

    @property
    def checks_weights(self) -> bool:
        """Whether weights below 0, and what is not finite, are noticed by the kernel: `values`."""
        return self._walk is not None and self._walk.kernel.checks

    @property
    def step(self) -> cpu.Step | None:
        """For a series; None if other threads may help, or the values have another order."""
        walk = self._walk
        if walk is None or self._followers or walk.kernel.ball.weighted:
            return None
        if walk.cells["slots_size"]:  # of pieces, put together here, or of huge groups
            return None
        if self._natural != tuple(range(len(self._natural))):
            return None
        memory, desk = self._sizes
        ways = self._offset, self._out_offset
        geometry = self._cells_at
        values, radii = slice(0, self._groups), slice(self._groups, 2 * self._groups)
        return cpu.Step(
            *(self._address, geometry, *ways, memory, desk, radii.start, values.start),
            flags=(0, 1),
            tape=(radii, values),
        )

    def begin(self, y: int, weights: int) -> cpu.Workspace | None:
        """Find the values of the groups of the array at address `y`; what to end the call with.

        `weights` is the address of the weights, or unused. None for an array without elements.
        """
        if self._walk is None:
            return None
        work = self._borrow()
        work.memory[self._groups] = -1.0
        self._run(y, y, weights, work, 0, projects=False)
        slots = work.memory[self._slots]
        if (self._walk.kernel.spread or self._walk.kernel.sliced) and slots.size:
            values = work.memory[: self._groups].reshape(-1, self._slots_shape[-1])
            values[...] = self._combine(slots.reshape(self._slots_shape), axis=1)
        return work

    def values(self, begun: cpu.Workspace | None) -> NDArray[np.float64] | None:
        """The value of each group, good until `begun` is ended; None if one is not finite, or has a
        weight below 0."""
        if self._walk is None or begun is None:
            return np.zeros(self.values_shape)
        if max(begun.desk[self._highest].tolist()) >= _INFINITE:
            return None
        walked = begun.memory[: self._groups].reshape(self._walked)
        return np.asarray(walked.transpose(self._natural), order="C")

    def end(
        self, begun: cpu.Workspace | None, y: int, out: int, radii: Array, weights: int
    ) -> None:
        """Project the array at address `y`, whose values are finite, into that at `out`.

        `radii` have the shape of the values. A group whose value is no more than its radius keeps
        its elements.
        """
        if self._walk is None or begun is None:
            return
        alike = not any(radii.strides)
        if alike:
            begun.memory[self._groups] = radii.flat[0]
        else:
            ordered = np.asarray(radii, np.float64).reshape(self.values_shape)
            to = begun.memory[self._groups : 2 * self._groups].reshape(self._walked)
            to[...] = ordered.transpose(self._memory)
        self._run(y, out, weights, begun, 0 if alike else 1, projects=True)
        self.abandon(begun)

    def abandon(self, begun: cpu.Workspace | None) -> None:
        """Give back what was begun and is not to be ended."""
        if begun is not None:
            self._idle.append(begun)

    def _borrow(self) -> cpu.Workspace:
        try:
            return self._idle.pop()
        except IndexError:
            return cpu.Workspace(*self._sizes)

    def _run(
        self, y: int, out: int, weights: int, work: cpu.Workspace, radius_step: int, projects: bool
    ) -> None:
        work.desk.fill(0)
        work.desk[1] = weights + self._own_offset
        work.desk[2] = radius_step
        arguments = (
            y + self._offset,
            out + self._out_offset,
            self._cells_at,
            work.memory_at,
            work.desk_at,
        )
        sharing = self._sharing[projects]
        cpu.run_shared(self._entry, self._address, arguments, self._followers, sharing)
