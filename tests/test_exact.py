"""Nearest points: l1(linf) against certificates, an independent solver, and the reference."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import Array, early, lay_out, rehearsals, together

import projgen
from projgen import exact
from projgen.bind import bind
from projgen.check import parse_tree

RNG = np.random.default_rng(20200713)
SPEC = "l1(linf(axis=1))"


def gaps(y: Array, x: Array, radius: float, axis: int = 1) -> tuple[float, float]:
    """How far x is from the sphere, and from the nearest point: both 0 at the projection.

    x is nearest if no z in the ball has <y - x, z> above <y - x, x>: the most that a z has is the
    radius times the dual norm, the largest l1 norm of a group. Relative to the radius or y's
    largest value, and to what the inequality is for y itself.
    """
    y, x = y.astype(np.float64), x.astype(np.float64)
    rest = y - x
    most = radius * np.abs(rest).sum(axis=axis).max()
    outside = np.abs(x).max(axis=axis).sum() - radius
    unit = max(radius, np.abs(y).max())
    scale = unit * np.abs(y).sum(axis=axis).max()
    return outside / unit, (most - (rest * x).sum()) / scale


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape)


DATA: dict[str, Array] = {
    "normal": normal(40, 30),
    "uniform": RNG.random((40, 30)),
    "scales": normal(40, 30) * 10.0 ** RNG.uniform(-3, 3, (40, 1)),
    "a large row": np.concatenate([1e6 * normal(1, 30), normal(39, 30)]),
    "ties": RNG.integers(-2, 3, (40, 30)).astype(np.float64),
    "equal rows": np.ones((40, 1)) * normal(1, 30),
    "constant rows": normal(40, 1) * np.ones((1, 30)),
    "zero rows": normal(40, 30) * (np.arange(40) % 3 == 0)[:, None],
    "one value": np.eye(40, 30),
    "one row": normal(1, 200),
    "one column": normal(200, 1),
    "geometric": 2.0 ** -RNG.permutation(600).reshape(20, 30).astype(np.float64) / 8,
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_certificate_of_the_nearest_point(name: str, dtype: str) -> None:
    y = DATA[name].astype(dtype)
    p = projgen.build(SPEC, exact=True)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    for part in (0.001, 0.01, 0.1, 0.5, 0.9, 0.999):
        radius = part * p.norm(y)
        x = p(y, radius)
        sphere, nearest = gaps(y, x, radius)
        assert abs(sphere) <= tolerance
        assert abs(nearest) <= tolerance
        assert np.all((x == 0) | (np.signbit(x) == np.signbit(y)))
        assert np.all(np.abs(x) <= np.abs(y))
        z = y.copy()
        assert p(z, radius, out=z) is z
        assert np.array_equal(z, x)
        reference = projgen.build(SPEC, exact=True, backend="numpy")(y, radius)
        assert np.abs(x - reference).max() <= tolerance * np.abs(y).max()


def test_the_variational_inequality() -> None:
    y = normal(50, 20)
    p = projgen.build(SPEC, exact=True)
    radius = 0.2 * p.norm(y)
    x = p(y, radius)
    for _ in range(200):
        z = normal(50, 20) * RNG.choice([0.0, 1.0], (50, 1))
        z *= radius * RNG.random() / np.abs(z).max(axis=1).sum()
        assert ((y - x) * (z - x)).sum() <= 1e-9 * (y * y).sum()
    with rehearsals():
        level_by_level = projgen.project(y, SPEC, radius)
    assert np.linalg.norm(y - x) < np.linalg.norm(y - level_by_level)


def test_a_solver_agrees() -> None:
    cvxpy: Any = pytest.importorskip("cvxpy")
    for scale in (1.0, 10.0 ** RNG.uniform(-1, 1, (12, 1))):
        y = normal(12, 9) * scale
        radius = 0.3 * float(np.abs(y).max(axis=1).sum())
        x = cvxpy.Variable(y.shape)
        ball = cvxpy.sum(cvxpy.max(cvxpy.abs(x), axis=1)) <= radius
        cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x - y)), [ball]).solve(solver="CLARABEL")
        found = projgen.project(y, SPEC, radius, exact=True)
        assert np.abs(found - x.value).max() <= 1e-5 * np.abs(y).max()


@pytest.mark.parametrize("threads", [2, 7])
def test_the_same_bits_whatever_the_threads(threads: int) -> None:
    y = normal(600, 500)
    one = projgen.build(SPEC, threads=1, exact=True)(y, 100.0)
    assert np.array_equal(projgen.build(SPEC, threads=threads, exact=True)(y, 100.0), one)
    columns = projgen.build("l1(linf(axis=0))", threads=threads, exact=True)(y.T, 100.0)
    np.testing.assert_allclose(columns.T, one, rtol=1e-12)


def test_radii() -> None:
    y = normal(5, 4)
    p = projgen.build(SPEC, exact=True)
    assert not np.any(p(y, 0.0))
    assert np.array_equal(p(y, np.inf), y)
    assert np.array_equal(p(y, p.norm(y)), y)
    assert np.array_equal(p(y, 1e9), y)
    with pytest.raises(ValueError, match="at least 0"):
        p(y, -1.0)
    y[2, 3] = np.nan
    with pytest.raises(ValueError, match="nothing was written"):
        p(y, 1.0)
    big = normal(5, 4) * 1e300
    x = p(big, 1e299)
    assert abs(np.abs(x).max(axis=1).sum() / 1e299 - 1) < 1e-12


def test_the_limits_add_up_to_a_small_radius() -> None:
    """Where they are differences of numbers that are far larger."""
    y = 1 + np.arange(1200).reshape(40, 30) * 1e-14
    p = projgen.build(SPEC, exact=True)
    for part in (1e-9, 1e-6, 1e-3):
        radius = part * p.norm(y)
        assert np.abs(p(y, radius)).max(axis=1).sum() <= radius * (1 + 1e-14)


CHAINS = [
    "l1(linf)", "l1(linf(axis=0))", "l1(linf(axis=(0, 2)), axis=1)", "l1(linf(axis=1), axis=2)",
    "l1(linf(linf))", "l1(linf(axis=0), axis=2)", "l1(linf(axis=2), axis=(0, 1))",
]  # fmt: skip
TINY = {
    "BLOCK_BYTES": 256,
    "MAX_BLOCKS": 7,
    "SHARED_VALUES": 8,
    "STREAMED_BYTES": 2000,
    "STRETCH_BYTES": 64,
}


@settings(max_examples=80)
@given(st.data())
def test_any_layout(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(CHAINS))
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = rng.standard_normal(shape)
    if data.draw(st.booleans()):
        values = values.round()
    order = tuple(data.draw(st.permutations(range(3))))
    steps = tuple(data.draw(st.sampled_from([1, 1, 2, -1])) for _ in order)
    y = lay_out(values, order, steps)
    norms = np.asarray(projgen.build(spec, backend="numpy").norm(y))
    parts = np.resize([data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.5]))], norms.shape)
    radius = parts * norms if norms.ndim else float(parts * norms)
    binding = bind(parse_tree(spec), 3)
    assume(np.all(norms > 0))
    expected = exact.project(binding, y, radius)
    team = data.draw(st.sampled_from([None, early, together]))
    with rehearsals(team, **TINY):
        x = projgen.build(spec, exact=True, threads=3 if team else 1)(y, radius)
    assert np.abs(x - expected).max() <= 1e-12 * np.abs(y).max()


def test_flat_l1() -> None:
    y = normal(20, 30)
    with rehearsals():
        flat = projgen.build("l1")(y, 5.0)
        for spec in ("l1(l1)", "l1(l1(axis=1))", "l1(l1(l1), axis=0)"):
            z = y.reshape(4, 5, 30) if spec.count("l1") == 3 else y
            x = projgen.build(spec, exact=True)(z, 5.0)
            np.testing.assert_allclose(x.reshape(20, 30), flat, rtol=1e-12)
        batch = projgen.build("l1(l1(axis=2), axis=1)", exact=True)(y.reshape(4, 5, 30), 5.0)
        each = projgen.build("l1(axis=(1, 2))")(y.reshape(4, 5, 30), 5.0)
    assert np.array_equal(batch, each)


def test_what_is_euclidean_anyway_stays_as_it_is() -> None:
    y = normal(20, 30)
    with rehearsals():
        for spec in ("l1(l2)", "linf(l1(axis=1))", "l2"):
            x = projgen.build(spec, exact=True)(y, 1.0)
            assert np.array_equal(x, projgen.build(spec)(y, 1.0))


@pytest.mark.parametrize("spec", ["l2(linf)", "l1(l2(linf))", "linf(l1(linf))", "l1(a=linf, b=l2)"])
def test_where_no_algorithm_is_known(spec: str) -> None:
    with pytest.raises(projgen.SpecError, match="no algorithm is known") as caught:
        projgen.build(spec, exact=True)
    assert "level by level" in str(caught.value)


def test_a_projection_knows_that_it_is_exact() -> None:
    p = projgen.build("l1(linf)", exact=True)
    assert p.is_euclidean
    assert not projgen.build("l1(linf)").is_euclidean
    assert p != projgen.build("l1(linf)")
    assert repr(p) == "projgen.build('l1(linf)', exact=True)"
    q = pickle.loads(pickle.dumps(p))
    assert q == p
    y = normal(6, 5)
    with rehearsals():
        x, info = q(y, 1.0, return_info=True)
        assert np.array_equal(x, p(y, 1.0))
    assert np.isnan(info.threshold)
    assert info.norm_after == pytest.approx(1.0)
    assert "nearest point" in p.source(2)


def test_groups_are_those_of_the_spec() -> None:
    p = projgen.build("l1(l1(axis=1))", exact=True)
    x = p(np.diag([3.0, 1.0, 2.0]), 2.0)
    assert p.active(x).tolist() == [True, False, True]
