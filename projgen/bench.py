"""A kernel's time on this machine, in multiples of copying the array and against NumPy's.

All contestants take turns in one run, so that a busy moment of the machine meets all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.api import build
from projgen.bind import Binding, bind
from projgen.dtypes import arithmetic, bfloat16
from projgen.outcome import Radius
from projgen.references import REFERENCES
from projgen.shapes import outline_of
from projgen.terminal import (
    Terminal,
    format_bytes,
    format_count,
    format_seconds,
    format_shape,
    progress,
    time_unit,
)
from projgen.tree import NormTree

Array = NDArray[Any]

BURST = 3  # calls that are timed in a row, after one that is not
MIN_ROUNDS = 3
MAX_ROUNDS = 300


@dataclass
class Contestant:
    """Something that is timed: ``prepare`` before each call, outside the clock."""

    name: str
    call: Callable[[], object]
    prepare: Callable[[], object] | None = None
    seconds: list[float] = field(default_factory=list)

    def run(self, calls: int) -> None:
        """Time `calls` calls in a row, after an untimed one that wakes threads and caches."""
        for turn in range(calls + 1):
            if self.prepare:
                self.prepare()
            started = perf_counter()
            self.call()
            if turn:
                self.seconds.append(perf_counter() - started)

    @property
    def row(self) -> str:
        """Its name in a table, beneath the one that is not in place."""
        return "  in place" if self.name.endswith(", in place") else self.name

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Half of the calls took between these."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Result:
    """The times of one run. The first contestant is the copy, the last is NumPy."""

    spec: str
    shape: tuple[int, ...]
    dtype: str
    order: str
    radius: Radius
    nbytes: int
    contestants: tuple[Contestant, ...]
    difference: float

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it; ``difference`` is relative to the largest entry."""
        copy, numpy = self.contestants[0].median, self.contestants[-1].median
        return {
            "spec": self.spec,
            "shape": self.shape,
            "dtype": self.dtype,
            "order": self.order,
            "radius": str(self.radius),
            "difference_from_numpy": self.difference,
            "times": [
                {
                    "name": one.name,
                    "median_s": one.median,
                    "quartiles_s": one.quartiles,
                    "calls": len(one.seconds),
                    "multiple_of_memcpy": one.median / copy,
                    "times_faster_than_numpy": numpy / one.median,
                }
                for one in self.contestants
            ],
        }

    def draw(self, terminal: Terminal) -> None:
        """For people."""
        terminal.write(
            terminal.paint(self.spec, "bold") + f"  {self.dtype}  {format_shape(self.shape)}  "
            f"{self.order} order  {format_bytes(self.nbytes)}  radius {self.radius}",
            "",
            terminal.paint(
                f"{'':20}{'median':>12}   {'half of the calls':26}{'memcpys':>8}{'speedup':>10}",
                "dim",
            ),
        )
        copy, numpy = self.contestants[0].median, self.contestants[-1].median
        unit = time_unit(copy)
        for one in self.contestants:
            low, high = (format_seconds(seconds, unit) for seconds in one.quartiles)
            spread = f"{low} to {high}"
            ours = one not in (self.contestants[0], self.contestants[-1])
            multiple = f"{one.median / copy:8.2f}"
            terminal.write(
                f"{one.row:20}{format_seconds(one.median, unit):>12}   {spread:26}"
                + (terminal.paint(multiple, "green", "bold") if ours else multiple)
                + f"{numpy / one.median:10.2f}"
            )
        terminal.write(
            "",
            "memcpys: time in copies of the array; speedup: times faster than NumPy.",
            f"Kernels and NumPy differ by at most {self.difference:.1e} of the largest entry.",
        )


def bench(
    tree: NormTree,
    shape: tuple[int, ...],
    dtype: str,
    order: str,
    radius: Radius,
    threads: Sequence[int],
    seconds: float,
) -> Result:
    """Time the kernels on normal random numbers, for about `seconds` after compiling.

    `threads`: how many may share a call; each count is a contestant, and another in place.
    """
    stored = bfloat16() if dtype == "bfloat16" else dtype
    y: Array = np.random.default_rng(0).standard_normal(shape).astype(stored, order="C")
    y = np.asfortranarray(y) if order == "F" else y
    given: dict[str, Any] = {} if tree.is_plain else _examples(tree, y)
    out, work = np.empty_like(y), np.empty_like(y)
    contestants = [Contestant("np.copyto", partial(np.copyto, out, y))]
    radii = None if tree.root.k is not None else radius.of(build(tree).norm(y, **given))
    with progress(f"compiling {tree.spec}"):
        for count in threads:
            projection = partial(build(tree, threads=count), **given)
            label = f"projgen, {format_count(count, 'thread')}"
            restore = partial(np.copyto, work, y)
            contestants += [
                Contestant(label, partial(projection, y, radii, out=out)),
                Contestant(
                    f"{label}, in place", partial(projection, work, radii, out=work), restore
                ),
            ]
            restore()
            contestants[-1].call()
            contestants[-2].call()
    wide = y.astype(arithmetic(dtype), copy=False)  # NumPy's sums of halves are halves
    name = "NumPy" if wide is y else f"NumPy, {wide.dtype}"
    if tree.is_plain:
        rival = partial(numpy_projection, bind(tree, len(shape), shape), wide, radii)
    else:  # what is timed is the reference, which is written to be read
        name = "NumPy reference"
        rival = partial(build(tree, backend="numpy"), y, radii, **given)
    expected = rival()
    largest = float(np.max(np.abs(y), initial=0.0)) or 1.0
    difference = max(float(np.max(np.abs(x - expected))) / largest for x in (out, work))
    contestants.append(Contestant(name, rival))
    with progress(f"timing {tree.spec}"):
        _take_turns(contestants, seconds)
    nbytes, limit = y.nbytes, radius if radii is not None else Radius(float(tree.root.k or 0))
    return Result(tree.spec, shape, dtype, order, limit, nbytes, tuple(contestants), difference)


def _examples(tree: NormTree, y: Array) -> dict[str, Any]:
    """Labels that make blocks of equal size, and random weights, for the names of the spec."""
    outline = outline_of(tree, y.shape, y.dtype)
    (arm,) = outline.bound.arms
    given: dict[str, Any] = dict(outline.labels)
    random = np.random.default_rng(1)
    for level, node in enumerate(arm.arm.nodes):
        if node.weights is not None:
            leaf = level == len(arm.arm.nodes) - 1
            given[node.weights] = random.uniform(0.5, 1.5, y.shape if leaf else arm.natural(level))
    return given


def _take_turns(contestants: Sequence[Contestant], seconds: float) -> None:
    end = perf_counter() + seconds
    for turn in range(MAX_ROUNDS):
        first = turn % len(contestants)  # nobody always follows the same one
        for one in (*contestants[first:], *contestants[:first]):
            one.run(BURST)
        if turn + 1 >= MIN_ROUNDS and perf_counter() > end:
            break


def numpy_projection(binding: Binding, y: Array, radius: Any) -> Array:
    """The projection as one writes it in NumPy: vectorised, in y's own dtype, sorting for l1."""
    a = np.abs(y)
    values = [a]  # from the leaf's entries up to the root's norm, with all axes kept
    for level in reversed(binding.levels):
        values.append(_norm(level.norm, values[-1], level.axes))
    norm = values.pop()
    u = np.reshape(np.broadcast_to(radius, _batch(binding, y)), norm.shape).astype(y.dtype)
    for level in binding.levels:
        value = values.pop()
        u = _ball(level.norm, value, level.axes, norm, u)
        norm = value
    x: Array = np.copysign(u, y)
    return x


def _batch(binding: Binding, y: Array) -> tuple[int, ...]:
    return tuple(y.shape[axis] for axis in binding.batch)


def _l1(a: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(a.sum(axis=axes, keepdims=True))


def _l2(a: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(np.sqrt(np.square(a).sum(axis=axes, keepdims=True)))


def _linf(a: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(a.max(axis=axes, keepdims=True))


def _l1_ball(a: Array, axes: tuple[int, ...], norm: Array, radius: Array) -> Array:
    rows = np.moveaxis(a, axes, range(-len(axes), 0)).reshape(*_kept(a, axes), -1)
    descending = -np.sort(-rows, axis=-1)
    counts = np.arange(1, rows.shape[-1] + 1, dtype=a.dtype)
    excess = descending.cumsum(axis=-1) - radius.reshape(*_kept(a, axes), 1)
    thresholds = (excess / counts).max(axis=-1).reshape(norm.shape)
    return np.where(norm > radius, np.maximum(a - np.maximum(thresholds, 0), 0), a)


def _l2_ball(a: Array, axes: tuple[int, ...], norm: Array, radius: Array) -> Array:
    return a * np.divide(radius, norm, out=np.ones_like(norm), where=norm > radius)


def _linf_ball(a: Array, axes: tuple[int, ...], norm: Array, radius: Array) -> Array:
    return np.minimum(a, radius)


# Quicker than the reference, which never overflows; where there is no such version, it is timed.
_NORMS = {"l1": _l1, "l2": _l2, "linf": _linf}
_BALLS = {"l1": _l1_ball, "l2": _l2_ball, "linf": _linf_ball}


def _norm(name: str, a: Array, axes: tuple[int, ...]) -> Array:
    norm = _NORMS.get(name) or REFERENCES[name].norm
    return norm(a, axes)


def _ball(name: str, a: Array, axes: tuple[int, ...], norm: Array, radius: Array) -> Array:
    if name in _BALLS:
        return _BALLS[name](a, axes, norm, radius)
    return np.where(norm > radius, REFERENCES[name].ball(a, axes, radius), a)


def _kept(a: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(extent for axis, extent in enumerate(a.shape) if axis not in axes)
