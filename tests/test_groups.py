"""One level of any norm: its kernels against the references, and what makes a point the nearest."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Array, early, lay_out, rehearsals, together

import projgen
from projgen.cpu.ball import Ball
from projgen.cpu.groups import GroupCall
from projgen.references import REFERENCES

BALLS = [
    Ball("l1"),
    Ball("l1", weighted=True),
    Ball("l2"),
    Ball("l2", weighted=True),
    Ball("linf"),
    Ball("linf", weighted=True),
    Ball("l0"),
    Ball("simplex"),
    *(Ball("lp", p) for p in (1.01, 1.5, 3.0, 50.0)),
    Ball("lp", 1.5, weighted=True),
    Ball("lp", 50.0, weighted=True),
    Ball("l1", nonneg=True),
    Ball("lp", 3.0, nonneg=True),
    Ball("linf", weighted=True, nonneg=True),
]
PARTS = st.sampled_from([0.0, 1e-9, 0.05, 0.3, 0.9, 1.0, 2.0])


def elements(a: Array) -> tuple[int, ...]:
    return tuple(stride // a.itemsize for stride in a.strides)


class Groups:
    """A call on an array, and its weights."""

    def __init__(
        self,
        ball: Ball,
        y: Array,
        axes: tuple[int, ...],
        weights: Array | None = None,
        out: Array | None = None,
        labels: Array | None = None,
        threads: int = 1,
    ) -> None:
        self.y, self.out, self.weights = y, out, weights
        ways = [None if a is None else elements(a) for a in (out, weights)]
        shape = y.shape, elements(y)
        form = "float64" if weights is None else weights.dtype.name
        self.call = GroupCall(ball, y.dtype.name, *shape, axes, *ways, labels, threads, form)
        self.own = 0 if weights is None else weights.ctypes.data

    def norms(self) -> Any:
        begun = self.call.begin(self.y.ctypes.data, self.own)
        values = self.call.values(begun)
        self.call.abandon(begun)
        return values

    def project(self, radii: Any) -> Array:
        target = self.y if self.out is None else self.out
        radii = np.broadcast_to(np.asarray(radii, np.float64), self.call.values_shape)
        begun = self.call.begin(self.y.ctypes.data, self.own)
        self.call.end(begun, self.y.ctypes.data, target.ctypes.data, radii, self.own)
        return target


def expected(
    ball: Ball, y: Array, axes: tuple[int, ...], part: float, weights: Array | None
) -> tuple[Array, Array, Array]:
    """The reference's values, radii that are a part of them, and its projection."""
    signed = np.maximum(y.astype(np.float64), 0) if ball.nonneg else y.astype(np.float64)
    a = signed if ball.norm == "simplex" else np.abs(signed)
    options: dict[str, Any] = {} if ball.p is None else {"p": ball.p}
    if weights is not None:
        options["weights"] = weights.astype(np.float64)
    reference = REFERENCES[ball.norm]
    values = reference.norm(a, axes, **options)
    radii = np.floor(values * part) if ball.norm == "l0" else values * part
    with np.errstate(over="ignore", under="ignore"):
        x = reference.ball(a, axes, radii, **options)
    if ball.norm == "simplex":
        return values, radii, x
    return values, radii, np.copysign(np.where(values <= radii, a, x), signed)


def assert_near(x: Array, reference: Array, y: Array) -> None:
    tolerance = 1e-10 if y.dtype == np.float64 else 1e-6
    error = np.abs(x.astype(np.float64) - reference).max(initial=0.0)
    assert error <= tolerance * np.abs(y).max(initial=1e-300), error


@st.composite
def problems(draw: st.DrawFn) -> tuple[Ball, Array, tuple[int, ...], Array | None]:
    ball = draw(st.sampled_from(BALLS))
    rank = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 5 if axis else 18)) for axis in range(rank))
    shape = tuple(draw(st.permutations(shape)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_normal(shape)
    if draw(st.booleans()):
        values = values.round()  # ties and zeros
    values = values * draw(st.sampled_from([1.0, 1e-30, 1e30]))
    values = values.astype(draw(st.sampled_from(["float64", "float32"])))
    steps = st.sampled_from([1, 1, 2, -1])
    y = lay_out(
        values, tuple(draw(st.permutations(range(rank)))), tuple(draw(steps) for _ in shape)
    )
    axes = tuple(sorted(draw(st.sets(st.integers(0, rank - 1), min_size=1))))
    weights = None
    if ball.weighted:
        weights = np.abs(rng.standard_normal(shape)).round(draw(st.integers(0, 1)))
        weights = weights.astype(draw(st.sampled_from(["float64", "float32"])))
        if draw(st.booleans()):
            weights = np.broadcast_to(weights[:1], shape)
    return ball, y, axes, weights


@given(problems(), PARTS, st.booleans())
@settings(max_examples=250)
def test_near_the_reference(problem: Any, part: float, in_place: bool) -> None:
    ball, y, axes, weights = problem
    values, radii, reference = expected(ball, y, axes, part, weights)
    before = y.copy()
    with rehearsals():
        # Steps of y and out agree in their signs; negative ones are walked in place.
        own = in_place or min(y.strides) < 0
        groups = Groups(ball, y, axes, weights, None if own else np.full_like(before, np.nan))
        found = groups.norms()
        np.testing.assert_allclose(found.reshape(values.shape), values, rtol=1e-10)
        x = groups.project(radii.reshape(found.shape))
    assert_near(x, reference, before)
    if not ball.nonneg and ball.norm != "simplex":
        inside = np.broadcast_to(found.reshape(values.shape) <= radii, x.shape)
        assert np.array_equal(x[inside], before[inside])
        assert np.all(np.abs(x) <= np.abs(before))
    if weights is not None and not ball.nonneg:
        assert np.array_equal(x[weights == 0], before[weights == 0])


def spread(n: int, decades: float, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return 10 ** rng.uniform(-decades, 0, (1, n)) * rng.choice([-1.0, 1.0], (1, n))


@pytest.mark.parametrize("p", [1.01, 1.5, 3.0, 50.0])
def test_lp_meets_the_conditions_of_the_nearest_point(p: float) -> None:
    """x + t x^(p - 1) = a for one t, and x on the ball: to 1e-10, however values are spread."""
    compared = 0
    with rehearsals():
        for scale in (1.0, 1e-290, 1e290):
            for part in (1e-12, 1e-3, 0.5, 0.999999):
                y = spread(40, 12) * scale
                groups = Groups(Ball("lp", p), y, (1,), out=np.empty_like(y))
                value = float(groups.norms()[0])
                x = np.abs(groups.project(part * value))[0] / scale
                a = np.abs(y[0]) / scale
                length = x.max() * ((x / x.max()) ** p).sum() ** (1 / p)
                assert abs(length * scale / (part * value) - 1) <= 1e-10
                # Where neither x nor a - x has lost its digits.
                clear = (x > 1e-200) & (x * scale > 1e-300) & (x < a * (1 - 1e-3))
                logs = np.log(a[clear] - x[clear]) - (p - 1) * np.log(x[clear])
                spread_of_t = logs.max(initial=-np.inf) - logs.min(initial=np.inf)
                assert spread_of_t <= 1e-9 * max(1.0, p), (scale, part)
                compared += len(logs) - 1 if len(logs) else 0
    assert compared > 10


@pytest.mark.parametrize("spread", [1.0, 8.0, 20.0])
def test_the_reference_of_weighted_l1_keeps_its_digits(spread: float) -> None:
    rng = np.random.default_rng(3)
    for part in (1e-9, 1e-3, 0.3, 0.999):
        a, w = np.exp(rng.uniform(-1, 1, 40)), np.exp(rng.uniform(-spread, spread, 40))
        radius = part * float(w @ a)
        pairs = [(Fraction(x), Fraction(y)) for x, y in zip(a, w, strict=True)]
        threshold = total = squares = Fraction(0)
        for value, weight in sorted(pairs, key=lambda pair: -pair[0] / pair[1]):
            total, squares = total + weight * value, squares + weight**2
            threshold = max(threshold, (total - Fraction(radius)) / squares)
        exact = [float(max(x - y * threshold, 0)) for x, y in pairs]
        found = REFERENCES["l1"].ball(a, (0,), np.array([radius]), weights=w)
        assert np.abs(found - exact).max() <= 1e-15 * a.max(), part
        assert float(w @ found) == pytest.approx(radius, rel=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_weighted_balls_meet_the_conditions_of_the_nearest_point(norm: str) -> None:
    rng = np.random.default_rng(1)
    y, w = rng.standard_normal((3, 50)), 10 ** rng.uniform(-4, 4, (3, 50))
    with rehearsals():
        groups = Groups(Ball(norm, weighted=True), y, (1,), w, np.empty_like(y))
        radii = 0.2 * groups.norms()
        x, a = np.abs(groups.project(radii)), np.abs(y)
    lengths = (w * x).sum(1) if norm == "l1" else np.sqrt(((w * x) ** 2).sum(1))
    np.testing.assert_allclose(lengths, radii, rtol=1e-10)
    for row in range(3):
        gap = (a - x)[row] / w[row]
        t = gap / np.where(x[row] > 0, x[row] * w[row], 1.0) if norm == "l2" else gap
        clear = (x[row] > 0) & (gap * w[row] > 1e-3 * a[row])
        assert np.ptp(np.log(t[clear])) <= 1e-9
        assert norm == "l2" or np.all(gap[x[row] == 0] <= t[clear].max() * (1 + 1e-9))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_weights_whose_squares_have_no_room_together(norm: str) -> None:
    w = 10.0 ** np.array([[-250, -80, -80, 0, 70, 70, 240, 240, 240, -400]])  # the last one is 0
    y = np.array([[2.0, 3.0, -1.0, 4.0, 3.0, 2.0, 1.0, -3.0, 2.0, 5.0]])
    compared = 0
    with rehearsals():
        for array, weights, axis in ((y, w, 1), (np.tile(y.T, 3), np.tile(w.T, 3), 0)):
            groups = Groups(
                Ball(norm, weighted=True), array, (axis,), weights, np.empty_like(array)
            )
            for radius in (1e-260, 1e-249, 1e-100, 1e-79, 0.1, 3.0, 1e69, 2e70, 1e239, 4e240):
                x = groups.project(radius)
                shape = [1 if i == axis else n for i, n in enumerate(array.shape)]
                radii, a = np.full(shape, radius), np.abs(array)
                reference = REFERENCES[norm].ball(a, (axis,), radii, weights=weights)
                assert_near(np.abs(x), reference, array)
                found = REFERENCES[norm].norm(np.abs(x), (axis,), weights=weights)
                assert np.all(found <= radii * (1 + 1e-9))
                compared += 1
    assert compared == 20


@pytest.mark.parametrize("part", [1e-7, 1e-3, 0.1, 0.6, 0.999])
@pytest.mark.parametrize("scale", [1.0, 1e-22, 1e-28, 1e22])
def test_searches_in_float32_are_as_near(part: float, scale: float) -> None:
    rng = np.random.default_rng(5)
    y = np.float32(rng.standard_normal((4, 700)).round(2) * scale)
    for decades in (0.3, 6, 18):
        w = np.float32(10 ** rng.uniform(-decades, decades, y.shape))
        w[0, ::3] = 0
        _, radii, reference = expected(Ball("l1", weighted=True), y, (1,), part, w)
        with rehearsals(), np.errstate(over="ignore", under="ignore"):
            groups = Groups(Ball("l1", weighted=True), y, (1,), w, np.empty_like(y))
            x = groups.project(radii.reshape(-1))
        assert_near(x, reference, y)
        lengths = (w.astype(np.float64) * np.abs(x)).sum(1, keepdims=True)
        assert np.all(lengths <= radii * (1 + 1e-6))


@pytest.mark.parametrize("ball", [Ball("l1", weighted=True), Ball("l1"), Ball("simplex")], ids=repr)
@pytest.mark.parametrize("axis", [0, 1])
def test_small_radii_are_met(ball: Ball, axis: int) -> None:
    y = np.random.default_rng(8).standard_normal((60, 60)) + 5.0
    w = np.random.default_rng(9).uniform(0.1, 1, y.shape) if ball.weighted else None
    for part in (1e-5, 1e-9, 1e-13):
        radius = part * 300
        with rehearsals():
            groups = Groups(ball, y, (axis,), w, np.empty_like(y))
            x = groups.project(radius)
        lengths = np.abs(x if w is None else w * x).sum(axis)
        np.testing.assert_allclose(lengths, radius, rtol=1e-10)


@pytest.mark.parametrize("n", [5, 9, 48, 49, 300])
def test_l0_keeps_the_first_of_equal_values(n: int) -> None:
    y = np.random.default_rng(n).integers(-3, 4, (4, n)).astype(np.float64)
    for y_way in (y, np.asfortranarray(y)):
        with rehearsals():
            groups = Groups(Ball("l0"), y_way, (1,), out=np.empty_like(y_way))
            for k in (0, 1, n // 2, n, n + 9):
                x = groups.project(float(k))
                for row, out in zip(y, x, strict=True):
                    kept = np.argsort(-np.abs(row), kind="stable")[:k]
                    assert np.array_equal(out, np.where(np.isin(np.arange(n), kept), row, 0))


@pytest.mark.parametrize("ball", [b for b in BALLS if b.norm != "simplex"], ids=repr)
def test_labels_are_groups_that_lie_anywhere(ball: Ball) -> None:
    rng = np.random.default_rng(2)
    labels = np.array([4, 0, 4, 2, 2, 0, 4, 0, 2])  # 1 and 3 have no element
    ragged = Ball(ball.norm, ball.p, ball.weighted, ball.nonneg, ragged=True)
    for axis, y in ((1, rng.standard_normal((20, 9))), (0, rng.standard_normal((9, 20)))):
        w = rng.uniform(0, 2, y.shape) if ball.weighted else None
        with rehearsals():
            groups = Groups(ragged, y, (axis,), w, np.full_like(y, np.nan), labels)
            values = groups.norms()
            assert values.shape == (20, 5)
            assert not values[:, [1, 3]].any()
            x = groups.project(np.floor(0.5 * values) if ball.norm == "l0" else 0.5 * values)
        for label in (0, 2, 4):
            mine = np.flatnonzero(labels == label)
            own, weights = y.take(mine, axis), None if w is None else w.take(mine, axis)
            total, _, reference = expected(ball, own, (axis,), 0.5, weights)
            np.testing.assert_allclose(values[:, label], total.reshape(-1), rtol=1e-10)
            assert_near(x.take(mine, axis), reference, own)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_labels_of_one_long_row(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut into pieces, each with sums of its own; squares that have no room, too."""
    monkeypatch.setattr("projgen.cpu.walks.BLOCK", 40)
    rng = np.random.default_rng(7)
    labels, y = rng.integers(0, 9, 3000), rng.standard_normal(3000)
    for label, scale in enumerate((1e-200, 1e200, 0.0, 1e-308, 1.0)):
        y[labels == label] *= scale
    results = []
    for team, threads in ((None, 1), (early, 3), (together, 3)):
        with rehearsals(team):
            out = np.full_like(y, np.nan)
            groups = Groups(Ball(norm, ragged=True), y, (0,), None, out, labels, threads)
            values = groups.norms()
            results.append(groups.project(0.5 * values).tobytes())
    assert len(set(results)) == 1
    assert groups.call._walk.cells["pieces"] > 9
    for label in range(9):
        own = y[labels == label]
        value, _, reference = expected(Ball(norm), own, (0,), 0.5, None)
        np.testing.assert_allclose(values[label], value[0], rtol=1e-10)
        assert_near(out[labels == label], reference, own)
    y[1234] = np.inf
    with rehearsals():
        assert groups.norms() is None


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("case", ["ordinary", "near ties", "large", "small", "alike", "zero"])
def test_products_that_float32_rounds_alike_are_told_apart(case: str, nonneg: bool) -> None:
    """The largest weighted value is exact, whichever parts of a row float32 finds it in."""
    rng = np.random.default_rng(13)
    y = rng.standard_normal((6, 700)).astype(np.float32)
    w = rng.uniform(0.1, 1, y.shape).astype(np.float32)
    if case == "near ties":  # of products that differ by less than float32 tells apart
        y = rng.uniform(1, 1 + 1e-5, y.shape).astype(np.float32)
        w = (1 / y).astype(np.float32)
    if case in ("large", "small"):
        scale = np.float32(1e30 if case == "large" else 1e-30)
        y, w = y * scale, w * scale
    if case in ("alike", "zero"):
        y = np.full_like(y, -2.5 if case == "alike" else 0)
        w = np.full_like(w, 0.3)
        y[0, 0] = w[1, -1] = 0
    with rehearsals():
        for n in (1, 2, 7, 128, 129, 700):
            own_y, own_w = y[:, :n].copy(), w[:, :n].copy()
            ball = Ball("linf", weighted=True, nonneg=nonneg)
            found = Groups(ball, own_y, (1,), own_w).norms()
            a = np.maximum(own_y, 0) if nonneg else np.abs(own_y)
            assert np.array_equal(found, (a.astype(np.float64) * own_w).max(1))
        for wrong in (np.nan, np.inf, -np.inf):
            y[2, 300] = wrong
            assert Groups(ball, y, (1,), w).norms() is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(50, 30), (7, 5, 4, 3), (5, 30, 6)])
@pytest.mark.parametrize("in_place", [False, True])
def test_columns_are_read_some_rows_at_a_time(
    dtype: str, shape: tuple[int, ...], in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of groups with one run of elements and with several, each of which threads share."""
    monkeypatch.setattr("projgen.cpu.walks.BLOCK", 40)
    monkeypatch.setattr("projgen.cpu.walks.WIDE", 8)
    rng = np.random.default_rng(14)
    axes = (0, 2) if len(shape) == 4 else (len(shape) - 2,)
    y = rng.standard_normal(shape).astype(dtype)
    w = rng.uniform(0.1, 1, shape).astype(np.float32)
    w[rng.random(shape) < 0.1] = 0
    ball, results = Ball("linf", weighted=True), []
    values, _, _ = expected(ball, y, axes, 1.0, w)
    radii = values * rng.choice([0.0, 1e-9, 0.3, 1.0, np.inf], values.shape)
    a, limits = np.abs(y), np.full(shape, np.inf)
    np.divide(radii, w, out=limits, where=(w > 0) & (values > radii))
    for team, threads in ((None, 1), (early, 3), (together, 3)):
        with rehearsals(team):
            own = y.copy()
            out = None if in_place else np.full_like(y, np.nan)
            groups = Groups(ball, own, axes, w, out, threads=threads)
            found = groups.norms()
            np.testing.assert_allclose(found, values.reshape(found.shape), rtol=1e-15)
            x = groups.project(radii.reshape(found.shape))
            results.append(x.tobytes())
    assert len(set(results)) == 1
    assert groups.call._walk.cells["pieces"] > 1
    assert np.all(np.abs(x) <= np.minimum(a, limits))
    np.testing.assert_allclose(
        x, np.copysign(np.minimum(a, limits), y), rtol=4e-7, atol=1e-45
    )  # limits are rounded down, twice


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [5, 80])
def test_a_search_starts_from_any_other_one(size: int, axis: int, dtype: str) -> None:
    """Of radii of all sizes, one after the other, and of groups of zeros between them."""
    rng = np.random.default_rng(15)
    shares = np.array([0.5, 1e-300, 0.5, 0, 0.9, 1e-12, 0, 1e-12, 0.999, 2, 1e-6, 0.5, 0.1, 1e-9])
    shares = np.tile(shares, 3)
    shape = (shares.size, size) if axis == 1 else (size, shares.size)
    y = rng.standard_normal(shape).astype(dtype)
    w = rng.uniform(0.01, 1, shape).astype(dtype)
    ball = Ball("l2", weighted=True)
    values, _, _ = expected(ball, y, (axis,), 1.0, w)
    radii = values * np.expand_dims(shares, axis)
    a = np.abs(y.astype(np.float64))
    x = REFERENCES["l2"].ball(a, (axis,), radii, weights=w.astype(np.float64))
    reference = np.copysign(np.where(values <= radii, a, x), y)
    with rehearsals():
        groups = Groups(ball, y, (axis,), w, np.full_like(y, np.nan))
        found = groups.norms()
        assert_near(groups.project(radii.reshape(found.shape)), reference, y)


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("part", [1 - 1e-13, 0.5])
def test_what_equal_weights_have_scaled_stays_where_it_is(part: float, weight: float) -> None:
    """Radii just below the length, and of what is on its ball: the search begins at its end."""
    ball, rng = Ball("l2", weighted=True), np.random.default_rng(3)
    with rehearsals():
        for size in (20, 50, 300, 3000):
            y = rng.standard_normal((4, size))
            w, most = np.full_like(y, weight), np.abs(y).max()
            _, radii, reference = expected(ball, y, (1,), part, w)
            once = Groups(ball, y, (1,), w, np.empty_like(y)).project(radii.ravel())
            twice = Groups(ball, once, (1,), w, np.empty_like(y)).project(radii.ravel())
            assert np.abs(once - reference).max() <= 1e-12 * most
            assert np.abs(twice - once).max() <= 1e-13 * most


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ball", BALLS, ids=repr)
def test_what_is_not_finite_is_noticed(ball: Ball, value: float) -> None:
    with rehearsals():
        for axes in ((1,), (0,)):
            y = np.ones((3, 20))
            w = np.zeros_like(y) if ball.weighted else None
            groups = Groups(ball, y, axes, w)
            assert groups.norms() is not None
            y[1, 7] = value
            assert groups.norms() is None


def test_empty_arrays() -> None:
    with rehearsals():
        assert np.array_equal(Groups(Ball("lp", 3.0), np.zeros((4, 0)), (1,)).norms(), np.zeros(4))
        assert Groups(Ball("l0"), np.zeros((0, 4)), (1,)).norms().shape == (0,)
        none = np.zeros(0, np.int64)
        ragged = Ball("l2", ragged=True)
        assert Groups(ragged, np.zeros((3, 0)), (1,), labels=none).norms().shape == (3, 0)


@pytest.mark.parametrize("team", [early, together])
def test_a_rehearsed_team(team: Any) -> None:
    y = np.random.default_rng(3).standard_normal((40, 900))
    ball = Ball("l1", nonneg=True)
    results = []
    for threads in (1, 2, 7):
        with rehearsals(team):
            groups = Groups(ball, y, (1,), out=np.full_like(y, np.nan), threads=threads)
            results.append(groups.project(5.0).tobytes())
    assert len(set(results)) == 1


def halved_lp(a: Array, radii: Array, p: float) -> Any:
    """The nearest points of lp balls, rows of `a`, by halving brackets alone: in logarithms, and in
    the widest float that there is."""
    wide = np.longdouble
    logs, goal = np.log(a.astype(wide)), np.log(radii.astype(wide))[:, None]

    def halved(above: Any, low: Any, high: Any) -> Any:
        for _ in range(80):
            middle = (low + high) / 2
            low, high = np.where(above(middle), low, middle), np.where(above(middle), middle, high)
        return (low + high) / 2

    def depths(t: Any) -> Any:  # z with exp(z) + exp(c + (p - 1) z) = 1
        c = t + (wide(p) - 2) * logs
        top = np.minimum(wide(0), -c / (wide(p) - 1))
        return halved(
            lambda z: np.exp(z) + np.exp(c + (wide(p) - 1) * z) > 1, top - 1 - 1 / wide(p - 1), top
        )

    def shorter(t: Any) -> Any:
        powers = wide(p) * (logs + depths(t))
        most = powers.max(1, keepdims=True)
        return (np.log(np.exp(powers - most).sum(1, keepdims=True)) + most) / wide(p) < goal

    bound = np.full_like(goal, 3000)
    return np.exp(logs + depths(halved(shorter, -bound, bound)))


@pytest.mark.parametrize("p", [1.01, 1.5, 3.0, 50.0])
def test_compiled_lp_keeps_the_digits_of_every_entry(p: float) -> None:
    """To 1e-10 of each entry, however small; for p from 1.5 on to 1e-13."""
    rng = np.random.default_rng(12)
    a = 10 ** (rng.uniform(-1, 0, (8, 30)) * np.repeat([0.5, 6], 4)[:, None])
    groups = Groups(Ball("lp", p), a, (1,), out=np.empty_like(a))
    radii = groups.norms() * np.tile([1e-6, 0.1, 0.7, 0.999], 2)
    x, exact = groups.project(radii), halved_lp(a, radii, p)
    seen = exact > 1e-290
    assert seen.sum() > 100
    error = np.abs(x[seen] / exact[seen] - 1).max()
    assert error <= (1e-13 if p >= 1.5 else 1e-10), error


COMPILED = [  # columns of lp are copied, and then solved as rows are
    (Ball("lp", 1.5), 0),
    *((ball, axis) for ball in (Ball("l1", weighted=True), Ball("l0")) for axis in (0, 1)),
]


def test_compiled_ranks_of_short_groups() -> None:
    """Of every 4 neighbours the 2 largest, of equal ones the first; and -0.0 stays as it is."""
    y = np.random.default_rng(6).integers(-3, 4, (500, 30, 4)).astype(np.float32)
    y[y == 0] = -0.0
    order = np.argsort(-np.abs(y), axis=2, kind="stable")
    ranks = np.argsort(order, axis=2)
    for threads in (1, 2):
        groups = Groups(Ball("l0"), y, (2,), out=np.full_like(y, np.nan), threads=threads)
        assert groups.project(2.0).tobytes() == np.where(ranks < 2, y, 0 * y).tobytes()
        assert np.array_equal(groups.norms(), np.count_nonzero(y, axis=2))
    assert "before3" in groups.call._walk.kernel.source
    y[3, 3, 3] = np.inf
    assert groups.norms() is None


@pytest.mark.parametrize(("ball", "axis"), COMPILED, ids=repr)
def test_compiled(ball: Ball, axis: int) -> None:
    """Against the reference; and the same bits whatever the threads."""
    y = np.random.default_rng(4).standard_normal((400, 300)).astype(np.float32)
    w = np.abs(np.random.default_rng(5).standard_normal(y.shape)) if ball.weighted else None
    _, radii, reference = expected(ball, y, (axis,), 0.3, w)
    results = []
    for threads in (1, 2, 7):
        groups = Groups(ball, y, (axis,), w, np.full_like(y, np.nan), threads=threads)
        for _ in range(4):
            results.append(groups.project(radii.reshape(-1)).copy())
    assert_near(results[0], reference, y)
    assert len({x.tobytes() for x in results}) == 1
    spoilt = y.copy()
    spoilt[17, 33] = np.nan
    assert Groups(ball, spoilt, (axis,), w, np.empty_like(y)).norms() is None


STRIPS = [
    Ball("l1", weighted=True),
    Ball("l1", nonneg=True),
    Ball("l2", weighted=True),
    Ball("simplex"),
    Ball("lp", 1.5, weighted=True),
    Ball("lp", 3.0),
    Ball("l0"),
]


@pytest.mark.parametrize("ball", STRIPS, ids=repr)
@pytest.mark.parametrize("form", ["float32", "float64"])
def test_columns_are_copied_or_turned_into_rows_and_back(ball: Ball, form: str) -> None:
    """Whole squares of 16 or 8, and what is left; weights of another type, or of rows."""
    rng = np.random.default_rng(6)
    other = {"float32": "float64", "float64": "float32"}[form]
    for shape, dtype in (((70, 37), form), ((64, 16), form), ((3, 70, 19), form)):
        y, axes = rng.standard_normal(shape).astype(dtype), (len(shape) - 2,)
        own: list[Array | None] = [None]
        if ball.weighted:
            w = rng.uniform(0, 1, shape).round(1)
            own = [w.astype(form), w.astype(other), np.broadcast_to(w[..., :1], shape)]
        for weights in own:
            _, radii, reference = expected(ball, y, axes, 0.4, weights)
            for in_place in (False, True):
                with rehearsals():
                    given = y.copy()
                    out = None if in_place else np.full_like(y, np.nan)
                    groups = Groups(ball, given, axes, weights, out)
                    found = groups.norms()
                    x = groups.project(radii.reshape(found.shape))
                assert_near(x, reference, y)
    kernel = groups.call._walk.kernel
    assert kernel.gathers or kernel.surveyed


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("form", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_whose_terms_leave_the_range_of_float32(norm: str, form: str, axis: int) -> None:
    """Products and squares of weights and values, each of which has room there."""
    rng = np.random.default_rng(15)
    ball = Ball(norm, weighted=True)
    for size, weight, decades in (
        (1e-30, 1e-13, 3.0),
        (1e-6, 1e-6, 0.3),
        (1e-4, 1e-8, 0.3),
        (1e3, 1e-8, 4.0),
        (1e-30, 1e12, 1.0),
        (1e15, 1e30, 3.0),
    ):
        y = (rng.standard_normal((140, 18)) * size).astype("float32")
        w = (10 ** rng.uniform(-decades, decades, y.shape) * weight).astype(form)
        y, w = (y, w) if axis == 0 else (y.T.copy(), w.T.copy())
        for part in (1e-7, 1e-3, 0.5):
            _, radii, reference = expected(ball, y, (axis,), part, w)
            with rehearsals():
                groups = Groups(ball, y, (axis,), w, np.full_like(y, np.nan))
                groups.norms()
                x = groups.project(radii.reshape(-1))
            assert_near(x, reference, y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "ball",
    [
        Ball("l1", weighted=True),
        Ball("l2", weighted=True),
        Ball("simplex"),
        Ball("l0"),
    ],
    ids=repr,
)
def test_long_groups_start_from_some_of_their_values(ball: Ball, dtype: str) -> None:
    """Even where these say nothing of the others."""
    n = 65536
    rng = np.random.default_rng(12)
    spiked = np.zeros(n)
    spiked[600::4096] = rng.uniform(1, 2, 16)  # where nothing is looked at
    spiked[5] = 1e-3
    for y in (rng.standard_normal(n).astype(dtype), spiked.astype(dtype)):
        w = rng.uniform(0.1, 1, n).astype(dtype) if ball.weighted else None
        _, radii, reference = expected(ball, y, (0,), 0.2, w)
        with rehearsals():
            x = Groups(ball, y, (0,), w, np.full_like(y, np.nan)).project(radii.reshape(()))
        assert_near(x, reference, y)


@pytest.mark.parametrize("p", [1.5, 3.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("part", [1e-40, 1e-5, 0.3, 0.985, 1 - 1e-7])
def test_roots_of_quadratics_are_as_near(p: float, dtype: str, part: float) -> None:
    """Where sums have to leave float32 as well, and where the quadratic has no room for numbers."""
    rng = np.random.default_rng(4)
    for scale, decades in ((1.0, 0), (1e-30, 3), (1e30, 12)):
        y = (rng.standard_normal((3, 90)) * scale).astype(dtype)
        w = (10 ** rng.uniform(-decades, 0, y.shape)).astype(dtype)
        w[0, ::3] = 0
        _, radii, reference = expected(Ball("lp", p, True), y, (1,), part, w)
        with rehearsals():
            groups = Groups(Ball("lp", p, True), y, (1,), w, np.empty_like(y))
            x = groups.project(radii.reshape(-1))
        assert_near(x, reference, y)
        assert np.array_equal(x[w == 0], y[w == 0])
        assert np.all(np.abs(x) <= np.abs(y))


def test_counting_for_l0_ends_at_ties_and_at_the_ends() -> None:
    rng = np.random.default_rng(13)
    for n in (60, 3000):
        for row in (
            rng.standard_normal(n),
            np.ones(n),
            np.where(np.arange(n) % 3 == 0, 5e-324, -1.7e308),
            rng.integers(-2, 3, n).astype(float),
        ):
            y = np.stack([row, row[::-1], np.abs(row)])
            for dtype in ("float64", "float32")[: 2 if n < 100 else 1]:
                with np.errstate(over="ignore", under="ignore"):
                    z = np.clip(y, -3e38, 3e38).astype(dtype)
                with rehearsals():
                    groups = Groups(Ball("l0"), z, (1,), out=np.empty_like(z))
                    results = {k: groups.project(float(k)).copy() for k in (0, 1, n // 3, n - 1)}
                for k, x in results.items():
                    for before, after in zip(z, x, strict=True):
                        kept = np.argsort(-np.abs(before), kind="stable")[:k]
                        wanted = np.where(np.isin(np.arange(n), kept), before, 0)
                        assert np.array_equal(after, wanted)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_labelled_elements_are_turned_into_columns(dtype: str, nonneg: bool) -> None:
    """Two tiles of rows, the second of which is not full, and elements beside whole squares."""
    rng = np.random.default_rng(14)
    ball = Ball("l1", nonneg=nonneg, ragged=True)
    for shape in ((83, 37), (2, 18, 16)):
        labels = rng.integers(0, 5, shape[-1])
        before = rng.standard_normal(shape).astype(dtype)
        for in_place in (False, True):
            y = before.copy()
            with rehearsals():
                out = None if in_place else np.full_like(y, np.nan)
                groups = Groups(ball, y, (len(shape) - 1,), None, out, labels)
                values = groups.norms()
                radii = values * rng.choice([0.0, 1e-8, 0.3, 1.0], values.shape)
                x = groups.project(radii)
            assert groups.call._walk.kernel.crossed
            for label in range(5):
                own = before[..., labels == label]
                a = np.maximum(own, 0) if nonneg else np.abs(own)
                a, u = a.astype(np.float64), radii[..., label, None]
                outside = values[..., label, None] > u
                reference = np.where(outside, REFERENCES["l1"].ball(a, (-1,), u), a)
                assert_near(np.abs(x[..., labels == label]), reference, before)
        before[-1, -1] = np.nan
        with rehearsals():
            assert Groups(ball, before, (len(shape) - 1,), labels=labels).norms() is None


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_labelled_elements_are_read_together(dtype: str, norm: str) -> None:
    """Whole tiles of rows and one that is not, squares and elements beside them, far ranges."""
    rng = np.random.default_rng(15)
    for shape, scale in (((83, 37), 1.0), ((2, 18, 16), 1.0), ((16, 19), 1e-30), ((16, 19), 1e30)):
        labels = rng.integers(0, 5, shape[-1])
        labels[labels == 3] = 2  # one has no elements
        before = (scale * rng.standard_normal(shape)).astype(dtype)
        before[..., 3, :] *= 0
        if dtype == "float64":
            before[..., 4, :] *= scale**9  # their squares have no room
        for in_place in (False, True):
            y = before.copy()
            with rehearsals():
                out = None if in_place else np.full_like(y, np.nan)
                groups = Groups(Ball(norm, ragged=True), y, (len(shape) - 1,), None, out, labels)
                values = groups.norms()
                radii = values * rng.choice([0.0, 1e-8, 0.3, 1.0], values.shape)
                x = groups.project(radii)
            assert groups.call._walk.kernel.spread and groups.call._walk.kernel.lanes == 8
            for label in range(5):
                own = before[..., labels == label].astype(np.float64)
                u = radii[..., label, None]
                found = REFERENCES[norm].norm(np.abs(own), (-1,))[..., 0] if own.size else 0.0
                assert np.allclose(
                    values[..., label], found, rtol=1e-12 if dtype == "float64" else 1e-6, atol=0
                )
                outside = values[..., label, None] > u
                reference = np.where(
                    outside, REFERENCES[norm].ball(np.abs(own), (-1,), u), np.abs(own)
                )
                assert_near(np.abs(x[..., labels == label]), reference, before)
        for bad in (np.nan, np.inf):
            before[-1, -2] = bad
            with rehearsals():
                assert (
                    Groups(
                        Ball(norm, ragged=True), before, (len(shape) - 1,), labels=labels
                    ).norms()
                    is None
                )


@pytest.mark.parametrize("p", [1.5, 3.0])
@pytest.mark.parametrize(("dtype", "nonneg"), [("float32", False), ("float64", True)])
def test_groups_of_lp_side_by_side(p: float, dtype: str, nonneg: bool) -> None:
    """Labelled rows, turned and not, and short columns: ties, zeros, groups of 1 and 2, all ranges;
    radii from 0 to beyond the value, and the values themselves."""
    rng = np.random.default_rng(16)
    for scale in (1.0, 1e-200, 1e90) if dtype == "float64" else (1.0, 1e-36, 1e30):
        for axis, lanes in ((0, 256), (1, 64)):
            y = rng.standard_normal((41, 19))
            y[:, 5], y[:, 6], y[:, 7] = 0, y[0, 6], y[:, 7].round()
            labels = np.concatenate([[4, 3, 3], rng.integers(0, 3, 38)])
            before = (scale * (y if axis == 0 else y.T.repeat(2, 0))).astype(dtype)
            ball = Ball("lp", p, nonneg=nonneg, ragged=True)
            for part in (0.0, 1e-7, 0.3, 0.95, 1 - 1e-6, 1.5):
                y, out = before.copy(), None if part > 0.5 else np.full_like(before, np.nan)
                with rehearsals():
                    groups = Groups(ball, y, (axis,), None, out, labels)
                    values = groups.norms()
                    radii = values * part
                    radii[..., -1] = np.inf
                    x = groups.project(radii)
                kernel = groups.call._walk.kernel
                assert kernel.abreast and kernel.lanes == lanes
                for label in range(4):
                    own = np.moveaxis(before, axis, 1)[:, labels == label].astype(np.float64)
                    mine = np.moveaxis(x, axis, 1)[:, labels == label].astype(np.float64)
                    a, u = np.maximum(own, 0) if nonneg else np.abs(own), radii[:, label, None]
                    norm, project = REFERENCES["lp"].norm, REFERENCES["lp"].ball
                    np.testing.assert_allclose(values[:, label, None], norm(a, (1,), p=p), 1e-12)
                    inside = values[:, label, None] <= u
                    with np.errstate(over="ignore", under="ignore"):
                        reference = np.where(inside, a, project(a, (1,), u, p=p))
                    assert_near(np.abs(mine), reference, before)
                    found = norm(np.abs(mine), (1,), p=p)
                    slack = (1e-6 if dtype == "float32" else 1e-11) * values[:, label, None]
                    assert (found <= u + slack + 1e-44).all()
                    assert np.array_equal(mine[inside[:, 0]], (a if nonneg else own)[inside[:, 0]])
                assert np.array_equal(
                    np.moveaxis(x, axis, 1)[:, labels == 4],
                    np.moveaxis(np.maximum(before, 0) if nonneg else before, axis, 1)[
                        :, labels == 4
                    ],
                )
            before.flat[-1] = np.inf if scale > 1 else np.nan
            with rehearsals():
                assert Groups(ball, before, (axis,), labels=labels).norms() is None
        with rehearsals():
            y = (scale * rng.standard_normal((3, 9, 21))).astype(dtype)
            _, radii, reference = expected(Ball("lp", p, nonneg=nonneg), y, (1,), 0.4, None)
            groups = Groups(Ball("lp", p, nonneg=nonneg), y, (1,), None, np.full_like(y, np.nan))
            assert_near(groups.project(radii.reshape(3, 21)), reference, y)
            assert groups.call._walk.kernel.abreast


@pytest.mark.parametrize("axis", [0, 1])
def test_compiled_lp_of_labels(axis: int) -> None:
    """The nearest points, and the same bits whatever the threads."""
    rng = np.random.default_rng(17)
    y, labels = rng.standard_normal((700, 700)).astype(np.float32), rng.integers(0, 30, 700)
    results = []
    for threads in (1, 2, 7):
        ball, out = Ball("lp", 1.5, ragged=True), np.full_like(y, np.nan)
        groups = Groups(ball, y, (axis,), None, out, labels, threads)
        for _ in range(3):
            results.append(groups.project(0.3 * groups.norms()).copy())
    assert len({x.tobytes() for x in results}) == 1
    for label in (0, 29):
        own = np.moveaxis(y, axis, 1)[:, labels == label].astype(np.float64)
        mine = np.moveaxis(results[0], axis, 1)[:, labels == label]
        _, _, reference = expected(Ball("lp", 1.5), own, (1,), 0.3, None)
        assert_near(mine, reference, mine)


# Searches that begin where the last group's ended


@pytest.mark.parametrize("norm", ["l1", "l2", "lp(p=3)"])
@pytest.mark.parametrize("decades", [3, 8])
def test_weights_of_very_different_sizes(norm: str, decades: int) -> None:
    """A guess that is far off leaves no trace: long steps are rounded by too much to end with."""
    rng = np.random.default_rng(decades)
    name = norm.partition("(")[0]
    inner = norm.removeprefix(name).strip("()")
    with rehearsals():
        shapes = (1, (200, 2)), (0, (2, 200)), (1, (30, 40)), (0, (40, 30)), (0, (70, 40))
        for axis, shape in shapes:
            spec = f"{name}({', '.join(filter(None, [f'axis={axis}', 'w=w', inner]))})"
            y = rng.standard_normal(shape)
            w = 10.0 ** rng.uniform(-decades, decades, shape)
            p, oracle = projgen.build(spec), projgen.build(spec, backend="numpy")
            norms = np.asarray(p.norm(y, w=w))
            radius = norms * rng.uniform(0, 1, norms.shape) ** 3
            x, wanted = p(y, radius, w=w), oracle(y, radius, w=w)
            assert np.abs(x - wanted).max() <= 1e-12 * np.abs(y).max()
            assert np.all(np.asarray(oracle.norm(x, w=w)) <= radius * (1 + 1e-9))


@pytest.mark.parametrize("size", [130, 700])
def test_a_simplex_far_above_its_values(size: int) -> None:
    y = np.random.default_rng(size).standard_normal((3, size)).astype(np.float32)
    with rehearsals():
        for radius in (1e4, 1e6, 1e10):
            x = projgen.build("simplex(axis=1)")(y, radius)
            # Rehearsals add up one value after the other: machine code is a hundred times as near.
            assert np.abs(x.sum(axis=1, dtype=np.float64) / radius - 1).max() <= 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_simplex_near_the_end_of_its_types_range(dtype: str) -> None:
    top = float(np.finfo(dtype).max)
    ys = [
        np.array([1, 2, 3, -4], dtype),
        np.array([0.9, 0.3, -0.9, 0.6], dtype) * np.array(top, dtype),
    ]
    with rehearsals():
        for y in ys:
            for part in (1e-3, 0.05, 0.9):
                x = projgen.build("simplex")(y, part * top)
                exact = np.array(y, np.longdouble)
                ends = np.sort(exact)[::-1]
                counts = np.arange(1, y.size + 1)
                t = ((np.cumsum(ends) - np.longdouble(part * top)) / counts).max()
                wanted = np.maximum(exact - t, 0)
                assert np.abs(x - wanted).max() <= 4 * np.finfo(dtype).eps * top * part
                oracle = projgen.build("simplex", backend="numpy")(y, part * top)
                assert np.abs(oracle - wanted).max() <= 4 * np.finfo(dtype).eps * top * part


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [1.003, 1.2, 2.2, 7.0, 300.0])
def test_lp_without_a_formula_is_as_near(p: float, dtype: str) -> None:
    rng = np.random.default_rng(int(100 * p))
    y = rng.standard_normal((3, 40)).astype(dtype)
    w = rng.uniform(0.1, 2, y.shape).astype(dtype)
    near = 1e-6 if dtype == "float32" else 1e-12
    with rehearsals():
        for spec, given in ((f"lp(p={p}, axis=1)", {}), (f"lp(p={p}, axis=1, w=w)", {"w": w})):
            kernel, oracle = projgen.build(spec), projgen.build(spec, backend="numpy")
            for part in (0.01, 0.4, 0.97):
                radius = part * np.asarray(oracle.norm(y.astype(np.float64), **given))
                wanted = oracle(y.astype(np.float64), radius, **given)
                assert np.abs(kernel(y, radius, **given) - wanted).max() <= near * np.abs(y).max()


@pytest.mark.parametrize("more", [1e-7, 1e-10, 1e-14])
def test_lp_next_to_l1(more: float) -> None:
    """Its elements' equations are as good as steps there: they were once left half solved."""
    rng = np.random.default_rng(15)
    y = rng.standard_normal((3, 40))
    y[1] **= 3
    w = rng.uniform(0.1, 2, y.shape)
    p = 1 + more
    with rehearsals():
        for spec, given in ((f"lp(p={p!r}, axis=1)", {}), (f"lp(p={p!r}, axis=1, w=w)", {"w": w})):
            kernel, oracle = projgen.build(spec), projgen.build(spec, backend="numpy")
            for part in (0.01, 0.1, 0.5, 0.9):
                radius = part * np.asarray(oracle.norm(y, **given))
                x = kernel(y, radius, **given)
                assert np.abs(x - oracle(y, radius, **given)).max() <= 1e-12 * np.abs(y).max()
                assert np.all(oracle.norm(x, **given) <= radius * (1 + 1e-13))


@pytest.mark.parametrize("p", [1.00001, 1.001])
def test_compiled_lp_next_to_l1_of_long_groups(p: float) -> None:
    """Where what z may still take off is more than a length is off by, t has to wait for z."""
    rng = np.random.default_rng(300)
    y = rng.standard_normal((60, 300))
    w = rng.uniform(0.1, 2, y.shape)
    spec = f"lp(p={p!r}, axis=1, w=w)"
    kernel, oracle = projgen.build(spec), projgen.build(spec, backend="numpy")
    norms = oracle.norm(y, w=w)
    for part in (0.01, 0.1, 0.4, 0.63, 0.9):
        x = kernel(y, part * norms, w=w)
        assert np.abs(x - oracle(y, part * norms, w=w)).max() <= 1e-12 * np.abs(y).max()


def test_lp_where_the_length_hardly_depends_on_t() -> None:
    """Just inside the norm, with a small value that is heavy: t cannot be told as well as usual."""
    rng = np.random.default_rng(9)
    y = rng.standard_normal((400, 1500)) * 10 ** rng.uniform(-3, 3, (400, 1500))
    w = np.full(y.shape, 1e-5)
    w[range(400), rng.integers(0, 1500, 400)] = 1
    p, oracle = (projgen.build("lp(p=1.2, axis=1, w=w)", backend=b) for b in ("cpu", "numpy"))
    norms = oracle.norm(y, w=w)
    radii = norms * (1 - 10 ** rng.uniform(-8, -3, 400))
    x = p(y, radii, w=w)
    assert np.abs(oracle.norm(x, w=w) / radii - 1).max() <= 1e-13


def test_searches_end_whatever_the_weights() -> None:
    """Also where they are too far apart for float64 to say what is left."""
    p = projgen.build("l1(w=w)")
    for y, w in (
        ([1e-300, 1e200, 0.5e200], [1e300, 1e-200, 1e-200]),
        ([1.0, 2.0, 3.0], [2.8e-126, 3.1e129, 6.5e-136]),
    ):
        x = p(np.array(y), 1.5, w=np.array(w))
        assert np.all((x >= 0) & (x <= y))


def test_weights_are_looked_at_in_the_type_that_is_read() -> None:
    p = projgen.build("l1(w=w)")
    y, w = np.array([1.0, -2.0, 3.0]), np.array([0.5, 1.0, 2.0])
    for own in (w, memoryview(w), memoryview(w.astype(np.float32)), w.astype(np.longdouble)):
        assert np.array_equal(p(y, 1.5, w=own), p(y, 1.5, w=w))
    if np.finfo(np.longdouble).max > np.finfo(np.float64).max:
        with pytest.raises(ValueError, match="negative or not finite"):
            p(y, 1.5, w=np.full(3, np.longdouble("1e4000")))


BAD = (-1e-30, -np.inf, np.inf, np.nan)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("labels", ["", ", groups=q"])
def test_what_is_no_weight_is_found_wherever_it_is(norm: str, axis: int, labels: str) -> None:
    """By the kernel, which is not asked to look for -0.0, a weight like 0."""
    rng = np.random.default_rng(axis)
    p = projgen.build(f"l1({norm}(axis={axis}{labels}, w=w))")
    given = {"q": np.arange(70 if axis == 1 else 66) % 3} if labels else {}
    with rehearsals():
        for dtype, own, order in (
            ("f4", "f4", "C"),
            ("f8", "f8", "F"),
            ("f4", "f8", "C"),
            ("f2", "f4", "C"),
        ):
            y = np.asarray(rng.standard_normal((66, 70)), dtype, order=order)
            w = np.asarray(rng.uniform(0.1, 1, y.shape), own, order=order)
            out = np.full_like(y, 7)
            for bad in BAD:
                i, j = rng.integers(66), rng.integers(70)
                y[i, j], w[i, j], good = 0, bad, w[i, j]
                with pytest.raises(ValueError, match="'w' has weights that are negative or not"):
                    p(y, 1.0, out=out, w=w, **given)
                w[i, j] = good
            assert np.all(out == 7)
            narrow = np.asarray(rng.uniform(0.1, 1, 70), own)
            narrow[69] = -1
            with pytest.raises(ValueError, match="'w' has weights that are negative or not"):
                p(y, 1.0, out=out, w=narrow, **given)
            w[3, 5], w[60, 69] = 0, 0
            wanted = p(y, 1.0, w=w, **given)
            w[3, 5], w[60, 69] = -0.0, -0.0
            np.testing.assert_array_equal(p(y, 1.0, w=w, **given), wanted)


SWEEPS = ["l1(axis=0", "l1(axis=1", "linf(axis=1, groups=q", "l2(axis=0", "linf(axis=0"]


@pytest.mark.parametrize(
    "level", [s if i < 3 else pytest.param(s, marks=pytest.mark.slow) for i, s in enumerate(SWEEPS)]
)
def test_compiled_sweeps_find_what_is_no_weight(level: str) -> None:
    """In calls after the first, whose weights are looked at before there is a kernel."""
    p = projgen.build(f"l1({level}, w=w))")
    given = {"q": np.arange(40) % 3} if "groups" in level else {}
    y = np.random.default_rng(5).standard_normal((48, 40)).astype(np.float32)
    w, out = np.ones(y.shape, np.float32), np.full_like(y, 7)
    kept = p(y, 1.0, w=w, **given)
    for i, j, bad in ((0, 0, -1.0), (47, 39, -1e-30), (20, 7, -1e30), (3, 33, np.nan)):
        for weights in (w, w.copy()):
            weights[i, j] = bad
            with pytest.raises(ValueError, match="'w' has weights that are negative or not"):
                p(y, 1.0, out=out, w=weights, **given)
        w[i, j] = 1
    assert np.all(out == 7)
    np.testing.assert_array_equal(p(y, 1.0, w=w, **given), kept)
    w[:, 5] = 0
    free = p(y, 1.0, w=w, **given)
    w[:, 5] = -0.0
    np.testing.assert_array_equal(p(y, 1.0, w=w, **given), free)
    np.testing.assert_array_equal(free[:, 5], y[:, 5])
