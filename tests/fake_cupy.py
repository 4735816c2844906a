"""The few calls of CuPy that projgen makes, on a machine without a GPU.

Memory of the fake GPU is memory of this process, and kernels run on the machine of `simt`, launch
by launch, with the arguments that they were given. What is launched is noted, with its stream.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda_support import program
from simt.run import At, Buffer, Launch

DEVICES = 2


@dataclass
class State:
    """What happened, and where CuPy would be."""

    launches: list[Any] = field(default_factory=list)
    allocations: list[int] = field(default_factory=list)
    device: int = 0
    streams: dict[int, list[int]] = field(default_factory=lambda: {0: [0], 1: [0]})
    capturing: bool = False
    waits: list[tuple[int, int]] = field(default_factory=list)  # (who, for whom), of streams
    reads: int = 0  # from the GPU: the host waits


state = State()
_memory: dict[int, tuple[np.ndarray, int]] = {}  # address -> (bytes, device)


def reset() -> None:
    global state
    state = State()


def _allocate(size: int, fill: int = 0xA5) -> int:
    """Memory at a multiple of 512, as CuPy's pool gives it, with nothing sensible in it."""
    room = np.full(max(size, 1) + 512, fill, np.uint8)
    start = -room.ctypes.data % 512
    block = room[start : start + max(size, 1)]
    _memory[block.ctypes.data] = block, state.device
    return int(block.ctypes.data)


def _find(address: int) -> tuple[int, np.ndarray, int]:
    for start, (block, device) in _memory.items():
        if start <= address < start + block.size:
            return start, block, device
    raise RuntimeError("an illegal memory access was encountered")


class UnownedMemory:
    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id


class MemoryPointer:
    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self.offset = mem, offset

    @property
    def ptr(self) -> int:
        return int(self.mem.ptr + self.offset)

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.offset + offset)


def _alloc(size: int) -> MemoryPointer:
    if state.capturing:
        raise RuntimeError("operation not permitted when stream is capturing")
    state.allocations.append(size)
    return MemoryPointer(UnownedMemory(_allocate(size), size, None, state.device), 0)


class ndarray:
    """Memory of the GPU, with NumPy's arithmetic."""

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: Any = None,
        strides: Any = None,
        order: str = "C",
    ) -> None:
        dtype = np.dtype(dtype)
        if memptr is None:
            size = int(np.prod(shape)) * dtype.itemsize
            memptr = MemoryPointer(UnownedMemory(_allocate(size), size, None, state.device), 0)
        self.data = memptr
        start, block, _ = _find(memptr.ptr)
        self._a = np.ndarray(shape, dtype, block, memptr.ptr - start, strides, order)

    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    strides = property(lambda self: self._a.strides)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": self.strides,
            "version": 3,
            "stream": get_current_stream().ptr or 1,
        }

    @property
    def device(self) -> Any:
        return SimpleNamespace(id=_find(self.data.ptr)[2])

    def get(self) -> np.ndarray:
        state.reads += 1
        return self._a.copy()

    def __float__(self) -> float:
        return float(self.get().item())

    def __bool__(self) -> bool:
        return bool(self.get().item())

    def __setitem__(self, key: Any, value: ndarray | float) -> None:
        self._a[key] = value._a if isinstance(value, ndarray) else value

    def __getitem__(self, key: Any) -> ndarray:
        return _view(self, self._a[key])

    def __mul__(self, other: float) -> ndarray:
        return asarray(self._a * other)

    def __and__(self, other: int) -> ndarray:
        return asarray(self._a & np.asarray(other, self.dtype))

    def __ne__(self, other: object) -> Any:
        return asarray(self._a != other)

    __hash__ = None  # type: ignore[assignment]

    def any(self, axis: Any = None) -> ndarray:
        return asarray(self._a.any(axis=axis))

    def all(self) -> ndarray:
        return asarray(self._a.all())

    def copy(self) -> ndarray:
        return asarray(self._a)

    def astype(self, dtype: Any) -> ndarray:
        return asarray(self._a.astype(dtype))

    def ravel(self) -> ndarray:
        return asarray(self._a.ravel())

    def reshape(self, *shape: Any) -> ndarray:
        a = self._a.reshape(*shape)
        return _view(self, a) if np.may_share_memory(a, self._a) else asarray(a)

    def fill(self, value: float) -> None:
        self._a.fill(value)

    def transpose(self, *axes: Any) -> ndarray:
        return _view(self, self._a.transpose(*axes))

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        if function is np.flip:
            array, *rest = arguments
            return _view(array, np.flip(array._a, *rest, **options))
        return NotImplemented


def _view(base: ndarray, a: np.ndarray) -> ndarray:
    if a.size == 0:
        return asarray(a)
    pointer = MemoryPointer(base.data.mem, a.ctypes.data - base.data.mem.ptr)
    return ndarray(a.shape, a.dtype, pointer, a.strides)


def asarray(a: Any) -> ndarray:
    """A copy, in the memory order of `a`."""
    if isinstance(a, ndarray):
        return a
    a = np.asarray(a)
    order = "F" if a.flags.f_contiguous and not a.flags.c_contiguous else "C"
    made = ndarray(a.shape, a.dtype, order=order)
    made._a[...] = a
    return made


def ascontiguousarray(a: ndarray) -> ndarray:
    return a if a._a.flags.c_contiguous else asarray(np.ascontiguousarray(a._a))


def empty_like(prototype: ndarray) -> ndarray:
    like = np.empty_like(prototype._a)
    axes = sorted(range(like.ndim), key=lambda i: -abs(like.strides[i]))
    made = ndarray([like.shape[i] for i in axes], like.dtype)
    return made.transpose(*np.argsort(axes)) if like.ndim else made


def empty(shape: Any, dtype: Any) -> ndarray:
    return ndarray(shape, dtype)


def zeros(shape: Any, dtype: Any) -> ndarray:
    return asarray(np.zeros(shape, dtype))


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    return asarray(np.broadcast_to(array._a, shape))


def isfinite(x: ndarray) -> ndarray:
    return asarray(np.isfinite(x._a))


def from_dlpack(array: Any) -> ndarray:
    return array.exported


class RawModule:
    """`path` leads to a cubin, beside which the cache keeps its source."""

    def __init__(
        self, code: str | None = None, *, path: str | None = None, options: tuple[str, ...] = ()
    ) -> None:
        assert (code is None) != (path is None)
        if path is not None:
            assert Path(path).read_bytes()[:4] == b"\x7fELF"
            code = Path(path).with_name("kernel.cu").read_text("utf-8")
        self.code = code

    def get_function(self, name: str) -> RawKernel:
        assert f"\n{name}(" in self.code
        return RawKernel(self.code, name)


class RawKernel:
    def __init__(self, code: str, name: str) -> None:
        self.code, self.name = code, name

    def __call__(self, grid: Any, block: Any, args: Any, **kwargs: Any) -> None:
        stream = state.streams[state.device][-1]
        state.launches.append(
            SimpleNamespace(name=self.name, device=state.device, stream=stream, arguments=args)
        )
        buffers: dict[int, Buffer] = {}
        arguments = [_argument(a, buffers) for a in args]
        program(self.code).run([Launch(self.name, grid, block, arguments)], len(state.launches))


def _argument(a: Any, buffers: dict[int, Buffer]) -> Any:
    if isinstance(a, ndarray):
        a = np.uintp(a.data.ptr)
    if isinstance(a, np.uintp):
        if a == 0:
            return None
        start, block, device = _find(int(a))
        assert device == state.device, "a pointer of another device"
        buffer = buffers.setdefault(start, Buffer(f"memory at {start}", block, True, True))
        return At(buffer, int(a) - start)
    if isinstance(a, np.ndarray):
        assert a.size == 1, "only arrays of one element are passed by value"
        return a.reshape(())[()]
    assert isinstance(a, np.int32 | np.float64), type(a)
    return a


class Device:
    def __init__(self, device: int | None = None) -> None:
        self.id = state.device if device is None else device
        self.before: list[int] = []

    compute_capability = "90"

    def __enter__(self) -> Device:
        self.before.append(state.device)
        state.device = self.id
        return self

    def __exit__(self, *_: object) -> None:
        state.device = self.before.pop()


class Event:
    def __init__(self, disable_timing: bool = False) -> None:
        self.stream = -1

    def record(self, stream: Any = None) -> None:
        self.stream = (stream or get_current_stream()).ptr


class Stream:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr

    @classmethod
    def from_external(cls, obj: Any) -> Stream:
        version, ptr = obj.__cuda_stream__()
        assert version == 0
        return cls(ptr)

    def wait_event(self, event: Event) -> None:
        state.waits.append((self.ptr, event.stream))

    def is_capturing(self) -> bool:
        return state.capturing

    def synchronize(self) -> None:
        if state.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        state.reads += 1

    def __enter__(self) -> Stream:
        state.streams[state.device].append(self.ptr)
        return self

    def __exit__(self, *_: object) -> None:
        state.streams[state.device].pop()


def get_current_stream(device_id: int = -1) -> Stream:
    return Stream(state.streams[state.device][-1])


def pointerGetAttributes(ptr: int) -> Any:
    return SimpleNamespace(device=_find(ptr)[2])


def getDeviceCount() -> int:
    return DEVICES


cuda = SimpleNamespace(
    Device=Device,
    Event=Event,
    MemoryPointer=MemoryPointer,
    Stream=Stream,
    UnownedMemory=UnownedMemory,
    alloc=_alloc,
    get_current_stream=get_current_stream,
    runtime=SimpleNamespace(
        getDeviceCount=getDeviceCount, pointerGetAttributes=pointerGetAttributes
    ),
)


@contextmanager
def installed() -> Any:
    """Inside, ``import cupy`` finds this module, and nobody finds the rest of CuPy: some of it is
    imported only when looked at, and would take this for CuPy."""
    real = {name: module for name, module in sys.modules.items() if _is_real(name)}
    for name in real:
        del sys.modules[name]
    sys.modules["cupy"] = sys.modules[__name__]
    reset()
    try:
        yield sys.modules[__name__]
    finally:
        _memory.clear()
        del sys.modules["cupy"]
        sys.modules.update(real)


def _is_real(name: str) -> bool:
    return name.partition(".")[0] in ("cupy", "cupyx")
