"""CUDA C++ to a cubin with NVRTC, from its wheel: no GPU and no CUDA toolkit is needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

from projgen.cuda.cupy import INSTALL

OPTIONS = ("-std=c++17",)
ARCHITECTURE = re.compile(r"sm_\d{2,3}[af]?")
DEFAULT_ARCHITECTURE = "sm_90"


class MissingError(ImportError):
    """NVRTC, or what it needs, is not installed."""


@cache
def missing() -> str | None:
    """Why there is no compiler here, and what helps; None if there is one."""
    if find_spec("cuda") is None or find_spec("cuda.core") is None:
        return f"cuda-core is not installed: {INSTALL}"
    try:
        version()
    except Exception as error:  # its own errors differ from version to version
        return f"NVRTC cannot be loaded ({' '.join(str(error).split())}): {INSTALL}"
    return None


@cache
def version() -> str:
    """NVRTC's version: ``13.0``."""
    nvrtc = import_module("cuda.bindings.nvrtc")
    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"


def architectures() -> tuple[str, ...]:
    """Those that this NVRTC compiles for."""
    nvrtc = import_module("cuda.bindings.nvrtc")
    error, numbers = nvrtc.nvrtcGetSupportedArchs()
    return tuple(f"sm_{number}" for number in numbers) if int(error) == 0 else ()


def compile_cubin(source: str, architecture: str) -> bytes:
    """The machine code of `source` for ``sm_90`` and the like.

    A `MissingError` if there is no compiler, a ValueError for an architecture that it does not
    know. Half types need the headers of the CUDA runtime's wheel, or of a toolkit.
    """
    check_architecture(architecture)
    core = import_module("cuda.core")
    paths = tuple(include_paths()) if "#include" in source else ()
    if "#include" in source and not paths:
        raise MissingError(
            "float16 needs cuda_fp16.h, and no headers of CUDA are installed: "
            'pip install -e ".[cuda13]" (or .[cuda12]) in a clone brings them'
        )
    options = core.ProgramOptions(std="c++17", arch=architecture, include_path=list(paths) or None)
    return bytes(core.Program(source, "c++", options).compile("cubin").code)


def check_architecture(architecture: str) -> None:
    """A ValueError for what is none, or is not one of this NVRTC's; a `MissingError` without."""
    if reason := missing():
        raise MissingError(reason)
    known = architectures()
    if not ARCHITECTURE.fullmatch(architecture) or (
        known and architecture.rstrip("af") not in known
    ):
        raise ValueError(
            f"{architecture!r} is no architecture that NVRTC {version()} compiles for: "
            f"choose from {', '.join(known)}"
        )


def include_paths() -> Iterator[str]:
    """Where cuda_fp16.h is: in NVIDIA's wheels, or in a toolkit."""
    for file in _wheel_files():
        yield str(file.parent)
        return
    for root in (os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if root and Path(root, "include", "cuda_fp16.h").is_file():
            yield str(Path(root, "include"))
            return


def _wheel_files() -> Iterator[Path]:
    for name in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"):
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name == "cuda_fp16.h":
                yield Path(str(file.locate()))
