"""CuPy, imported when a GPU is asked for, and what to do when it cannot be."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

INSTALL = 'pip install "projgen[cuda12]" or "projgen[cuda13]", whichever your driver supports'


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
        raise ImportError(f"arrays on a GPU need CuPy, which is not installed: {INSTALL}") from None


def no_driver() -> str | None:
    """Why no GPU can be used, or None. It asks the driver."""
    try:
        count = cupy().cuda.runtime.getDeviceCount()
    except ImportError as error:
        return str(error)
    except Exception as error:  # CuPy's own class, which exists with CuPy alone
        return f"CUDA finds no driver that it can use ({error})"
    return None if count else "CUDA finds no GPU"
