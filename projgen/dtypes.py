"""The types of numbers that arrays have; and of halves how to have one, and to round to one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
FRACTION_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
LARGEST = {
    "float16": 65504.0,
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
    "float32": (2 - 2.0**-23) * 2.0**127,
    "float64": (2 - 2.0**-52) * 2.0**1023,
}


def arithmetic(dtype: str) -> str:
    """The type that values of an array of `dtype` are worked on in."""
    return "float64" if dtype == "float64" else "float32"


def is_half(dtype: Any) -> bool:
    """Whether a NumPy dtype is float16 or bfloat16."""
    return dtype.char not in "fd" and bool(dtype.char == "e" or dtype.name == "bfloat16")


def bfloat16() -> Any:
    """The dtype that NumPy itself lacks; an ImportError without ml_dtypes, which has it."""
    try:
        return np.dtype(import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise ImportError(
            "bfloat16 on the CPU needs the ml_dtypes package: pip install ml_dtypes"
        ) from None


def put(out: Array, x: Array) -> None:
    """Write the float64 numbers `x` to `out`, each as the nearest of its dtype."""
    if out.dtype.name == "bfloat16":
        x = _to_odd(x)  # bfloat16 is made from float32, and rounding twice is not rounding once
    np.copyto(out, x, casting="unsafe")


def _to_odd(x: Array) -> Array:
    """`x` in float32: cut off, and where that loses something with an odd last bit."""
    near = np.asarray(x, np.float32)
    bits = near.view(np.int32)
    inexact = near != x
    cut = bits - (np.abs(near) > np.abs(x))
    odd: Array = np.where(inexact & np.isfinite(x), cut | 1, bits).astype(np.int32)
    return odd.view(np.float32)
