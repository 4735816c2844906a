"""Arrays on a GPU, whoever made them: where they lie, and results as their kind again.

Known by name, never imported from here: CuPy, PyTorch and JAX. Everything else comes in through
``__cuda_array_interface__`` or DLPack. Nothing is copied.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.arrays import on_gpu
from projgen.cuda.cupy import cupy, require_gpu

NAMES = ("float32", "float64", "float16", "bfloat16")
_STORED = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """An array on a GPU.

    ``ghost`` is a NumPy array of its shape, strides and address, which must not be read: it is
    there to be asked about its place in memory. Its dtype has the element's size. ``stream`` is
    the handle of the stream that the array's owner works on; None is CuPy's current one. ``wrap``
    makes a CuPy array one of the owner's kind, and ``empty`` is a new array like this one.
    """

    ghost: NDArray[Any]
    dtype: str
    device: int
    stream: int | None
    owner: Any
    wrap: Callable[[Any], Any]
    empty: Callable[[], Any]

    @property
    def pointer(self) -> int:
        return int(self.ghost.__array_interface__["data"][0])

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements."""
        return tuple(stride // self.ghost.itemsize for stride in self.ghost.strides)

    @property
    def lowest(self) -> int:
        """The lowest address of an element."""
        return int(np.lib.array_utils.byte_bounds(self.ghost)[0])

    def copy(self) -> DeviceArray:
        """A dense one with the same elements, made on CuPy's current stream."""
        made = self.cupy().copy()
        ghost = _ghost(made.data.ptr, made.shape, made.strides, self.dtype)
        return replace(self, ghost=ghost, owner=made)

    def read(self, index: tuple[Any, ...]) -> NDArray[Any]:
        """A part of it, as the host knows it: bfloat16 as float32. CuPy's current stream waits."""
        part: NDArray[Any] = self.cupy()[index].get()
        if self.dtype == "bfloat16":
            return (part.astype(np.uint32) << 16).view(np.float32)
        return part

    def cupy(self) -> Any:
        """A CuPy array over the same memory; bfloat16 as the bits."""
        cp = cupy()
        low, high = np.lib.array_utils.byte_bounds(self.ghost)
        memory = cp.cuda.UnownedMemory(low, high - low, self.owner, self.device)
        pointer = cp.cuda.MemoryPointer(memory, self.pointer - low)
        ghost = self.ghost
        return cp.ndarray(ghost.shape, ghost.dtype, pointer, strides=ghost.strides)


def view(y: Any) -> DeviceArray:
    """`y` as a `DeviceArray`; a TypeError for a wrong dtype, or what is no array on a GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(y, torch.Tensor):
        return _tensor(y, torch)
    if not on_gpu(y):
        raise TypeError(
            f"backend='cuda' takes arrays on a GPU, and this {type(y).__name__} is not one: "
            "use cupy.asarray(y), or backend='auto'"
        )
    cp = require_gpu()
    if isinstance(y, cp.ndarray):
        return _array(y, _as_it_is)
    if hasattr(y, "__cuda_array_interface__"):
        return _interface(y, cp)
    return _array(cp.from_dlpack(y), _maker(y))


def _array(y: Any, wrap: Callable[[Any], Any]) -> DeviceArray:
    """Of a CuPy array."""
    dtype = checked_dtype(y.dtype.name)
    ghost = _ghost(y.data.ptr, y.shape, y.strides, dtype)
    cp = cupy()
    return DeviceArray(ghost, dtype, y.device.id, None, y, wrap, lambda: cp.empty_like(y))


def _tensor(y: Any, torch: Any) -> DeviceArray:
    if not y.is_cuda:
        raise TypeError(f"backend='cuda' takes tensors on a GPU, and this one lives on {y.device}: "
                        "use y.cuda(), or backend='auto'")  # fmt: skip
    if y.layout is not torch.strided:
        raise TypeError(f"expected a dense tensor, got layout {y.layout}: use y.to_dense()")
    if y.requires_grad and torch.is_grad_enabled():
        raise TypeError("a projection on a GPU records no gradients: call it under "
                        "torch.no_grad(), or on y.detach()")  # fmt: skip
    dtype = checked_dtype(str(y.dtype).removeprefix("torch."))
    copied = y.is_neg()
    y = y.detach().resolve_neg()
    size = y.element_size()
    strides = tuple(size * stride for stride in y.stride())
    ghost = _ghost(y.data_ptr(), tuple(y.shape), strides, dtype)
    if copied:
        ghost.flags.writeable = False  # what is written to a copy would be lost
    stream = int(torch.cuda.current_stream(y.device).cuda_stream)

    def tensor(x: Any) -> Any:
        return torch.from_dlpack(x)

    return DeviceArray(
        ghost, dtype, int(y.device.index), stream, y, tensor, lambda: torch.empty_like(y)
    )


def _interface(y: Any, cp: Any) -> DeviceArray:
    """Of whatever has version 2 or 3 of the interface."""
    given = y.__cuda_array_interface__
    if given.get("mask") is not None:
        raise TypeError("a masked array has no norm: fill it first")
    name = np.dtype(given["typestr"]).name
    dtype = checked_dtype(name)
    if not np.dtype(given["typestr"]).isnative:
        raise TypeError("expected native byte order")
    pointer, readonly = given["data"]
    shape = tuple(given["shape"])
    strides = given.get("strides")
    ghost = _ghost(pointer, shape, strides, dtype)
    if readonly:
        ghost.flags.writeable = False
    device = int(cp.cuda.runtime.pointerGetAttributes(pointer).device) if pointer else 0
    stream = given.get("stream")

    def empty() -> Any:
        with cp.cuda.Device(device):
            return cp.empty(shape, dtype)

    return DeviceArray(ghost, dtype, device, stream, y, _maker(y), empty)


def _maker(y: Any) -> Callable[[Any], Any]:
    """What makes a CuPy array one of y's kind, through DLPack; or leaves it as it is."""
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(y, jax.Array):
        return lambda x: jax.dlpack.from_dlpack(x)
    numba = sys.modules.get("numba")
    if numba is not None and type(y).__module__.startswith("numba.cuda"):
        return lambda x: numba.cuda.as_cuda_array(x)
    namespace = getattr(y, "__array_namespace__", lambda: None)()
    return getattr(namespace, "from_dlpack", _as_it_is)


def checked_dtype(name: str) -> str:
    """The name of a dtype that a GPU's kernels take; a TypeError for others."""
    if name in NAMES:
        return name
    if name.startswith(("int", "uint", "bool")):
        hint = "integers are not cast silently: use y.astype('float32')"
    elif name.startswith("complex"):
        hint = "complex numbers have no projection here: project abs(y), then scale"
    else:
        hint = "cast it first"
    raise TypeError(f"expected {', '.join(NAMES[:-1])} or {NAMES[-1]}, got {name}; {hint}")


def _ghost(
    pointer: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: str
) -> NDArray[Any]:
    place = {
        "shape": shape,
        "typestr": _STORED[dtype],
        "data": (pointer or ALIGNED, False),
        "strides": strides,
        "version": 3,
    }
    return np.asarray(_Place(place))


ALIGNED = 256  # the address of arrays without elements, which have none


class _Place:
    def __init__(self, place: dict[str, Any]) -> None:
        self.__array_interface__ = place


def _as_it_is(x: Any) -> Any:
    return x
