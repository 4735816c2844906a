"""CUDA kernels against the oracle, as they would be launched, on the SIMT machine of the CPU."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest.mock import patch

import cuda_support
import numpy as np
import pytest
from cuda_support import (
    assert_half_projected,
    build_all,
    compiled,
    loaded,
    needs_simt,
    run,
    stored,
)
from support import Array, assert_projected, bits, lay_out, norm
from test_kernels import CHAINS, COMPILED, DEEP, staircase, values
from test_layouts import LAYOUTS, LayOut

import projgen.cuda.lower
import projgen.cuda.plan
from projgen.operands import same_directions, walkable

pytestmark = needs_simt

FRACTIONS = (1e-3, 0.4, 0.95)
OFTEN = {*COMPILED}  # each norm as a root, and as the leaf of rows and of columns: tried more
# Rows and columns that a block, a warp, an access or a vector divides, and such as none does.
SHAPES = [(33, 127), (127, 33), (1009, 41), (41, 1009), (64, 256)]
SMALL = [(1000, 7), (3, 2), (1, 31), (31, 1), (1, 1)]


def normal(shape: tuple[int, ...], dtype: str, order: Any = "C", seed: int = 0) -> Array:
    y = stored(np.random.default_rng(seed).standard_normal(shape), dtype)
    return np.asarray(y, order=order)


def check(spec: str, y: Array, radius: Any, dtype: str, **options: Any) -> Array:
    """Run a call and let the oracle judge; its norms too."""
    before = y.copy(order="K")
    meant = loaded(before, dtype)
    outcome = run(spec, y, radius, dtype=dtype, **options)
    if dtype in cuda_support.DIGITS:
        assert_half_projected(spec, before, radius, outcome.x, dtype)
    else:
        assert_projected(spec, before, radius, outcome.x)
    with np.errstate(over="ignore"):
        precision = 1e-12 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(outcome.norms, norm(spec, meant), rtol=precision)
    return outcome.x


def check_all(spec: str, arrays: Iterable[tuple[Array, str]], in_place: tuple[bool, ...]) -> None:
    """Arrays, several radii, in place and not; kernels are compiled two at a time before."""
    arrays = list(arrays)
    outs = {False: np.empty_like, True: lambda y: None}
    build_all(compiled(spec, y, d, outs[own](y)).source for y, d in arrays for own in in_place)
    for seed, ((y, dtype), own) in enumerate(product(arrays, in_place)):
        norms = norm(spec, loaded(y, dtype))
        for fraction in FRACTIONS if y.size < 10000 else FRACTIONS[1:2]:
            check(spec, y.copy(order="K"), fraction * norms, dtype, in_place=own, seed=seed)


@pytest.mark.parametrize("spec", CHAINS)
def test_chains(spec: str) -> None:
    orders = "CF" if spec in OFTEN else "C"
    arrays = [(normal(s, "float32", order), "float32") for s in SHAPES for order in orders]
    check_all(spec, arrays, (False,))
    check_all(spec, arrays[:1] if spec in OFTEN else [], (True,))


@pytest.mark.parametrize("spec", CHAINS)
def test_short_groups_and_small_arrays(spec: str) -> None:
    arrays = [(normal(s, "float32"), "float32") for s in SMALL]
    check_all(spec, arrays, (False,))


TYPES = ("float64", "float16", "bfloat16")


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (spec, dtype)
        for i, spec in enumerate(CHAINS)
        for dtype in (TYPES if spec in OFTEN else [TYPES[(i + i // 3) % 3]])
    ],
)
def test_types(spec: str, dtype: str) -> None:
    """Those that are tried often in all types, the others in one each, by turns."""
    shapes, order = SHAPES if spec in OFTEN else SHAPES[:1], "F" if dtype == "float64" else "C"
    check_all(spec, [(normal(s, dtype, order), dtype) for s in shapes], (dtype == "bfloat16",))


@pytest.mark.parametrize(
    "spec", ["l1", "l1(linf)", "linf(l1)", "l1(linf(axis=0))", "l1(l2(axis=0))"]
)
def test_ragged_sizes(spec: str) -> None:
    sizes = (1, 31, 32, 33, 127, 257, 1000)
    shapes = [(n, m) for n in sizes for m in sizes if 31 <= n * m < 70000]
    check_all(spec, [(normal(shape, "float32"), "float32") for shape in shapes], (False,))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", CHAINS)
def test_hard_values(spec: str, dtype: str) -> None:
    for y in values(dtype, (33, 127)).values():
        norms = norm(spec, y)
        with np.errstate(over="ignore"):
            for radius in (0.0, 1e-3 * norms, 0.4 * norms, 1.1 * norms, math.inf):
                if np.all(np.isfinite(radius)) or np.ndim(radius) == 0:
                    assert_projected(spec, y, radius, run(spec, y, radius).x)


@pytest.mark.parametrize("spec", DEEP)
def test_deep_trees_and_batches(spec: str) -> None:
    """One radius for each batch entry: 0, inside, outside, infinite."""
    shape = tuple(min(n, 33) for n in DEEP[spec])
    for dtype in ("float32", "float64"):
        y = normal(shape, dtype)
        norms = norm(spec, y)
        factors = np.resize([0.3, 0.0, 1.1, math.inf, 1e-3], np.shape(norms))
        radii = norms * factors
        check(spec, y, radii if np.ndim(radii) else float(radii), dtype)
        check(spec, y, float(np.median(norms)) / 3, dtype, in_place=dtype == "float64")


@contextmanager
def small_machine() -> Iterator[None]:
    """Small arrays are planned like large ones: levels with launches of their own, pieces of
    groups, thresholds by sweeps."""
    constants = {"MIDDLE_VALUES": 16, "PIECE": 16, "SHARED_BYTES": 1024}
    constants |= {"WARP_VALUES": 16, "WARP_KEPT": 16}
    patches = [patch.object(projgen.cuda.plan, name, value) for name, value in constants.items()]
    cuda_support.forget()
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
        cuda_support.forget()


@pytest.mark.parametrize("spec", [*CHAINS, *DEEP])
def test_planned_like_large_arrays(spec: str) -> None:
    shape = tuple(min(n, 9) for n in DEEP[spec]) if spec in DEEP else (67, 301)
    with small_machine():
        check_all(spec, [(normal(shape, "float32"), "float32")], (False,))


@pytest.mark.parametrize("spec", ["l1", "l1(l1(axis=0))", "linf(l1)"])
def test_planned_like_huge_arrays(spec: str) -> None:
    """Offsets and counts of 64 bits."""
    with small_machine(), patch.object(projgen.cuda.lower, "INDEX_LIMIT", 0):
        y = normal((67, 301), "float32")
        assert compiled(spec, y, "float32", None).kernel.wide
        check_all(spec, [(y, "float32")], (True,))


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("spec", ["l1", "linf(l1)", "l1(l1(axis=0))", "l1(l2(linf))"])
def test_planned_like_large_arrays_in_other_types(spec: str, dtype: str) -> None:
    shape = (9, 30, 70) if spec in DEEP else (67, 301)
    with small_machine():
        check_all(spec, [(normal(shape, dtype), dtype)], (True,))


@pytest.mark.parametrize(
    ("spec", "shape"),
    [("l1", (70_001,)), ("l1(linf)", (20_011, 3)), ("l1(l1(axis=0))", (3, 17_000))],
)
def test_large(spec: str, shape: tuple[int, ...]) -> None:
    """As many values that several blocks look for the threshold."""
    y = normal(shape, "float32")
    for fraction in (0.01, 0.5):
        check(spec, y, fraction * float(norm(spec, y)), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_search_of_many_turns(dtype: str) -> None:
    turns, size = (12, 1 << 13) if dtype == "float32" else (30, 1 << 14)
    stairs = staircase(size, turns).astype(dtype)
    y = np.ascontiguousarray(np.outer(stairs[::-1], np.array([1, -2, 4, 0.5], dtype)))
    for radius in (1e-6, 1e-2, 1.0, 100.0):
        check("l1(axis=0)", y, radius, dtype)


@pytest.mark.skipif(not cuda_support.FUSED, reason="this processor has no fused multiply-add")
@pytest.mark.parametrize("spec", sorted(OFTEN))
def test_whether_or_not_products_are_fused_with_sums(spec: str) -> None:
    """NVRTC contracts a * b + c, g++ is told not to: kernels are right either way."""
    for y in values("float32", (33, 127)).values():
        radius = 0.4 * norm(spec, y)
        with np.errstate(over="ignore"):
            if np.all(np.isfinite(radius)):
                assert_projected(spec, y, radius, run(spec, y, radius, fused=True).x)


# What has to be exact


EXACT = ["l1(linf)", "l1(l2(axis=0))", "linf(l1)", "l2", "l1(l2(linf))"]


@pytest.mark.parametrize("dtype", cuda_support.DTYPES)
@pytest.mark.parametrize("spec", EXACT)
def test_inside_the_ball_all_bits_are_kept(spec: str, dtype: str) -> None:
    y = normal((5, 13, 50) if "l2(linf" in spec else (65, 50), dtype)
    y[::3] = stored(-0.0, dtype)
    inside = float(norm(spec, loaded(y, dtype))) * 1.001
    for radius in (inside, math.inf):
        for in_place in (False, True):
            kept = run(spec, y.copy(), radius, dtype=dtype, in_place=in_place).x
            assert bits(kept) == bits(y)
    zeros = run(spec, y, 0.0, dtype=dtype).x
    assert not loaded(zeros, dtype).any()


@pytest.mark.parametrize("spec", EXACT)
def test_the_same_bits_whatever_the_schedule(spec: str) -> None:
    y = normal((5, 130, 41) if "l2(linf" in spec else (67, 1009), "float32")
    radius = 0.3 * float(norm(spec, y))
    results = {bits(run(spec, y, radius, seed=seed).x) for seed in range(7)}
    results |= {bits(run(spec, y.copy(), radius, in_place=True, seed=7).x)}
    assert len(results) == 1
    with small_machine():
        assert len({bits(run(spec, y, radius, seed=seed).x) for seed in range(4)}) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spec", sorted(OFTEN | {"l2(l2(axis=0))"}))
def test_what_is_not_finite_becomes_nan(spec: str, bad: float) -> None:
    y = normal((33, 127), "float32")
    y[7, 90] = bad
    for radius in (0.5, math.inf):
        assert np.isnan(run(spec, y, radius).x).any()
        assert np.isnan(run(spec, y, radius).x[7, 90])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", cuda_support.DTYPES)
@pytest.mark.parametrize("spec", ["l1(axis=1)", "l2(linf(axis=1), axis=2)", "linf(axis=0)"])
def test_nan_stays_in_its_batch_entry(spec: str, dtype: str, bad: float) -> None:
    shape = (6, 40, 9) if "(linf" in spec else (40, 66)
    y = normal(shape, dtype)
    clean = run(spec, y, 0.7, dtype=dtype).x
    axis = {"l1(axis=1)": 0, "linf(axis=0)": 1}.get(spec, 0)
    index = (3,) if axis == 0 else (slice(None), 3)
    y[(*index, *[5] * (y.ndim - len(index)))] = stored(bad, dtype)
    if axis == 1:
        y[5, 3] = stored(bad, dtype)
    x = loaded(run(spec, y, 0.7, dtype=dtype).x, dtype)
    assert np.all(np.isnan(x[index]))
    x[index] = loaded(clean, dtype)[index]
    assert np.array_equal(x, loaded(clean, dtype))


# Where arrays lie


@pytest.mark.parametrize("misalignment", [4, 8, 12])
@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l2(axis=0))", "linf(l1)"])
def test_misaligned_arrays(spec: str, misalignment: int) -> None:
    y = normal((33, 128), "float32")
    for in_place in (False, True):
        check(spec, y.copy(), 0.5, "float32", misalignment=misalignment, in_place=in_place)
    halves = normal((33, 128), "float16")
    check(spec, halves, 0.5, "float16", misalignment=misalignment // 2)


@pytest.mark.parametrize("lay", LAYOUTS)
@pytest.mark.parametrize("spec", ["l1(linf(axis=1))", "l1(l1(axis=0))", "l1(axis=1)"])
def test_layouts(spec: str, lay: LayOut) -> None:
    y = lay(normal((40, 50), "float32"))
    if not walkable(y):
        pytest.skip("such arrays are copied before a kernel sees them")
    radius = 0.3 * norm(spec, y)
    check(spec, y, radius, "float32", out=lay(np.zeros((40, 50), np.float32)))
    for other in LAYOUTS:
        out = other(np.zeros((40, 50), np.float32))
        if spec == "l1(linf(axis=1))" and walkable(out) and same_directions(y, out):
            check(spec, y, radius, "float32", out=out)
    check(spec, lay(normal((40, 50), "float32")), radius, "float32", in_place=True)


def test_gaps_are_left_alone() -> None:
    whole = np.full((50, 60), 9.0, np.float32)
    part = whole[5:45, 7:57]
    part[...] = normal((40, 50), "float32")
    check("l1(linf)", part, 3.0, "float32", in_place=True)
    part[...] = 9.0
    assert np.all(whole == 9.0)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_four_axes(order: tuple[int, ...]) -> None:
    spec = "l1(linf(axis=(0, 2)), axis=3)"
    for steps in [(1, 1, 1, 1), (1, -1, 2, 1), (-1, 2, 1, 2)]:
        y = lay_out(normal((3, 4, 2, 20), "float64"), order, steps)
        out = lay_out(np.zeros((3, 4, 2, 20)), order, steps)
        check(spec, y, norm(spec, y) * [0.1, 0.5, 2.0, 0.0], "float64", out=out)
