"""The oracle itself: against a slower one in plain Python, and against what theory says of it."""

import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from projgen.bind import Binding, bind
from projgen.check import parse_tree
from projgen.interpret import norm, project

Array = npt.NDArray[np.float64]
Index = tuple[int, ...]

CASES = [
    ("l1", (7,)),
    ("l2", (3, 4)),
    ("linf", (2, 3)),
    ("l1(linf)", (4, 3)),
    ("l1(linf(axis=0))", (4, 3)),
    ("l1(l2)", (4, 3)),
    ("l1(l1)", (4, 3)),
    ("l2(l1)", (3, 4)),
    ("l2(l2)", (3, 4)),
    ("l2(linf)", (3, 4)),
    ("linf(l1)", (3, 4)),
    ("linf(l2)", (3, 4)),
    ("linf(linf)", (3, 4)),
    ("l1(l2(linf))", (3, 2, 3)),
    ("l1(l1(l1))", (2, 3, 2)),
    ("linf(l1(l2(axis=0)))", (2, 3, 2)),
    ("l1(linf(axis=(1, 2, 3)))", (3, 2, 1, 2)),
    ("l1(linf(axis=(0, 2)))", (2, 3, 2)),
    ("l1(axis=-1)", (3, 4)),
    ("l1(linf(axis=2), axis=0)", (3, 2, 3)),
    ("l2(axis=1)", (2, 3, 2)),
]
EUCLIDEAN = [case for case in CASES if parse_tree(case[0]).is_euclidean]
NOT_EUCLIDEAN = [case for case in CASES if not parse_tree(case[0]).is_euclidean]


def bound(spec: str, rank: int) -> Binding:
    return bind(parse_tree(spec), rank)


# Small integers make ties and zeros; the wide range makes groups of very different sizes.
ELEMENTS = st.integers(-3, 3).map(float) | st.floats(-1e3, 1e3) | st.floats(-1e-6, 1e-6)


@st.composite
def problems(
    draw: st.DrawFn, cases: Iterable[tuple[str, tuple[int, ...]]] = tuple(CASES)
) -> tuple[Binding, Array]:
    spec, shape = draw(st.sampled_from(list(cases)))
    return bound(spec, len(shape)), draw(hnp.arrays(np.float64, shape, elements=ELEMENTS))


FRACTIONS = st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999]) | st.floats(1e-9, 1.0)


# The slower oracle: dicts from an index to a value, one group at a time, thresholds by bisection.


def slow_norm(name: str, group: Iterable[float]) -> float:
    return {"l1": math.fsum, "l2": lambda group: math.hypot(*group), "linf": max}[name](group)


def slow_ball(name: str, group: Mapping[Index, float], radius: float) -> dict[Index, float]:
    if slow_norm(name, group.values()) <= radius:
        return dict(group)
    if name == "linf":
        return {index: min(value, radius) for index, value in group.items()}
    if name == "l2":
        length = slow_norm("l2", group.values())
        return {index: value * (radius / length) for index, value in group.items()}
    assert name == "l1", name
    low, high = 0.0, max(group.values())
    for _ in range(200):
        threshold = (low + high) / 2
        excess = math.fsum(max(value - threshold, 0.0) for value in group.values()) - radius
        low, high = (threshold, high) if excess > 0 else (low, threshold)
    return {index: max(value - high, 0.0) for index, value in group.items()}


def slow_project(binding: Binding, y: Array, radius: float) -> Array:
    """One radius for all batch entries. Removing an axis from an index: put a 0 there."""

    def key(index: Index, axes: Index) -> Index:
        return tuple(0 if axis in axes else i for axis, i in enumerate(index))

    def groups(values: Mapping[Index, float], axes: Index) -> dict[Index, dict[Index, float]]:
        parts: dict[Index, dict[Index, float]] = {}
        for index, value in values.items():
            parts.setdefault(key(index, axes), {})[index] = value
        return parts

    values = [{index: abs(float(y[index])) for index in np.ndindex(y.shape)}]
    for level in reversed(binding.levels):
        parts = groups(values[-1], level.axes)
        values.append({to: slow_norm(level.norm, part.values()) for to, part in parts.items()})
    radii = dict.fromkeys(values.pop(), radius)
    for level in binding.levels:
        parts = groups(values.pop(), level.axes)
        shares = (slow_ball(level.norm, part, radii[to]) for to, part in parts.items())
        radii = dict(itertools.chain.from_iterable(share.items() for share in shares))
    x = np.zeros(y.shape)
    for index, value in radii.items():
        x[index] = math.copysign(value, y[index])
    return x


@given(problems(), FRACTIONS)
def test_agrees_with_the_slower_oracle(problem: tuple[Binding, Array], fraction: float) -> None:
    binding, y = problem
    radius = fraction * float(norm(binding, y).max())
    np.testing.assert_allclose(
        project(binding, y, radius),
        slow_project(binding, y, radius),
        rtol=1e-12,
        atol=1e-13 * np.abs(y).max(),
    )


@pytest.mark.parametrize(
    ("spec", "y", "radius", "x"),
    [
        ("l1", [3.0, -1.0, 0.5], 2.0, [2.0, 0.0, 0.0]),
        ("l1", [3.0, -2.0, 0.5], 3.0, [2.0, -1.0, 0.0]),
        ("l1", [1.0, 1.0, -1.0, 1.0], 2.0, [0.5, 0.5, -0.5, 0.5]),
        ("l2", [3.0, -4.0], 2.5, [1.5, -2.0]),
        ("linf", [3.0, -4.0, 1.0], 2.0, [2.0, -2.0, 1.0]),
        # Rows' maxima 4 and 2, shared out as 3 and 1.
        ("l1(linf)", [[4.0, -1.0], [2.0, -0.5]], 4.0, [[3.0, -1.0], [1.0, -0.5]]),
        # Columns' lengths 5 and 1, shared out as 2.5 and 0.
        ("l1(l2(axis=0))", [[3.0, 1.0], [-4.0, 0.0]], 2.5, [[1.5, 0.0], [-2.0, 0.0]]),
        # Rows' sums 4 and 3, shared out as 2 and 1. Flat, all three would lose 4/3.
        ("l1(l1)", [[2.0, -2.0], [3.0, 0.0]], 3.0, [[1.0, -1.0], [1.0, 0.0]]),
        # One projection for each row.
        ("l1(axis=1)", [[3.0, -1.0], [0.5, 0.5]], 2.0, [[2.0, 0.0], [0.5, 0.5]]),
    ],
)
def test_by_hand(spec: str, y: list[object], radius: float, x: list[object]) -> None:
    array = np.array(y)
    np.testing.assert_array_equal(project(bound(spec, array.ndim), array, radius), np.array(x))


@pytest.mark.parametrize(
    ("spec", "y", "value"),
    [
        ("l1(linf)", [[4.0, -1.0], [2.0, -0.5]], 6.0),
        ("l2(l1)", [[1.0, -2.0], [4.0, 0.0]], 5.0),
        ("linf(l2)", [[3.0, -4.0], [1.0, 0.0]], 5.0),
        ("l1(axis=0)", [[3.0, -4.0], [1.0, 0.0]], [4.0, 4.0]),
    ],
)
def test_norm_by_hand(spec: str, y: list[object], value: object) -> None:
    result = norm(bound(spec, 2), np.array(y))
    np.testing.assert_array_equal(result, np.array(value), strict=True)


@given(problems(), FRACTIONS)
def test_feasible_and_on_the_boundary(problem: tuple[Binding, Array], fraction: float) -> None:
    binding, y = problem
    radius = fraction * norm(binding, y)
    x = project(binding, y, radius)
    np.testing.assert_allclose(norm(binding, x), radius, rtol=1e-12)


@given(problems(), FRACTIONS)
def test_norms_add_up(problem: tuple[Binding, Array], fraction: float) -> None:
    """||y - x|| + ||x|| = ||y||: for each of the norms, and so level by level for any chain."""
    binding, y = problem
    x = project(binding, y, fraction * norm(binding, y))
    total = norm(binding, y)
    np.testing.assert_allclose(norm(binding, y - x) + norm(binding, x), total, rtol=1e-12)


@given(problems(), FRACTIONS)
def test_shrinks_towards_zero_and_keeps_signs(
    problem: tuple[Binding, Array], fraction: float
) -> None:
    binding, y = problem
    x = project(binding, y, fraction * norm(binding, y))
    assert np.all(np.abs(x) <= np.abs(y))
    assert np.all(np.signbit(x) == np.signbit(y))


def test_rounding_of_the_threshold_makes_nothing_larger() -> None:
    y = np.array([1.0, 0.1, 1e-6])
    x = project(bound("l1", 1), y, np.nextafter(y.sum(), 0.0))
    assert np.all(x <= y)
    assert np.any(x < y)


@given(problems(), FRACTIONS)
def test_projecting_again_changes_nothing(problem: tuple[Binding, Array], fraction: float) -> None:
    binding, y = problem
    radius = fraction * norm(binding, y)
    x = project(binding, y, radius)
    np.testing.assert_allclose(
        project(binding, x, radius), x, rtol=1e-12, atol=1e-14 * np.abs(y).max()
    )


@given(problems(), st.sampled_from([1.0, 1.5, np.inf]))
def test_inside_the_ball_nothing_changes(problem: tuple[Binding, Array], factor: float) -> None:
    binding, y = problem
    y.flat[0] = -0.0
    # A norm of 0 times infinity has no value; there the ball of radius 0 is as good.
    radius = np.where(norm(binding, y) > 0, norm(binding, y), 1.0) * factor
    assert project(binding, y, radius).tobytes() == y.tobytes()


@given(problems())
def test_radius_zero_gives_zeros_and_infinity_the_array(problem: tuple[Binding, Array]) -> None:
    binding, y = problem
    np.testing.assert_array_equal(project(binding, y, 0.0), np.zeros_like(y))
    np.testing.assert_array_equal(project(binding, y, np.inf), y)


def test_groups_inside_their_ball_are_unchanged_to_the_bit() -> None:
    y = np.array([[0.1, 0.7], [5.0, 6.0], [-0.3, 0.0]])
    x = project(bound("linf(l1)", 2), y, 1.0)
    assert x[[0, 2]].tobytes() == y[[0, 2]].tobytes()
    assert not np.array_equal(x[1], y[1])
    ends = np.array([[1.7e308, 1.0], [5e-324, -3e-320]])
    x = project(bound("linf(l1)", 2), ends, 1.0)
    assert x[1].tobytes() == ends[1].tobytes()


@given(problems(), FRACTIONS, st.integers(-800, 800))
def test_powers_of_two_come_out(
    problem: tuple[Binding, Array], fraction: float, power: int
) -> None:
    """The result does not depend on the scale of the array, to the bit."""
    binding, y = problem
    # Then every number is so far from the ends of float64 that the test itself rounds nothing.
    y = np.where(np.abs(y) < 1e-9, 0.0, y)
    radius = fraction * norm(binding, y)
    x = project(binding, y, radius)
    scaled = project(binding, np.ldexp(y, power), np.ldexp(radius, power))
    np.testing.assert_array_equal(scaled, np.ldexp(x, power))


@pytest.mark.parametrize(("spec", "shape"), CASES)
@pytest.mark.parametrize("size", [1.7e308, 1e200, 1e-200, 1e-310])
def test_no_overflow_or_underflow(spec: str, shape: tuple[int, ...], size: float) -> None:
    binding = bound(spec, len(shape))
    unit = np.random.default_rng(0).uniform(-1, 1, shape)
    y = unit * size
    with np.errstate(all="raise"):
        x = project(binding, y, size / 8)
    # Subnormal numbers have fewer digits.
    rtol = 1e-12 if size > 1e-300 else 1e-9
    np.testing.assert_allclose(x / size, project(binding, unit, 1 / 8), rtol=rtol, atol=rtol)


def test_small_groups_beside_large_ones_are_seen() -> None:
    """Squares of 1e-200 vanish; the group is not zero, and has no share."""
    y = np.array([[1.0, 1.0], [1e-200, 1e-200]])
    assert norm(bound("linf(l2(axis=1), axis=0)", 2), y[1:]) == pytest.approx(1.41421356e-200)
    x = project(bound("l1(l2)", 2), y, 0.5)
    np.testing.assert_array_equal(x[1], 0.0)


@pytest.mark.parametrize("radius", [1e-30, 1e-300])
def test_a_radius_far_below_the_array_keeps_its_digits(radius: float) -> None:
    y = np.array([0.3, 0.3, -0.3, 0.1])
    x = project(bound("l1", 1), y, radius)
    np.testing.assert_allclose(x, np.array([1, 1, -1, 0]) * (radius / 3), rtol=1e-15)


@given(hnp.arrays(np.float64, (3, 2, 4), elements=ELEMENTS), FRACTIONS)
def test_three_levels_with_two_maxima_are_two_levels(y: Array, fraction: float) -> None:
    three, two = bound("l1(linf(linf))", 3), bound("l1(linf)", 2)
    radius = fraction * norm(three, y)
    flat = project(two, y.reshape(3, 8), radius)
    assert project(three, y, radius).tobytes() == flat.tobytes()


def test_two_sums_are_not_one() -> None:
    y = np.array([[2.0, -2.0], [3.0, 0.0]])
    flat = project(bound("l1", 2), y, 3.0)
    np.testing.assert_allclose(flat, [[2 / 3, -2 / 3], [5 / 3, 0.0]])
    assert not np.allclose(project(bound("l1(l1)", 2), y, 3.0), flat)


@given(problems(EUCLIDEAN), FRACTIONS, st.integers(0, 2**32 - 1))
def test_euclidean_trees_project_on_the_nearest_point(
    problem: tuple[Binding, Array], fraction: float, seed: int
) -> None:
    """<y - x, z - x> <= 0 for all z of the ball: x is the nearest of them, and only then."""
    binding, y = problem
    radius = fraction * norm(binding, y)
    x = project(binding, y, radius)
    rng = np.random.default_rng(seed)
    size = max(np.abs(y).max(), 1e-300)
    axes = tuple(axis for axis in range(y.ndim) if axis not in binding.batch)
    for noise in (0.01, 1.0, 100.0):
        near = x + noise * rng.standard_normal(y.shape) * np.abs(x).max()
        for z in (near, np.where(rng.random(y.shape) < 0.5, near, 0.0)):
            inside = project(binding, z, radius)
            products = ((y - x) / size * ((inside - x) / size)).sum(axis=axes)
            assert np.all(products <= 1e-12)


@pytest.mark.parametrize(("spec", "shape"), NOT_EUCLIDEAN)
def test_other_trees_do_not(spec: str, shape: tuple[int, ...]) -> None:
    """For some array a point of the ball is nearer: the claim is no stronger than it must be."""
    binding = bound(spec, len(shape))
    rng = np.random.default_rng(1)
    for _ in range(20):
        y = rng.standard_normal(shape)
        radius = 0.5 * norm(binding, y)
        x = project(binding, y, radius)
        for _ in range(200):
            z = project(binding, x + 0.05 * (y - x) + 0.05 * rng.standard_normal(shape), radius)
            if np.linalg.norm(y - z) < 0.9999 * np.linalg.norm(y - x):
                return
    pytest.fail("no point was nearer")


@pytest.mark.parametrize(("spec", "shape"), CASES)
def test_batch_entries_are_projections_of_their_own(spec: str, shape: tuple[int, ...]) -> None:
    """Two extra axes, one in front and one behind, with a radius for each index along them."""
    rng = np.random.default_rng(2)
    binding = bound(spec, len(shape))
    rank = len(shape) + 2
    batched = bound(_with_axes(binding, shift=1), rank)
    assert batched.batch == (0, *(axis + 1 for axis in binding.batch), rank - 1)
    y = rng.standard_normal((2, *shape, 3)) * np.array([1.0, 1e-310, 1e307])
    inner = tuple(shape[axis] for axis in binding.batch)
    radius = norm(batched, y) * rng.uniform(0, 1.5, (2, *inner, 3))
    x = project(batched, y, radius)
    for i, j in np.ndindex(2, 3):
        alone = project(binding, y[i, ..., j], radius[i, ..., j])
        np.testing.assert_allclose(x[i, ..., j], alone, rtol=1e-13, atol=1e-322)


def _with_axes(binding: Binding, shift: int) -> str:
    """The spec that names every axis of the binding, moved by `shift`."""
    spec = ""
    for level in reversed(binding.levels):
        axes = tuple(axis + shift for axis in level.axes)
        spec = f"{level.norm}({spec + ', ' if spec else ''}axis={axes})"
    return spec


def test_radius_broadcasts_over_the_batch_axes() -> None:
    binding = bound("l1(axis=1)", 3)
    y = np.random.default_rng(3).standard_normal((2, 5, 3))
    for radius in (0.7, np.array([0.1, 0.5, 9.0]), np.array([[0.1], [3.0]])):
        full = np.broadcast_to(radius, (2, 3))
        np.testing.assert_array_equal(project(binding, y, radius), project(binding, y, full))
        x = project(binding, y, radius)
        np.testing.assert_allclose(norm(binding, x), np.minimum(norm(binding, y), full))


@pytest.mark.parametrize(
    ("spec", "shape", "batch"),
    [
        ("l1", (0,), ()),
        ("l1(linf)", (0, 4), ()),
        ("l1(linf)", (4, 0), ()),
        ("l1(l2(l1))", (2, 0, 3), ()),
        ("l1(axis=0)", (0, 4), (4,)),
        ("l2(axis=0)", (4, 0), (0,)),
        ("linf(l1(axis=1), axis=0)", (2, 0, 3), (3,)),
    ],
)
def test_axes_of_length_zero(spec: str, shape: tuple[int, ...], batch: tuple[int, ...]) -> None:
    binding = bound(spec, len(shape))
    y = np.zeros(shape)
    np.testing.assert_array_equal(norm(binding, y), np.zeros(batch))
    assert norm(binding, y).shape == batch
    for radius in (0.0, 1.0, np.inf):
        assert project(binding, y, radius).shape == shape


def test_float32_is_projected_in_float64() -> None:
    y = np.random.default_rng(4).standard_normal((4, 3)).astype(np.float32)
    binding = bound("l1(linf)", 2)
    assert project(binding, y, 1.0).dtype == np.float64
    np.testing.assert_array_equal(
        project(binding, y, 1.0), project(binding, y.astype(np.float64), 1.0)
    )


def test_the_array_is_not_written_and_the_result_is_new() -> None:
    y = np.array([[3.0, -1.0], [0.5, 0.25]])
    y.flags.writeable = False
    for radius in (1.0, np.inf):
        x = project(bound("l1(linf)", 2), y, radius)
        assert not np.shares_memory(x, y)
        assert x.flags.writeable


@pytest.mark.parametrize("radius", [-1.0, np.nan, [1.0, -1e-300], -np.inf])
def test_a_negative_or_nan_radius_is_refused(radius: object) -> None:
    with pytest.raises(ValueError, match="negative or NaN"):
        project(bound("l1(axis=0)", 2), np.ones((3, 2)), radius)  # type: ignore[arg-type]


def test_a_radius_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\).*batch axes' shape \(2,\)"):
        project(bound("l1(axis=0)", 2), np.ones((3, 2)), np.ones(3))
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        project(bound("l1", 2), np.ones((3, 2)), np.ones(1))


@pytest.mark.parametrize("shape", [(), (3,), (3, 2, 1)])
def test_an_array_of_another_rank_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rank 2"):
        norm(bound("l1", 2), np.ones(shape))
    with pytest.raises(ValueError, match="rank 2"):
        project(bound("l1", 2), np.ones(shape), 1.0)
