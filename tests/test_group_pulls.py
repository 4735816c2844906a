"""Gradients of single levels of groups: their kernels against the norms' rules, and the corners."""

import itertools
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Array, bits, early, lay_out, rehearsals, together
from test_pullbacks import Guarded, Watched, tree_agrees

import projgen
from projgen.cpu.ball import Ball
from projgen.cpu.part_kernels import Group
from projgen.cpu.pull_parts import GroupPull, Views
from projgen.gradient_rules import Groups, shared_out
from projgen.norms import NORMS
from projgen.references import rule_of

RNG = np.random.default_rng(20261130)
ALONE = [norm for norm in NORMS if NORMS[norm].alone]
EXPONENTS = {"lp": (1.5, 3.0, 1.3, 2.7)}


class Level:
    """One level, an array whose groups are outside, at, and inside their balls, dead or zero, and
    what the rules say of it.

    Weights are 0 here and there; equal values are frequent.
    """

    def __init__(
        self,
        ball: Ball,
        y: Array,
        axes: tuple[int, ...],
        weights: Array | None = None,
        labels: Array | None = None,
        depth: int = 1,
    ) -> None:
        self.ball, self.axes, self.labels, self.depth = ball, axes, labels, depth
        self.y, self.weights = y, weights
        self.g = np.empty_like(y)
        self.g[...] = RNG.standard_normal(y.shape)
        self.x = np.empty_like(y)
        rows, outer = self._rows(y), [n for i, n in enumerate(y.shape) if i not in axes]
        rows = rows.reshape(-1, rows.shape[-1])
        own = None if weights is None else self._rows(weights).reshape(rows.shape)
        parts = [slice(None)] if labels is None else [labels == i for i in range(labels.max() + 1)]
        self.values, self.radii = np.zeros((2, len(rows), len(parts)))
        left = np.zeros(rows.shape)
        p = self._projection()
        for label, which in enumerate(parts):
            if rows[:, which].size:
                given = {} if own is None else {"w": own[:, which]}
                values = np.asarray(p.norm(rows[:, which], **given))
                radii = self._some_radii(values)
                left[:, which] = p(rows[:, which], radii, **given)
                self.values[:, label], self.radii[:, label] = values, radii
        shape = outer if labels is None else [*outer, len(parts)]
        self.values, self.radii = self.values.reshape(shape), self.radii.reshape(shape)
        moved = np.moveaxis(self.x, axes, range(-len(axes), 0))
        moved[...] = left.reshape(moved.shape)
        self.rise = RNG.standard_normal(self.values.shape)
        if depth == 0:
            self.rise[...] = 0
        elif depth == 1:  # of a root nothing reaches groups that it leaves dead or inside
            self.rise *= (self.radii > 0) & (self.radii < self.values)
        self.budding = RNG.choice([0.0, 0.3, 1.0], self.values.shape)

    def _rows(self, array: Array) -> Array:
        """Groups along the last axis, in float64."""
        moved = np.moveaxis(array, self.axes, range(-len(self.axes), 0))
        outer = moved.shape[: moved.ndim - len(self.axes)]
        return np.asarray(moved, np.float64).reshape(*outer, -1)

    def _projection(self) -> projgen.Projection:
        """The reference, of rows that are groups."""
        options = [f"p={self.ball.p}"] * (self.ball.p is not None)
        options += ["w=w"] * self.ball.weighted + ["nonneg=True"] * self.ball.nonneg
        return projgen.build(
            f"{self.ball.norm}({', '.join(['axis=1', *options])})", backend="numpy"
        )

    def _some_radii(self, values: Array) -> Array:
        """Those of groups that have these values."""
        everywhere = self.ball.norm == "simplex"
        shares = RNG.choice([0.0, 0.2, 0.6, 1.0, 1.5] + [np.inf] * (not everywhere), values.shape)
        if everywhere:
            return shares
        radii = np.multiply(shares, values, out=np.zeros(values.shape), where=values > 0)
        return np.floor(radii) if self.ball.norm == "l0" else radii

    def expected(self) -> tuple[Array, Array]:
        """The gradients of the array and of the radii, by the rules."""
        rule = rule_of(self.ball.norm)
        y, x, g = map(self._rows, (self.y, self.x, self.g))
        if self.ball.nonneg and not rule.everywhere:
            y = np.maximum(y, 0)
        signs = np.ones_like(y) if rule.everywhere else np.copysign(1.0, y)
        a, u = (y, x) if rule.everywhere else (np.abs(y), np.abs(x))
        weights = None if self.weights is None else self._rows(self.weights)
        groups = Groups(a, u, weights, self.values, self.radii, self.ball.p, self.labels)
        direct, slopes = shared_out(rule, groups, signs * g, self.budding)
        if self.ball.nonneg and not rule.everywhere:
            direct = np.where(y > 0, direct, 0.0)
        lifted = np.where(y != 0, groups.each(self.rise) * rule.lifted(groups), 0.0)
        result = np.empty(self.y.shape)
        moved = np.moveaxis(result, self.axes, range(-len(self.axes), 0))
        moved[...] = (signs * (direct + lifted)).reshape(moved.shape)
        return result, slopes

    def group(self, threads: int = 1) -> Group:
        """The level, as a tree has it."""
        strides = tuple(s // self.y.itemsize for s in self.y.strides)
        own = None if self.weights is None else self.weights.strides
        own = None if own is None else tuple(s // self.weights.itemsize for s in own)
        form = "float64" if self.weights is None else self.weights.dtype.name
        ways = self.y.dtype.name, self.y.shape, strides, strides, own, self.labels, threads
        return Group(self.ball, self.axes, *ways, form)

    def pulled(self, threads: int = 1, group: Group | None = None) -> tuple[Array, Array]:
        """The same by a kernel."""
        pull = GroupPull(group or self.group(threads), self.depth, threads)
        result = np.full_like(self.y, np.nan)
        tape = np.concatenate([self.radii.reshape(-1), self.values.reshape(-1)])
        views = Views(self.y, self.x, self.g, result)
        state, slopes = pull.begin(views, tape, self.budding, self.weights)
        slopes = slopes.copy()
        pull.end(state, self.rise)
        return result, slopes

    def check(self, threads: int = 1, group: Group | None = None) -> tuple[Array, Array]:
        pulled, slopes = self.pulled(threads, group)
        expected, expected_slopes = self.expected()
        scale = 1 + np.abs(self.g).max(initial=0) + np.abs(self.rise).max(initial=0)
        tolerance = scale * (1e-12 if self.y.dtype == np.float64 else 1e-6)
        if self.weights is not None:  # values of little weight move a lot
            tolerance *= 1 + np.abs(expected).max(initial=0)
        assert np.abs(pulled - expected).max() <= tolerance, self.ball
        slope_scale = 1 + np.abs(expected_slopes).max(initial=0)
        assert np.abs(slopes - expected_slopes).max() <= 4 * tolerance * slope_scale, self.ball
        return pulled, slopes


def entries(shape: tuple[int, ...], dtype: str) -> Array:
    """Values of which some are equal, often the largest, and some 0, here and there a whole row."""
    found = np.clip(np.round(RNG.standard_normal(shape), 1), -1.2, 1.2).astype(dtype)
    found[RNG.uniform(size=shape[:1]) < 0.2] = 0
    return found


def weights_like(shape: tuple[int, ...], dtype: str = "float64") -> Array:
    w = np.abs(RNG.standard_normal(shape)) + 0.1
    return (w * (RNG.uniform(size=shape) < 0.85)).astype(dtype)


def balls(ragged: bool = False) -> list[Ball]:
    found = []
    for norm, weighted, nonneg in itertools.product(ALONE, (False, True), (False, True)):
        if (weighted and not NORMS[norm].weighs) or (nonneg and norm == "simplex"):
            continue
        found += [Ball(norm, p, weighted, nonneg, ragged) for p in EXPONENTS.get(norm, (None,))]
    return found


@pytest.mark.parametrize("ball", balls(), ids=lambda ball: ball.title)
def test_rows_and_columns(ball: Ball) -> None:
    with rehearsals():
        for dtype, axis, depth in itertools.product(("float64", "float32"), (0, 1), (0, 1, 2)):
            w = weights_like((9, 7)) if ball.weighted else None
            Level(ball, entries((9, 7), dtype), (axis,), w, depth=depth).check()


@pytest.mark.parametrize("ball", balls(ragged=True), ids=lambda ball: ball.title)
def test_labelled_elements(ball: Ball) -> None:
    labels = RNG.permutation(np.arange(12) % 4 * (np.arange(12) % 4 != 2))  # no element has 2
    with rehearsals():
        for axis, depth in itertools.product((0, 1), (0, 1, 2)):
            w = weights_like((12, 12)) if ball.weighted else None
            y = entries((12, 12), "float64" if depth else "float32")
            Level(ball, y, (axis,), w, labels, depth).check()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_axes_and_layout(data: Any) -> None:
    rank = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(rank))
    ragged = data.draw(st.booleans())
    ball = data.draw(st.sampled_from(balls(ragged)))
    count = 1 if ragged else data.draw(st.integers(1, rank))
    axes = tuple(sorted(data.draw(st.permutations(range(rank)))[:count]))
    order = tuple(data.draw(st.permutations(range(rank))))
    y = lay_out(entries(shape, "float64"), order, (1,) * rank)
    labels = RNG.integers(0, 3, shape[axes[0]]) if ragged else None
    w = None
    if ball.weighted:
        lacks = [data.draw(st.booleans()) for _ in shape]
        own = tuple(1 if lack else n for lack, n in zip(lacks, shape, strict=True))
        w = np.broadcast_to(
            weights_like(own, data.draw(st.sampled_from(["float32", "float64"]))), shape
        )
    with rehearsals():
        Level(ball, y, axes, w, labels, data.draw(st.integers(0, 2))).check()


@pytest.mark.parametrize("labelled", [False, True])
def test_many_blocks_teams_and_pieces(labelled: bool) -> None:
    """The same bits whoever does the work; and nobody reads or writes beyond the workspace."""

    def watched(pointer: Any, size: int) -> Any:
        return support._carray(pointer, size).view(Watched)

    support._function.cache_clear()  # they have been given another one
    labels = np.arange(300) % 3 if labelled else None
    levels = [
        Level(Ball(norm, None, weighted, ragged=labelled), normal, (axis,), w, labels, 2)
        for norm, weighted in (("l1", True), ("l2", True), ("linf", False), ("simplex", False))
        for axis, shape in ((0, (300, 2)), (1, (2, 300)))
        for normal in (RNG.standard_normal(shape),)
        for w in (weights_like(shape) if weighted else None,)
    ]
    with (
        patch.object(support._NUMBA, "carray", watched),
        patch("projgen.cpu.call.Workspace", Guarded),
        patch("projgen.cpu.walks.BLOCK", 64),
    ):
        results = []
        for team in (None, early, together):
            with rehearsals(team):
                results.append([level.check(threads=3) for level in levels])
    support._function.cache_clear()
    for found in results[1:]:
        for (pulled, slopes), (alone, own) in zip(found, results[0], strict=True):
            assert bits(pulled) == bits(alone)
            assert bits(slopes) == bits(own)
    assert Guarded.made
    for work in Guarded.made:
        work.check()
    Guarded.made.clear()


@pytest.mark.parametrize(
    "spec",
    ["l1(w=w)", "l2(axis=1, w=w)", "linf(axis=0, w=w)", "lp(axis=1, p=1.3)", "simplex(axis=0)",
     "simplex(axis=1, groups=q)", "l0(axis=1, k=2, groups=q)"],
)  # fmt: skip
def test_a_level_by_itself_reaches_its_kernel(spec: str) -> None:
    """As the levels of a tree do."""
    named = {"w": 0.1 + np.abs(RNG.standard_normal(7)), "q": np.arange(7) * 5 % 3}
    y = RNG.standard_normal((9, 7)) + 0.5
    given = {name: named[name] for name in projgen.build(spec).tree.bound_names}
    with (
        rehearsals(),
        patch.object(GroupPull, "end", autospec=True, side_effect=GroupPull.end) as end,
    ):
        tree_agrees(spec, y, radius=1.0 if spec[0] == "s" else None, **given)
        assert end.call_count == 1


def test_a_gradient_that_is_not_finite_stays_where_it_belongs() -> None:
    """What does not survive has none, whatever the result's gradient is there."""
    y, g = np.array([[3.0, 1.0, -2.0], [1.0, 0.1, 0.2]]), np.array([[1.0, np.nan, 1.0], [1.0] * 3])
    with rehearsals():
        for spec in ("simplex(axis=1)", "l1(axis=1, w=w)", "l1(l1(axis=1, groups=q))"):
            named = {"w": np.ones(3), "q": np.zeros(3, int)}
            p = projgen.build(spec)
            given = {name: named[name] for name in p.tree.bound_names}
            pulled, slope = p.vjp(y, 1.0, **given)[1](g)
            assert np.isfinite(pulled).all()
            assert np.isfinite(slope).all()


def test_a_small_radius_and_large_weights() -> None:
    """Ranges of float64 in which neither squares nor quotients of numbers alike are lost."""
    y = np.array([[3.0, 1.0, -2.0], [1.0, 5.0, 0.2]])
    w = np.array([1.0, 2.0, 3.0])
    with rehearsals():
        for spec in ("l2(axis=1, w=w)", "l1(axis=1, w=w)", "lp(axis=1, p=1.5, w=w)"):
            p, reference = (projgen.build(spec, backend=b) for b in ("cpu", "numpy"))
            for exponent in (-100, 100):
                scale = 2.0**exponent
                found = p.vjp(y * scale, np.full(2, scale), w=w)[1](y)
                for one, other in zip(found, reference.vjp(y, np.ones(2), w=w)[1](y), strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_compiled_kernels() -> None:
    """By columns, labels and rows, and of all of an array; one of them on the whole way."""
    shape, labels = (300, 200), np.arange(200) * 7 % 30
    y = RNG.standard_normal(shape).astype(np.float32)
    levels = [
        Level(Ball("l2", weighted=True), y, (0,), weights_like(shape)),
        Level(Ball("linf", ragged=True), y, (1,), None, labels),
        Level(Ball("simplex"), y, (1,), depth=0),
        Level(Ball("lp", 1.5), y, (0, 1), depth=0),
    ]
    with rehearsals():  # nothing is projected by them
        groups = [level.group() for level in levels]
    for level, group in zip(levels, groups, strict=True):
        alone, shared = (level.check(threads, group) for threads in (1, 3))
        assert all(bits(one) == bits(other) for one, other in zip(alone, shared, strict=True))
    tree_agrees("simplex(axis=1)", y, radius=1.0)
