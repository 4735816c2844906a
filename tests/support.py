"""What the tests of the kernels share: the oracle's verdict, and kernels without a compiler."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from projgen import arrange, caches, cuts, interpret, plan, searches
from projgen.api import remembered
from projgen.bind import Binding, bind
from projgen.check import parse_tree
from projgen.cpu import geometry, kernel, lower, pull_kernel, stages
from projgen.render import render
from projgen.tree import NormTree

Array = npt.NDArray[Any]

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}  # of the largest magnitude of a batch entry
REHEARSED_TOLERANCE = 2e-5  # float32: without vectors, its sums have up to 1024 terms in a row


@lru_cache(maxsize=4096)
def tree_of(spec: str) -> NormTree:
    """The tree of a spec, which tests ask for again with each array and radius."""
    return parse_tree(spec)


@lru_cache(maxsize=4096)
def _bound(spec: str, shape: tuple[int, ...]) -> Binding:
    return bind(tree_of(spec), len(shape), shape)


def bound(spec: str, y: Array) -> Binding:
    return _bound(spec, y.shape)


def norm(spec: str, y: Array) -> Array:
    """The oracle's norm, by batch entry."""
    return interpret.norm(bound(spec, y), y)


def assert_projected(spec: str, y: Array, radius: Any, x: Array) -> None:
    """That `x` is the projection of `y`: near the oracle's, in the ball, between 0 and y."""
    binding = bound(spec, y)
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    if not y.size:
        return
    tolerance, smallest = TOLERANCE[y.dtype.name], np.finfo(y.dtype).smallest_subnormal
    reduced = tuple(axis for axis in range(y.ndim) if axis not in binding.batch)
    top = np.abs(y).max(axis=reduced, keepdims=True).astype(np.float64)
    scale = np.where(top > 0, top, 1.0)
    expected = interpret.project(binding, y, radius)
    error = np.abs(x / scale - expected / scale) - smallest / scale
    assert error.max() <= tolerance, f"{error.max():.2e} from the oracle at {_where(error)}"
    assert np.all((x == 0) | (np.signbit(x) == np.signbit(y))), "a sign changed"
    assert np.all(np.abs(x) <= np.abs(y)), "a value grew"

    radii = np.broadcast_to(np.asarray(radius, np.float64), norm(spec, y).shape)
    tops, norms = top.reshape(radii.shape), norm(spec, x)
    with np.errstate(over="ignore"):
        room = radii + tolerance * np.maximum(tops, radii) + smallest * y.size
    assert np.all(norms <= room), f"outside the ball: {norms} > {radii}"
    whole = radii.reshape([1 if axis in reduced else n for axis, n in enumerate(y.shape)])
    inside = norm(spec, y).reshape(whole.shape) * (1 + 1e-12) <= whole
    assert np.all(~inside | (x == y)), "changed inside the ball"
    assert np.all((whole > 0) | (x == 0)), "radius 0 leaves a value"


def _where(error: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))


def bits(x: Array) -> bytes:
    """All bytes of the elements, in C order: equal for arrays that are equal to the bit."""
    return np.ascontiguousarray(x).tobytes()


def lay_out(values: Array, order: tuple[int, ...], steps: tuple[int, ...]) -> Array:
    """`values` in fresh memory, axes nested as `order` says, outermost first.

    A step of 2 leaves gaps, a negative one runs backwards, and 0 repeats the axis' first index.
    """
    extents = [1 if steps[axis] == 0 else values.shape[axis] * abs(steps[axis]) for axis in order]
    memory = np.full(extents, np.nan, values.dtype)  # a kernel that reads a gap spoils its result
    view = memory.transpose(np.argsort(order))
    view = view[tuple(slice(None, None, step or None) for step in steps)]
    first = tuple(slice(0, 1) if step == 0 else slice(None) for step in steps)
    view[...] = values[first]
    return np.broadcast_to(view, values.shape) if 0 in steps else view


def run_python(code: str, seconds: float = 120.0, **environment: str) -> str:
    """What a fresh interpreter prints that runs `code`; a failure if it crashes, or hangs."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


# Rehearsals: a generated module is Python, and runs without Numba. Slow for an element, but quick
# for a kernel, so that small arrays try out hundreds of kernels.


Part = Callable[[], int]


def early(part: Part, followers: int) -> int:
    """A team whose followers come, do all there is to do, and go, before the lead begins."""
    for _ in range(followers):
        part()
    return part()


def together(part: Part, followers: int) -> int:
    """A team that works at the same time, and changes hands very often."""
    threads = [threading.Thread(target=part, daemon=True) for _ in range(followers)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        _at_work.set()
        for thread in threads:
            thread.start()
        return part()
    finally:
        for thread in threads:
            thread.join()
        _at_work.clear()
        sys.setswitchinterval(before)


_at_work = threading.Event()  # a team of several threads


@contextmanager
def rehearsals(team: Callable[[Part, int], int] | None = None, **constants: int) -> Iterator[None]:
    """Inside, kernels run as plain Python.

    `team` runs the lead and the followers of a call. `constants` of the plan and the backend are
    changed, so that small arrays are planned like large ones.
    """
    errors: list[BaseException] = []

    def load(compiled: Any) -> Any:
        function = _function(compiled.source)

        def take_part(*addresses: int) -> int:
            try:
                with np.errstate(all="ignore"):
                    return int(function(*addresses))
            except BaseException as error:
                errors.append(error)
                return 0

        entry = _ENTRY(take_part)
        address = ctypes.cast(entry, ctypes.c_void_p).value
        named = SimpleNamespace(address=address)
        return SimpleNamespace(project=named, pull=named, tally=named, entry=entry)

    def run(call: tuple[int, ...], followers: int, *_: object) -> int:
        assert team is not None
        return team(partial(_ENTRY(call[0]), *call[1:]), followers)

    with ExitStack() as patches:
        patches.enter_context(_no_hang())
        remembered.cache_clear()  # neither compiled kernels here, nor rehearsed ones afterwards
        patches.callback(remembered.cache_clear)
        if team is not None:
            patches.enter_context(patch("projgen.cpu.call.team", lambda: SimpleNamespace(run=run)))
            patches.enter_context(patch("projgen.cpu.call.SHARED_BYTES", 0))
        patches.enter_context(patch("projgen.cpu.call.load_kernel", load))
        patches.enter_context(patch("projgen.compiler.render", _rendered))
        patches.enter_context(patch.dict(TOLERANCE, float32=REHEARSED_TOLERANCE))
        for name, value in constants.items():
            planning = (caches, plan, arrange, searches, cuts)
            owners = (*planning, lower, geometry, kernel, stages, pull_kernel)
            modules = [module for module in owners if hasattr(module, name)]
            assert modules, name
            for module in modules:
                patches.enter_context(patch.object(module, name, value))
        try:
            yield
        finally:
            if errors:
                raise errors[0]


_ENTRY = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 5)


@contextmanager
def _no_hang(seconds: float = 60.0) -> Iterator[None]:
    """A TimeoutError where a loop in Python has no end (on POSIX, in the main thread)."""
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def give_up(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Type:
    """A type of numba's: calling it makes a signature, of which the arguments are kept."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        return arguments


def _carray(pointer: tuple[int, _Type], size: int) -> Array:
    address, kind = pointer
    dtype = np.dtype(kind.name)
    memory = (ctypes.c_char * (int(size) * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype)


def _span(source: Any, start: int, size: int) -> Array:
    """Of an array, or of a pointer; all of it has to be there."""
    if isinstance(source, tuple):
        return _carray(source, start + size)[start:]
    assert min(start, size, source.size - start - size) >= 0
    found: Array = source[start : start + size]
    return found


_adding = threading.Lock()


def _add(cells: tuple[int, _Type], index: int, amount: int) -> int:
    if amount == 0 and _at_work.is_set():
        time.sleep(0)  # somebody waits: let the others go on
    cell = ctypes.c_int64.from_address(cells[0] + 8 * int(index))
    with _adding:
        before = cell.value
        cell.value = before + amount
    return before


def _read(cells: tuple[int, _Type], index: int) -> int:
    return _add(cells, index, 0)


def _swap(cells: tuple[int, _Type], index: int, old: int, new: int) -> int:
    cell = ctypes.c_int64.from_address(cells[0] + 8 * int(index))
    with _adding:
        before = cell.value
        if before == old:
            cell.value = new
    return before


def _register_jitable(function: Any = None, **options: Any) -> Any:
    return function or (lambda function: function)


def _cfunc(pointees: tuple[_Type, ...], **options: Any) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        return lambda *addresses: function(*zip(addresses, pointees, strict=True))

    return decorate


def _intrinsic(made: Any = None, **options: Any) -> Callable[..., Any]:
    """What an intrinsic's docstring says it does; its body would emit machine code."""
    if made is None:
        return _intrinsic
    if made.__name__ in _PRIMITIVES:
        return _PRIMITIVES[made.__name__]
    if made.__name__ == "ahead":
        return lambda run, start: None
    if made.__name__ == "widen_at_once":
        return lambda stored: np.float32(np.int16(stored).view(np.float16))
    if made.__name__ == "narrow_at_once":
        return lambda x: np.float16(x).view(np.int16)
    if made.__name__.startswith("pointer"):
        kind = re.search(r"\bfloat\d+", made.__doc__ or "")
        assert kind is not None
        return lambda address: (address, _TYPES[kind.group()])
    if made.__name__.startswith("turn_"):
        side = np.arange(8)

        def turn(source: Array, at: int, step: int, target: Array, to: int, pitch: int) -> None:
            target[to + pitch * side[:, None] + side] = source[at + step * side + side[:, None]]

        return turn
    if made.__name__ in _SQUARES:
        return _SQUARES[made.__name__]
    if made.__name__ == "copy_16":

        def copy(source: Array, at: int, target: Array, to: int) -> None:
            target[to : to + 16] = source[at : at + 16]

        return copy
    if made.__name__ == "project_16":
        return partial(_project_16, made.__doc__ or "")
    if made.__name__.startswith(("exceed_", "shrink_")):
        return partial(_survey, made.__doc__ or "", np.dtype(f"float{made.__name__[-2:]}"))
    magnitude = (
        partial(np.maximum, 0) if "Values below 0 count as 0" in str(made.__doc__) else np.abs
    )
    name, *numbers = made.__name__.split("_")
    size, bundle = map(int, (*numbers, 1)[:2])

    def spread(limits: Array, group: int, tile: Array) -> None:
        given = limits[group:][: 16 * bundle].reshape(-1, 1, bundle)
        rows = np.repeat(given, size // bundle, axis=1)
        tile[size // bundle * group :][: rows.size] = rows.ravel()

    def deal(row: Array, group: int, tile: Array) -> None:
        pitch = _bundles(size, tile)
        for j in range(size):
            tile[pitch * j + group :][:16] = row[size * group + j :: size][:16]

    def survey(
        values: Array,
        at: int,
        step: int,
        rows: int,
        limits: Array,
        found: Array,
        tile: Array | None = None,
        fresh: int = 0,
    ) -> None:
        cells = at + step * np.arange(rows)[:, None] + np.arange(16)
        above = magnitude(values[np.minimum(cells, values.size - 1)]) - limits
        above = np.where(above > 0, above, 0)
        if tile is not None and fresh:
            tile[: 16 * rows] = values[cells].ravel()
        found[:16] = above.sum(axis=0, dtype=np.float64)
        found[16:32] = np.count_nonzero(above, axis=0)

    def sort(tile: Array, at: int) -> None:
        lanes = np.arange((64 if size < 16 else 32) // tile.itemsize)
        pitch = bundle * _bundles(size * bundle, tile)
        cells = at + pitch * np.arange(size + 1)[:, None] + lanes
        descending = -np.sort(-magnitude(np.asarray(tile[cells[:-1]])), axis=0)
        radii, counts = (
            np.asarray(tile[cells[-1]]),
            np.arange(1, size + 1, dtype=tile.dtype)[:, None],
        )

        def largest_mean(origin: Any) -> Array:
            above = np.concatenate([-radii[None], descending - origin])
            return (np.cumsum(above, axis=0)[1:] / counts).max(axis=0)

        t = np.maximum(largest_mean(tile.dtype.type(0)), 0)
        if tile.dtype == np.float32:
            t = np.maximum(t + largest_mean(t), 0) * np.float32(1 + 2**-23)
        tile[cells[-1]] = t

    return {"spread": spread, "deal": deal, "survey": survey, "sort": sort}[name]


def _bundles(size: int, tile: Array) -> int:
    """How many bundles of `size` values a tile has."""
    values = 8192 // tile.itemsize
    return max(values // 32, values // size // 16 * 16)


def _folding(fold: Callable[[Any, Any], Any]) -> Callable[..., None]:
    def square(y: Array, at: int, step: int, own: Array, first: int, cells: Array) -> None:
        for r, j in np.ndindex(8, 8):
            cell = 8 * own[first + j] + r
            cells[cell] = fold(cells[cell], y[at + step * r + j])

    return square


def _writing(write: Callable[[Any, Any], Any]) -> Callable[..., None]:
    def square(*arguments: Any) -> None:
        y, at, step, x, to, leap, own, first, cells = arguments
        for r, j in np.ndindex(8, 8):
            x[to + leap * r + j] = write(y[at + step * r + j], cells[8 * own[first + j] + r])

    return square


_SQUARES: dict[str, Callable[..., None]] = {
    "raise_square": _folding(lambda cell, a: max(cell, abs(a).view(cell.dtype))),
    "add_square": _folding(lambda cell, a: cell + np.float64(a) ** 2),
    "clip_square": _writing(lambda a, t: min(max(a, -t), t)),
    "scale_square": _writing(lambda a, t: a * t),
}


def _project_16(
    doc: str,
    rows: Array,
    at: int,
    weights: Array,
    own_at: int,
    level: Array,
    level_at: int,
    target: Array,
    to: int,
) -> None:
    """What a kernel of weights does with a row of 16 groups."""
    y, t = rows[at : at + 16], level[level_at : level_at + 16]
    w = weights[own_at : own_at + (1 if "the weight w" in doc else 16)].astype(np.float64)
    y = np.maximum(y, 0) if "max(y, 0)" in doc or "max(y - w t, 0)" in doc else y
    if "(1 + (w t)^2)" in doc:
        x = np.where(w > 0, y / (1 + np.square(w * t)), y)
    else:
        least = np.where(w > 0, w * t, 0.0)
        x = y - np.clip(y, -least, least)
    target[to : to + 16] = x


def _survey(
    doc: str, dtype: Any, rows: Array, weights: Array, n: int, level: Array, sums: Array
) -> None:
    """What it adds up of 16 groups."""
    y = rows[: 16 * n].reshape(n, 16).astype(dtype)
    one = "the weight w" in doc
    w = (weights[:n, None] if one else weights[: 16 * n].reshape(n, 16)).astype(dtype)
    t = level[:16].astype(dtype)
    y = np.abs(y) if "|y|" in doc else np.maximum(y, 0) if "max(y, 0)" in doc else y
    if "w^2 t" in doc:
        g = w * w / (1 + w * w * t)
        b = np.square(w * y / (1 + w * w * t))
        terms = [b, b * g, b * g * g]
        if "no squares" in doc and dtype == np.float64:
            terms.append(np.where((w > 0) & ~((w * w > 1e-300) & (w * w < 1e300)), 1.0, 0.0))
    else:
        above = y - w * t
        terms = [np.where(above > 0, w * above, 0), np.where(above > 0, w * w, 0)]
    for i, term in enumerate(terms):
        sums[16 * i : 16 * i + 16] += np.broadcast_to(term, (n, 16)).sum(axis=0, dtype=np.float64)


def _before_line(run: Array) -> int:
    return -run.__array_interface__["data"][0] % 64 // run.itemsize


def _pour(made: Array, run: Array, start: int) -> None:
    assert made.nbytes < 64 or _before_line(run[start:]) == 0
    run[start : start + made.size] = made
    made[:] = np.nan


_PRIMITIVES: dict[str, Callable[..., Any]] = {
    "add": _add,
    "read": _read,
    "swap": _swap,
    "fetch": lambda cells, number: tuple(_carray(cells, number)),
    "span": _span,
    "view": lambda x, dtype: x.view(dtype),
    "max": max,
    "min": min,
    "chosen": lambda yes, a, b: a if yes else b,
    "room": lambda dtype, size: np.full(size, np.nan, dtype),
    "before_line": _before_line,
    "pour": _pour,
    "settle": lambda: None,
}
_TYPES = {name: _Type(name) for name in ("float32", "float64", "int16", "int64")}
# A processor that converts float16.
_TARGET = SimpleNamespace(
    codegen=lambda: SimpleNamespace(magic_tuple=lambda: ("x86_64", "", "+avx,+f16c"))
)
_NUMBA = SimpleNamespace(
    carray=_carray,
    cfunc=_cfunc,
    types=SimpleNamespace(CPointer=lambda pointee: pointee, **_TYPES),
)
_STAND_INS = {
    "llvmlite": SimpleNamespace(ir=None),
    "numba": _NUMBA,
    "numba.core.registry": SimpleNamespace(cpu_target=SimpleNamespace(target_context=_TARGET)),
    "numba.extending": SimpleNamespace(intrinsic=_intrinsic, register_jitable=_register_jitable),
    "numba.core.cgutils": SimpleNamespace(
        ir=None,
        alloca_once_value=None,
        for_range=None,
        for_range_slice=None,
        get_or_insert_function=None,
    ),
}


_rendered = lru_cache(maxsize=512)(render)


@lru_cache(maxsize=512)
def _function(source: str) -> Callable[..., int]:
    names: dict[str, Any] = {}
    with patch.dict(sys.modules, _STAND_INS):
        exec(compile(source, "<rehearsal>", "exec"), names)
    function: Callable[..., int] = next(
        names[own] for own in ("project", "pull", "tally") if own in names
    )
    return function
