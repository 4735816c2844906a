"""The ways back in CUDA C++ against the reference, on the SIMT machine of the CPU."""

import contextlib
import itertools
import math
from collections.abc import Iterable
from typing import Any

import cuda_support
import numpy as np
import pytest
from cuda_support import Pulled, build_all, compiled, compiled_pull, loaded, needs_simt, pull
from support import Array, bits, lay_out, norm
from test_cuda_run import normal, small_machine

from projgen import interpret_pullbacks
from projgen.check import parse_tree

pytestmark = needs_simt

NORMS = ("l1", "l2", "linf")
PAIRS = ["l1(l1)", "l1(l2)", "l1(linf)", "l2(linf)", "linf(l1)"]
COLUMNS = [f"l1({inner}(axis=0))" for inner in NORMS]
TRIPLES = ["l1(l2(linf))", "l2(linf(l1))", "linf(l1(l2))", "l2(l1(linf))", "linf(l2(linf))"]
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


def gradient_like(y: Array, dtype: str, seed: int = 7) -> Array:
    dx = np.empty_like(y)
    dx[...] = normal(y.shape, dtype, seed=seed)
    return dx


def judged(spec: str, y: Array, radius: Any, dx: Array, found: Pulled, dtype: str) -> None:
    """That gradients are those of the reference."""
    expected, slopes = interpret_pullbacks.pull_back_chain(
        parse_tree(spec), loaded(y, dtype), radius, loaded(dx, dtype)
    )
    scale = np.abs(expected).max() + 1
    error = np.abs(loaded(found.gradient, dtype) - expected).max()
    assert error <= TOLERANCE[dtype] * scale, f"{error / scale:.1e} beside the reference"
    precise = 1e-12 if dtype == "float64" else 2e-6
    error = np.abs(found.slopes - slopes)
    assert np.all(error <= precise * (np.abs(slopes).max() + scale)), f"slopes off by {error}"


def agrees(spec: str, y: Array, radius: Any, dtype: str, **options: Any) -> None:
    """A call's gradients, of which the reference is the judge."""
    dx = gradient_like(y, dtype)
    judged(spec, y, radius, dx, pull(spec, y, radius, dx, dtype=dtype, **options), dtype)


def agree(
    spec: str, arrays: Iterable[tuple[Array, str]], shares: Iterable[Any] = (0.05, 0.6)
) -> None:
    """The same for arrays and radii; kernels are compiled two at a time before."""
    arrays = list(arrays)
    build_all(compiled(spec, y, dtype, np.empty_like(y)).source for y, dtype in arrays)
    build_all(compiled_pull(spec, y, dtype).source for y, dtype in arrays)
    for (y, dtype), share in itertools.product(arrays, shares):
        norms = norm(spec, loaded(y, dtype))
        radius = share * norms
        agrees(spec, y, radius if np.ndim(radius) else float(radius), dtype)


@pytest.mark.parametrize("spec", [*NORMS, *PAIRS, *COLUMNS])
def test_chains(spec: str) -> None:
    """By rows, by columns, and short groups side by side."""
    shapes = [(33, 127)] + [(300, 7)] * (spec in PAIRS) + [(64, 256)] * (spec in COLUMNS)
    agree(spec, [(normal(shape, "float32"), "float32") for shape in shapes], (0.05, 0.6, 1.1))


@pytest.mark.parametrize(
    ("spec", "shape", "dtype"),
    [
        ("l1(linf)", (33, 128), "float64"),
        ("l2(l1(axis=0))", (33, 128), "float64"),
        ("linf(l2)", (300, 7), "float64"),
        ("l1(linf)", (300, 7), "float16"),
        ("l2(l1(axis=0))", (33, 128), "bfloat16"),
        ("linf(l2)", (33, 127), "float16"),
    ],
)
def test_types(spec: str, shape: tuple[int, ...], dtype: str) -> None:
    agree(spec, [(normal(shape, dtype), dtype)])


@pytest.mark.parametrize("spec", TRIPLES)
def test_deep_trees(spec: str) -> None:
    agree(spec, [(normal((9, 7, 40), "float32"), "float32")])


@pytest.mark.parametrize("spec", ["l1", "linf", "l2(l1)", "l1(linf(axis=0))", *TRIPLES[:3]])
def test_planned_like_large_arrays(spec: str) -> None:
    """Levels with launches of their own, groups in pieces, blocks that take a group."""
    shape = (9, 11, 30) if spec in TRIPLES else (67, 301)
    with small_machine():
        agree(spec, [(normal(shape, "float32"), "float32")], (0.3,))


@pytest.mark.parametrize("spec", ["l1(linf(axis=0))", "l2(axis=0)"])
def test_narrow_columns(spec: str) -> None:
    """Rows taken side by side, and what they gathered joined by warps."""
    agree(spec, [(normal((1200, 9), "float32"), "float32")], (0.3,))


@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l2(axis=0))"])
def test_ragged_sizes(spec: str) -> None:
    shapes = [(n, m) for n in (1, 33) for m in (1, 31, 257)]
    agree(spec, [(normal(shape, "float32"), "float32") for shape in shapes], (0.3,))


@pytest.mark.parametrize(
    ("spec", "shape", "axis"),
    [
        ("l1(axis=1)", (6, 130), 1),
        ("linf(axis=0)", (50, 64), 0),
        ("l2(linf(axis=2), axis=1)", (5, 9, 40), (1, 2)),
        ("l1(l2(axis=1), axis=2)", (5, 40, 9), (1, 2)),
    ],
)
def test_batches(spec: str, shape: tuple[int, ...], axis: Any) -> None:
    """One radius for each entry: 0, inside, on the border, infinite."""
    y = normal(shape, "float32", "F" if len(shape) == 3 else "C")
    norms = norm(spec, y)
    agrees(spec, y, norms * np.resize([0.3, 0.0, 1.1, math.inf, 0.05], norms.shape), "float32")


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        ("l1(linf)", "float32"),
        ("l2(l1)", "float32"),
        ("linf(l2(axis=0))", "float64"),
        ("l2(linf(l1))", "float64"),
        ("l2(l2(linf), axis=2)", "float32"),
    ],
)
def test_kinks(spec: str, dtype: str) -> None:
    """Equal values, zeros, groups of zeros and levels of them; radius 0, and all inside."""
    shape = (6, 8, 9) if spec.count("(") > 1 and "axis=0" not in spec else (16, 33)
    y = np.round(normal(shape, dtype)) * 0.5
    y[1] = 0
    y[2, 3:] = 0
    y[3:5, ::2] = 0
    norms = norm(spec, y)
    shares = (0.0, 0.11, 0.47) if "l2" in spec else (0.0, 0.11, 0.47, 1.0)  # exactly on the border
    radii = [share * norms for share in shares] + [np.full_like(norms, math.inf)]
    for radius in radii:
        agrees(spec, y, radius if np.ndim(radius) else float(radius), dtype)
    zeros = np.zeros_like(y)
    for radius in (0.0, 1.0, math.inf):
        agrees(spec, zeros, radius, dtype)


@pytest.mark.parametrize("spec", ["l1(l2)", "l2(axis=0)"])
def test_values_at_the_ends_of_the_range(spec: str) -> None:
    """Products of a value and its gradient would leave it."""
    for exponent in (-146, -126, -60, 60, 120):
        y = np.ldexp(normal((20, 64), "float32"), exponent).astype(np.float32)
        agrees(spec, y, 0.3 * norm(spec, y), "float32")
    for exponent in (-1000, -500, 500, 1000):
        y = np.ldexp(normal((20, 64), "float64"), exponent)
        agrees(spec, y, 0.3 * norm(spec, y), "float64")


@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l1(axis=0))", "linf(l2)"])
def test_gradients_that_are_not_finite_pass_through(spec: str) -> None:
    """In their group, and no further than the projection has them go."""
    y = normal((8, 40), "float32")
    dx = gradient_like(y, "float32")
    dx[3, 5], dx[5, 7] = math.inf, math.nan
    radius = 0.5 * float(norm(spec, y))
    found = pull(spec, y, radius, dx)
    with np.errstate(invalid="ignore"):
        expected, slopes = interpret_pullbacks.pull_back_chain(parse_tree(spec), y, radius, dx)
    assert np.array_equal(np.isfinite(found.gradient), np.isfinite(expected))
    assert np.array_equal(np.isfinite(found.slopes), np.isfinite(slopes))


@pytest.mark.parametrize(
    "spec", ["l1(axis=1)", "linf(axis=1)", "l2(linf(axis=2), axis=1)", "l1(l1(axis=1), axis=2)"]
)
def test_a_batch_entry_that_is_not_finite_has_no_gradient(spec: str) -> None:
    y = normal((5, 8, 12) if "(linf" in spec or "(l1(" in spec else (5, 40), "float32")
    clean = pull(spec, y, 0.7, gradient_like(y, "float32"))
    y[2].flat[5] = math.inf
    y[3].flat[7] = math.nan
    found = pull(spec, y, 0.7, gradient_like(y, "float32"))
    bad = np.isin(np.arange(5), (2, 3))
    assert np.isnan(found.gradient[bad]).all()
    assert np.isnan(found.slopes[bad]).all()
    assert np.array_equal(found.gradient[~bad], clean.gradient[~bad])
    assert np.array_equal(found.slopes[~bad], clean.slopes[~bad])


@pytest.mark.parametrize("misalignment", [4, 8])
@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l2(axis=0))"])
def test_misaligned_arrays(spec: str, misalignment: int) -> None:
    y = normal((33, 128), "float32")
    agrees(spec, y, 0.3 * float(norm(spec, y)), "float32", misalignment=misalignment)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 3, 1, 0)])
def test_four_axes(order: tuple[int, ...]) -> None:
    spec = "l1(linf(axis=(0, 2)), axis=3)"
    y = lay_out(normal((3, 4, 2, 20), "float64"), order, (1, 1, 1, 1))
    agrees(spec, y, norm(spec, y) * [0.1, 0.5, 2.0, 0.0], "float64")


@pytest.mark.parametrize("spec", ["l1(l1(axis=0))", "l1(l2(linf))"])
def test_the_same_bits_whatever_the_schedule(spec: str) -> None:
    y = normal((5, 13, 41) if "l2(linf" in spec else (67, 101), "float32")
    dx, radius = gradient_like(y, "float32"), 0.3 * float(norm(spec, y))
    for machine in (None, small_machine):
        with machine() if machine else contextlib.nullcontext():
            runs = [pull(spec, y, radius, dx, seed=seed) for seed in range(3)]
            assert len({bits(found.gradient) for found in runs}) == 1
            assert len({float(found.slopes) for found in runs}) == 1


@pytest.mark.skipif(not cuda_support.FUSED, reason="this processor has no fused multiply-add")
@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l2)"])
def test_whether_or_not_products_are_fused_with_sums(spec: str) -> None:
    y = normal((33, 127), "float32")
    agrees(spec, y, 0.4 * float(norm(spec, y)), "float32", fused=True)


def test_two_sweeps() -> None:
    """Each element is read twice, the result written once; the rest is little."""
    for spec, each in (("l1(linf)", 4), ("l2(axis=0)", 4), ("linf(l1)", 5)):
        y = np.random.default_rng(1).uniform(1.0, 1.1, (128, 512)).astype(np.float32)
        found = pull(spec, y, 0.9 * norm(spec, y), gradient_like(y, "float32"))
        reads = sum(
            moved[n].read for moved in found.traffic for n in ("y", "x", "dx") if n in moved
        )
        assert reads == each * y.nbytes
        assert sum(moved["dy"].written for moved in found.traffic if "dy" in moved) == y.nbytes
        whole = sum(
            t.first_read + t.first_written for moved in found.traffic for t in moved.values()
        )
        assert whole <= 1.05 * (each + 1) * y.nbytes
        assert not any(t.atomic for moved in found.traffic for t in moved.values())
        assert len(found.traffic) == 3


def test_groups_that_vanish_are_not_read() -> None:
    y = np.random.default_rng(2).uniform(1.0, 1.1, (64, 500)).astype(np.float32)
    y[10:] *= 1e-3
    found = pull("l1(linf)", y, 0.5, gradient_like(y, "float32"))
    assert [moved["y"].read for moved in found.traffic if "y" in moved and moved["y"].read] == [
        y.nbytes * 10 // 64
    ] * 2
