"""A kernel made ready for arrays of one shape, dtype, layout and device: all but the pointers.

Workspaces come from CuPy's pool, are kept, and are lent out by stream: what one call leaves in a
workspace is no longer needed when the next call on the same stream begins, and calls from several
Python threads have one each. A call that is captured into a CUDA graph keeps its workspace for
good, since the graph will use it whenever it is launched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from projgen.cuda.compiler import Compiled, CompiledPull
from projgen.cuda.cupy import cupy
from projgen.cuda.launches import Launch
from projgen.cuda.load import load

LEGACY = 1  # the handle of the default stream, as is 0
PER_THREAD = 2  # the handle that stands for each thread's own default stream

_captured: list[Any] = []


class Launches:
    """A source's functions on a device, and how they are launched for arrays of one shape."""

    def __init__(self, compiled: Compiled | CompiledPull, device: int) -> None:
        schedule = compiled.schedule
        self.plan = compiled.plan
        self.device = device
        module = load(compiled.source, device)
        self._functions = {
            launch.name: module.get_function(launch.name) for launch in schedule.launches
        }
        # CuPy passes a NumPy array with one element by value, whatever the element is.
        self._geometry = np.frombuffer(schedule.geometry, f"V{len(schedule.geometry)}")
        self._workspaces = Workspaces(self.allocate)
        self.work = schedule.work  # the bytes of its workspace

    def allocate(self) -> Any:
        """A workspace, from CuPy's pool."""
        return cupy().cuda.alloc(self.work)

    def launch(
        self,
        launches: tuple[Launch, ...],
        pointers: Mapping[str, int],
        radius: float | Any,
        work: Any,
    ) -> None:
        """On CuPy's current stream, with pointers to the arrays' lowest elements."""
        number = isinstance(radius, float)
        values = {
            **{name: np.uintp(pointer) for name, pointer in pointers.items()},
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


class Call(Launches):
    """Projects arrays whose shape, dtype, strides and device are those it was made for.

    Pointers are those of the arrays' first elements. Nothing waits for the GPU, and nothing is
    read from it, but by `norms`.
    """

    def __init__(self, compiled: Compiled, device: int) -> None:
        super().__init__(compiled, device)
        plan = compiled.plan
        self.compiled = compiled
        self._offset = plan.layout.offset * plan.itemsize
        self._out_offset = plan.layout.out_offset * plan.itemsize

    def project(self, y: int, x: int, radius: float | Any, stream: int | None, *also: Any) -> None:
        """Launch a projection of the array at `y` into that at `x`.

        `radius` is a number, or a CuPy array of float64, one for each batch entry in memory order.
        `stream` is a handle, or None for CuPy's current stream. A graph keeps `also`.
        """
        with on_stream(self.device, stream), self._workspaces.lent(radius, *also) as work:
            self._run(self.compiled.schedule.launches, y, x, radius, work)

    def taped(self, y: int, x: int, radius: float | Any, stream: int | None, *also: Any) -> Any:
        """The same; what it left for gradients, its tape: a CuPy array of float64."""
        schedule = self.compiled.schedule
        with on_stream(self.device, stream):
            work = self.allocate()
            kept_by_graphs(work, radius, *also)
            self._run(schedule.launches, y, x, radius, work)
            return cupy().ndarray((schedule.tape // 8,), np.float64, work)

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
        pointers = {"y": y + self._offset, "x": x + self._out_offset}
        self.launch(launches, pointers, radius, work)


class PullCall(Launches):
    """Takes gradients back through projections of arrays of one shape, dtype, layout and device.

    Nothing waits for the GPU, and nothing is read from it.
    """

    def __init__(self, compiled: CompiledPull, device: int) -> None:
        super().__init__(compiled, device)
        self._launches = compiled.schedule.launches

    def pull(
        self, pointers: Mapping[str, int], radius: float | Any, stream: int | None, *also: Any
    ) -> Any:
        """Write the gradient at `dy`, by the arrays at `y`, `x` and `dx` and the tape at `tape`.

        The other arguments are those of `Call.project`. A CuPy array with the gradients of the
        radii, in memory order: float64.
        """
        with on_stream(self.device, stream), self._workspaces.lent(radius, *also) as work:
            self.launch(self._launches, pointers, radius, work)
            slopes = cupy().ndarray((self.plan.batch,), np.float64, work).copy()
            kept_by_graphs(slopes)
            return slopes


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
        if kept_by_graphs(work, *also):
            yield work
            return
        yield work
        idle.append(work)


def kept_by_graphs(*memory: Any) -> bool:
    """Keep `memory` for good if the current stream is captured; whether it is."""
    capturing = bool(cupy().cuda.get_current_stream().is_capturing())
    if capturing:
        _captured.append(memory)
    return capturing


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
