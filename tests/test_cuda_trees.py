"""Trees on a GPU: whole calls on a fake of CuPy, with the kernels on the SIMT machine.

That values, radii and pieces find their way between parts is tried with many trees for which the
chains' kernels, which have tests of their own, are replaced by the reference.
"""

from __future__ import annotations

import array as array_module
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import fake_cupy
import numpy as np
import pytest
from cuda_support import assert_half_projected, loaded, needs_simt, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Array
from test_cuda_host import Interface, Tensor, cp, torch  # noqa: F401
from tree_support import Problem, assert_tree_projected, norm_of, problems

import projgen
from projgen import interpret
from projgen.bind import Binding
from projgen.cuda import call, compose, walks
from projgen.cuda.compiler import compile_binding
from projgen.operands import axis_order, memory_order
from projgen.structure import flat, rebuilt

pytestmark = needs_simt

TWO = "l1(enc=linf(axis=1), dec=linf(axis=0))"


def normal(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def two() -> dict[str, Array]:
    return {"enc": normal(30, 21), "dec": normal(20, 31)}


def moved(y: Any, move: Callable[[Array], Any]) -> Any:
    return rebuilt(y, {key: move(array) for key, array in flat(y)})


def to_gpu(array: Array) -> Any:
    """With its layout, gaps and all."""
    low, high = np.lib.array_utils.byte_bounds(array)
    memory = fake_cupy.empty((max(1, high - low),), np.uint8)
    pointer = fake_cupy.MemoryPointer(memory.data.mem, array.ctypes.data - low)
    made = fake_cupy.ndarray(array.shape, array.dtype, pointer, array.strides)
    made._a[...] = array
    return made


def to_host(array: Any) -> Array:
    return array.get()


@dataclass
class Model:
    enc: Any
    dec: Any


KINDS: dict[str, tuple[str, Any]] = {
    "two": (TWO, two()),
    "a list": ("l1(linf(axis=1), l2(axis=1))", [normal(30, 21), normal(12, 7)]),
    "a dataclass": (TWO, Model(normal(30, 21), normal(20, 31))),
    "patterns": (
        'l1(linf(axis=1) @ "*.weight", l2 @ "*.bias")',
        {"a": {"weight": normal(30, 21), "bias": normal(9)}, "b.weight": normal(5, 21)},
    ),
    "branches in branches": (
        "l2(a=l1(linf(axis=1), linf(axis=1)), b=linf(axis=1))",
        {"a": [normal(30, 21), normal(8, 21)], "b": normal(11, 21)},
    ),
    "levels above a branch": (
        "l1(l2(a=linf(axis=1), b=linf(axis=2)))",
        {"a": normal(6, 21), "b": normal(6, 4, 21)},
    ),
    "a batch": (
        "l1(a=linf(axis=2), b=linf(axis=2), axis=1)",
        {"a": normal(3, 5, 21), "b": normal(3, 4, 21)},
    ),
    "weights at l1": (f"l1(enc=2.0*{TWO[7:19]}, dec=0.5*linf(axis=0))", two()),
    "weights at l2": ("l2(enc=3.0*linf(axis=1), dec=linf(axis=0))", two()),
    "weights at linf": ("linf(enc=3.0*linf(axis=1), dec=0*linf(axis=0))", two()),
    "weights beneath levels": (
        "l1(l1(a=2.0*linf(axis=1), b=linf(axis=2)))",
        {"a": normal(6, 21), "b": normal(6, 4, 21)},
    ),
    "blocks": ("l1(linf(axis=1, block=7))", normal(30, 21)),
    "a shorter block": ("l1(linf(axis=1, block=4))", normal(30, 23)),
    "tiles": ("l1(linf(axis=(0, 1), block=(4, 4)))", normal(18, 21)),
    "types and orders": (
        TWO,
        {"enc": normal(30, 21, dtype=np.float64).T.copy().T, "dec": normal(20, 31)[::-1, ::2]},
    ),
    "no negative values": ("l1(enc=linf(axis=1, nonneg=True), dec=linf(axis=0))", two()),
    "no negative values anywhere": ("l1(linf(axis=1, block=7), nonneg=True)", normal(30, 21)),
    "lp": ("l1(enc=lp(p=1.5, axis=1), dec=lp(p=3.0, axis=0))", two()),
    "lp at the root": ("lp(linf(axis=1), p=4.0)", normal(30, 21)),
    "lp of branches": ("lp(enc=linf(axis=1), dec=2.0*l1(axis=0), p=1.3)", two()),
    "no values": (TWO, {"enc": normal(0, 21), "dec": normal(20, 31)}),
    "no values at all": (TWO, {"enc": normal(0, 21), "dec": normal(20, 0)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_trees(cp: Any, kind: str) -> None:  # noqa: F811
    spec, values = KINDS[kind]
    p = projgen.build(spec)
    total = norm_of(spec, values)
    y = moved(values, to_gpu)
    np.testing.assert_allclose(to_host(p.norm(y)) if total.ndim else p.norm(y), total, rtol=1e-6)
    radius = 0.2 * total if total.ndim else 0.2 * float(total)
    x = p(y, radius)
    assert type(x) is type(y)
    assert_tree_projected(spec, values, radius, moved(x, to_host))
    kept = projgen.build(spec, backend="numpy").active(moved(x, to_host))
    found = moved(p.active(x), lambda a: a if isinstance(a, bool) else to_host(a))
    assert [np.array_equal(a, b) for (_, a), (_, b) in zip(flat(found), flat(kept), strict=True)]
    assert p(y, radius, out=y) is y
    for (_, a), (_, b) in zip(flat(y), flat(x), strict=True):
        assert np.array_equal(to_host(a), to_host(b))
    more = p(moved(values, to_gpu), float(np.max(total)) * 1.01)
    inside = projgen.build(spec, backend="numpy")(values, np.max(total) * 1.01)  # y, or max(y, 0)
    for (_, a), (_, b) in zip(flat(inside), flat(moved(more, to_host)), strict=True):
        assert np.array_equal(a, b)


@dataclass
class Bound:
    """A tree with names for arrays, or whose values are no magnitudes."""

    spec: str
    y: Any
    radius: Any
    given: dict[str, Any]


def weights_like(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).integers(0, 4, shape) / 2


BOUND = {
    "counts": Bound("l0(linf(axis=1))", normal(30, 21), 7, {}),
    "a count in the spec": Bound("l0(l2(axis=1), k=5)", normal(30, 21), None, {}),
    "counts in blocks": Bound("l0(axis=1, block=4, k=2)", normal(30, 23).round(), None, {}),
    "a simplex": Bound("simplex(axis=1)", normal(30, 21), 2.0, {}),
    "weights of values": Bound("l1(l2(axis=1, w=w))", normal(30, 21), 9.0, {"w": weights_like(21)}),
    "weights of all values": Bound(
        "l1(linf(axis=0, w=w))", normal(30, 21), 9.0, {"w": weights_like(30, 21)}
    ),
    "weights of float32": Bound(
        "l1(w=w)", normal(30, 21), 9.0, {"w": weights_like(30, 1).astype(np.float32)}
    ),
    "weights of halves": Bound(
        "l1(lp(p=3, axis=1, w=w))", normal(30, 21), 9.0, {"w": weights_like(21).astype(np.float16)}
    ),
    "weights of groups": Bound(
        "l1(linf(axis=1), w=w)", normal(30, 21), 9.0, {"w": weights_like(30)}
    ),
    "weights of groups of rank 3": Bound(
        "l2(l1(linf(axis=0), axis=2, w=w))", normal(3, 5, 4), 4.0, {"w": weights_like(5, 4)}
    ),
    "weights of children": Bound(
        "l1(enc=2.0*linf(axis=1), dec=linf(axis=0), w=w)",
        two(),
        9.0,
        {"w": {"enc": weights_like(30), "dec": weights_like(31)}},
    ),
    "weights in blocks": Bound(
        "l1(l2(axis=1, block=4, w=w))", normal(30, 23), 9.0, {"w": weights_like(30, 23)}
    ),
    "labels": Bound("l1(linf(axis=1, groups=g))", normal(30, 21), 9.0, {"g": np.arange(21) % 4}),
    "labels before other axes": Bound(
        "l1(l2(axis=0, groups=g))", normal(12, 5, 4), 9.0, {"g": np.array([4, 0, 2, 2] * 3)}
    ),
    "labels and weights": Bound(
        "l1(l1(axis=1, groups=g, w=w))",
        normal(30, 21),
        9.0,
        {"g": np.arange(21) // 5, "w": weights_like(30, 21)},
    ),
    "no negative values": Bound(
        "l1(lp(p=1.5, axis=1, groups=g, nonneg=True))", normal(9, 21), 3.0, {"g": np.arange(21) % 2}
    ),
    "a batch": Bound(
        "l1(l2(axis=2, w=w), axis=1)",
        normal(3, 5, 21),
        np.array([1.0, 0.0, 99.0]),
        {"w": weights_like(21)},
    ),
}


@pytest.mark.parametrize("where", ["host", "GPU"])
@pytest.mark.parametrize("kind", BOUND)
def test_bound_arrays(cp: Any, kind: str, where: str) -> None:  # noqa: F811
    """What names bind lies on the host, or weights on the GPU."""
    case = BOUND[kind]
    given = dict(case.given)
    if where == "GPU":
        given = {k: v if k == "g" else moved(v, to_gpu) for k, v in given.items()}
    p = projgen.build(case.spec)
    reference = projgen.build(case.spec, backend="numpy")
    y = moved(case.y, to_gpu)
    total = reference.norm(case.y, **case.given)
    found = p.norm(y, **given)
    np.testing.assert_allclose(to_host(found) if np.ndim(total) else found, total, rtol=1e-6)
    x = p(y, case.radius, **given)
    assert_tree_projected(case.spec, case.y, case.radius, moved(x, to_host), **case.given)
    after = moved(x, to_host)
    kept, active = reference.active(after, **case.given), p.active(x, **given)
    for (_, a), (_, b) in zip(flat(active), flat(kept), strict=True):
        assert np.array_equal(a if isinstance(a, bool) else to_host(a), b)
    assert p(y, case.radius, out=y, **given) is y
    for (_, a), (_, b) in zip(flat(y), flat(x), strict=True):
        assert np.array_equal(to_host(a), to_host(b))
    if case.spec.startswith(("l0", "simplex")) or np.ndim(case.radius):
        return
    _, info = p(moved(case.y, to_gpu), case.radius, return_info=True, **given)
    _, expected = reference(case.y, case.radius, return_info=True, **case.given)
    assert str(info) == str(expected)


def test_weights_come_from_anywhere(cp: Any) -> None:  # noqa: F811
    """To one projection: how they lie, and their type, is looked at in each call."""
    spec, y = "l1(l2(axis=1, w=w))", normal(30, 21)
    p, w = projgen.build(spec), weights_like(21)
    for weights in (w, to_gpu(w), w.astype(np.float32), to_gpu(w.astype(np.float32)), list(w)):
        for array, move in ((to_gpu(y), to_host), (y, np.asarray)):
            if array is y and not isinstance(weights, (np.ndarray, list)):
                with pytest.raises(TypeError, match="'w' has weights on a GPU, and the arrays"):
                    p(array, 9.0, w=weights)
                continue
            assert_tree_projected(spec, y, 9.0, move(p(array, 9.0, w=weights)), w=w)
    for kind in ("d", "f"):
        x = p(y, 9.0, w=array_module.array(kind, w.tolist()))
        assert_tree_projected(spec, y, 9.0, x, w=w)


def test_wrong_weights_leave_the_result_as_it_was(cp: Any) -> None:  # noqa: F811
    """Also where y is copied there first, since it runs the other way."""
    p, y = projgen.build("l1(linf(axis=1, w=w))"), cp.asarray(normal(30, 21))
    out = cp.asarray(normal(30, 21))
    for wrong in (-np.ones(21), np.ones(20), to_gpu(np.ones(20)), "a"):
        with pytest.raises((TypeError, ValueError), match="'w'"):
            p(y[::-1], 1.0, out=out, w=wrong)
        assert np.array_equal(out.get(), normal(30, 21))


def test_info_of_weights_that_are_overwritten(cp: Any) -> None:  # noqa: F811
    y = np.abs(normal(6, 8)) + 0.1
    p = projgen.build("l1(linf(axis=1, w=w))")
    _, expected = projgen.build(p.spec, backend="numpy")(y, 1.0, w=y, return_info=True)
    shared = cp.asarray(y)
    _, info = p(shared, 1.0, out=shared, w=shared, return_info=True)
    assert str(info) == str(expected)


def test_streams_of_weights(cp: Any) -> None:  # noqa: F811
    """The call waits for them, and they for it; so they do for those that overlap the result."""
    p = projgen.build("l1(linf(axis=1, w=w))")
    y, w = cp.asarray(normal(30, 21)), cp.asarray(weights_like(30, 21))
    given = Interface(y, stream=7)
    p(given, 3.0, w=Interface(w, stream=9))
    assert (7, 9) in cp.state.waits and (9, 7) in cp.state.waits
    values, twice = normal(30, 21), weights_like(30, 21).astype(np.float32)
    shared = cp.asarray(twice)
    x = p(cp.asarray(values), 3.0, out=shared, w=shared)
    assert_tree_projected("l1(linf(axis=1, w=w))", values, 3.0, x.get(), w=twice)


def test_half_types(cp: Any, torch: Any) -> None:  # noqa: F811
    values = {key: stored(array, "bfloat16") for key, array in two().items()}
    meant = {key: loaded(array, "bfloat16") for key, array in values.items()}
    p = projgen.build(TWO)
    y = {key: Tensor(cp.asarray(bits), "bfloat16") for key, bits in values.items()}
    radius = 0.2 * float(norm_of(TWO, meant))
    x = p(y, radius)
    assert {type(tensor) for tensor in x.values()} == {Tensor}
    after = {key: loaded(tensor.array.get(), "bfloat16") for key, tensor in x.items()}
    expected = projgen.build(TWO, backend="numpy")(meant, radius)
    for key, array in after.items():
        np.testing.assert_allclose(array, expected[key], rtol=2**-7, atol=1e-6)
    kept = {key: (array != 0).any(axis=1 - (key == "dec")) for key, array in after.items()}
    for key, groups in p.active(x).items():
        assert np.array_equal(groups.array.get(), kept[key])
    _, info = p(y, radius, return_info=True)
    assert {array.dtype for array in info.arrays} == {"bfloat16"}


def test_nothing_is_read_and_little_is_allocated(cp: Any) -> None:  # noqa: F811
    """One piece of memory for a tree; then a graph can capture calls."""
    p = projgen.build("l1(enc=2.0*linf(axis=1), dec=linf(axis=0))")
    y = moved(two(), cp.asarray)
    out = moved(two(), cp.asarray)
    for _ in range(2):
        p(y, 1.0, out=out)
        assert len(cp.state.allocations) == 1
        assert cp.state.reads == 1  # for the weights, when the kernel is made
    assert [launch.name for launch in cp.state.launches[:7]] == [
        *("aggregate_0", "aggregate_0", "combine_0", "aggregate"),
        *("project", "project_0", "project_0"),
    ]
    cp.state.capturing = True
    p(y, 1.0, out=out)
    cp.state.capturing = False
    captured, kept = call._captured[-1]
    assert isinstance(kept[0], compose.Composition)
    p(y, 1.0, out=out)
    assert cp.state.launches[-1].arguments[-2] != captured.ptr


def test_weights_of_the_spec_are_sent_once(cp: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A graph could not capture it."""
    p = projgen.build("l1(enc=2.0*linf(axis=1), dec=linf(axis=0))")
    y = moved(two(), cp.asarray)
    p(y, 1.0)
    monkeypatch.setattr("projgen.cuda.weights.level_weights", None)
    x = p(y, 1.0)
    assert_tree_projected(p.spec, two(), 1.0, moved(x, to_host))


def test_streams_wait_for_each_other(cp: Any) -> None:  # noqa: F811
    p = projgen.build(TWO)
    values = two()
    y, out = moved(values, cp.asarray), moved(values, cp.asarray)
    given_y = {"enc": Interface(y["enc"], stream=7), "dec": Interface(y["dec"], stream=8)}
    given_out = {key: Interface(array, stream=7) for key, array in out.items()}
    p(given_y, 3.0, out=given_out)
    assert cp.state.waits == [(7, 8), (8, 7)]
    assert {launch.stream for launch in cp.state.launches} == {7}
    assert_tree_projected(TWO, values, 3.0, moved(out, to_host))


def test_radii_on_the_gpu_are_not_read(cp: Any) -> None:  # noqa: F811
    """A negative one makes NaN of its batch entry, in every array."""
    spec = "l1(a=linf(axis=2), b=linf(axis=2), axis=1)"
    y = {"a": cp.asarray(normal(3, 5, 21)), "b": cp.asarray(normal(3, 4, 21))}
    x = projgen.build(spec)(y, cp.asarray(np.array([1.0, -1.0, np.nan], np.float32)))
    assert cp.state.reads == 0
    for array in x.values():
        assert np.isnan(array.get()).all(axis=(1, 2)).tolist() == [False, True, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight", ["", "2.0*", "0*"])
@pytest.mark.parametrize("root", ["l1", "l2", "linf"])
def test_what_is_not_finite_spreads(cp: Any, bad: float, weight: str, root: str) -> None:  # noqa: F811
    """To all arrays; asked to check, a call raises, says where, and writes nothing."""
    spec = f"{root}(enc=linf(axis=1), dec={weight}linf(axis=0))"
    values = two()
    values["dec"][3, 4] = bad
    for radius in (2.0, 0.0, np.inf):
        x = projgen.build(spec)(moved(values, cp.asarray), radius)
        assert all(np.isnan(array.get()).all() for array in x.values())
    p = projgen.build(spec, check_finite=True)
    y = moved(values, cp.asarray)
    with pytest.raises(ValueError, match="dec has NaN or infinity in it"):
        p(y, 2.0, out=y)
    turned = {"enc": y["enc"], "dec": y["dec"][::-1]}  # it is copied before a kernel sees it
    out = moved(values, cp.asarray)
    with pytest.raises(ValueError, match="nothing was written"):
        p(turned, 2.0, out=out)
    for made in (y, out):
        assert all(np.array_equal(a.get(), values[k], equal_nan=True) for k, a in made.items())


def test_only_the_batch_entry_that_is_not_finite_is_nan(cp: Any) -> None:  # noqa: F811
    spec, values = "l1(a=linf(axis=2), b=2.0*linf(axis=2), axis=1)", dict(KINDS["a batch"][1])
    values["b"] = values["b"].copy()
    values["b"][1, 2, 3] = np.nan
    x = moved(projgen.build(spec)(moved(values, to_gpu), 2.0), to_host)
    for array in x.values():
        assert np.isnan(array).all(axis=(1, 2)).tolist() == [False, True, False]
    for part in (slice(1), slice(2, None)):
        own, found = ({key: a[part] for key, a in arrays.items()} for arrays in (values, x))
        assert_tree_projected(spec, own, 2.0, found)


def test_checked_calls_project_what_is_finite(cp: Any) -> None:  # noqa: F811
    values = two()
    y = {"enc": cp.asarray(values["enc"])[:, ::-1], "dec": cp.asarray(values["dec"])}
    out = moved(values, cp.asarray)
    given_y = moved(y, to_host)
    for check in (True, False):
        projgen.build(TWO, check_finite=check)(y, 5.0, out=out)
        assert_tree_projected(TWO, given_y, 5.0, moved(out, to_host))


@pytest.mark.parametrize("spec", [TWO, f"l1(l1(enc=2.0*{TWO[7:19]}, dec=linf(axis=0)))"])
def test_info(cp: Any, spec: str) -> None:  # noqa: F811
    values = {"enc": normal(5, 30, 21), "dec": normal(5, 20, 31)} if "l1(l1" in spec else two()
    spec = spec.replace("axis=1", "axis=2").replace("axis=0", "axis=1") if "l1(l1" in spec else spec
    p = projgen.build(spec)
    y = moved(values, cp.asarray)
    x, info = p(y, 9.0, out=y, return_info=True)
    assert x is y
    _, expected = projgen.build(spec, backend="numpy")(values, 9.0, return_info=True)
    assert str(info) == str(expected)


def refusals(cp: Any) -> dict[str, Callable[[], Any]]:  # noqa: F811
    y = moved(two(), cp.asarray)
    host = two()
    p, strict = projgen.build(TWO), projgen.build(TWO, backend="cuda")
    with cp.cuda.Device(1):
        far = moved(two(), cp.asarray)
    wide = cp.ndarray((20, 31), np.float32, y["dec"].data, strides=(0, 4))
    return {
        "enc: backend='cuda' takes arrays on a GPU": lambda: strict(host, 1.0),
        "dec: it does not live on a GPU, and enc does": lambda: p(
            {"enc": y["enc"], "dec": host["dec"]}, 1.0
        ),
        "dec: it lives on a GPU, and enc does not": lambda: p(
            {"enc": host["enc"], "dec": y["dec"]}, 1.0
        ),
        "dec: it is on GPU 1, and enc on GPU 0": lambda: p(
            {"enc": y["enc"], "dec": far["dec"]}, 1.0
        ),
        "out enc: y is on a GPU, and out, of type ndarray, is not": lambda: p(y, 1.0, out=host),
        "out enc: out is on GPU 1, and y on GPU 0": lambda: p(y, 1.0, out=far),
        "out enc: out must have y's shape": lambda: p(
            y, 1.0, out={"enc": y["dec"], "dec": y["dec"]}
        ),
        "out dec: out has elements that share memory": lambda: p(
            y, 1.0, out={"enc": y["enc"], "dec": wide}
        ),
        "shares memory with y": lambda: projgen.build("l1(linf, linf)")(
            [y["enc"], y["enc"]], 1.0, out=[y["enc"]] * 2
        ),
        "dec: expected float32, .*, got int64": lambda: p(
            {"enc": y["enc"], "dec": cp.asarray(np.ones((3, 4), int))}, 1.0
        ),
        "a radius is missing": lambda: p(y),
        "radius must be at least 0": lambda: p(y, -1.0),
        "does not fit l1": lambda: p(y, cp.asarray(np.ones(3))),
        "radius is on GPU 1": lambda: p(y, far["dec"]),
        "'v' takes numbers, not <U1": lambda: projgen.build("l1(linf, w=v)")(y["enc"], 1, v="a"),
        "'v' has weights that are negative": lambda: projgen.build("l1(linf, w=v)")(
            y["enc"], 1, v=-np.ones(30)
        ),
        "'v' is on GPU 1, and y on GPU 0": lambda: projgen.build("l1(linf, w=v)")(
            y["enc"], 1, v=far["dec"]
        ),
        r"'v' has shape \(20, 31\), which does not broadcast": lambda: projgen.build("l1(w=v)")(
            y["enc"], 1, v=y["dec"]
        ),
        "'g' has labels on a GPU": lambda: projgen.build("l1(linf(axis=1, groups=g))")(
            y["enc"], 1, g=y["dec"]
        ),
        "radius must be a number or an array": lambda: projgen.build("simplex")(y["enc"], "a"),
        "'w' has weights that are negative": lambda: projgen.build(
            "l1(a=l1(linf, linf), b=linf, w=w)"
        )(
            {"a": [y["enc"], y["enc"]], "b": y["enc"]},
            1.0,
            w={"a": -np.ones(1), "b": cp.asarray(np.ones(1))},
        ),
        "its radius is finite": lambda: projgen.build("simplex")(y["enc"], np.inf),
        "'v' is not named": lambda: p(y, 1.0, v=1),
    }


def test_refusals(cp: Any) -> None:  # noqa: F811
    """Each says what is the matter, and nothing was launched for it."""
    for message, refused in refusals(cp).items():
        with pytest.raises((TypeError, ValueError), match=message):
            refused()
    assert not cp.state.launches


@pytest.mark.parametrize(
    ("spec", "shape", "dtype"),
    [
        ("l1(linf(axis=1))", (33, 40), "float32"),
        ("l1(linf(axis=0))", (50, 64), "float16"),
        ("l1(l1(axis=1))", (200, 8), "float32"),
        ("l1(l1(axis=1))", (33, 40), "float16"),
        ("l1(l1(axis=0))", (40, 30), "float64"),
        ("l1", (12_000,), "float32"),
    ],
)
def test_no_negative_values(cp: Any, spec: str, shape: tuple[int, ...], dtype: str) -> None:  # noqa: F811
    """However y is walked, the result is that of y without them; in place, and inside, too."""
    values = normal(*shape, dtype=dtype)
    positive = np.maximum(values, values.dtype.type(0))
    p = projgen.build(f"{spec[:-1]}, nonneg=True)" if "(" in spec else f"{spec}(nonneg=True)")
    total = float(norm_of(spec, positive.astype(np.float64)))
    for radius in (0.3 * total, 0.0, 2 * total):
        y = cp.asarray(values)
        x = p(y, radius)
        if dtype == "float16":
            assert_half_projected(spec, positive, radius, x.get(), dtype)
        else:
            assert_tree_projected(spec, positive, radius, x.get())
        p(y, radius, out=y)
        assert np.array_equal(y.get(), x.get())
    y[1] = -np.inf
    assert np.isnan(p(y, 1.0).get()).all()


# Random trees


class ReferenceCall:
    """A chain's kernel that NumPy stands in for: see `projgen.cuda.call.Call`."""

    def __init__(
        self, binding: Binding, shape: tuple[int, ...], dtype: str, strides: Any, *rest: Any
    ) -> None:
        out_strides, in_place, aligned, *positive = rest
        made = compile_binding(binding, shape, dtype, strides, out_strides, in_place, aligned)
        self.plan, self.work = made.plan, made.schedule.work
        self._binding, self._shape, self._dtype = binding, shape, np.dtype(dtype)
        self._strides = strides, strides if in_place else out_strides
        self._positive = any(positive)

    def _counted(self, address: int) -> Array:
        y = self._array(address, self._strides[0])
        return np.maximum(y, 0) if self._positive else y

    def _array(self, address: int, strides: Any) -> Array:
        start, block, _ = fake_cupy._find(address)
        steps = [step * self._dtype.itemsize for step in strides]
        return np.ndarray(self._shape, self._dtype, block, address - start, steps)

    def begin(self, y: int, work: Any) -> Any:
        norms = np.asarray(interpret.norm(self._binding, self._counted(y)))
        made = fake_cupy.ndarray((self.plan.batch,), np.float64, work)
        made._a[...] = memory_order(norms, self._binding, self.plan)
        return made

    def end(self, y: int, x: int, radius: Any, work: Any) -> None:
        radii = radius
        if not isinstance(radius, float):
            radii = axis_order(radius.get(), self._binding, self.plan, self._shape)
        projected = interpret.project(self._binding, self._counted(y), radii)
        self._array(x, self._strides[1])[...] = projected


@pytest.fixture(scope="module")
def reference_kernels() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, fake_cupy.installed() as module:
        patch.setattr(walks.Kernels, "chain", lambda self, *form: ReferenceCall(*form))
        yield module


@st.composite
def calls(draw: st.DrawFn) -> tuple[Problem, float, str]:
    problem = draw(problems(special=False))
    spec = problem.spec
    if draw(st.booleans()):  # weights of children
        weights = draw(st.lists(st.sampled_from(["2.0*", "0.5*", "0*"]), min_size=4, max_size=4))
        for name, weight in zip(("n0=", "n1=", "n2="), weights, strict=False):
            spec = spec.replace(name, name + weight)
    way = draw(st.sampled_from(["new", "out", "in place"]))
    if draw(st.booleans()):
        spec = f"{spec[:-1]}, nonneg=True)"
    return Problem(spec, problem.y), draw(st.sampled_from([0.0, 0.1, 0.7, 1.1])), way


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.1, 0.7, 1.1]), st.booleans())
def test_random_trees_of_all_levels(
    reference_kernels: Any, problem: Problem, share: float, in_place: bool
) -> None:
    p = projgen.build(problem.spec)
    values = moved(problem.y, np.array)
    total = norm_of(problem.spec, values, **problem.given)
    radius = share * total if total.ndim else share * float(total)
    y = moved(problem.y, to_gpu)
    x = p(y, radius, out=y if in_place else None, **problem.given)
    assert_tree_projected(problem.spec, values, radius, moved(x, to_host), **problem.given)


@settings(max_examples=60, deadline=None)
@given(calls())
def test_random_trees(reference_kernels: Any, case: tuple[Problem, float, str]) -> None:
    problem, share, way = case
    p = projgen.build(problem.spec)
    values = moved(problem.y, np.array)
    total = norm_of(problem.spec, values)
    y = moved(problem.y, to_gpu)
    norms = p.norm(y)
    np.testing.assert_allclose(norms.get() if total.ndim else norms, total, rtol=1e-6, atol=1e-300)
    radius = share * total if total.ndim else share * float(total)
    out = {"new": None, "out": moved(problem.y, to_gpu), "in place": y}[way]
    x = p(y, radius, out=out)
    assert_tree_projected(problem.spec, values, radius, moved(x, to_host))
