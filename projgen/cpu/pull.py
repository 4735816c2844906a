"""Projections that keep what gradients need, and the kernels that take gradients back through them.

A tape is what a projection found on its way (see `projgen.cpu.tape`): a kernel reads it in place of
sweeping y again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from projgen.arrays import address, addresses
from projgen.bind import Binding
from projgen.compiler import compile_pull
from projgen.cpu import call as cpu  # a module: tests replace what it loads kernels with
from projgen.cpu import project as forward
from projgen.cpu.budding import enlivened, thin_out
from projgen.cpu.pool import default_threads
from projgen.cpu.pull_kernel import PullKernel, cells
from projgen.cpu.sharing import Sharing
from projgen.cpu.tape import TapeLayout
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


def project(
    projection: Projection, binding: Binding, y: Array, x: Array, radii: float | Array
) -> Radii | None:
    """Project `y`, which `is_dense`, into `x` of the same strides.

    The tape; or None if the values' sums are out of range.
    """
    call = forward.ready(projection, binding, y, x)
    ordered = radii if isinstance(radii, float) else memory_order(radii, binding, call.plan)
    verdict, tape = call.taped(address(y), address(x), ordered)
    if verdict == call.OUT_OF_RANGE:
        forward.rescue(projection, binding, y, x, radii)
        return None
    if verdict == call.INSIDE:
        np.copyto(x, y)
        for part in TapeLayout.of(call.plan).levels(tape):
            for vector in part:
                vector[:] = 0.0
    return tape


def pull(
    projection: Projection,
    binding: Binding,
    y: Array,
    x: Array,
    tape: Radii,
    g: Array,
    out: Array,
) -> Radii:
    """Write the gradient of `y` to `out`, where `g` is that of `x`, as `project` left both.

    All have y's shape and dtype, `out` its strides too. The gradients of the radii have the shape
    of the batch axes.
    """
    plan = forward.ready(projection, binding, y, x).plan
    layout = TapeLayout.of(plan)
    if bool(np.all(layout.norms(tape) <= layout.radii(tape))):
        np.copyto(out, g)
        return np.zeros([y.shape[axis] for axis in binding.batch])
    tape, own = enlivened(plan, tape)
    ready = _ready(projection, plan, (y.dtype, y.shape, y.strides))
    result = out
    if is_half(out.dtype):  # gradients overflow, and have to be seen to: in halves they may not be
        y, x, g = (np.array(array, np.float32, order="K") for array in (y, x, g))
        result = np.empty_like(y)
    g = laid_out_like(y, g)
    slopes = ready.run(Operands(*addresses([y, x, g, result])), tape)
    thin_out(plan, own, result)
    if result is not out:
        with np.errstate(over="ignore"):
            np.copyto(out, result, casting="unsafe")
    return np.array(axis_order(slopes, binding, plan, y.shape))


def laid_out_like(y: Array, g: Array) -> Array:
    """A gradient in memory as `y` is, for the kernels."""
    if g.strides == y.strides and g.flags.aligned:
        return g
    own = np.empty_like(y)
    np.copyto(own, g)
    return own


class Operands(NamedTuple):
    """The addresses of what a kernel takes: arrays that lie in memory in the same way."""

    y: int
    x: int
    g: int
    out: int


@dataclass(frozen=True, slots=True)
class PullStep:
    """How to call a kernel that is parted, from one thread: see `projgen.cpu.pull_series`.

    ``function`` and ``geometry`` are addresses, ``memory`` and ``desk`` the sizes of the workspace,
    which begins with the ``tape`` values of the tape; the gradients of the radii follow at
    ``slope``.
    """

    function: int
    geometry: int
    memory: int
    desk: int
    tape: int
    slope: int


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
        self._cells_at = int(self._cells.ctypes.data)
        self._sizes = found["memory_size"], kernel.desk_size(threads)
        self._tape = kernel.tape.size  # of levels that do not merge: a tape may have room for more
        self._slope = slice(found["slope_at"], found["slope_at"] + kernel.levels[0].groups)
        size = leaf.size * np.dtype(kernel.dtype).itemsize
        self._followers = threads - 1 if size >= cpu.SHARED_BYTES else 0
        self._sharing = Sharing(), Sharing()  # of the first call for an array, and of the second
        self._idle: list[cpu.Workspace] = []

    @property
    def step(self) -> PullStep | None:
        """For a series; None if other threads may help."""
        if self._followers:
            return None
        ways = self._address, self._cells_at, *self._sizes
        return PullStep(*ways, self._tape, self._slope.start)

    def run(self, at: Operands, tape: Radii) -> Radii:
        """Write the gradient of y to `out`; those of the radii, in memory order."""
        work = self.begin(at, tape)
        slopes = self.slopes_of(work).copy()
        self._idle.append(work)
        return slopes

    def begin(self, at: Operands, tape: Radii) -> cpu.Workspace:
        """A kernel that is parted: find the gradients of the radii, `slopes_of` what this gives."""
        try:
            work = self._idle.pop()
        except IndexError:
            work = cpu.Workspace(*self._sizes)
        work.memory[: self._tape] = tape[: self._tape]
        self._run(at, work, 0)
        return work

    def slopes_of(self, begun: cpu.Workspace) -> Radii:
        """In memory order; good until `begun` is ended."""
        return begun.memory[self._slope]

    def end(self, begun: cpu.Workspace, at: Operands, rise: Radii) -> None:
        """Write the gradient of y, where `rise` has what reaches the groups' values."""
        begun.memory[self._slope] = rise
        self._run(at, begun, 1)
        self._idle.append(begun)

    def _run(self, at: Operands, work: cpu.Workspace, half: int) -> None:
        work.desk.fill(0)
        work.desk[1:4] = at.g, at.out, half
        arguments = at.y, at.x, self._cells_at, work.memory_at, work.desk_at
        sharing = self._sharing[half]
        cpu.run_shared(self._entry, self._address, arguments, self._followers, sharing)


def _ready(projection: Projection, plan: Plan, key: tuple[Any, ...]) -> PullCall:
    """The call that is ready for projections of this plan, which arrays of this dtype, shape and
    strides have, or a new one."""
    call: PullCall | None = projection._pulls.get(key)
    if call is None:
        threads = projection._threads or default_threads()
        call = PullCall(compile_pull(plan.spec, plan.layout, plan.dtype), threads)
        if len(projection._pulls) >= forward.REMEMBERED:
            projection._pulls.clear()
        projection._pulls[key] = call
    return call
