"""A kernel made ready for arrays of one shape, dtype and layout: all but the pointers.

Workspaces are kept and lent out, so that a call allocates nothing, and calls from several Python
threads have one each.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.compiler import Compiled, load_kernel
from projgen.cpu.geometry import geometry
from projgen.cpu.pool import team
from projgen.cpu.sharing import Sharing
from projgen.cpu.tape import TapeLayout

__all__ = [
    "ENTRY",
    "SHARED_BYTES",
    "Call",
    "Step",
    "Workspace",
    "aligned",
    "load_kernel",
    "team",
]

Array = NDArray[Any]

LINE = 8  # cells of a cache line
SHARED_BYTES = 512 << 10  # below this, a second thread costs more than it brings

ENTRY = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 5)


class Workspace:
    """The memory of one running call: the levels' values, and the desk of its threads."""

    __slots__ = ("desk", "desk_at", "memory", "memory_at", "warm")

    def __init__(self, memory: int, desk: int) -> None:
        self.memory = aligned(memory, np.float64)
        self.desk = aligned(desk, np.int64)
        self.memory_at = int(self.memory.ctypes.data)
        self.desk_at = int(self.desk.ctypes.data)
        self.warm = False  # whether it has the limits of an earlier call


@dataclass(frozen=True, slots=True)
class Step:
    """How to call a kernel that is ready for one shape, from one thread: see `projgen.cpu.series`.

    ``function`` and ``geometry`` are addresses, ``offset`` and ``out_offset`` the ways in bytes
    from an array's address to its first element in memory, ``memory`` and ``desk`` the sizes of
    the workspace. Its radii and values begin at ``radii`` and ``values`` in the memory, which has
    its tape in the parts ``tape`` (see `projgen.cpu.tape`). A call that projects has ``flags`` in
    cells 1 and 2 of its desk.
    """

    function: int
    geometry: int
    offset: int
    out_offset: int
    memory: int
    desk: int
    radii: int
    values: int
    flags: tuple[int, int]
    tape: tuple[slice, ...]


class Call:
    """Projects arrays whose shape, dtype and strides are those that `compiled` was made for."""

    # What a kernel says of its call; only the first has written anything.
    PROJECTED, INSIDE, OUT_OF_RANGE = 0, 1, 2
    VANISHING = 1e-130  # norms below it may have lost squares that float64 has no room for

    def __init__(self, compiled: Compiled, threads: int, warm: bool = False) -> None:
        """`warm`: searches for thresholds start where those of the last call ended."""
        plan = compiled.plan
        self.plan = plan
        self.compiled = compiled
        self._warm = warm and compiled.kernel.starts
        self._module = load_kernel(compiled)  # keeps the machine code alive
        self._address = int(self._module.project.address)
        self._entry = ENTRY(self._address)
        leaf = plan.leaf
        threads = min(threads, max(leaf.cut.blocks, leaf.tiles.blocks))
        cells = geometry(plan, threads)
        self._cells = np.array(list(cells.values()), np.int64)
        self._cells_at = int(self._cells.ctypes.data)
        self._sizes = cells["memory_size"], compiled.kernel.desk_size(threads)
        self._batch = plan.batch
        self._offset = plan.layout.offset * plan.itemsize
        self._out_offset = plan.layout.out_offset * plan.itemsize
        self._bytes = cells["y_size"] * plan.itemsize
        self._out_bytes = cells["x_size"] * plan.itemsize
        self._idle: list[Workspace] = []
        size = leaf.size * plan.itemsize
        self._followers = threads - 1 if size >= SHARED_BYTES else 0
        self._sharing, self._sharing_norms, self._sharing_end = Sharing(), Sharing(), Sharing()
        total = cells["total_at"]
        self._total = slice(total, total + plan.batch)
        joint = compiled.kernel.joint  # of values it has no projection
        parts = (TapeLayout(plan.batch, ()) if joint else TapeLayout.of(plan)).parts
        starts = [cells[f"{name}_at"] for name, _ in parts]  # where a workspace has the tape
        self.tape = [slice(at, at + size) for at, (_, size) in zip(starts, parts, strict=True)]

    @property
    def step(self) -> Step | None:
        """For a series; None if other threads may help, or calls learn from the last."""
        if self._followers or self._warm or not self._batch:
            return None
        memory, desk = self._sizes
        ways = self._offset, self._out_offset
        return Step(
            *(self._address, self._cells_at, *ways, memory, desk, 0, self._total.start),
            flags=(1, 0),
            tape=tuple(self.tape),
        )

    def project(self, y: int, out: int, radius: float | Array) -> int:
        """Project the array at address `y` into that at `out` (unused by an in-place kernel).

        `radius` is a number, or one for each batch entry in memory order. Returns the kernel's
        verdict.
        """
        work = self._borrow()
        work.memory[: self._batch] = radius
        verdict = self._run(y, out, work, self._sharing)
        work.warm = self._warm and verdict == self.PROJECTED
        self._idle.append(work)
        return verdict

    def taped(self, y: int, out: int, radius: float | Array) -> tuple[int, Array]:
        """`project`, and what it found on the way: see `projgen.cpu.tape`."""
        work = self._borrow()
        work.memory[: self._batch] = radius
        verdict = self._run(y, out, work, self._sharing)
        tape = self._tape_of(work)
        self._idle.append(work)
        return verdict, tape

    def _tape_of(self, work: Workspace) -> Array:
        return np.concatenate([work.memory[part] for part in self.tape])

    def overlap(self, y: int, out: int) -> bool:
        """Whether the memory from the first to the last element of both has a part in common."""
        y, out = y + self._offset, out + self._out_offset
        return y < out + self._out_bytes and out < y + self._bytes

    def norms(self, y: int) -> Array | None:
        """The norm of each batch entry, in memory order; None if one is out of range."""
        found = self.root(y)
        return None if found is None else found[0]

    def root(self, y: int) -> tuple[Array, Array | None] | None:
        """The norms as above, and a row of the root's values for each; None if it is the leaf."""
        begun = self.begin(y)
        if begun is None:
            return None
        norms, values = self.norms_of(begun).copy(), None
        stage = self.plan.stages[0]
        if not stage.leaf:
            at = int(self._cells[self.compiled.kernel.cells.index("v0_at")])
            dense = begun.memory[at : at + stage.size].reshape([a.extent for a in stage.axes])
            order = sorted(range(dense.ndim), key=lambda axis: stage.axes[axis].reduced)
            values = dense.transpose(order).reshape(self._batch, -1).copy()
        self.abandon(begun)
        lost = self.compiled.kernel.vanishes and bool(np.any(norms < self.VANISHING))
        return None if lost else (norms, values)

    def begin(self, y: int) -> Workspace | None:
        """Sweep the array at address `y` for its norms, and stop there; None if out of range.

        `end` takes what this gives, as long as the array is the same; or `abandon`.
        """
        work = self._borrow()
        work.memory[: self._batch] = -1.0  # no radius: the norms alone
        if self._run(y, y, work, self._sharing_norms) == self.OUT_OF_RANGE:
            self._idle.append(work)
            return None
        return work

    def lost(self, y: int, radius: float | Array) -> Array:
        """Of the batch entries of an array that the kernel finds out of range, in memory order,
        which ones are."""
        work = self._borrow()
        work.memory[: self._batch] = -1.0
        self._run(y, y, work, self._sharing_norms)
        norms = self.norms_of(work).copy()
        self._idle.append(work)
        vanishing = (norms < self.VANISHING) & (np.asarray(radius) < self.VANISHING)
        beyond = ~(norms <= float(self.compiled.kernel.largest))
        return beyond | vanishing if self.compiled.kernel.vanishes else beyond

    def norms_of(self, begun: Workspace) -> Array:
        """The norm of each batch entry, in memory order; good until `begun` is ended."""
        return begun.memory[self._total]

    def end(
        self,
        begun: Workspace,
        y: int,
        out: int,
        radius: float | Array,
        tapes: list[Array] | None = None,
    ) -> int:
        """`project`, from where `begin` stopped. Its tape goes to the end of `tapes`."""
        begun.memory[: self._batch] = radius
        verdict = self._run(y, out, begun, self._sharing_end, resumes=True)
        if tapes is not None:
            tapes.append(self._tape_of(begun))
        begun.warm = self._warm and verdict == self.PROJECTED
        self._idle.append(begun)
        return verdict

    def abandon(self, begun: Workspace) -> None:
        """Leave it at that."""
        self._idle.append(begun)

    def _borrow(self) -> Workspace:
        try:
            return self._idle.pop()
        except IndexError:
            return Workspace(*self._sizes)

    def _run(
        self, y: int, out: int, work: Workspace, sharing: Sharing, resumes: bool = False
    ) -> int:
        work.desk.fill(0)
        work.desk[1] = resumes
        work.desk[2] = work.warm
        arguments = (
            y + self._offset,
            out + self._out_offset,
            self._cells_at,
            work.memory_at,
            work.desk_at,
        )
        if not self._followers:
            return int(self._entry(*arguments))
        started = perf_counter()
        share = sharing.choose(started)
        verdict = team().run((self._address, *arguments), self._followers) if share else None
        if verdict is None:  # alone, or the team is at work on another call
            share, verdict = False, int(self._entry(*arguments))
        if verdict == self.PROJECTED or sharing is self._sharing_norms:
            sharing.learn(share, perf_counter() - started)  # others are over after the first sweep
        return verdict


def run_shared(
    entry: Any, address: int, arguments: tuple[int, ...], followers: int, sharing: Sharing
) -> None:
    """Run a kernel that has no verdict, with the team where that has been quicker."""
    if not followers:
        entry(*arguments)
        return
    started = perf_counter()
    share = sharing.choose(started)
    shared = share and team().run((address, *arguments), followers) is not None  # type: ignore[arg-type]
    if not shared:  # alone, or the team is at work on another call
        entry(*arguments)
    sharing.learn(shared, perf_counter() - started)


def aligned(size: int, dtype: Any) -> Array:
    """An uninitialised vector that starts on a cache line."""
    memory = np.empty(size + LINE, dtype)
    return memory[(-int(memory.ctypes.data) % 64) // 8 :][:size]
