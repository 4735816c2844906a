"""Projections that keep what gradients need, and the kernels that take gradients back through them.

A *tape* is what a projection found on its way: a vector of float64 with the radius and the norm of
each batch entry, then for each level above the leaf, from the root, its values and their
projection; all in memory order. A kernel reads it in place of sweeping y again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from projgen.bind import Binding
from projgen.compiler import compile_pull
from projgen.cpu import call as cpu  # a module: tests replace what it loads kernels with
from projgen.cpu import project as forward
from projgen.cpu.pool import default_threads
from projgen.cpu.pull_kernel import PullKernel, cells
from projgen.cpu.sharing import Sharing
from projgen.dtypes import is_half
from projgen.norms import NORMS
from projgen.operands import axis_order, memory_order

if TYPE_CHECKING:
    from projgen.plan import Plan
    from projgen.projection import Projection

Array = NDArray[Any]
Radii = NDArray[np.float64]


def has_kernel(binding: Binding) -> bool:
    """Whether a kernel takes gradients back through these levels."""
    return all(NORMS[level.norm].pulls for level in binding.levels)


def is_dense(y: Array) -> bool:
    """Whether `y` lies in memory without gaps, in any order of its axes, and forwards."""
    return y.flags.aligned and bool(y.size) and np.empty_like(y).strides == y.strides


def project(
    projection: Projection, binding: Binding, y: Array, x: Array, radii: float | Array
) -> Radii | None:
    """Project `y`, which `is_dense`, into `x` of the same strides.

    The tape; or None if the values' sums are out of range.
    """
    call = forward.ready(projection, binding, y, x)
    ordered = radii if isinstance(radii, float) else memory_order(radii, binding, call.plan)
    verdict, tape = call.taped(y.ctypes.data, x.ctypes.data, ordered)
    if verdict == call.OUT_OF_RANGE:
        forward.rescue(projection, binding, y, x, radii)
        return None
    if verdict == call.INSIDE:
        np.copyto(x, y)
        tape[2 * call.plan.batch :] = 0.0
    return tape


def pull(
    projection: Projection,
    binding: Binding,
    y: Array,
    x: Array,
    tape: Radii,
    g: Array,
    out: Array,
) -> Radii | None:
    """Write the gradient of `y` to `out`, where `g` is that of `x`, as `project` left both.

    All have y's shape and dtype, `out` its strides too. The gradients of the radii have the shape
    of the batch axes. None, and nothing written, where the reference has to do it.
    """
    plan = forward.ready(projection, binding, y, x).plan
    radii, norms = tape[: plan.batch], tape[plan.batch : 2 * plan.batch]
    if bool(np.all(norms <= radii)):
        np.copyto(out, g)
        return np.zeros([y.shape[axis] for axis in binding.batch])
    enlivened = _enlivened(plan, tape)
    if enlivened is None:
        return None
    result = out
    if is_half(
        out.dtype
    ):  # gradients overflow, and have to be seen to: in halves they might not be
        y, x, g = (np.array(array, np.float32, order="K") for array in (y, x, g))
        result = np.empty_like(y)
    if g.strides != y.strides or not g.flags.aligned:
        own = np.empty_like(y)
        np.copyto(own, g)
        g = own
    slopes = _ready(projection, plan).run(y, x, g, result, enlivened)
    if result is not out:
        with np.errstate(over="ignore"):
            np.copyto(out, result, casting="unsafe")
    return np.array(axis_order(slopes, binding, plan, y.shape))


def _enlivened(plan: Plan, tape: Radii) -> Radii | None:
    """The tape, with an infinite radius for groups of value 0 that would live if they grew.

    Their radius is 0 like that of dead groups. They live where the group that they belong to is
    inside its ball, or clips; in one that l1 thins out they are dead. In one that l2 scales they
    would be scaled, for which kernels have no way: None.
    """
    if tape[2 * plan.batch :].all():
        return tape
    tape, at = tape.copy(), 2 * plan.batch
    radii, norms = tape[: plan.batch], tape[plan.batch : at]
    for stage in plan.stages[:-1]:
        values, own = tape[at : at + stage.size], tape[at + stage.size : at + 2 * stage.size]
        owners = plan.layout.loops_above(stage.level)
        extents = [loop.extent for loop in owners]
        across = [1 if loop.level == stage.level else loop.extent for loop in owners]
        inside = (radii > 0) & (radii >= norms)
        scaled = stage.norm == "l2" and np.broadcast_to(
            ((radii > 0) & ~inside).reshape(across), extents
        ).reshape(-1)
        if np.any((values == 0) & scaled):
            return None
        lives = inside | ((radii > 0) & (stage.norm == "linf"))
        lives = np.broadcast_to(lives.reshape(across), extents).reshape(-1)
        own[(values == 0) & lives] = np.inf
        at += 2 * stage.size
        radii, norms = own, values
    return tape


class PullCall:
    """Takes gradients back through projections of arrays of one dtype and layout."""

    def __init__(self, kernel: PullKernel, threads: int) -> None:
        self._module = cpu.load_kernel(kernel)  # keeps the machine code alive
        self._address = int(self._module.pull.address)
        self._entry = cpu.ENTRY(self._address)
        leaf = kernel.leaf.code.stage
        threads = min(threads, leaf.cut.blocks)
        found = dict(cells(kernel, threads))
        self._cells = np.array(list(found.values()), np.int64)
        self._sizes = found["memory_size"], kernel.desk_size(threads)
        self._tape = found["slope_at"]  # of levels that do not merge: a tape may have room for more
        self._slope = slice(found["slope_at"], found["slope_at"] + kernel.levels[0].groups)
        size = leaf.size * np.dtype(kernel.dtype).itemsize
        self._followers = threads - 1 if size >= cpu.SHARED_BYTES else 0
        self._sharing = Sharing()
        self._idle: list[cpu.Workspace] = []

    def run(self, y: Array, x: Array, g: Array, out: Array, tape: Radii) -> Radii:
        """Write the gradient of `y` to `out`; those of the radii, in memory order."""
        try:
            work = self._idle.pop()
        except IndexError:
            work = cpu.Workspace(*self._sizes)
        work.memory[: self._tape] = tape[: self._tape]
        work.desk.fill(0)
        work.desk[1], work.desk[2] = g.ctypes.data, out.ctypes.data
        arguments = (
            int(y.ctypes.data),
            int(x.ctypes.data),
            int(self._cells.ctypes.data),
            work.memory_at,
            work.desk_at,
        )
        cpu.run_shared(self._entry, self._address, arguments, self._followers, self._sharing)
        slopes = work.memory[self._slope].copy()
        self._idle.append(work)
        return slopes


def _ready(projection: Projection, plan: Plan) -> PullCall:
    """The call that is ready for projections of this plan, or a new one."""
    key = plan.layout, plan.dtype
    call: PullCall | None = projection._pulls.get(key)
    if call is None:
        threads = projection._threads or default_threads()
        call = PullCall(compile_pull(plan.spec, plan.layout, plan.dtype), threads)
        if len(projection._pulls) >= forward.REMEMBERED:
            projection._pulls.clear()
        projection._pulls[key] = call
    return call
