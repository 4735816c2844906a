"""Source text -> module: the only place that executes what the compiler wrote.

A generated module decorates its own functions with `@cfunc(SIGNATURE, cache=True)`. numba would
pick a directory for their machine code by itself, and write to it whenever it likes; here it is
told to use the kernel's entry in our cache, and not to write to one that is already published. An
entry that is there already is linked without numba, where that will do: see `machine_code`.
"""

from __future__ import annotations

import gc
import linecache
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import FrameType, ModuleType
from typing import ClassVar, TypeAlias

from projgen import cache
from projgen.cpu import machine_code
from projgen.forks import whole

# The settings of numba that change machine code, and what they are if nobody has changed them.
_SETTINGS = {
    "OPT": "_OptLevel(3)",
    "LOOP_VECTORIZE": "1",
    "SLP_VECTORIZE": "0",
    "BOUNDSCHECK": "None",
    "USING_SVML": "False",
    "DEBUGINFO_DEFAULT": "0",
    "ENABLE_PROFILING": "0",
    "EXTEND_VARIABLE_LIFETIMES": "0",
    "LLVM_REFPRUNE_PASS": "1",
    "LLVM_REFPRUNE_FLAGS": "all",
    "PARFOR_MAX_TUPLE_SIZE": "100",
    "CPU_NAME": "None",
    "CPU_FEATURES": "None",
    "ENABLE_AVX": "True",
}
_SETTINGS_FILE = ".numba_config.yaml"

_log = logging.getLogger(__name__)
Module: TypeAlias = "ModuleType | machine_code.Linked"

_loaded: dict[str, Module] = {}
making = threading.RLock()  # held while kernels are made, by whoever makes them: one at a time


def load(source: str, persist: bool = True) -> Module:
    """The module that *source* defines, loaded once per process, compiled once per machine.

    `persist=False` leaves the cache on disk alone. A cache that is damaged or cannot be used is
    a `projgen.CacheWarning`, never an error; errors are those of the source itself.
    """
    key = cache.key_of(source)
    module = _loaded.get(key)
    if module is None:
        with whole, making:
            module = _loaded.get(key)
            if module is None:
                with _no_interrupts(), _no_collections():
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


@contextmanager
def _no_collections() -> Iterator[None]:
    """What Numba makes stays, or is gone at once: to look for garbage in it takes a tenth of the
    time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # all that is new counts as old, without being looked at
            gc.freeze()
            gc.unfreeze()
        gc.enable()


def _load(source: str, key: str, persist: bool) -> Module:
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


def _load_through(store: cache.Store, source: str, key: str) -> Module:
    """Load the entry of *source* in *store*, or compile and publish it; OSError if it cannot."""
    started = time.perf_counter()
    file = str(store.path(key) / cache.SOURCE)
    entry = store.find(key)
    if entry is not None:
        try:
            module = _linked(file, entry) or _execute(
                source, key, file, _Locator(file, entry, sealed=True)
            )
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
                machine_code.keep(module, build)
            except (AttributeError, ImportError, TypeError, ValueError) as error:
                _log.debug("%s needs numba in later processes as well: %s", file, error)
            # The same code as in the next process, to the bit: numba has a libm of its own.
            linked = _linked(file, build)
            try:
                store.publish(build, key)
            except OSError as error:
                cache.warn_unusable(error)
            return linked or module
        return module
    finally:
        store.abandon(build)


def _linked(file: str, entry: Path) -> machine_code.Linked | None:
    """The entry's machine code as it is; None where it takes numba."""
    try:
        return machine_code.link(file, entry)
    except Exception as error:
        _log.debug("%s could not be linked without numba: %s", file, error)
        return None


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
            try:
                with _lean(name):
                    exec(code, module.__dict__)
            except _MissingError:
                raise
            except Exception as error:  # of another numba than those that this was written for
                _log.debug("compiling %s in full: %s", file, error)
                exec(code, module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, AttributeError) and machine_code.is_disabled():
            raise RuntimeError(
                "NUMBA_DISABLE_JIT is set, so kernels cannot be compiled: unset it, or use "
                'projgen.build(spec, backend="numpy")'
            ) from error
        raise
    return module


def _lean(module: str) -> AbstractContextManager[None]:
    from projgen.cpu import compiling  # and with it numba

    return compiling.lean(module)


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
    return cache.toolchain(_versions(), (machine_code.host(), _changed_settings()))


@lru_cache(maxsize=1)
def _versions() -> Mapping[str, str]:
    """Looked up once: it takes longer than to find a kernel."""
    return {name: version(name) for name in ("numba", "llvmlite", "numpy")}


def _changed_settings() -> list[tuple[str, str]]:
    """Those of numba that are not as usual: without it, if nothing can have changed them."""
    given = any(f"NUMBA_{name}" in os.environ for name in _SETTINGS)
    if "numba" not in sys.modules and not given and not os.path.exists(_SETTINGS_FILE):
        return []
    from numba.core import config

    config.reload_config()  # as the compiler would do, so that we see what it will see
    found = {name: str(getattr(config, name, None)) for name in _SETTINGS}
    return sorted(found.items() - _SETTINGS.items())
