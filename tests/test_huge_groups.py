"""Groups so long and few that the threads share each of them: against the references; to the bit
the same whoever does which blocks; and where numbers have little room."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import Array, bits, early, rehearsals, together
from test_groups import BALLS, Groups, assert_near, expected

import projgen
from projgen.cpu.ball import Ball
from projgen.cpu.groups import walk_groups

TEAMS = ((None, 1), (early, 3), (together, 3))
# l0 looks at 4096 values first: it has tests of its own. In Python some exponents take long.
HUGE = [ball for ball in BALLS if ball.norm != "l0" and ball.p != 1.01]


@pytest.fixture(autouse=True)
def small_is_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projgen.cpu.walks.HUGE", 200)
    monkeypatch.setattr("projgen.cpu.walks.PART", 64)


def shared(
    ball: Ball,
    y: Array,
    part: float,
    weights: Array | None,
    in_place: bool = False,
    teams: Any = TEAMS,
) -> None:
    """The projection of its rows is near the reference's, however many threads work on it."""
    values, radii, reference = expected(ball, y, (1,), part, weights)
    results = []
    for team, threads in teams:
        own = y.copy()
        with rehearsals(team):
            out = None if in_place else np.full_like(y, np.nan)
            groups = Groups(ball, own, (1,), weights, out, threads=threads)
            assert groups.call._walk is not None
            assert groups.call._walk.kernel.huge
            found = groups.norms()
            np.testing.assert_allclose(found, values.reshape(-1), rtol=1e-10)
            x = groups.project(radii.reshape(-1))
        results.append(x)
        inside = found <= radii.reshape(-1)
        if not ball.nonneg and ball.norm != "simplex":
            assert np.array_equal(x[inside], y[inside])
    assert len({bits(x) for x in results}) == 1
    assert_near(results[0], reference, y)


def problem(ball: Ball, dtype: str, seed: int = 0) -> tuple[Array, Array | None]:
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((2, 230)).astype(dtype)
    y[:, ::7] = 0
    if not ball.weighted:
        return y, None
    w = np.abs(rng.standard_normal(y.shape)).astype(dtype)
    w[0, 5] = 0
    return y, w


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ball", HUGE, ids=repr)
def test_near_the_reference_whoever_does_it(ball: Ball, dtype: str) -> None:
    y, w = problem(ball, dtype)
    shared(ball, y, 0.3, w)
    for part, in_place in ((0.9, True), (0.0, False), (1.5, True)):
        shared(ball, y, part, w, in_place, TEAMS[:1])


@pytest.mark.parametrize("ball", [ball for ball in HUGE if ball.norm != "linf"], ids=repr)
def test_where_numbers_have_little_room(ball: Ball) -> None:
    y, w = problem(ball, "float64", 1)
    for scale in (1e-200, 1e200):
        shared(ball, y * scale, 0.2, w, teams=TEAMS[:1])
    if w is not None:
        # Of some weights the squares are lost beside those of others.
        shared(ball, y, 1e-4, w * np.where(np.arange(230) % 2, 1e-160, 1.0))
    if ball.norm == "lp":
        shared(ball, y, 1e-10, w, teams=TEAMS[:2])  # too far for all but the most careful search


def test_simplex_of_values_below_0_and_of_large_radii() -> None:
    y = -np.abs(problem(Ball("simplex"), "float64")[0]) - 1.0
    for radius in (1e-3, 1.0, 1e305):
        results = []
        for team, threads in TEAMS:
            with rehearsals(team):
                groups = Groups(Ball("simplex"), y, (1,), out=np.empty_like(y), threads=threads)
                results.append(groups.project(radius))
        assert len({bits(x) for x in results}) == 1
        np.testing.assert_allclose(results[0].sum(1), radius, rtol=1e-10)
        kept = results[0] > 0
        for row, x, keeps in zip(y, results[0], kept, strict=True):
            assert np.ptp((row - x)[keeps]) <= 1e-10 * max(1.0, radius)


L0 = [
    ("float32", False, "normal", 300, TEAMS),
    ("float32", True, "integers", 1300, TEAMS[:2]),
    ("float64", False, "integers", 1300, TEAMS[:1]),
    ("float64", True, "sorted", 1, TEAMS[:1]),
    ("float64", False, "normal", 0, TEAMS[:1]),
]


@pytest.mark.parametrize(("dtype", "nonneg", "values", "k", "teams"), L0)
def test_l0_keeps_the_largest_and_the_first_of_equal_ones(
    dtype: str, nonneg: bool, values: str, k: int, teams: Any
) -> None:
    rng = np.random.default_rng(4)
    y = rng.integers(-3, 4, 4200) if values == "integers" else rng.standard_normal(4200)
    y = (np.sort(y) if values == "sorted" else y).astype(dtype)
    a = np.maximum(y, 0) if nonneg else np.abs(y)
    kept = np.isin(np.arange(y.size), np.argsort(-a, kind="stable")[:k])
    for team, threads in teams:
        with rehearsals(team):
            ball, out = Ball("l0", nonneg=nonneg), np.full_like(y, np.nan)
            groups = Groups(ball, y, (0,), out=out, threads=threads)
            x = groups.project(float(k))
        assert np.array_equal(x, np.where(kept, np.maximum(y, 0) if nonneg else y, 0))


def test_l0_where_some_values_mislead() -> None:
    """The values that are looked at first are not like the others: all are searched among."""
    y = np.concatenate([np.ones(4095), np.arange(2.0, 402.0)])  # those at its end are not
    with rehearsals():
        groups = Groups(Ball("l0"), y, (0,), out=np.empty_like(y))
        x = groups.project(300.0)
    assert np.array_equal(x, np.where(y > 101, y, 0))


@pytest.mark.parametrize("ball", HUGE, ids=repr)
def test_what_is_not_finite_is_noticed(ball: Ball) -> None:
    y, w = problem(ball, "float64")
    for value in (np.nan, np.inf):
        y[1, 133] = value
        with rehearsals():
            assert Groups(ball, y, (1,), w, np.empty_like(y)).norms() is None


@pytest.mark.parametrize("team", [early, together])
def test_few_passes_are_on_record(
    team: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes late goes by it, or is waited for, or need not come any more."""
    ball = Ball("simplex")
    y = problem(ball, "float64")[0]
    results = []
    for records, threads in ((512, 1), (2, 1), (2, 4)):
        monkeypatch.setattr("projgen.cpu.walks.RECORDS", records)
        with rehearsals(team if threads > 1 else None):
            groups = Groups(ball, y, (1,), out=np.empty_like(y), threads=threads)
            results.append(groups.project(np.array([3.0, 20.0])))
    assert len({bits(x) for x in results}) == 1


def test_which_groups_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projgen.cpu.walks.FEW", 4)

    def huge(shape: tuple[int, int], axis: int, labels: Any = None) -> bool:
        strides = (shape[1], 1)
        ball = Ball("l1", ragged=labels is not None)
        return walk_groups(
            ball, "float32", shape, strides, (axis,), strides, None, labels
        ).kernel.huge

    assert huge((3, 200), 1)
    assert not huge((4, 200), 1)
    assert not huge((3, 199), 1)
    assert not huge((200, 3), 0)  # side by side: worked on together
    assert not huge((1, 200), 1, np.arange(200) % 3)


@pytest.fixture
def really_huge(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.undo()
    yield 300_007


@pytest.mark.parametrize("spec", ["l0(k=40_000)", "l1(w=w)"])
def test_compiled(spec: str, really_huge: int) -> None:
    rng = np.random.default_rng(6)
    y = rng.standard_normal(really_huge).astype(np.float32)
    given = {"w": rng.uniform(0.5, 2, y.size).astype(np.float32)} if "w" in spec else {}
    spec = spec.replace("_", "")
    radius = () if "l0" in spec else (0.2 * float(projgen.build(spec).norm(y, **given)),)
    reference = projgen.build(spec, backend="numpy")(y, *radius, **given)
    results = []
    for threads in (1, 2, 7):
        projection = projgen.build(spec, backend="cpu", threads=threads)
        results += [projection(y, *radius, **given) for _ in range(3)]  # the first calls are shared
    assert len({bits(x) for x in results}) == 1
    assert_near(results[0], reference.astype(np.float64), y)
