"""Source text -> functions on a GPU, through a cubin in the cache where there is a compiler.

    <root>/v1-cuda-<architecture>-nvrtc<version>-<hash>/<key>/kernel.cu, kernel.cubin
    <root>/v1-cuda-source-<hash>/<key>/kernel.cu

The second kind of entry is what can be kept without a compiler; CuPy then compiles by itself.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projgen import cache
from projgen.cuda import nvrtc
from projgen.cuda.cupy import cupy
from projgen.forks import whole

CUBIN = "kernel.cubin"

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_loaded: dict[tuple[str, int], Any] = {}


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a source is, and its cubin if there is one; ``new``: it was not there before.

    ``entry`` is None if the cache cannot be used: then ``code`` is all there is.
    """

    entry: Path | None
    code: bytes | None
    new: bool


def keep(source: str, architecture: str | None) -> Kept:
    """Source and cubin in the cache, compiled if need be; only the source without architecture.

    A cache that is damaged or cannot be used is a `projgen.CacheWarning`, never an error.
    """
    if architecture is not None:  # it names a directory
        nvrtc.check_architecture(architecture)
    key = cache.key_of(source)
    toolchain = _toolchain(architecture)
    for root in (cache.cache_root, cache.private_root):
        try:
            store = cache.Store.open(root(), toolchain)
            entry = store.find(key)
            new = entry is None
            if entry is None:
                entry = _publish(store, key, source, architecture)
            code = None if architecture is None else (entry / CUBIN).read_bytes()
            return Kept(entry, code, new)
        except OSError as error:
            if isinstance(error, ImportError):
                raise
            cache.warn_unusable(error)
    code = None if architecture is None else nvrtc.compile_cubin(source, architecture)
    return Kept(None, code, True)


def _publish(store: cache.Store, key: str, source: str, architecture: str | None) -> Path:
    code = None if architecture is None else nvrtc.compile_cubin(source, architecture)
    build = store.begin()
    try:
        (build / cache.CUDA_SOURCE).write_bytes(source.encode())
        if code is not None:
            (build / CUBIN).write_bytes(code)
        store.publish(build, key)
    finally:
        store.abandon(build)
    return store.path(key)


def _toolchain(architecture: str | None) -> str:
    name = "source"
    if architecture is not None:
        name = f"{architecture}-nvrtc{nvrtc.version()}"
    digest = hashlib.sha256(repr((name, nvrtc.OPTIONS)).encode()).hexdigest()[:12]
    return f"v{cache.FORMAT}-cuda-{name}-{digest}"


def load(source: str, device: int) -> Any:
    """CuPy's module of `source` on a device, loaded once per process."""
    key = cache.key_of(source), device
    module = _loaded.get(key)
    if module is None:
        with whole, _lock:
            module = _loaded.get(key)
            if module is None:
                module = _loaded[key] = _load(source, device)
    return module


def _load(source: str, device: int) -> Any:
    cp = cupy()
    architecture = f"sm_{cp.cuda.Device(device).compute_capability}"
    try:
        kept = keep(source, architecture)
    except (nvrtc.MissingError, ValueError) as error:  # no NVRTC, or one older than the GPU
        _log.debug("CuPy compiles: %s", error)
        keep(source, None)
        return cp.RawModule(code=source, options=nvrtc.OPTIONS)
    if kept.entry is None:
        return cp.RawModule(code=source, options=nvrtc.OPTIONS)
    return cp.RawModule(path=str(kept.entry / CUBIN))
