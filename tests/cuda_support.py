"""Whole calls of the CUDA backend on the machine of `simt`: what its tests share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simt import build
from simt.run import Buffer, Launch, Part, Simt, Traffic
from support import Array, bound, norm

from projgen import interpret
from projgen.cuda.compiler import Compiled, CompiledPull, compile_binding, compile_pull
from projgen.cuda.launches import ALIGNMENT, SIZES
from projgen.operands import axis_order, memory_order

needs_simt = pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))

DTYPES = ("float32", "float64", "float16", "bfloat16")
DIGITS = {"float16": 11, "bfloat16": 8}  # of a number, the first one included
LEAST = {"float16": 2.0**-24, "bfloat16": 2.0**-133}  # the smallest subnormal number

_CPU = Path("/proc/cpuinfo")
FUSED = _CPU.exists() and " fma " in _CPU.read_text()  # x86 only
_FUSE = ("-mfma", "-ffp-contract=fast")

_programs: OrderedDict[tuple[str, str, bool], Simt] = OrderedDict()


def program(source: str, machine: str = "fibers", fused: bool = False) -> Simt:
    """The running program of a source; a few dozen are kept."""
    source = build.uncommented(source)
    key = source, machine, fused
    if key not in _programs:
        while len(_programs) >= 24:
            _programs.popitem(last=False)[1].close()
        _programs[key] = Simt(source, machine, _FUSE if fused else ())
    _programs.move_to_end(key)
    return _programs[key]


def build_all(sources: Iterable[str]) -> None:
    """Compile what is not yet compiled, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build.build, dict.fromkeys(sources)))


def stored(values: Any, dtype: str) -> Array:
    """`values` as the device stores them: a bfloat16 is the upper half of a float32's bits."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return np.asarray(values).astype(dtype)
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    nan = np.isnan(values)
    bits = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(nan, 0x7FC0, bits).astype(np.uint16)


def loaded(array: Array, dtype: str) -> Array:
    """What stored values mean, in float64 (float32 and float64 stay what they are)."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64) if dtype == "float16" else array


@dataclass(frozen=True)
class Outcome:
    x: Array
    norms: Any
    traffic: list[Mapping[str, Traffic]]
    compiled: Compiled


@lru_cache(maxsize=4096)
def _compiled(spec: str, shape: tuple[int, ...], *rest: Any) -> Compiled:
    return compile_binding(bound(spec, np.empty(shape, np.bool_)), shape, *rest)


def compiled(spec: str, y: Array, dtype: str, out: Array | None, aligned: bool = True) -> Compiled:
    """For these arrays; `out` of None is in place."""
    strides = tuple(step // y.itemsize for step in y.strides)
    out_strides = strides if out is None else tuple(step // y.itemsize for step in out.strides)
    return _compiled(spec, y.shape, dtype, strides, out_strides, out is None, aligned)


def run(
    spec: str,
    y: Array,
    radius: Any,
    *,
    dtype: str | None = None,
    out: Array | None = None,
    in_place: bool = False,
    seed: int = 1,
    misalignment: int = 0,
    machine: str = "fibers",
    source: str | None = None,
    fused: bool = False,
) -> Outcome:
    """Project `y`, stored as `dtype` says, in fresh memory or in its own, or into `out`.

    `misalignment`, in bytes, is that of y's and x's lowest address. `source`: this instead of the
    kernel's own. `fused`: a * b + c is rounded once, as a GPU does.
    """
    dtype = dtype or y.dtype.name
    if not in_place and out is None:
        out = np.empty_like(y)  # with y's memory order
    made = compiled(spec, y, dtype, None if in_place else out, misalignment % 16 == 0)
    schedule, binding = made.schedule, bound(spec, y)
    arguments: dict[str, Any] = {
        "y": Buffer("y", y, True, in_place, misalignment),
        "work": workspace(made),
        **constants(made, y, radius, binding),
    }
    if not in_place:
        arguments["x"] = Buffer("x", out, False, True, misalignment)
    launches = launched(schedule.launches, arguments)
    traffic = program(source or made.source, machine, fused).run(launches, seed)
    norms = arguments["work"].array.view(np.float64)[: made.plan.batch]
    return Outcome(
        y if in_place else out,
        axis_order(norms.copy(), binding, made.plan, y.shape),
        traffic,
        made,
    )


def constants(made: Any, y: Array, radius: Any, binding: Any) -> dict[str, Any]:
    """The arguments that are the same in all launches of a call."""
    arguments: dict[str, Any] = {
        "geometry": np.void(made.schedule.geometry),
        "radius": np.float64(radius if np.ndim(radius) == 0 else np.nan),
        "radii": None,
    }
    if np.ndim(radius):
        shape = tuple(y.shape[axis] for axis in binding.batch)
        radii = np.broadcast_to(np.asarray(radius, np.float64), shape)
        arguments["radii"] = Buffer("radii", memory_order(radii, binding, made.plan).copy())
    return arguments


def launched(launches: Iterable[Any], arguments: Mapping[str, Any]) -> list[Launch]:
    return [
        Launch(
            launch.name,
            launch.grid,
            launch.block,
            [arguments[a] if isinstance(a, str) else np.int32(a) for a in launch.arguments],
            launch.shared,
        )
        for launch in launches
    ]


@lru_cache(maxsize=4096)
def _compiled_pull(spec: str, shape: tuple[int, ...], *rest: Any) -> CompiledPull:
    return compile_pull(bound(spec, np.empty(shape, np.bool_)), shape, *rest)


def compiled_pull(spec: str, y: Array, dtype: str, aligned: bool = True) -> CompiledPull:
    """The way back for arrays like this one."""
    strides = tuple(step // y.itemsize for step in y.strides)
    return _compiled_pull(spec, y.shape, dtype, strides, aligned)


def forget() -> None:
    """What was compiled: plans are made by other sizes from here on."""
    _compiled.cache_clear()
    _compiled_pull.cache_clear()


@dataclass(frozen=True)
class Pulled:
    x: Array
    gradient: Array
    slopes: Any
    traffic: list[Mapping[str, Traffic]]
    compiled: CompiledPull


def pull(
    spec: str,
    y: Array,
    radius: Any,
    dx: Array,
    *,
    dtype: str | None = None,
    seed: int = 1,
    misalignment: int = 0,
    machine: str = "fibers",
    source: str | None = None,
    fused: bool = False,
) -> Pulled:
    """Project `y`, and take `dx`, which lies like it, back: see `run`."""
    dtype = dtype or y.dtype.name
    x, dy = np.empty_like(y), np.empty_like(y)
    aligned = misalignment % 16 == 0
    forward, made = compiled(spec, y, dtype, x, aligned), compiled_pull(spec, y, dtype, aligned)
    binding, tape = bound(spec, y), workspace(forward)
    given = Buffer("y", y, True, False, misalignment)
    first = {"y": given, "x": Buffer("x", x, False, True, misalignment), "work": tape}
    first |= constants(forward, y, radius, binding)
    program(forward.source, "fibers").run(launched(forward.schedule.launches, first), seed)
    second: dict[str, Any] = {
        "y": given,
        "x": Buffer("x", x, True, False, misalignment),
        "dx": Buffer("dx", dx, True, False, misalignment),
        "dy": Buffer("dy", dy, False, True, misalignment),
        "tape": Buffer("tape", tape.array[: forward.schedule.tape]),
        "work": workspace(made),
        **constants(made, y, radius, binding),
    }
    launches = launched(made.schedule.launches, second)
    traffic = program(source or made.source, machine, fused).run(launches, seed)
    slopes = second["work"].array.view(np.float64)[: made.plan.batch]
    return Pulled(x, dy, axis_order(slopes.copy(), binding, made.plan, y.shape), traffic, made)


def workspace(made: Any) -> Buffer:
    """A fresh one, poisoned: kernels may only read what they wrote before."""
    parts, at = [], 0
    for part in made.schedule.parts:
        parts.append(Part(part.name, at, part.bytes, SIZES[part.type]))
        at += -(-part.bytes // ALIGNMENT) * ALIGNMENT
    memory = np.empty(made.schedule.work, np.uint8)
    return Buffer("work", memory, False, True, parts=tuple(parts))


def assert_half_projected(spec: str, y: Array, radius: Any, x: Array, dtype: str) -> None:
    """That half-typed `x` is the oracle's result, rounded once.

    Kernels compute in float32, within 1e-6 of the largest magnitude of a batch entry. Then they
    round to the nearest, or towards zero: x may be half a unit in the last place above the exact
    magnitude, and a whole one below it.
    """
    values, result = loaded(y, dtype), loaded(x, dtype)
    binding = bound(spec, values)
    expected = interpret.project(binding, values, radius)
    reduced = tuple(axis for axis in range(y.ndim) if axis not in binding.batch)
    top = np.abs(values).max(axis=reduced, keepdims=True)
    _, exponent = np.frexp(np.abs(expected))
    unit = np.maximum(np.ldexp(1.0, exponent - DIGITS[dtype]), LEAST[dtype])
    error = np.abs(result) - np.abs(expected)
    above, below = error - 1e-6 * top, -error - 1e-6 * top
    assert np.all(above <= unit / 2), f"{(above / unit).max():.3f} units above the oracle"
    assert np.all(below <= unit), f"{(below / unit).max():.3f} units below the oracle"
    assert np.all((result == 0) | (np.signbit(result) == np.signbit(values))), "a sign changed"
    assert np.all(np.abs(result) <= np.abs(values)), "a value grew"
    radii = np.broadcast_to(np.asarray(radius, np.float64), norm(spec, values).shape)
    whole = radii.reshape([1 if axis in reduced else n for axis, n in enumerate(y.shape)])
    inside = norm(spec, values).reshape(whole.shape) * (1 + 1e-12) <= whole
    assert np.all(~inside | (result == values)), "changed inside the ball"
    assert np.all((whole > 0) | (result == 0)), "radius 0 leaves a value"
