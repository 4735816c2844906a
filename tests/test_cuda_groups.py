"""The kernels of one level of groups, on the SIMT machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cuda_support import loaded, needs_simt, stored
from support import Array
from test_cuda_host import cp  # noqa: F401

from projgen.cpu.ball import Ball
from projgen.cuda.groups import GroupCall, walk_groups
from projgen.dtypes import ITEMSIZE
from projgen.references import REFERENCES

pytestmark = needs_simt

BALLS = [
    *(Ball(norm) for norm in ("l1", "l2", "linf", "l0", "simplex")),
    *(Ball("lp", p) for p in (1.01, 1.5, 50.0)),
    *(Ball(norm, weighted=True) for norm in ("l1", "l2", "linf")),
    Ball("lp", 3.0, weighted=True),
    *(Ball(norm, nonneg=True) for norm in ("l1", "l0")),
]


@dataclass
class Level:
    """A level on an array that lies anyhow; `labels` along its only axis."""

    ball: Ball
    y: Array
    axes: tuple[int, ...]
    w: Array | None = None
    labels: Array | None = None
    dtype: str = ""
    in_place: bool = False

    def run(self, cp: Any, radius: Any) -> tuple[Array, Array]:  # noqa: F811
        """The values and the result, as the kernels have them."""
        name = self.dtype or self.y.dtype.name
        y = to_gpu(cp, self.y)
        x = y if self.in_place else cp.empty(self.y.shape, y.dtype)
        w = None if self.w is None else to_gpu(cp, self.w)
        walk = walk_groups(
            self.ball,
            name,
            self.y.shape,
            steps(y),
            self.axes,
            None if self.in_place else steps(x),
            None if w is None else steps(w),
            self.labels,
            "float64" if w is None else w.dtype.name,
        )
        call = GroupCall(walk, 0)
        work = cp.cuda.alloc(call.work)
        own = 0 if w is None else w.data.ptr
        values = call.begin(y.data.ptr, own, work).copy().get()
        radii = radius(values) if callable(radius) else radius
        given = radii if isinstance(radii, float) else cp.asarray(np.asarray(radii, np.float64))
        call.end(y.data.ptr, x.data.ptr, own, given, work)
        return values, x.get()

    def groups(self, a: Array, filling: float = 0.0) -> Array:
        """Its groups as the last axis, those with labels filled up."""
        a = np.moveaxis(np.asarray(a, np.float64), self.axes, range(-len(self.axes), 0))
        a = a.reshape(*a.shape[: a.ndim - len(self.axes)], -1)
        if self.labels is None:
            return a
        counts = np.bincount(self.labels)
        rows = np.full((*a.shape[:-1], counts.size, counts.max()), filling)
        for m in range(counts.size):
            rows[..., m, : counts[m]] = a[..., self.labels == m]
        return rows

    def expected(self, meant: Array, radii: Array) -> tuple[Array, Array]:
        """Values and groups by the reference."""
        reference = REFERENCES[self.ball.norm]
        signed = self.ball.norm == "simplex"
        a = self.groups(meant, -np.inf if signed else 0.0)
        if self.ball.nonneg:
            a = np.maximum(a, 0.0)
        a = a if signed else np.abs(a)
        options: dict[str, Any] = {} if self.ball.p is None else {"p": self.ball.p}
        if self.w is not None:
            options["weights"] = self.groups(np.broadcast_to(self.w, self.y.shape))
        values = reference.norm(a, (-1,), **options)
        with np.errstate(invalid="ignore"):  # of a simplex without values
            ball = reference.ball(a, (-1,), radii[..., None], **options)
        inside = (values <= radii[..., None]) & (not signed)
        return values[..., 0], np.where(inside, a, ball)

    def check(self, cp: Any, share: float) -> None:  # noqa: F811
        name = self.dtype or self.y.dtype.name
        meant = loaded(self.y.copy(), name)
        counts = self.ball.norm == "l0"

        def radii(values: Array) -> Array:
            return np.round(share * values) if counts else share * values

        values, x = self.run(cp, radii)
        norms, left = self.expected(meant, radii(values))
        np.testing.assert_allclose(values, norms, rtol=1e-12)
        after = loaded(x, name)
        found = self.groups(after)
        top = np.abs(self.groups(meant)).max(initial=0.0)
        eps = {2: 2.0**-8 if name == "bfloat16" else 2.0**-11, 4: 2e-7, 8: 1e-10}[ITEMSIZE[name]]
        magnitudes = found if self.ball.norm == "simplex" else np.abs(found)
        np.testing.assert_allclose(magnitudes, left, rtol=eps, atol=eps * top * 1e-3 + 1e-300)
        if self.ball.norm != "simplex" and not self.ball.nonneg:
            assert np.all(np.sign(after) * np.sign(meant) >= 0)


def to_gpu(cp: Any, array: Array) -> Any:  # noqa: F811
    """With its strides."""
    low, high = np.lib.array_utils.byte_bounds(array)
    memory = cp.empty((max(1, high - low),), np.uint8)
    pointer = cp.cuda.MemoryPointer(memory.data.mem, array.ctypes.data - low)
    made = cp.ndarray(array.shape, array.dtype, pointer, array.strides)
    made._a[...] = array
    return made


def steps(array: Any) -> tuple[int, ...]:
    return tuple(stride // array.dtype.itemsize for stride in array.strides)


def values_like(*shape: int, seed: int = 0) -> Array:
    """With ties, zeros, small ones and large ones."""
    y = np.random.default_rng(seed).standard_normal(shape)
    y.flat[::3] = y.flat[::3].round()
    y.flat[::7] *= 1e-5
    return y


def level(ball: Ball, shape: tuple[int, ...], axes: tuple[int, ...], **options: Any) -> Level:
    weights = None
    if ball.weighted:
        weights = np.random.default_rng(1).uniform(0.1, 3.0, shape)
        weights.flat[::5] = 0.0
    return Level(ball, values_like(*shape), axes, weights, **options)


@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.title)
@pytest.mark.parametrize("shape", [(3, 7), (2, 100), (2, 1500)])
def test_rows(cp: Any, ball: Ball, shape: tuple[int, int]) -> None:  # noqa: F811
    for share in (0.0, 1e-6, 0.3, 0.999, 1.0, 2.0):
        level(ball, shape, (1,)).check(cp, share)


LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "columns": ((40, 6), (0,)),
    "all": ((7, 9), (0, 1)),
    "interleaved": ((3, 4, 5, 6), (1, 3)),
    "outer and inner": ((4, 3, 5), (0, 2)),
    "long columns": ((1100, 3), (0,)),
}


@pytest.mark.parametrize("ball", [BALLS[i] for i in (0, 3, 4, 6, 9, 12)], ids=lambda b: b.title)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(cp: Any, ball: Ball, layout: str) -> None:  # noqa: F811
    """In any memory order, backwards, with gaps; in place and not."""
    shape, axes = LAYOUTS[layout]
    made = level(ball, shape, axes)
    for move in (np.asfortranarray, lambda a: np.repeat(a[::-1], 2, axis=-1)[..., ::2]):
        for in_place in (False, True):
            own = None if made.w is None else move(made.w)
            moved = Level(ball, move(made.y.copy()), axes, own, in_place=in_place)
            moved.check(cp, 0.4)


@pytest.mark.parametrize("ball", BALLS, ids=lambda b: b.title)
def test_labels(cp: Any, ball: Ball) -> None:  # noqa: F811
    """Groups of any size, and none; those that are long are a block's."""
    ragged = Ball(ball.norm, ball.p, ball.weighted, ball.nonneg, ragged=True)
    rng = np.random.default_rng(3)
    for shape, axis, labels in (
        ((4, 30), 1, rng.integers(0, 7, 30)),
        ((9, 5), 0, np.array([3, 0, 0, 3, 5, 3, 0, 3, 3])),
        ((2, 1300), 1, np.arange(1300) // 1200),
    ):
        level(ragged, shape, (axis,), labels=labels).check(cp, 0.4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "lp", "l0", "simplex"])
def test_types(cp: Any, norm: str, dtype: str) -> None:  # noqa: F811
    made = level(Ball(norm, 2.5 if norm == "lp" else None), (3, 50), (1,))
    for share in (0.3, 1.0):
        Level(made.ball, stored(made.y, dtype), (1,), dtype=dtype).check(cp, share)


def test_weights_of_float32(cp: Any) -> None:  # noqa: F811
    made = level(Ball("l1", weighted=True), (3, 50), (1,))
    assert made.w is not None
    made.w = made.w.astype(np.float32)
    made.check(cp, 0.3)


@pytest.mark.parametrize("size", [1e-300, 1e-290, 1e290, 1e300])
@pytest.mark.parametrize("ball", [b for b in BALLS if b.norm != "l0"], ids=lambda b: b.title)
def test_values_and_weights_of_any_size(cp: Any, ball: Ball, size: float) -> None:  # noqa: F811
    made = level(ball, (2, 40), (1,))
    Level(ball, made.y * size, (1,), made.w).check(cp, 0.3)
    if made.w is not None:
        Level(ball, made.y, (1,), made.w * size).check(cp, 0.3)


@pytest.mark.parametrize("ball", BALLS, ids=lambda b: b.title)
@pytest.mark.parametrize("count", [40, 1500])
def test_what_is_not_finite_spoils_its_group(cp: Any, ball: Ball, count: int) -> None:  # noqa: F811
    made = level(ball, (4, count), (1,))
    made.y[1, 3], made.y[2, 5], made.y[3, 7] = np.nan, np.inf, -np.inf
    for radius in (0.5, 0.0, 1e9):
        values, x = made.run(cp, radius)
        spoilt = [False, True, True, True]
        assert (~np.isfinite(values)).tolist() == spoilt
        assert np.isnan(x).all(axis=1).tolist() == np.isnan(x).any(axis=1).tolist() == spoilt
    _, x = made.run(cp, np.array([-1.0, 1.0, 1.0, np.nan]))
    assert np.isnan(x).all()


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "lp"])
def test_what_is_no_weight_spoils_its_group(cp: Any, norm: str, weight: float) -> None:  # noqa: F811
    made = level(Ball(norm, 1.5 if norm == "lp" else None, weighted=True), (3, 40), (1,))
    assert made.w is not None
    made.w[1, 4] = weight
    values, x = made.run(cp, 0.5)
    assert np.isfinite(values).tolist() == [True, False, True]
    assert np.isnan(x).all(axis=1).tolist() == np.isnan(x).any(axis=1).tolist()
    assert np.isnan(x).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("nonneg", [False, True])
def test_of_equal_values_the_first_are_kept(cp: Any, nonneg: bool) -> None:  # noqa: F811
    y = np.tile([1.0, -2.0, 2.0, 2.0], 12).reshape(2, 24)
    for kept in (1, 5, 11, 18):
        _, x = Level(Ball("l0", nonneg=nonneg), y, (1,)).run(cp, float(kept))
        magnitudes = np.maximum(y, 0) if nonneg else np.abs(y)
        order = np.argsort(-magnitudes, axis=1, kind="stable")[:, :kept]
        expected = np.zeros_like(y)
        np.put_along_axis(expected, order, np.take_along_axis(y, order, 1), 1)
        assert np.array_equal(x, np.maximum(expected, 0) if nonneg else expected)


def test_more_than_a_gpu_counts() -> None:
    with pytest.raises(ValueError, match="l0 has a group of 2200000000 values, and a GPU"):
        walk_groups(Ball("l0"), "float32", (2_200_000_000,), (1,), (0,), None, None, None)
    with pytest.raises(ValueError, match="l0 has 2200000000 groups, and a GPU takes"):
        shape = (2_200_000_000, 4)
        walk_groups(Ball("l0"), "float32", shape, (4, 1), (1,), None, None, None)


@pytest.mark.parametrize("ball", [Ball("l1", weighted=True), Ball("l0")], ids=lambda b: b.title)
def test_results_are_equal_to_the_bit(cp: Any, ball: Ball) -> None:  # noqa: F811
    made = level(ball, (3, 1500), (1,))
    values, x = made.run(cp, 3.0)
    for _ in range(3):  # the machine's schedule is another one each time
        again, x_again = made.run(cp, 3.0)
        assert np.array_equal(values, again) and np.array_equal(x, x_again)


@pytest.mark.parametrize("ball", [Ball("l1"), Ball("l1", weighted=True)], ids=lambda b: b.title)
def test_radii_at_which_a_value_vanishes(cp: Any, ball: Ball) -> None:  # noqa: F811
    """Rounding may say of such a value now that it is left and now that it is not: searches end."""
    rng = np.random.default_rng(0)
    y = rng.integers(1, 30, (2000, 9)) / 10
    w = rng.integers(1, 10, y.shape) / 10 if ball.weighted else np.ones_like(y)
    at = y[:, :1] / w[:, :1]
    radii = (w * np.maximum(y - w * at, 0)).sum(axis=1)
    made = Level(ball, y, (1,), w if ball.weighted else None)
    values, x = made.run(cp, radii)
    _, expected = made.expected(y, np.minimum(radii, values))
    np.testing.assert_allclose(x, expected, atol=1e-14)
    whole = {"y": [0.3, 2.2, 2.4, 2.1, 0.9, 2.7, 2.5, 0.4, 1.1, 0.9, 0.4, 2.1, 1.5], "w": None}
    some = {"y": [0.2, 1.7, 1.0, 2.3], "w": [0.7, 0.7, 0.7, 0.9]}
    chosen = some if ball.weighted else whole
    radius = 1.4028571428571426 if ball.weighted else 7.800000000000001
    own = None if chosen["w"] is None else np.array([chosen["w"]])
    _, x = Level(ball, np.array([chosen["y"]]), (1,), own).run(cp, radius)
    assert (x * (1 if own is None else own)).sum() == pytest.approx(radius)


def test_radii_far_below_the_values(cp: Any) -> None:  # noqa: F811
    made = level(Ball("l1"), (1, 50), (1,))
    for share in (1e-12, 1e-14, 1e-16, 1e-100):
        values, x = made.run(cp, lambda found: share * found)  # noqa: B023
        assert np.abs(x).sum() == pytest.approx(share * values[0], rel=1e-9)


@pytest.mark.parametrize("p", [1.5, 3.0])
def test_lp_of_denormal_values(cp: Any, p: float) -> None:  # noqa: F811
    y = np.array([[3.0, 2.0, 5e-324]])
    _, x = Level(Ball("lp", p), y, (1,)).run(cp, 2.004)
    assert (x**p).sum() ** (1 / p) == pytest.approx(2.004) and np.all(x <= y)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "lp"])
def test_weights_that_are_too_far_apart(cp: Any, norm: str) -> None:  # noqa: F811
    ball = Ball(norm, 1.5 if norm == "lp" else None, weighted=True)
    y, w = np.array([[0.0, 1.0, 0.5]] * 2), np.array([[1e300, 1.0, 1.0], [1e140, 1.0, 0.0]])
    values, x = Level(ball, y, (1,), w).run(cp, 2.5)
    assert np.isnan(values).tolist() == [True, False]
    assert np.isnan(x[0]).all() and np.array_equal(x[1], y[1])
