"""What `projgen compile` makes of a source: machine code that is kept, by backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from projgen import cache
from projgen.compiler import Loadable, load_kernel
from projgen.cpu.pool import team
from projgen.cuda import load, nvrtc
from projgen.cuda.compiler import Compiled as CudaCompiled
from projgen.cuda.cupy import cupy, no_driver
from projgen.cuda.group_kernel import GroupKernel


@dataclass(frozen=True, slots=True)
class Product:
    """``file`` is the kept source, or None if the cache cannot be used. ``cached``: it was there.

    Of a CUDA source: ``cubin`` is its machine code for ``architecture``, and ``missing`` says why
    there is none.
    """

    file: Path | None
    cached: bool
    cubin: Path | None = None
    architecture: str | None = None
    missing: str | None = None


def produce(compiled: Loadable, architecture: str | None) -> Product:
    """Compile, and keep; an ImportError if `architecture` is given and cannot be had."""
    if isinstance(compiled, (CudaCompiled, GroupKernel)):
        return _for_gpu(compiled.source, architecture)
    if architecture is not None:
        raise ValueError("--arch names a GPU's machine code: it goes with --backend cuda")
    before = _stamps()
    file = Path(load_kernel(compiled).__file__)
    team()  # what large calls need besides the kernel
    cached = file.parent in before and before[file.parent] == _stamps().get(file.parent)
    return Product(file if file.is_relative_to(cache.cache_root()) else None, cached)


def _for_gpu(source: str, architecture: str | None) -> Product:
    missing = None if architecture is not None else nvrtc.missing()
    if missing is None:
        wanted = architecture
        if wanted is None:
            wanted = _own_architecture() or nvrtc.DEFAULT_ARCHITECTURE
        try:
            kept = load.keep(source, wanted)
            return _product(kept, wanted, None)
        except nvrtc.MissingError as error:
            if architecture is not None:
                raise
            missing = str(error)
    return _product(load.keep(source, None), None, missing)


def _product(kept: load.Kept, architecture: str | None, missing: str | None) -> Product:
    entry = kept.entry
    if entry is None or not entry.is_relative_to(cache.cache_root()):
        return Product(None, False, None, architecture, missing)
    cubin = None if architecture is None else entry / load.CUBIN
    return Product(entry / cache.CUDA_SOURCE, not kept.new, cubin, architecture, missing)


def _own_architecture() -> str | None:
    """That of this machine's GPU, if CuPy is there to be asked."""
    try:
        if no_driver():
            return None
    except ImportError:
        return None
    return f"sm_{cupy().cuda.Device().compute_capability}"


def _stamps() -> dict[Path, float]:
    """The kernels that the cache holds, and when each was written."""
    return {entry.path: entry.mtime for entry in cache.entries()}


__all__ = ["Product", "produce"]
