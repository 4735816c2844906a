"""CuPy, imported when a GPU is asked for, and what to do when it cannot be."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

INSTALL = 'pip install -e ".[cuda13]" (or .[cuda12]) in a clone brings it'


def cupy() -> Any:
    """The module; an ImportError that says what to install without it."""
    module = sys.modules.get("cupy")
    if module is not None:
        return module
    try:
        return import_module("cupy")
    except ImportError as error:
        if error.name and error.name.split(".")[0] != "cupy":
            raise
        raise ImportError(
            f"CuPy, which arrays on a GPU need, is not installed: {INSTALL}", name="cupy"
        ) from None


def require_gpu() -> Any:
    """CuPy, with a GPU to use; an ImportError without CuPy, a RuntimeError without a driver."""
    if reason := no_driver():
        raise RuntimeError(f"arrays on a GPU cannot be projected: {reason}; see projgen doctor")
    return cupy()


def no_driver() -> str | None:
    """Why no GPU can be used, or None. An ImportError without CuPy."""
    try:
        count = cupy().cuda.runtime.getDeviceCount()
    except ImportError:
        raise
    except Exception as error:  # CuPy's own class, which exists with CuPy alone
        return f"CUDA finds no driver that it can use ({error})"
    return None if count else "CUDA finds no GPU"
