"""A kernel made ready for arrays of one shape, dtype, layout and device: all but the pointers.

Workspaces come from CuPy's pool, are kept, and are lent out by stream: what one call leaves in a
workspace is no longer needed when the next call on the same stream begins, and calls from several
Python threads have one each. A call that is captured into a CUDA graph keeps its workspace for
good, since the graph will use it whenever it is launched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from projgen.cuda.compiler import Compiled
from projgen.cuda.cupy import cupy
from projgen.cuda.launches import Launch
from projgen.cuda.load import load

LEGACY = 1  # the handle of the default stream, as is 0
PER_THREAD = 2  # the handle that stands for each thread's own default stream

_captured: list[Any] = []


class Call:
    """Projects arrays whose shape, dtype, strides and device are those it was made for.

    Pointers are those of the arrays' first elements. Nothing waits for the GPU, and nothing is
    read from it, but by `norms`.
    """

    def __init__(self, compiled: Compiled, device: int) -> None:
        plan, schedule = compiled.plan, compiled.schedule
        self.plan = plan
        self.compiled = compiled
        self.device = device
        module = load(compiled.source, device)
        self._functions = {
            launch.name: module.get_function(launch.name) for launch in schedule.launches
        }
        # CuPy passes a NumPy array with one element by value, whatever the element is.
        self._geometry = np.frombuffer(schedule.geometry, f"V{len(schedule.geometry)}")
        self._offset = plan.layout.offset * plan.itemsize
        self._out_offset = plan.layout.out_offset * plan.itemsize
        self._workspaces = Workspaces(lambda: cupy().cuda.alloc(self.work))

    @property
    def work(self) -> int:
        """The bytes of its workspace."""
        return self.compiled.schedule.work

    def project(self, y: int, x: int, radius: float | Any, stream: int | None, *also: Any) -> None:
        """Launch a projection of the array at `y` into that at `x`.

        `radius` is a number, or a CuPy array of float64, one for each batch entry in memory order.
        `stream` is a handle, or None for CuPy's current stream. A graph keeps `also`.
        """
        with on_stream(self.device, stream), self._workspaces.lent(radius, *also) as work:
            self._run(self.compiled.schedule.launches, y, x, radius, work)

    def norms(self, y: int, stream: int | None) -> Any:
        """A CuPy array with the norm of each batch entry, in memory order: float64."""
        with on_stream(self.device, stream), self._workspaces.lent() as work:
            return self.begin(y, work).copy()

    def begin(self, y: int, work: Any) -> Any:
        """Half of a projection, on CuPy's current stream: up to the norms, which lie in `work`."""
        schedule = self.compiled.schedule
        self._run(schedule.launches[: schedule.norms], y, y, np.inf, work)
        return cupy().ndarray((self.plan.batch,), np.float64, work)

    def end(self, y: int, x: int, radius: float | Any, work: Any) -> None:
        """The other half, for what was begun in `work`."""
        schedule = self.compiled.schedule
        self._run(schedule.launches[schedule.down :], y, x, radius, work)

    def _run(
        self, launches: tuple[Launch, ...], y: int, x: int, radius: float | Any, work: Any
    ) -> None:
        number = isinstance(radius, float)
        values = {
            "y": np.uintp(y + self._offset),
            "x": np.uintp(x + self._out_offset),
            "radii": np.uintp(0) if number else radius,
            "radius": np.float64(radius if number else 0.0),
            "work": np.uintp(work.ptr),
            "geometry": self._geometry,
        }
        for launch in launches:
            arguments = tuple(
                np.int32(a) if isinstance(a, int) else values[a] for a in launch.arguments
            )
            self._functions[launch.name](launch.grid, launch.block, arguments)


class Workspaces:
    """Memory that `allocate` gives, lent out by stream."""

    def __init__(self, allocate: Callable[[], Any]) -> None:
        self._allocate = allocate
        self._idle: dict[tuple[int, int], list[Any]] = {}

    @contextmanager
    def lent(self, *also: Any) -> Iterator[Any]:
        """Memory of the current stream's own. A graph keeps it, and `also`."""
        stream = cupy().cuda.get_current_stream()
        thread = threading.get_ident() if stream.ptr == PER_THREAD else 0
        idle = self._idle.setdefault((stream.ptr, thread), [])
        try:
            work = idle.pop()
        except IndexError:
            work = self._allocate()
        if stream.is_capturing():
            _captured.append((work, *also))
            yield work
            return
        yield work
        idle.append(work)


@contextmanager
def on_stream(device: int, stream: int | None) -> Iterator[None]:
    """Inside, CuPy works on this device, and on the stream with this handle."""
    cp = cupy()
    with cp.cuda.Device(device):
        if stream is None:
            yield
            return
        with _external(cp, stream, device):
            yield


def wait_for(device: int, stream: int | None, other: int | None) -> None:
    """What `stream` is given from now on waits for what `other` was given before."""
    cp = cupy()
    with on_stream(device, stream):
        waiting = cp.cuda.get_current_stream()
    with on_stream(device, other):
        if (cp.cuda.get_current_stream().ptr or LEGACY) == (waiting.ptr or LEGACY):
            return
        event = cp.cuda.Event(disable_timing=True)
        event.record()
    waiting.wait_event(event)


class _Handle:
    """A stream as CUDA's libraries for Python pass it to each other."""

    def __init__(self, stream: int) -> None:
        self.stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.stream


def _external(cp: Any, stream: int, device: int) -> Any:
    if hasattr(cp.cuda.Stream, "from_external"):  # since CuPy 14
        return cp.cuda.Stream.from_external(_Handle(stream))
    return cp.cuda.ExternalStream(stream, device)
