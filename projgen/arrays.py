"""Other libraries' arrays as NumPy views, and results as their kind again. Nothing is copied.

Known by name, never imported from here: PyTorch tensors and JAX arrays. Everything else comes in
through the buffer protocol, ``__array_interface__``, ``__array__`` or DLPack.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from projgen.dtypes import bfloat16, is_half

Array = NDArray[Any]
Wrap = Callable[[Array], Any]

TYPES = "float32, float64, float16 or bfloat16"

_COMPLEX = "complex numbers have no projection here: project y.abs(), then scale"
_CUDA_DEVICES = (2, 13)  # DLPack's numbers: memory of a GPU, and memory that moves there


def view(y: Any) -> tuple[Array, Wrap]:
    """`y` as a NumPy array over the same memory, and what makes a NumPy array one of y's kind.

    TypeError for what is no array, or lives where the CPU cannot read it.
    """
    if type(y) is np.ndarray:
        return y, _as_it_is
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(y, torch.Tensor):
        return _view_tensor(y, torch), partial(_tensor, torch)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(y, jax.Array):
        if isinstance(y, jax.core.Tracer):
            raise TypeError("projgen runs on arrays, not inside jax.jit: call it outside, or "
                            "through jax.pure_callback")  # fmt: skip
        return np.asarray(y), jax.numpy.asarray
    if isinstance(y, np.ma.MaskedArray):
        raise TypeError("a masked array has no norm: fill it first, as with y.filled(0)")
    if isinstance(y, np.ndarray):
        return y.view(np.ndarray), lambda x: x.view(type(y)) if isinstance(y, np.matrix) else x
    if on_gpu(y):
        raise TypeError("this array lives on a GPU: use backend='auto' or 'cuda'")
    if hasattr(y, "__dlpack__") and not hasattr(y, "__array__"):
        namespace = getattr(y, "__array_namespace__", lambda: np)()
        return np.from_dlpack(y), getattr(namespace, "from_dlpack", _as_it_is)
    if isinstance(y, (list, tuple)) and any(getattr(own, "ndim", 0) for own in y):
        raise TypeError(
            "this is a list of arrays, where one belongs: project them one by one, or together by "
            "a tree such as l1(linf, linf); np.stack makes one array of them"
        )
    array = np.asarray(y)
    if array.dtype == object:
        raise TypeError(f"expected an array of {TYPES}, got {type(y).__name__}{_instead(y)}")
    return array, _as_it_is


def operand(x: Any) -> Array:
    """Weights or labels as a NumPy array over the same memory: of tensors too, numbers of any type.

    TypeError for what is no array, or lives where the CPU cannot read it.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        _require_here(x, torch)
        return _values(x.detach().resolve_conj(), torch)
    return view(x)[0]


def _offset_of_data() -> int | None:
    """Where an array's object has the address of its data; None if it does not look so.

    It is the first field of NumPy's public struct, behind the head of any object.
    """
    probe, at = np.zeros(2), object.__basicsize__
    inner = probe[1:]
    if sys.implementation.name != "cpython" or inner.__sizeof__() < at + 8:
        return None
    found = [ctypes.c_void_p.from_address(id(array) + at).value for array in (probe, inner)]
    return at if found == [probe.ctypes.data, inner.ctypes.data] else None


_DATA_AT = _offset_of_data()


def address(array: Array) -> int:
    """``array.ctypes.data``, at a tenth of its cost."""
    if _DATA_AT is None:
        return int(array.ctypes.data)
    return ctypes.c_void_p.from_address(id(array) + _DATA_AT).value or 0


def addresses(arrays: Iterable[Array]) -> list[int]:
    """The address of each."""
    if _DATA_AT is None:
        return [address(array) for array in arrays]
    read = ctypes.c_void_p.from_address
    return [read(id(array) + _DATA_AT).value or 0 for array in arrays]


def span(array: Array) -> tuple[int, int]:
    """The addresses where its bytes begin and end: ``byte_bounds``, at a fraction of its cost for
    arrays without gaps."""
    if array.flags.forc:
        start = address(array)
        return start, start + array.nbytes
    return byte_bounds(array)


def on_gpu(y: Any) -> bool:
    """Whether `y` is an array in the memory of a GPU that runs CUDA."""
    if isinstance(y, np.ndarray):
        return False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(y, torch.Tensor):
        return bool(y.is_cuda)
    if hasattr(y, "__cuda_array_interface__"):
        return True
    if hasattr(y, "__dlpack_device__"):
        return int(y.__dlpack_device__()[0]) in _CUDA_DEVICES
    return False


def writable_view(out: Any) -> Array:
    """`out` as a NumPy array over the same memory; a TypeError for what would be copied,
    and a ValueError for a tensor of negated values."""
    if type(out) is np.ndarray:
        return out
    array = view(out)[0]
    if isinstance(out, np.ndarray) or hasattr(out, "__array_interface__"):
        return array
    if hasattr(out, "__dlpack__") and not hasattr(out, "__array__"):
        return array
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(out, torch.Tensor):
        if out.is_neg():
            raise ValueError("out's memory has its values negated, as that of z.conj().imag: give "
                             "another tensor, such as torch.empty_like(y)")  # fmt: skip
        return array
    try:
        memoryview(out)
    except TypeError:
        raise TypeError(f"out must be an array, not a {type(out).__name__}") from None
    return array


def written(out: Any) -> Any:
    """`out`, which has new values: autograd counts them, and refuses to use what it kept of old."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(out, torch.Tensor) and not out.is_inference():
        torch.autograd.graph.increment_version(out)
    return out


def detached(x: Any) -> Any:
    """`x`, or of a tensor its values alone."""
    torch = sys.modules.get("torch")
    return x.detach() if torch is not None and isinstance(x, torch.Tensor) else x


def _instead(y: Any) -> str:
    """What to do with something that is no array, but has some."""
    if isinstance(y, Mapping):
        return ": project its arrays one by one, or together by a tree such as l1(linf @ '*')"
    if hasattr(y, "named_parameters"):
        return (
            ": project its parameters, or constrain them while it trains: projgen.torch.constrain"
        )
    return ""


def check_dtype(array: Array) -> str:
    """Float32, float64, float16 or bfloat16, by name; a TypeError for all else: what to do."""
    dtype = array.dtype
    known = dtype.char in "fde" or is_half(dtype)
    if known and dtype.isnative:
        return dtype.name
    if known:
        hint = "this one is byte-swapped: use y.astype(y.dtype.newbyteorder('='))"
    elif dtype.kind in "iub":
        hint = "integers are not cast silently: use y.astype(np.float64)"
    elif dtype.kind in "US":
        hint = "this is text: np.load reads a file"
    elif dtype.kind == "c":
        hint = _COMPLEX.replace("y.abs()", "np.abs(y)")
    else:
        hint = "use y.astype(np.float32)"
    raise TypeError(f"expected {TYPES}, got {dtype}; {hint}")


def _view_tensor(y: Any, torch: Any) -> Array:
    _require_here(y, torch)
    if y.requires_grad and torch.is_grad_enabled():
        raise TypeError("a projection records no gradients: call it under torch.no_grad(), or use "
                        "projgen.torch.project, which does")  # fmt: skip
    if y.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        hint = _COMPLEX if y.is_complex() else "use y.float()"
        raise TypeError(f"expected {TYPES}, got {y.dtype}; {hint}")
    array = _values(y.detach(), torch)
    if y.is_neg():
        array.flags.writeable = False  # a copy: what is written to it would be lost
    return array


def _require_here(y: Any, torch: Any) -> None:
    """A TypeError for a tensor whose values the CPU cannot read as they lie."""
    if y.device.type != "cpu":
        if y.is_meta:
            raise TypeError("a meta tensor has no values to project: give one that has")
        hint = "backend='auto' or 'cuda'" if y.is_cuda else "y.cpu()"
        raise TypeError(f"this tensor lives on {y.device}: use {hint}")
    if y.layout is not torch.strided:
        raise TypeError(f"expected a dense tensor, got layout {y.layout}: use y.to_dense()")


def _values(y: Any, torch: Any) -> Array:
    """The memory of a tensor without a gradient, of whatever dtype; of one that PyTorch negates
    when it is read, a copy's."""
    values = y.resolve_neg()
    array: Array
    if y.dtype is torch.bfloat16:
        array = values.view(torch.int16).numpy().view(bfloat16())
    else:
        array = values.numpy()
    return array


def _tensor(torch: Any, x: Array) -> Any:
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def _as_it_is(x: Array) -> Array:
    return x
