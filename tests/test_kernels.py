"""Compiled kernels against the oracle: every chain of two levels, and the hard cases of each way."""

import math
from typing import Any

import numpy as np
import pytest
from support import Array, assert_projected, bits, norm, rehearsals, run_python

import projgen

NORMS = ["l1", "l2", "linf"]
CHAINS = [
    *NORMS,
    *[f"{a}({b})" for a in NORMS for b in NORMS],
    *[f"{a}({b}(axis=0))" for a in NORMS for b in NORMS],
]
DEEP = [
    ("l1(l2(linf))", (8, 30, 70)),
    ("linf(l1(l2(axis=0)))", (16, 30, 40)),
    ("l1(linf(axis=(0, 2)))", (20, 30, 40)),
    ("l2(l1(linf(l1(axis=-1), axis=0), axis=2))", (5, 6, 7, 40)),
    ("l1(l1(l1(l1(l1(l1)))))", (3, 4, 2, 5, 3, 20)),
    ("l1(l2(linf(l2(l1(linf(axis=(1, 7)), axis=3), axis=5), axis=0), axis=2))", (2, 3) * 4),
    ("l1(axis=-1)", (40, 50)),
    ("l1(linf(axis=1), axis=3)", (3, 20, 4, 30)),
]


def values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> dict[str, Array]:
    """Arrays that are hard in one way each."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(shape)
    sparse = np.where(rng.random(shape) < 0.3, normal, -0.0)
    sparse[: shape[0] // 2] = 0
    peak = 1e-6 * normal
    peak.flat[peak.size // 3] = -1e6
    tiny, huge = (1e-44, 1e37) if dtype == "float32" else (1e-320, 1e300)
    spread = 2.0 ** -np.linspace(0, 60, normal.size)
    arrays = {
        "normal": normal,
        "ties": rng.integers(-2, 3, shape).astype(np.float64),
        "equal": np.full(shape, -0.3),
        "zero": np.zeros(shape),
        "one huge": peak,
        "zero groups": sparse,
        "denormal": normal * tiny,
        "huge": normal * huge,
        "spread": rng.permutation(spread).reshape(shape),
    }
    return {name: array.astype(dtype) for name, array in arrays.items()}


def check(spec: str, y: Array, fractions: tuple[float, ...] = (1e-3, 0.4, 0.95, 1.1)) -> None:
    projection = projgen.build(spec)
    norms = norm(spec, y)
    with np.errstate(over="ignore", divide="ignore"):
        np.testing.assert_allclose(projection.norm(y), norms, rtol=1e-12)
    for radius in (0.0, *(fraction * norms for fraction in fractions), math.inf):
        if np.all(np.isfinite(radius)) or np.ndim(radius) == 0:
            assert_projected(spec, y, radius, projection(y, radius))


@pytest.mark.parametrize("spec", CHAINS)
def test_chains_of_one_and_two_levels(spec: str) -> None:
    """Large enough for several blocks."""
    for y in values("float32", (180, 230)).values():
        check(spec, y)


@pytest.mark.parametrize("spec", ["l1", "l2(linf)", "l1(l2(axis=0))", "linf(l1)", "l1(l1(axis=0))"])
def test_float64(spec: str) -> None:
    for y in values("float64", (140, 150)).values():
        check(spec, y)


@pytest.mark.parametrize(("spec", "shape"), DEEP)
def test_deep_trees(spec: str, shape: tuple[int, ...]) -> None:
    check(spec, values("float32", shape)["normal"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", CHAINS + [spec for spec, _ in DEEP])
def test_rehearsed(spec: str, dtype: str) -> None:
    """Every chain in both types, with blocks so small that each kind of them occurs."""
    shape = dict(DEEP).get(spec, (19, 23))
    shape = shape if math.prod(shape) < 2000 else tuple(min(n, 5) for n in shape)
    with rehearsals(BLOCK_BYTES=256, SHARED_VALUES=16, SCRATCH_BYTES=4096):
        for y in values(dtype, shape).values():
            check(spec, y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
def test_packed_groups_of_every_length(norm: str, dtype: str) -> None:
    with rehearsals(BLOCK_BYTES=2048):
        for length in range(1, 34):
            check(f"l1({norm})", values(dtype, (70, length), length)["normal"], (0.4,))


@pytest.mark.parametrize(("norm", "length"), [("l1", 3), ("linf", 32), ("l2", 1), ("l1", 32)])
def test_packed_groups(norm: str, length: int) -> None:
    for y in values("float32", (3000, length)).values():
        check(f"linf({norm})", y)


# Thresholds of l1


def newton_turns(y: Array, radius: float) -> int:
    """How many steps Newton's method takes from the left, in one group."""
    threshold = (y.sum() - radius) / y.size
    for turn in range(1, 1000):
        above = y[y > threshold]
        following = (above.sum() - radius) / above.size
        if following <= threshold:
            return turn
        threshold = following
    raise AssertionError("no end")


def staircase(size: int, turns: int) -> Array:
    """Descending values of which each Newton step drops only the last few.

    Each stair is `share` of all values so far, and lies just so far below the threshold that the
    next one does not drop it too.
    """
    counts = np.unique(np.geomspace(1, size, turns + 1).astype(int))
    y, gap, mean = [1.0], 2.0 ** -(turns * 1.2), 1.0
    for before, count in zip(counts[:-1], counts[1:], strict=True):
        share = (count - before) / count
        y += [mean - gap] * (count - before)
        mean -= gap * share
        gap *= 1.02 * (1 - share) / share if share < 0.5 else 1.02
    return np.array(y)


def test_a_search_of_many_turns() -> None:
    """More sweeps than threads share: one of them goes on alone."""
    y = staircase(1 << 18, 40)
    assert y.min() > 0
    radius = y.max() * 1e-9
    assert newton_turns(y, radius) > 24
