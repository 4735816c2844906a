"""Calls whose arguments look like those of an earlier one: what may have changed is looked at."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from support import Array, rehearsals

import projgen


@pytest.fixture(autouse=True)
def _python() -> Iterator[None]:
    with rehearsals():
        yield


def _normal(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape)


ONES = np.ones(6)


def test_out_that_overlaps_at_the_second_call() -> None:
    p = projgen.build("l1(linf(axis=1), w=w)")
    y = _normal(8, 5)
    p(y[:6], 1.0, out=np.empty((6, 5)), w=ONES)
    with pytest.raises(ValueError, match="overlaps y"):
        p(y[:6], 1.0, out=y[1:7], w=ONES)


@pytest.mark.parametrize("tree", [False, True])
def test_out_that_is_read_only_at_the_second_call(tree: bool) -> None:
    p = projgen.build("l1(linf(axis=1) @ '*')" if tree else "l1(linf(axis=1), w=w)")
    given = {} if tree else {"w": ONES}
    for writeable in (True, False):
        array = _normal(6, 5)
        y = {"a": array} if tree else array
        array.flags.writeable = writeable
        if writeable:
            p(y, 1.0, out=y, **given)
            continue
        with pytest.raises(ValueError, match="read-only"):
            p(y, 1.0, out=y, **given)
        np.testing.assert_array_equal(array, _normal(6, 5))


def test_weights_that_lie_in_out() -> None:
    p = projgen.build("linf(l1(axis=1, w=w))")
    y, out = _normal(6, 5), np.abs(_normal(6, 5))
    expected = p(y, 1.0, w=out[0].copy())
    np.testing.assert_array_equal(p(y, 1.0, out=out, w=out[0]), expected)


def test_a_place_that_was_none_at_the_first_call() -> None:
    p = projgen.build("l1(linf(axis=1) @ '*')")
    a, b = _normal(3, 4), _normal(3, 4)
    assert p({"a": a, "b": None}, 1.0)["b"] is None
    x = p({"a": a, "b": b}, 1.0)
    assert p.norm(x) == pytest.approx(1.0)
    assert p({"a": a, "b": None}, 1.0)["b"] is None


@pytest.mark.parametrize("names", [({"a": {"b": 0}, "a.b": 0}), {1: 0, "1": 0}])
def test_patterns_refuse_two_arrays_of_one_name(names: dict[Any, Any]) -> None:
    p = projgen.build("l1(linf(axis=1) @ '*')")
    y = {key: _normal(3, 4) if value == 0 else {"b": _normal(3, 4)} for key, value in names.items()}
    with pytest.raises(ValueError, match="two arrays of the name"):
        p(y, 1.0)


@dataclass
class _Layers:
    a: Any
    b: Any
    rows: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.rows = len(self.a)


def test_structures_that_are_made_in_ways_of_their_own() -> None:
    a, b = _normal(3, 4), _normal(5)
    p = projgen.build("l1(a=linf(axis=1), b=l2)", unmatched="pass")
    x = p(defaultdict(list, a=a, b=b), 1.0)
    assert type(x) is defaultdict
    assert x.default_factory is list
    assert p(_Layers(a, b), 1.0).rows == 3


def test_names_that_methods_have_for_themselves() -> None:
    p = projgen.build("l1(self=l1, x=l2)")
    a, b = _normal(4), _normal(5)
    x = p(self=a, x=b, radius=1.0)
    assert p.norm(**x) == pytest.approx(1.0)
    assert set(p.active(**x)) == {"self", "x"}


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("part", [1e-9, 0.1, 0.9])
def test_weights_of_very_different_sizes(backend: Any, part: float) -> None:
    """The conditions of the nearest point: x = max(a - t w, 0), and on the sphere."""
    rng = np.random.default_rng(5)
    a, w = np.abs(rng.standard_normal(30)), 10.0 ** rng.uniform(-8, 8, 30)
    radius = part * float(w @ a)
    x = projgen.build("l1(w=w)", backend=backend)(a, radius, w=w)
    assert w @ x == pytest.approx(radius, rel=1e-12, abs=1e-15 * float(w @ a))
    left = (x > 0) & (x < 0.5 * a)
    if left.any():
        t = float(((a - x) / w)[left].min())
        np.testing.assert_allclose(x, np.maximum(a - t * w, 0), rtol=0, atol=1e-12 * a.max())


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("norm", ["l1(w=w)", "l2(w=w)", "linf(w=w)", "lp(p=3, w=w)"])
def test_weights_that_take_values_out_of_range(backend: Any, norm: str) -> None:
    p = projgen.build(norm, backend=backend)
    weights = np.array([1e120, 1.0])
    np.testing.assert_allclose(p(np.full(2, 1e200), 1e300, w=weights), [1e180, 1e200])
    np.testing.assert_allclose(p(np.full(2, 1e-300), 1e-220, w=weights), [0, 1e-300], atol=1e-312)


def test_empty_axes_and_batches() -> None:
    p = projgen.build("l1(l1(axis=1, w=w))")
    assert p(np.empty((3, 0)), 0.0, w=np.ones(1)).shape == (3, 0)
    p = projgen.build("l1(l1(axis=2), lp(axis=2, p=3), axis=1)")
    y = [np.empty((0, 3, 4)), np.empty((0, 2, 4))]
    x, _ = p(y, np.empty(0), return_info=True)
    assert x[1].shape == (0, 2, 4)


def test_the_reference_takes_empty_arrays() -> None:
    p = projgen.build("l1(linf(axis=1), linf(axis=1))", backend="numpy")
    x = p([np.empty((0, 4)), _normal(3, 4)], 1.0)
    assert x[0].shape == (0, 4)
    assert p.norm(x) == pytest.approx(1.0)


def test_a_weight_of_a_value_that_has_no_axes() -> None:
    p = projgen.build("l2(linf @ 'a', l1 @ 'b', w=w)")
    y = {"a": _normal(3), "b": _normal(4)}
    expected = projgen.build("l2(3.0*linf @ 'a', l1 @ 'b')")(y, 1.0)
    x = p(y, 1.0, w={"a": np.array(3.0), "b": 1.0})
    for name, array in expected.items():
        np.testing.assert_array_equal(x[name], array)


def test_an_account_of_many_groups_needs_little_memory() -> None:
    """A table of 20,000 groups by 20,000 places, or of blocks of 10^12, would need far more."""
    p = projgen.build("l1(l2(axis=0, groups=g))")
    order = np.random.default_rng(3).permutation(20_000)
    assert p.active(np.ones(20_000), g=order).all()
    p = projgen.build("l1(linf(axis=1, block=1000000000000))")
    assert p.active(np.ones((3, 4))).shape == (3, 1)
    _, info = p(np.ones((3, 4)), 1.5, return_info=True)
    assert info.distance == pytest.approx(np.sqrt(3.0))


def test_an_exponent_that_is_as_good_as_infinite() -> None:
    assert projgen.build("lp(p=1e300)") == projgen.build("linf")
    for exponent in ("1e6", "1e12", "1e16"):
        x = projgen.build(f"lp(p={exponent})")(np.arange(1.0, 4.0), 1.0)
        np.testing.assert_allclose(x, np.ones(3), rtol=50 / float(exponent) + 1e-10)


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([1e17, 1e17, 0.0], [0.5, 0.5, 0.0]),
        ([-1e308, -1e308, -1.7e308], [0.5, 0.5, 0.0]),
        ([1e308, -1e308, 1.0], [1.0, 0.0, 0.0]),
        ([1e9, 1e9 + 0.5, -1e9], [0.25, 0.75, 0.0]),
    ],
)
def test_a_simplex_far_from_the_array(backend: Any, y: list[float], expected: list[float]) -> None:
    x = projgen.build("simplex", backend=backend)(np.array(y), 1.0)
    np.testing.assert_allclose(x, expected, rtol=1e-15)


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_counts_and_magnitudes_side_by_side(backend: Any) -> None:
    """With a value out of the kernels' range beside them, which the reference projects."""
    p = projgen.build("linf(a=l0, b=linf, c=l0(l1(axis=1)))", backend=backend)
    c = np.array([[1.0, 2.0], [0.0, 1.0]])
    for large in (3.0, 1.5e308):
        x = p({"a": np.array([1.0, 3.0]), "b": np.array([large, -0.5, large]), "c": c}, 1.0)
        np.testing.assert_array_equal(x["a"], [0.0, 3.0])
        np.testing.assert_array_equal(x["b"], [1.0, -0.5, 1.0])
        np.testing.assert_array_equal(x["c"], [[1.0, 2.0], [0.0, 0.0]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_reference_spoils_the_batch_entry_alone(value: float) -> None:
    p = projgen.build(
        "l1(axis=1, a=l2(axis=2), b=l1(axis=2, nonneg=True))", backend="numpy", check_finite=False
    )
    y = {"a": _normal(3, 4, 5), "b": _normal(3, 4, 2)}
    expected = p(y, 1.0)
    y["b"][1, 0, 0] = value
    for name, x in p(y, 1.0).items():
        assert np.isnan(x[1]).all()
        np.testing.assert_array_equal(x[::2], expected[name][::2])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "spec",
    [
        "l1(axis=1)",
        "l2(axis=1)",
        "l1(axis=1, nonneg=True)",
        "linf(l1(axis=2), axis=1)",
        "l1(linf(axis=2), axis=1, nonneg=True)",
        "simplex(axis=1)",
        "lp(p=1.5, axis=1)",
        "l1(axis=1, w=w)",
        "l2(axis=1, w=w)",
    ],
)
def test_what_spoils_a_batch_entry_is_zeros_to_the_others(
    spec: str, dtype: str, order: Any
) -> None:
    """To the bit: they go by the kernels, whatever is beside them."""
    shape = (4, 5, 6) if "axis=2" in spec else (4, 30)
    y = np.array(_normal(*shape), dtype, order=order)
    given = {"w": 0.1 + np.abs(_normal(*shape))} if "w=w" in spec else {}
    p = projgen.build(spec, check_finite=False, threads=1)
    y[1] = 0
    expected = p(y, 1.0, **given)
    for value in (np.nan, np.inf, -np.inf):
        y[1].flat[3] = value
        for x in (p(y, 1.0, **given), p(z := y.copy("K"), 1.0, out=z, **given)):
            assert np.isnan(x[1]).all()
            np.testing.assert_array_equal(np.delete(x, 1, 0), np.delete(expected, 1, 0))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("spec", ["l1(axis=1, w=w)", "l2(axis=1, w=w)", "lp(p=3, axis=1, w=w)"])
def test_a_group_beside_a_far_larger_one(spec: str, order: Any) -> None:
    """Whose threshold is no guess for the other's."""
    y = np.array(_normal(6, 37), order=order)
    w = 0.1 + np.abs(_normal(6, 37))
    for large in (1e30, 1e100, 1e150, 1e200, 1e300):
        y[2, 5] = large
        expected = projgen.build(spec, backend="numpy")(y, 1.0, w=w)
        x = projgen.project(y, spec, 1.0, w=w)
        np.testing.assert_allclose(np.delete(x, 2, 0), np.delete(expected, 2, 0), atol=1e-12)


def test_labels_weights_and_shapes_that_change_where_they_lie() -> None:
    p = projgen.build("l1(l2(axis=1, groups=q))")
    y, q = _normal(4, 6), np.array([0, 0, 1, 1, 2, 2])
    out = np.empty_like(y)
    p(y, 1.0, out=out, q=q)
    q[:] = 0, 1, 2, 0, 1, 2
    p(y, 1.0, out=out, q=q)
    np.testing.assert_array_equal(out, p(y.copy(), 1.0, q=q.copy()))
    q[0] = -1
    with pytest.raises(ValueError, match="negative label"):
        p(y, 1.0, out=out, q=q)
    p = projgen.build("l1(l2(axis=1), w=w)")
    y, w = _normal(4, 6), np.arange(4.0)
    p(y, 1.0, w=w)
    w[2] = 7.0
    np.testing.assert_array_equal(p(y, 1.0, w=w), p(y.copy(), 1.0, w=w.copy()))
    y.resize((2, 6), refcheck=False)
    w.resize(2, refcheck=False)
    np.testing.assert_array_equal(p(y, 1.0, w=w), p(y.copy(), 1.0, w=w.copy()))
