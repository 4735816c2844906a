"""Kernels against the oracle: every chain of two levels, and the hard cases of each way."""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from support import (
    Array,
    assert_projected,
    bits,
    early,
    norm,
    rehearsals,
    run_python,
    together,
)

import projgen
from projgen import caches, plan, searches
from projgen.cpu.sorting import exchanges
from projgen.dtypes import ITEMSIZE
from projgen.norms import CHAINED

CHAINS = [
    *CHAINED,
    *[f"{a}({b})" for a in CHAINED for b in CHAINED],
    *[f"{a}({b}(axis=0))" for a in CHAINED for b in CHAINED],
]
# Compiled: each norm as a root, and as the leaf of rows and of columns, which is what most of a
# kernel is about. All chains are rehearsed.
COMPILED = [*CHAINED, "l1(linf)", "linf(l2)", "linf(l1)", "l1(linf(axis=0))", "l1(l2(axis=0))"]
COMPILED += ["l2(l1(axis=0))"]
DEEP = {
    "l1(l2(linf))": (8, 30, 70),
    "l1(linf(axis=(0, 2)))": (20, 30, 40),
    "l1(linf(axis=(0, 2, 3)))": (20, 12, 3, 3),  # runs side by side
    "l2(l2(linf(axis=(1, 3))))": (4, 30, 6, 5),
    "l1(linf(axis=1))": (20, 48, 5),  # few columns, taken as wide rows
    "l1(axis=-1)": (40, 50),
    "l1(linf(axis=1), axis=3)": (3, 20, 4, 30),
    "linf(l1(l2(axis=0)))": (16, 30, 40),
    "l2(l1(linf(l1(axis=-1), axis=0), axis=2))": (5, 6, 7, 40),
    "l1(l1(l1(l1(l1(l1)))))": (3, 4, 2, 5, 3, 20),
    "l1(l2(linf(l2(l1(linf(axis=(1, 7)), axis=3), axis=5), axis=0), axis=2))": (2, 3) * 4,
}


def slow_but(often: set[str], specs: Iterable[str]) -> list[Any]:
    """Parameters, of which those that are not in `often` are marked slow."""
    return [s if s in often else pytest.param(s, marks=pytest.mark.slow) for s in specs]


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


def values_to_compile_for(spec: str, shape: tuple[int, ...]) -> list[Array]:
    """Those of float32. Where sums of huge ones leave its range, they are scaled, and projected in
    place: by one kernel more, which is compiled for `l1` alone. For all it is rehearsed."""
    arrays = values("float32", shape)
    if spec != "l1" and projgen.build(spec).tree.levels[-1].norm == "l1":
        del arrays["huge"]
    return list(arrays.values())


def check(spec: str, *arrays: Array, fractions: tuple[float, ...] = (1e-3, 0.4, 0.95, 1.1)) -> None:
    """One projection, which makes each kernel once, of all arrays on several radii."""
    projection = projgen.build(spec)
    for y in arrays:
        norms = norm(spec, y)
        for radius in (0.0, *(fraction * norms for fraction in fractions), math.inf):
            if np.all(np.isfinite(radius)) or np.ndim(radius) == 0:
                assert_projected(spec, y, radius, projection(y, radius))
        with np.errstate(over="ignore", divide="ignore"):  # by the kernel that is there
            np.testing.assert_allclose(projection.norm(y), norms, rtol=1e-11)


@pytest.mark.parametrize("spec", COMPILED)
def test_chains_of_one_and_two_levels(spec: str) -> None:
    """Large enough for several blocks."""
    check(spec, *values_to_compile_for(spec, (180, 230)))


FLOAT64 = ["l1", "l1(l2(axis=0))", "linf(l1)"]


@pytest.mark.parametrize("spec", slow_but({"l1", "l1(l2(axis=0))"}, FLOAT64))
def test_float64(spec: str) -> None:
    check(spec, *values("float64", (140, 150)).values())


COMPILED_DEEP = [
    "l1(l2(linf))",
    "l1(linf(axis=(0, 2)))",
    "l1(linf(axis=(0, 2, 3)))",
    "l1(linf(axis=1))",
    max(DEEP, key=len),  # eight axes and six levels
]


@pytest.mark.parametrize("spec", slow_but({*COMPILED_DEEP[:2]}, COMPILED_DEEP))
def test_deep_trees(spec: str) -> None:
    check(spec, values("float32", DEEP[spec])["normal"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", [*CHAINS, *DEEP])
def test_rehearsed(spec: str, dtype: str) -> None:
    """Every chain in both types, with blocks so small that each kind of them occurs."""
    shape = DEEP.get(spec, (19, 23))
    shape = shape if math.prod(shape) < 2000 else tuple(min(n, 5) for n in shape)
    with rehearsals(BLOCK_BYTES=256, SHARED_VALUES=16, SCRATCH_BYTES=4096):
        check(spec, *values(dtype, shape).values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", CHAINED)
def test_packed_groups_of_every_length(norm: str, dtype: str) -> None:
    with rehearsals(BLOCK_BYTES=2048):
        for length in range(1, 34):
            check(f"l1({norm})", values(dtype, (70, length), length)["normal"], fractions=(0.4,))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", CHAINED)
def test_groups_that_alternate(norm: str, dtype: str) -> None:
    """Whose values are side by side, in bundles that follow each other."""
    with rehearsals(BLOCK_BYTES=2048):
        for shape in ((40, 2, 2), (50, 3, 3), (17, 32, 4), (300, 2, 17), (35, 40, 3)):
            leaf = projgen.build(f"l1({norm}(axis=1))").plan(shape, dtype).leaf
            assert (str(leaf.walk), leaf.bundle) == ("packed", shape[2])
            check(f"l1({norm}(axis=1))", values(dtype, shape)["normal"], fractions=(0.4,))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((3, 70), "sort"),  # few rows
        ((32, 300), "sort"),
        ((20, 20, 9), "sort"),  # few rows and columns, too many values to be a bundle
        ((9, 40, 20), "strip"),
        ((9, 40, 16), "strip"),
        ((700, 3), "sweep"),  # few columns
        ((5, 300, 7), "turn"),
        ((6, 40, 15), "turn"),
    ],
)
def test_thresholds_of_few_rows_or_columns(shape: tuple[int, ...], way: str, dtype: str) -> None:
    spec = f"linf(l1(axis={len(shape) - 2}))"
    assert projgen.build(spec).plan(shape, dtype).leaf.threshold == way
    with rehearsals(BLOCK_BYTES=2048):
        check(spec, *values(dtype, shape).values(), fractions=(1e-3, 0.4))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tile_has_room_for_all_columns_of_a_turn(dtype: str) -> None:
    """Of long columns it takes 16: fewer than there are side by side in a turn."""
    spec, shape = "linf(l1(axis=1))", (9, 40, 20)
    with rehearsals(BLOCK_BYTES=2048, SCRATCH_BYTES=1024, FAR_SCRATCH_BYTES=8192):
        assert searches.tile_width(40, ITEMSIZE[dtype]) == 16
        check(spec, *values(dtype, shape).values(), fractions=(1e-3, 0.4))
        assert not projgen.build(spec).plan(shape, dtype).leaf.crossing


@pytest.mark.parametrize(
    ("spec", "length"),
    [
        ("linf(l1)", 3),
        ("l2(l1)", 16),
        pytest.param("linf(l2)", 9, marks=pytest.mark.slow),
        pytest.param("l1(linf)", 32, marks=pytest.mark.slow),
    ],
)
def test_packed_groups(spec: str, length: int) -> None:
    assert str(projgen.build(spec).plan((3000, length)).leaf.walk) == "packed"
    check(spec, *values_to_compile_for(spec, (3000, length)))


# Thresholds of l1


@pytest.mark.parametrize("size", range(1, 33))
def test_exchanges_sort(size: int) -> None:
    """All of zeros and ones, which is enough, for a few values; some permutations for more."""
    rng = np.random.default_rng(size)
    tried = np.array(list(product((0, 1), repeat=size))) if size <= 10 else None
    y = rng.permuted(np.tile(np.arange(size), (200, 1)), axis=1) if tried is None else tried
    wanted = -np.sort(-y, axis=1)
    for i, j in exchanges(size):
        assert i < j
        y[:, i], y[:, j] = y[:, [i, j]].max(axis=1), y[:, [i, j]].min(axis=1)
    assert np.array_equal(y, wanted)


@pytest.mark.parametrize(
    ("shape", "dtype", "way"),
    [
        ((300, 17), "float32", "strip"),
        ((60, 77), "float64", "strip"),
        ((1003, 77), "float32", "strip"),
        ((1003, 2100), "float32", "tile"),
        ((4099, 77), "float32", "transpose"),
        ((2051, 77), "float64", "transpose"),
    ],
)
def test_columns_of_16_groups_and_the_rest(shape: tuple[int, ...], dtype: str, way: str) -> None:
    """From an array that is near, the first pass copies strips; others are copied more at a time;
    long columns are searched as rows."""
    spec = "linf(l1(axis=0))"
    assert projgen.build(spec).plan(shape, dtype).leaf.threshold == way
    single = dtype == "float32"
    arrays = values_to_compile_for(spec, shape) if single else values(dtype, shape).values()
    check(spec, *arrays, fractions=(1e-3, 0.4))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((331, 150), "float32"), pytest.param((130, 41), "float64", marks=pytest.mark.slow)],
)
def test_short_rows_are_made_columns(shape: tuple[int, ...], dtype: str) -> None:
    """16 of them at a time, by squares of 8: some lie over others, and the last rows are fewer."""
    spec = "linf(l1)"
    assert projgen.build(spec).plan(shape, dtype).leaf.threshold == "upend"
    check(spec, *values(dtype, shape).values(), fractions=(1e-3, 0.4))


def test_long_columns_of_both_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the leaf of the array's type, and of float64 above."""
    monkeypatch.setattr(searches, "TRANSPOSED", {4: 32, 8: 32})
    monkeypatch.setattr(caches, "SCRATCH_BYTES", 1 << 10)  # too little for strips of them
    monkeypatch.setattr(plan, "SHARED_VALUES", 1)
    spec, shape = "l2(l1(l1(axis=1), axis=0))", (50, 61, 43)
    stages = projgen.build(spec).plan(shape).stages
    assert [str(stage.threshold) for stage in stages] == ["None", "transpose", "transpose"]
    check(spec, *(values("float32", shape)[name] for name in ("normal", "zero groups")))


def test_few_columns_above_the_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile takes those of several turns of the loop around them."""
    monkeypatch.setattr(plan, "SHARED_VALUES", 1)
    spec, shape = "l2(l1(l1(axis=2), axis=1))", (9, 40, 7, 5)
    above = projgen.build(spec).plan(shape).stages[1]
    assert (str(above.threshold), above.crossing) == ("tile", True)
    with rehearsals():
        check(spec, *values("float32", shape).values(), fractions=(1e-3, 0.4))


def test_rounding_right_of_the_threshold() -> None:
    """Of denormals, a guess may be rounded past values: the search once fell back behind them."""
    column = np.repeat([16, 17, 18, 19, 23], [40, 3, 4, 4, 1]) * np.float32(1e-45)
    y = np.tile(column.astype(np.float32)[:, None], 16)
    with rehearsals():
        check("linf(l1(axis=0))", y, fractions=(6.011 / 868, 0.1))
    check("linf(l1(axis=0))", y, fractions=(6.011 / 868, 0.1))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_long_step_from_the_right_is_not_rounded(axis: int) -> None:
    """Groups whose largest value alone is above the first guess, and all above the threshold: just
    so for some, between which and the threshold a rounded step from there once ended."""
    rng = np.random.default_rng(0)
    known, size, guess = 510, 2048, 0.95
    threshold = guess * known / size
    near = threshold + 1e-5 * rng.random((16, 200))
    groups = np.hstack([near, rng.uniform(0.3, 0.9, (16, size - 201)), np.ones((16, 1))])
    told = np.tile(np.arange(size) < known, (16, 1))  # groups of which the guess is made
    y = np.stack([told, groups], axis=axis).reshape(32, size)  # 16 together, or in turn
    radii = np.maximum(y - np.where(y.min(axis=1) > 0, threshold, 0.5)[:, None], 0).sum(axis=1)
    y = np.ascontiguousarray(y.T if axis == 0 else y, np.float32)
    spec = f"l1(axis={axis})"
    expected = projgen.build(spec, backend="numpy")(y, radii)
    np.testing.assert_allclose(projgen.build(spec)(y, radii), expected, rtol=0, atol=1e-6)


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
    for before, count in pairwise(counts):
        share = (count - before) / count
        y += [mean - gap] * (count - before)
        mean -= gap * share
        gap *= 1.02 * (1 - share) / share if share < 0.5 else 1.02
    return np.array(y)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_search_of_many_turns(dtype: str) -> None:
    """More sweeps than the threads share: one of them goes on alone."""
    turns, size = (34, 1 << 17) if dtype == "float64" else (12, 1 << 13)
    stairs = staircase(size, turns).astype(dtype)
    assert stairs.min() > 0
    assert newton_turns(stairs.astype(np.float64), 1e-9) > (24 if dtype == "float64" else 6)
    y = np.ascontiguousarray(np.outer(stairs[::-1], np.array([1, -2, 4, 0.5], dtype)))
    with rehearsals(NEWTON_TURNS=2) if dtype == "float32" else nullcontext():
        for radius in (1e-6, 1e-2, 1.0, 100.0):
            assert_projected("l1(axis=0)", y, radius, projgen.project(y, "l1(axis=0)", radius))


@pytest.mark.parametrize("spec", ["l1", "l1(axis=0)", "l1(axis=1)", "linf(l1)", "l1(l1(axis=0))"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3), (40, 40), (70, 5), (400, 3), (5, 300)])
def test_radii_smaller_than_a_rounding_error(spec: str, dtype: str, shape: tuple[int, ...]) -> None:
    """What remains of the largest value is less than its last digit."""
    y = np.arange(1, 1 + math.prod(shape), dtype=dtype).reshape(shape)
    with rehearsals(BLOCK_BYTES=512, SCRATCH_BYTES=2048):
        for radius in (1e-5, 1e-9, 1e-17, 1e-40, 1e-300):
            assert_projected(spec, y, radius, projgen.project(y, spec, radius))


def test_tiny_radii_compiled() -> None:
    """In an interpreter of its own: it once had no end."""
    run_python("""
import numpy as np, projgen
for y, spec in [
    (np.float32([[1, 2]]), "l1(axis=1)"),
    (np.repeat(np.float32([[1], [2]]), 64, 1), "l1(axis=0)"),
    (np.repeat(np.float32([[1, 2, 1, 2, 1]]), 64, 0), "l1(axis=1)"),
    (np.repeat(np.float32([1, 2]), 10**6), "l1"),
]:
    x = projgen.project(y, spec, 1e-9)
    assert 0 <= x.min() and x.max() <= 1e-6, (spec, x)
""")


@pytest.mark.parametrize(
    ("spec", "shape", "radius"),
    [
        ("l1(axis=1)", (3, 200), 1e40),
        ("l1(axis=0)", (40, 64), 5e39),
        ("l1(axis=1)", (64, 10), 1e39),
        ("l1", (400, 400), 1e43),
        ("l1(l2)", (40, 40), 1e39),
        ("l2(linf(axis=0))", (40, 40), 1e38),
    ],
)
def test_float32_sums_beyond_its_range(spec: str, shape: tuple[int, ...], radius: float) -> None:
    y = np.full(shape, 3e38, np.float32) * np.linspace(0.5, 1, shape[0], dtype=np.float32)[:, None]
    with rehearsals():
        assert_projected(spec, y, radius, projgen.project(y, spec, radius))
        assert projgen.build(spec).norm(y) == pytest.approx(norm(spec, y), rel=1e-12)


@pytest.mark.parametrize("scale", [5e-324, 1e-308, 1e-200, 1e-154, 1e-130, 1e150, 1e160, 1e300])
@pytest.mark.parametrize("spec", ["l1", "l2", "l2(axis=1)", "l1(l2)", "l2(l2)", "linf(l2(axis=0))"])
def test_the_ends_of_float64(spec: str, scale: float) -> None:
    rng = np.random.default_rng(8)
    y = rng.uniform(-100, 100, (9, 20)) * scale
    mixed = y.copy()
    mixed[::2] = rng.uniform(-1, 1, (5, 20))
    with rehearsals():
        check(spec, y, mixed, fractions=(1e-3, 0.3, 1.1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spec", ["l1", "l2", "l1(l2)", "l2(axis=1)", "linf(l1)"])
def test_the_ends_of_the_range_go_without_a_warning(spec: str) -> None:
    rng = np.random.default_rng(13)
    scales = {"float32": (1e-45, 1e33, 3e38), "float64": (5e-324, 1e-200, 1e300, 1.7e308)}
    with rehearsals():
        for dtype, scale in [(name, scale) for name in scales for scale in scales[name]]:
            y = (rng.uniform(-1, 1, (9, 20)) * scale).astype(dtype)
            y[0] = 0
            for radius in (0.0, 5e-324, 1e-45, 1.0, 1e300, 1.7e308, math.inf):
                assert_projected(spec, y, radius, projgen.project(y, spec, radius))
                z = y.copy()
                assert_projected(spec, y, radius, projgen.project(z, spec, radius, out=z))
            projgen.build(spec).norm(y)


@pytest.mark.parametrize("spec", ["linf(l1(axis=1))", "l2(linf(axis=0))", "l1(l2(axis=1))"])
def test_beside_huge_values_no_small_one_grows(spec: str) -> None:
    """Where all are scaled, small ones are rounded; and what is kept, is kept to the bit."""
    for dtype, huge in (("float32", 3e38), ("float64", 1.5e308)):
        rng = np.random.default_rng(14)
        y = rng.normal(size=(9, 40)).astype(dtype)
        y *= 10 ** rng.uniform(-30, 30, y.shape).astype(dtype) * (1 if huge < 1e100 else 1e-200)
        y[0] = huge
        with rehearsals():
            x = projgen.project(y, spec, huge / 2)
        assert np.all(np.abs(x) <= np.abs(y))
        if dtype == "float32":
            kept = projgen.build(spec, backend="numpy")(y, huge / 2) == y
            assert np.array_equal(x == y, kept)


# Large arrays


@pytest.mark.parametrize(
    ("spec", "shape", "small"),
    [
        ("l1(linf)", (2100, 2100), (400, 1100)),
        ("l1(l2(axis=0))", (2100, 2100), (400, 1100)),
        ("l1", (4_500_000,), (450_000,)),
        pytest.param("l2(l1(axis=0))", (2000, 2200), (600, 1100), marks=pytest.mark.slow),
    ],
)
def test_arrays_from_main_memory(
    spec: str, shape: tuple[int, ...], small: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 16 MiB on the kernels differ, to hide the memory's latency: smaller arrays try them."""
    p = projgen.build(spec)
    source = p.source(shape)
    assert p.plan(shape).streamed
    assert p.source(small) != source
    monkeypatch.setattr(caches, "STREAMED_BYTES", 1 << 20)
    assert p.source(small) == source
    y = np.random.default_rng(9).standard_normal(small).astype(np.float32)
    check(spec, y, fractions=(0.02, 0.5))
    if spec == "l1(linf)":  # in place by another kernel, which is rehearsed for the others
        wanted = p(y, 100.0)
        assert p(y, 100.0, out=y) is y
        assert bits(y) == bits(wanted)


POURED = {
    "l1(linf)": (70, 1001),
    "l1(l1)": (70, 1001),
    "l1(l2(axis=0))": (1001, 170),
    "linf(l2)": (7001, 9),
    "l1": (70_007,),
}


@pytest.mark.parametrize("spec", slow_but({"l1(linf)", "linf(l2)"}, POURED))
def test_runs_are_poured_wherever_they_begin(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache lines go past the caches, the ends of a run word by word; nothing goes beside it."""
    shape = POURED[spec]
    monkeypatch.setattr(caches, "STREAMED_BYTES", 1 << 17)
    p = projgen.build(spec)
    assert "pour(" in p.source(shape)
    y = np.random.default_rng(21).standard_normal(shape).astype(np.float32)
    y[: len(y) // 2] *= 0.01  # groups of zeros
    radius = 0.05 * float(norm(spec, y))
    wide = (*shape[:-1], shape[-1] + 3)
    for start in (0, 1, 7, 12, 16):
        around = np.full(y.size + 50, 7, np.float32)
        out = around[start : start + y.size].reshape(shape)
        assert_projected(spec, y, radius, p(y, radius, out=out))
        assert np.all(around[:start] == 7) and np.all(around[start + y.size :] == 7)
        if shape[-1] > 100:
            around = np.full(wide, 7, np.float32)
            out = around[..., start % 4 : start % 4 + shape[-1]]
            assert_projected(spec, y, radius, p(y, radius, out=out))
            assert np.count_nonzero(around == 7) >= 3 * math.prod(shape[:-1])


@pytest.mark.parametrize("spec", ["l1", "l2", "l1(l2(axis=0))"])
def test_sums_of_a_million_equal_float32(spec: str) -> None:
    for value in (0.1, 1e-3, 1e4):
        y = np.full((500_000, 2), value, np.float32)
        y[::1000] *= 3
        check(spec, y, fractions=(0.9, 0.999))


def test_one_huge_and_a_million_tiny() -> None:
    y = (np.random.default_rng(10).standard_normal(1_000_000) * 1e-6).astype(np.float32)
    y[654_321] = -1e6
    check("l1", y, fractions=(1e-7, 1e-3, 0.5, 0.9999999))


@pytest.mark.parametrize("spec", ["linf(l1)"])
def test_equal_float32_far_apart(spec: str) -> None:
    """Values with a stride are summed one after the other, without vectors."""
    y = np.full((300, 4000, 2), 0.9, np.float32)[:, :, 0]
    check(spec, y, fractions=(0.86, 0.9999))


# Threads, rehearsed: what they do together is right in whatever order they come


TEAM = [
    ("l1(linf(axis=1))", (40, 40)),
    ("linf(l1(axis=0))", (40, 40)),
    ("linf(l1)", (200, 5)),
    ("l1", (2000,)),
    ("l1(l1(axis=0))", (300, 7)),
    ("l1(l1(axis=0))", (9, 300)),
    ("l1(l1(axis=1))", (40, 35, 3)),
]


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("team", [early, together])
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize(("spec", "shape"), TEAM)
def test_teams(spec: str, shape: tuple[int, ...], threads: int, team: Any, inside: bool) -> None:
    y = np.random.default_rng(11).standard_normal(shape)
    radius = (1.1 if inside else 0.3) * float(norm(spec, y))
    bad = y.copy()
    bad.flat[-1] = np.nan
    p = projgen.build(spec, threads=threads)
    with rehearsals(team, BLOCK_BYTES=512, SCRATCH_BYTES=2048):
        assert_projected(spec, y, radius, p(y, radius))
        assert p.norm(y) == pytest.approx(norm(spec, y), rel=1e-14)
        with pytest.raises(ValueError, match="nothing was written"):
            p(bad, radius)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("l1({}(axis=1))", (3, 48, 5)),  # blocks of few columns, each taken as one wide row
        ("l1({}(axis=1))", (7, 33, 2)),
        ("l1({}(axis=(0, 2)))", (9, 7, 3)),  # short runs, each a few columns
        ("l1({}(axis=(1, 3)))", (3, 5, 4, 6)),
    ],
)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_groups_of_several_columns(
    norm: str, spec: str, shape: tuple[int, ...], dtype: str
) -> None:
    with rehearsals(BLOCK_BYTES=256):
        check(spec.format(norm), *values(dtype, shape).values())


@pytest.mark.parametrize("size", [5, 24])
def test_groups_of_nearly_equal_values_stay_in_their_balls(size: int) -> None:
    """Compiled: a threshold that is off by a rounding is off for every value of its group."""
    rng = np.random.default_rng(0)
    p = projgen.build("l1(axis=1)")
    for spread in (0.0, 1e-7, 1e-5, 1e-3, 0.1):
        values = rng.uniform(0.5, 1, (1000, 1)) * (1 + spread * rng.standard_normal((1000, size)))
        y = values.astype(np.float32)
        for part in (1e-7, 1e-4, 0.01, 0.5, 0.999):
            radii = part * np.abs(y).sum(1, dtype=np.float64)
            assert_projected("l1(axis=1)", y, radii, p(y, radii))
