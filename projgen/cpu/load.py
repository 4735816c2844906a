"""Source text -> module: the only place that executes what the compiler wrote.

A generated module decorates its own functions with `@njit(SIGNATURE, cache=True)`. numba would
pick a directory for their machine code by itself, and write to it whenever it likes; here it is
told to use the kernel's entry in our cache, and not to write to one that is already published.
"""

from __future__ import annotations

import linecache
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import ClassVar

from projgen import cache

# The settings of numba that change machine code without being part of its own cache key.
_SETTINGS = (
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "BOUNDSCHECK",
    "USING_SVML",
    "DEBUGINFO_DEFAULT",
    "ENABLE_PROFILING",
    "EXTEND_VARIABLE_LIFETIMES",
    "LLVM_REFPRUNE_PASS",
    "LLVM_REFPRUNE_FLAGS",
    "PARFOR_MAX_TUPLE_SIZE",
)

_log = logging.getLogger(__name__)
_loaded: dict[str, ModuleType] = {}
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    # A child forked in the middle of a compilation would wait for numba's lock for ever. Hooks run
    # last in, first out, so ours waits before logging's takes a lock that a compilation needs.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def load(source: str, persist: bool = True) -> ModuleType:
    """The module that *source* defines, executed once per process, compiled once per machine.

    `persist=False` leaves the cache on disk alone. A cache that is damaged or cannot be used is
    a `projgen.CacheWarning`, never an error; errors are those of the source itself.
    """
    key = cache.key_of(source)
    module = _loaded.get(key)
    if module is None:
        with _lock:
            module = _loaded.get(key)
            if module is None:
                with _no_interrupts():
                    module = _loaded[key] = _load(source, key, persist)
    return module


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C waits: in the middle of llvmlite's callbacks it ends in a crash, not an exception."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # ignored, or not Python's to handle
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            handler(*caught[0])


def _load(source: str, key: str, persist: bool) -> ModuleType:
    """Through the user's cache, else through a private directory, else in memory."""
    if persist:
        toolchain = _toolchain()
        for root in (cache.cache_root, cache.private_root):
            try:
                return _load_through(cache.Store.open(root(), toolchain), source, key)
            except OSError as error:
                cache.warn_unusable(error)
    memory_only = source.replace("cache=True", "cache=False")
    return _execute(memory_only, key, f"<projgen kernel {key}>")


def _load_through(store: cache.Store, source: str, key: str) -> ModuleType:
    """Load the entry of *source* in *store*, or compile and publish it; OSError if it cannot."""
    started = time.perf_counter()
    file = str(store.path(key) / cache.SOURCE)
    entry = store.find(key)
    if entry is not None:
        try:
            module = _execute(source, key, file, _Locator(file, entry, sealed=True))
            _log.debug("loaded %s in %.3f s", file, time.perf_counter() - started)
            return module
        except Exception as error:
            store.reject(key, f"was refused by numba: {error}")
    build = store.begin()
    try:
        (build / cache.SOURCE).write_bytes(source.encode())
        module = _execute(source, key, file, _Locator(file, build, sealed=False))
        _log.debug("compiled %s in %.3f s", file, time.perf_counter() - started)
        if any(build.glob("*.nbc")):  # numba may decline, as under NUMBA_DISABLE_JIT
            try:
                store.publish(build, key)
            except OSError as error:
                cache.warn_unusable(error)
        return module
    finally:
        store.abandon(build)


def _execute(source: str, key: str, file: str, locator: _Locator | None = None) -> ModuleType:
    # numba finds a cached function's globals by its module's name, in every process.
    name = f"projgen_kernel_{key}"
    module = ModuleType(name)
    module.__file__ = file
    # For tracebacks and inspect.getsource, also when the file was cleared away or never existed.
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    code = compile(source, file, "exec", dont_inherit=True, optimize=0)
    sys.modules[name] = module
    try:
        with _numba_caches_in(locator):
            exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _MissingError(Exception):
    """A published entry lacks the code it should hold."""


@dataclass(frozen=True, slots=True)
class _Locator:
    """Tells numba where the machine code of one module is (the protocol of its cache locators)."""

    file: str
    directory: Path
    sealed: bool

    active: ClassVar[_Locator | None] = None

    @classmethod
    def from_function(cls, py_func: object, py_file: str) -> _Locator | None:
        return cls.active if cls.active is not None and cls.active.file == py_file else None

    def get_cache_path(self) -> str:
        return str(self.directory)

    def get_source_stamp(self) -> str:
        return os.path.basename(os.path.dirname(self.file))  # the key: a hash of the source

    def get_disambiguator(self) -> str:
        return "kernel"

    def ensure_cache_path(self) -> None:
        """Called before numba writes."""
        if self.sealed:
            raise _MissingError("it holds no code for this machine")


@contextmanager
def _numba_caches_in(locator: _Locator | None) -> Iterator[None]:
    """Let numba ask *locator* first; other modules compiled meanwhile get what they always got."""
    if locator is None:
        yield
        return
    from numba.core import caching, config

    given, active = config.CACHE_LOCATOR_CLASSES, _Locator.active  # a finaliser's load is nested
    others = given or ",".join(
        f"{other.__module__}.{other.__qualname__}" for other in caching.CacheImpl._locator_classes
    )
    config.CACHE_LOCATOR_CLASSES = f"{__name__}.{_Locator.__name__},{others}"
    _Locator.active = locator
    try:
        yield
    finally:
        _Locator.active = active
        config.CACHE_LOCATOR_CLASSES = given


def _toolchain() -> str:
    """The name of everything besides the source that decides the machine code."""
    import llvmlite
    import numba
    import numpy
    from numba.core import config
    from numba.core.registry import cpu_target

    import_module("numpy.ma")  # numba would at the first call, where no lock keeps forks away
    config.reload_config()  # as the compiler would do, so that we see what it will see
    target = cpu_target.target_context.codegen().magic_tuple()  # triple, CPU name and features
    settings = [(name, str(getattr(config, name, None))) for name in _SETTINGS]
    versions = {
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "numpy": numpy.__version__,
    }
    return cache.toolchain(versions, (target, settings))
