"""A kernel that takes gradients back through a level of groups, ready for arrays of one layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.cpu import call as cpu  # a module: tests replace what it loads kernels with
from projgen.cpu.ball import Ball
from projgen.cpu.group_pull_kernel import GATHERS, SHARES, GroupPullKernel
from projgen.cpu.pull import Operands
from projgen.cpu.sharing import Sharing
from projgen.cpu.walks import CELLS, Form, Walk, plan_walk

Array = NDArray[Any]
Radii = NDArray[np.float64]


def walk_pull(
    ball: Ball,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    axes: Sequence[int],
    weight_strides: Sequence[int] | None,
    labels: NDArray[np.int64] | None,
    weight_dtype: str,
    depth: int,
) -> Walk[GroupPullKernel]:
    """Plan the walk over arrays of `shape`, no axis of which is empty: see `GroupPullCall`."""

    def kernel(form: Form) -> GroupPullKernel:
        way = "columns" if form.tiled else "labels" if form.spread else "rows"
        contiguous = form.beside if form.tiled else form.contiguous
        own = weight_dtype if ball.weighted else "float64"
        return GroupPullKernel(ball, dtype, way, contiguous, own, min(depth, 2))

    return plan_walk(kernel, ball, shape, strides, axes, None, weight_strides, labels, spreads=1)


class GroupPullCall:
    """Takes gradients back through projections of the groups of one level.

    The arrays y, x, g and the result have the same `shape` and `strides`; `depth` levels of a tree
    stand above this one. The rest is as `projgen.cpu.groups.GroupCall` has it. No axis is empty.
    """

    def __init__(
        self,
        ball: Ball,
        dtype: str,
        shape: Sequence[int],
        strides: Sequence[int],
        axes: Sequence[int],
        weight_strides: Sequence[int] | None,
        labels: NDArray[np.int64] | None,
        weight_dtype: str,
        depth: int,
        threads: int,
    ) -> None:
        ways = strides, axes, weight_strides, labels, weight_dtype, depth
        walk = walk_pull(ball, dtype, shape, *ways)
        self.kernel = kernel = walk.kernel
        found = walk.cells
        groups = found["groups"]
        numbers = [] if labels is None else [found["labels"]]
        outer = [axis for axis in range(len(shape)) if axis not in axes]
        # From the groups by axis to their order in the workspace: batch axes as they are walked,
        # and then labels; but where groups lie side by side, those of one label do.
        self._order = [
            *(outer.index(axis) for axis in walk.batch),
            *([len(outer)] if numbers else []),
        ]
        self._extents = [*(shape[axis] for axis in walk.batch), *numbers]
        self._sides = (-1, found["extent"], found["labels"]) if kernel.columns else None
        self._natural = [self._extents[self._order.index(i)] for i in range(len(self._order))]

        # The workspace: each thread's room, what is known of each group, and slots, if there are
        # any, for the sums of pieces.
        threads = max(1, min(threads, found["blocks"]))
        room, sums = threads * found["scratch_size"], len(kernel.sums)
        starts = [room + i * groups for i in range(len(kernel.held) + 1)]
        self._at = {
            name: slice(start, end)
            for name, start, end in zip(kernel.held, starts, starts[1:], strict=False)
        }
        self._sums = slice(starts[-1 - sums], starts[-1])
        slots = self._sums
        if found["pieces"] > 1:
            slots = slice(starts[-1], starts[-1] + sums * found["slots_size"])
        self._slots = slots if found["pieces"] > 1 else None
        self._pieces = sums, groups // found["labels"], found["pieces"], found["labels"]
        cells = {
            **dict.fromkeys(CELLS, 0),
            **found,
            "slots_at": slots.start - room,
            "slots_size": found["slots_size"] or groups,
            "seats": threads,
            "memory_size": slots.stop,
        }
        self._cells = np.concatenate([[cells[name] for name in CELLS], walk.index]).astype(np.int64)
        self._cells_at = int(self._cells.ctypes.data)
        self._sizes = slots.stop, kernel.shares_cell + 16 * threads
        self._offset = walk.offset["y"] * np.dtype(dtype).itemsize
        self._own_offset = walk.offset.get("w", 0) * np.dtype(weight_dtype).itemsize
        self._module = cpu.load_kernel(kernel)  # keeps the machine code alive
        self._address = int(self._module.pull.address)
        self._entry = cpu.ENTRY(self._address)
        work = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        work *= 8 if kernel.powers else 1  # its arithmetic is what takes long
        self._followers = threads - 1 if work >= cpu.SHARED_BYTES else 0
        self._sharing = {task: Sharing() for task in (GATHERS, SHARES, GATHERS | SHARES)}
        self._idle: list[cpu.Workspace] = []

    def begin(
        self, at: Operands, weights: int, radii: Radii, values: Radii
    ) -> tuple[cpu.Workspace, Radii]:
        """What to end with, and the gradients of the groups' radii, by axis.

        `at` has the addresses of the arrays, `weights` that of the weights, or 0. `radii` and
        `values` are those of the groups, by axis. At the root, where nothing rises to values, those
        of the values have been written where that saves a sweep, and `end` has nothing to do.
        """
        try:
            work = self._idle.pop()
        except IndexError:
            work = cpu.Workspace(*self._sizes)
        for name, own in (("u", radii), ("v", values)):
            if name in self._at:
                self._put(work.memory[self._at[name]], own)
        if not self.kernel.sums:
            return work, np.zeros(values.shape)
        self._run(at, weights, work, GATHERS if self._parted else GATHERS | SHARES)
        if self._slots is not None:
            slots = work.memory[self._slots].reshape(self._pieces)
            work.memory[self._sums] = np.add.reduce(slots, axis=2).reshape(-1)
        self._run(at, weights, work, 0)
        return work, self._by_axis(work.memory[self._at["rise"]]).reshape(values.shape)

    @property
    def _parted(self) -> bool:
        """Whether the second sweep has to wait for more than its own group's sums."""
        return self.kernel.rises or self._slots is not None

    def end(self, work: cpu.Workspace, at: Operands, weights: int, rise: Radii) -> None:
        """Write the gradients of the values, where `rise` has what reaches the groups' values."""
        if self._parted or not self.kernel.sums:
            if "rise" in self._at:
                self._put(work.memory[self._at["rise"]], rise)
            self._run(at, weights, work, SHARES)
        self._idle.append(work)

    def _put(self, to: Radii, by_axis: Radii) -> None:
        """Write what holds for groups in the workspace's order."""
        ordered = by_axis.reshape(self._natural).transpose(self._order)
        if self._sides is None:
            to.reshape(self._extents)[...] = ordered
            return
        outer, extent, labels = self._sides
        to.reshape(outer, labels, extent)[...] = ordered.reshape(self._sides).swapaxes(1, 2)

    def _by_axis(self, of_groups: Radii) -> Radii:
        """The inverse, as a copy."""
        if self._sides is not None:
            outer, extent, labels = self._sides
            of_groups = of_groups.reshape(outer, labels, extent).swapaxes(1, 2)
        ordered = of_groups.reshape(self._extents)
        return np.array(ordered.transpose(np.argsort(self._order)), order="C")

    def _run(self, at: Operands, weights: int, work: cpu.Workspace, task: int) -> None:
        offset = self._offset
        work.desk.fill(0)
        work.desk[1:5] = at.g + offset, at.out + offset, task, weights + self._own_offset
        arguments = at.y + offset, at.x + offset, self._cells_at, work.memory_at, work.desk_at
        if task == 0:
            self._entry(*arguments)
            return
        cpu.run_shared(self._entry, self._address, arguments, self._followers, self._sharing[task])


__all__ = ["GroupPullCall", "walk_pull"]
