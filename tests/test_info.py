"""What ``return_info=True`` tells: against the reference's numbers, and against arithmetic."""

import copy
import json
from dataclasses import replace
from typing import Any

import fake_cupy
import numpy as np
import pytest
from cuda_support import loaded, needs_simt, stored
from support import Array, bits, lay_out, norm, rehearsals, run_python

import projgen
from projgen import interpret, interpret_trees, measure
from projgen.bind import bind
from projgen.check import parse_tree
from projgen.cuda import nvrtc
from projgen.cuda.arrays import view
from projgen.structure import at, flat, places
from projgen.trees import bind_tree
from projgen.weights import read_given

SPECS = [
    "l1", "l2", "linf", "l1(linf)", "l1(l2(linf))", "l2(l1)", "linf(l2)", "l1(axis=1)",
    "l1(linf(axis=1), axis=2)", "l1(l1(axis=0), axis=2)", "l2(l1(axis=1), axis=0)",
    "linf(l2(axis=1), axis=0)", "l1(l1(axis=1), axis=(0, 2))", "l1(l2(linf(axis=0), axis=1))",
]  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def told(info: projgen.Info) -> list[Any]:
    return [info.norm_before, info.norm_after, info.threshold, info.distance]


def assert_info(spec: str, y: Array, radius: Any, x: Array, info: projgen.Info) -> None:
    """That `info` is what NumPy and float64 say of `y` and `x`."""
    binding = bind(parse_tree(spec), y.ndim)
    reduced = measure.reduced_axes(binding)
    wide, result = y.astype(np.float64), x.astype(np.float64)
    close = {"rtol": 1e-12, "atol": 0}
    np.testing.assert_allclose(info.norm_before, norm(spec, wide), **close)
    np.testing.assert_allclose(info.norm_after, norm(spec, result), **close)
    np.testing.assert_allclose(
        info.distance, np.sqrt(np.square(wide - result).sum(axis=reduced)), **close
    )
    assert np.array_equal(info.radius, np.broadcast_to(radius, np.shape(info.norm_before)))
    (array,) = info.arrays
    assert array.shape == y.shape
    assert array.dtype == y.dtype.name
    assert np.array_equal(array.nonzero, np.count_nonzero(x, axis=reduced))
    assert np.array_equal(array.nonzero_before, np.count_nonzero(y, axis=reduced))
    assert np.array_equal(array.largest_change, np.abs(wide - result).max(axis=reduced))
    assert np.array_equal(info.sparsity, 1 - array.nonzero / array.entries)
    for i, level in enumerate(info.levels):
        within = tuple(axis for below in binding.levels[i:] for axis in below.axes)
        alive = np.any(x != 0, axis=within)
        assert np.array_equal(level.alive, alive)
        assert level.along == tuple(axis for axis in range(y.ndim) if axis not in within)
        groups = tuple(k for k, axis in enumerate(level.along) if axis in reduced)
        assert np.array_equal(level.active, np.count_nonzero(alive, axis=groups))
        assert np.array_equal(
            level.active_before, np.count_nonzero(np.any(y != 0, axis=within), axis=groups)
        )
        assert level.groups * np.size(info.norm_before) == alive.size
    assert_threshold(spec, wide, radius, info)


def assert_threshold(spec: str, y: Array, radius: Any, info: projgen.Info) -> None:
    """That it takes the root's values to what the reference makes of them."""
    binding = bind(parse_tree(spec), y.ndim)
    values, root = np.abs(y), binding.root
    for level in binding.levels[:0:-1]:
        values = interpret.REFERENCES[level.norm].norm(values, level.axes)
    shape = [1 if axis in measure.reduced_axes(binding) else n for axis, n in enumerate(y.shape)]
    radii, t = (
        np.broadcast_to(a, np.shape(info.norm_before)).reshape(shape)
        for a in (radius, info.threshold)
    )
    reference = interpret.REFERENCES[root.norm]
    outside = reference.norm(values, root.axes) > radii
    expected = np.where(outside, reference.ball(values, root.axes, radii), values)
    if root.norm == "l1":
        made = np.maximum(values - t, 0)
    else:
        made = values * t if root.norm == "l2" else np.minimum(values, t)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-12 * values.max())
    assert np.all(outside | (t == {"l1": 0, "l2": 1, "linf": np.inf}[root.norm]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", SPECS)
def test_the_numbers_are_right(spec: str, dtype: str) -> None:
    y = normal(5, 6, 7).astype(dtype)
    y[1] = 0
    y = np.asfortranarray(y) if dtype == "float32" else y
    p, norms = projgen.build(spec), norm(spec, y)
    with rehearsals():
        for fraction in (0.0, 0.01, 0.3, 1.001, np.inf):
            with np.errstate(invalid="ignore"):
                radius = np.nan_to_num(fraction * norms, nan=np.inf, posinf=np.inf)
            radius = radius if radius.ndim else float(radius)
            x, info = p(y, radius, return_info=True)
            assert bits(x) == bits(p(y, radius))
            assert np.array_equal(info.norm_before, p.norm(y))
            assert_info(spec, y, radius, x, info)
            z = y.copy(order="K")
            same, again = p(z, radius, out=z, return_info=True)
            assert same is z
            assert bits(z) == bits(x)
            np.testing.assert_array_equal(told(again), told(info))


@pytest.mark.parametrize("backend", ["auto", "numpy"])
@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l2(axis=2), axis=0)", "l1", "l2(l1(linf))"])
def test_odd_arrays(spec: str, backend: Any) -> None:
    p = projgen.build(spec, backend=backend)
    y = normal(6, 8, 5)
    arrays = [
        y[::-1, ::2], y.transpose(2, 0, 1), y[:1], y[:, :1], y[:, :, :1], y[:1, :1, :1],
        lay_out(y, (0, 1, 2), (1, 0, 1)), lay_out(y, (2, 0, 1), (2, -1, 1)), y[:0], y[:, :0],
    ]  # fmt: skip
    with rehearsals():
        for array in arrays:
            before = bits(array)
            x, info = p(array, 1.5, return_info=True)
            assert bits(array) == before
            if array.size:
                assert_info(spec, array, 1.5, x, info)
            else:
                assert np.all(np.asarray(info.norm_before) == 0)
                assert np.all(np.asarray(info.sparsity) == 0)
            assert "entries" in str(info)
        strange = np.empty_like(y).transpose(2, 1, 0).copy().transpose(2, 1, 0)
        x, info = p(y, 1.5, out=strange, return_info=True)
        assert x is strange
        assert_info(spec, y, 1.5, x, info)
        base = np.tile(y, 2)
        part = base[:, :, :5]  # gaps: a copy has other strides
        x, info = p(part, 1.5, out=part[:], return_info=True)
        assert_info(spec, y, 1.5, x, info)


def test_large_arrays_are_read_in_blocks() -> None:
    y = normal(3, 500, 300).transpose(1, 2, 0)
    for size in (1, 7, 1 << 10, measure.BLOCK, 1 << 20):
        seen = np.zeros(y[:9, :11].shape if size < 9 else y.shape, np.int8)
        for index in measure.blocks(seen, size):
            assert seen[index].size <= size
            seen[index] += 1
        assert np.all(seen == 1)
    for spec in ("l1", "l1(l1)", "l2(axis=0)", "l1(linf(axis=1), axis=0)"):
        x, info = projgen.build(spec, backend="numpy")(y, 3.0, return_info=True)
        assert_info(spec, y, 3.0, x, info)


@pytest.mark.parametrize("scale", [1e-320, 1e-170, 1e170, 1e306])
@pytest.mark.parametrize("spec", ["l1", "l2", "linf", "l1(l2)", "l1(l1)", "l2(l1)", "linf(l1)"])
def test_numbers_near_the_ends_of_the_range(spec: str, scale: float) -> None:
    """Lengths are neither 0 nor infinite, and thresholds are right even of infinite norms."""
    y = normal(40, 50)
    plain = projgen.build(spec, backend="numpy")
    radius = 0.05 * plain.norm(y)
    _, expected = plain(y, radius, return_info=True)
    with rehearsals():
        _, info = projgen.build(spec)(y * scale, radius * scale, return_info=True)
    factor = 1.0 if spec.startswith("l2") else scale
    limit = np.finfo(float).max
    loose = 1e-2 if scale < 1e-300 else 1e-11
    assert info.threshold == pytest.approx(expected.threshold * factor, rel=loose)
    for name in ("norm_before", "norm_after", "distance"):
        wanted = getattr(expected, name)
        if scale < 1 or wanted < limit / scale:
            assert getattr(info, name) == pytest.approx(wanted * scale, rel=loose)
        else:
            assert getattr(info, name) == np.inf


def test_the_distance_does_not_cancel() -> None:
    y = np.ones((100, 100)) + 1e-9 * normal(100, 100)
    p = projgen.build("l1(linf)", backend="numpy")
    radius = p.norm(y) - 1e-6
    x, info = p(y, radius, return_info=True)
    exact = np.longdouble(0)
    for a, b in zip(y.ravel(), x.ravel(), strict=True):
        exact += (np.longdouble(a) - np.longdouble(b)) ** 2
    assert 0 < info.distance == pytest.approx(float(np.sqrt(exact)), rel=1e-12)


@pytest.mark.parametrize("radius", [1e-12, 1e-9, 1e-3])
def test_one_value_is_left_in_float32(radius: float) -> None:
    """The threshold is found where float32 has no room for what is left, and with ties."""
    y = np.full((50, 4), 3.0, np.float32)
    y[7] += 1.0
    with rehearsals():
        for spec, top in (("l1", 4.0), ("l1(linf)", 4.0), ("l1(l1)", 16.0)):
            info = projgen.project(y, spec, radius, return_info=True)[1]
            several = 4 if spec == "l1" else 1
            assert info.threshold == pytest.approx(top - radius / several, rel=1e-15)


def test_not_a_number() -> None:
    y = normal(4, 5, 6)
    y[1, 2, 3], y[2, 0, 0] = np.nan, np.inf
    p = projgen.build("l1(linf(axis=2), axis=1)", check_finite=False)
    with rehearsals():
        _, info = p(y, 1.0, return_info=True)
    for number in (info.norm_after, info.threshold, info.distance):
        assert np.isnan(number).tolist() == [False, True, True, False]
    assert info.norm_after[0] == pytest.approx(1.0)


def test_errors_are_those_of_the_call() -> None:
    p, y = projgen.build("l1(linf)"), normal(4, 5)
    with rehearsals():
        for bad, radius, out, error in (
            (y, -1.0, None, "at least 0"),
            (y, 1.0, y[::-1], "overlaps"),
            (y, 1.0, np.zeros((4, 5), np.float32), "dtype"),
            (np.where(y > 1, np.nan, y), 1.0, None, "nan"),
        ):
            with pytest.raises(ValueError, match=error):
                p(bad, radius, out=out, return_info=True)
            z = bad.copy()
            if out is None:
                with pytest.raises(ValueError, match=error):
                    p(z, radius, out=z, return_info=True)
                assert bits(z) == bits(bad)
        with pytest.raises(TypeError, match="integers"):
            p(np.ones((2, 2), int), 1.0, return_info=True)


def test_it_can_be_read() -> None:
    y = normal(6, 4).astype(np.float32)
    p = projgen.build("l1(linf(axis=1))", backend="numpy")
    info = p(y, 2.0, return_info=True)[1]
    assert (
        str(info)
        == """\
l1(linf(axis=1)), radius 2
  norm       2, was 7.94385
  threshold  1.06523, subtracted from the values of l1
  distance   2.79612
  linf       4 of 6 groups not all zero; 6 before
  entries    16 of 24 not zero (33.3% zero); 6 × 4, float32"""
    )
    assert repr(info) == "<projgen.Info of l1(linf(axis=1)): norm 7.94385 -> 2, 33.3% zero>"
    assert info.active == (1, 4)
    assert "inside the ball" in str(p(y, 9.0, return_info=True)[1])
    batch = projgen.build("l2(axis=1)", backend="numpy")(y, 1.0, return_info=True)[1]
    assert "1 projection" not in str(batch)
    assert "radius 1; 6 projections\n" in str(batch)
    assert "a factor of the values of l2" in str(batch)
    for one in (info, batch):
        said = json.loads(json.dumps(one.to_json()))
        assert said["levels"][-1]["active"] == np.asarray(one.active[-1]).tolist()
        assert said["sparsity"] == np.asarray(one.sparsity).tolist()
    with pytest.raises(AttributeError):
        info.radius = 3.0  # type: ignore[misc]


def test_project_tells_too() -> None:
    with rehearsals():
        _, info = projgen.project(normal(4, 5), "l1(linf)", 1.0, return_info=True)
    assert isinstance(info, projgen.Info)
    assert type(info.norm_before) is float
    assert type(info.active[0]) is int
    assert info.norm_after == pytest.approx(1.0)


def test_no_kernel_is_made_for_the_numbers() -> None:
    """Those that the projection has serve for the norms and the root's values."""
    p, y = projgen.build("l1(linf)"), normal(4, 5)
    with rehearsals():
        p(y, 1.0, return_info=True)
        assert len(p._calls) == 1


def test_it_is_imported_when_it_is_needed() -> None:
    code = """
import sys, projgen
assert "projgen.info" not in sys.modules
print(projgen.Info.__name__)
"""
    assert run_python(code) == "Info\n"
    with pytest.raises(AttributeError, match="nothing"):
        projgen.nothing  # noqa: B018


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    values = normal(6, 7)
    with rehearsals():
        y = torch.nn.Parameter(torch.from_numpy(values.copy()))
        with torch.no_grad():
            x, info = projgen.project(y, "l1(axis=1)", 1.0, return_info=True)
            projgen.project(y, "l1(axis=1)", 1.0, out=y, return_info=True)
    assert isinstance(x, torch.Tensor)
    assert torch.equal(x, y)
    assert_info("l1(axis=1)", values, 1.0, x.numpy(), info)


def test_jax() -> None:
    jax = pytest.importorskip("jax")
    values = normal(6, 7).astype(np.float32)
    with rehearsals():
        x, info = projgen.project(jax.numpy.asarray(values), "l1(linf)", 1.0, return_info=True)
    assert isinstance(x, jax.Array)
    assert_info("l1(linf)", values, 1.0, np.asarray(x), info)


@needs_simt
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "missing", lambda: "not in this test")
    values = normal(37, 50).astype(np.float32)
    with fake_cupy.installed() as cp:
        for spec, radius in (("l1(linf)", 2.0), ("l1(axis=0)", cp.asarray(np.full(50, 2.0)))):
            p, y = projgen.build(spec), cp.asarray(values)
            x, info = p(y, radius, return_info=True)
            assert type(x) is cp.ndarray
            assert_info(spec, values, 2.0, x.get(), info)
            assert np.array_equal(y.get(), values)
            same, again = p(y, radius, out=y, return_info=True)
            assert same is y
            assert bits(y.get()) == bits(x.get())
            np.testing.assert_allclose(told(again), told(info), rtol=1e-14)


def test_a_gpu_s_bfloat16_is_read_as_numbers() -> None:
    values = normal(3, 5)
    bits16 = stored(values, "bfloat16")
    with fake_cupy.installed() as cp:
        array = view(cp.asarray(bits16.view(np.float16)))
        array = replace(array, dtype="bfloat16", ghost=array.ghost.view(np.uint16))
        index = (slice(1, 3), slice(0, 4))
        assert np.array_equal(array.read(index), loaded(bits16, "bfloat16")[index])
        assert np.array_equal(array.copy().read(index), array.read(index))
        assert array.copy().dtype == "bfloat16"


# Trees: several arrays, weights, blocks and groups.

A, B, C = normal(5, 4), normal(4, 6, seed=1).astype(np.float32), normal(5, seed=2)
TREES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "names": ("l1(enc=linf(axis=1), dec=linf(axis=0))", {"enc": A, "dec": B}, {}),
    "patterns": ('l1(linf(axis=1) @ "*.w", l1 @ "*.b")', {"a.w": A, "b.w": B, "a.b": C}, {}),
    "nested": ("l1(l1(a=linf(axis=1), b=l2(axis=0)), l1)", [{"a": A, "b": B}, C], {}),
    "a root above a branch": (
        "linf(l1(a=l2(axis=1), b=linf), axis=0)",
        {"a": A, "b": normal(5, 3)},
        {},
    ),
    "blocks": ("l1(linf(axis=1, block=3))", A, {}),
}
ONLY_REFERENCE = {
    "weights of children": ("l1(2.0*linf(axis=1), 0.5*l1(axis=0))", [A, B], {}),
    "weights": ("l1(linf(axis=1), w=ws)", A, {"ws": np.arange(5.0)}),
    "weights of entries": ("l1(w=ws)", C, {"ws": np.arange(5.0)}),
    "groups": ("l1(linf(axis=1, groups=g))", A, {"g": np.array([0, 1, 0, 2])}),
}


@pytest.mark.parametrize("backend", ["auto", "numpy"])
@pytest.mark.parametrize("name", TREES)
def test_trees(name: str, backend: Any) -> None:
    assert_tree_info(*TREES[name], backend)


@pytest.mark.parametrize("name", ONLY_REFERENCE)
def test_trees_with_weights_and_groups(name: str) -> None:
    assert_tree_info(*ONLY_REFERENCE[name], "numpy")


def assert_tree_info(spec: str, y: Any, given: dict[str, Any], backend: Any) -> None:
    p = projgen.build(spec, backend=backend)
    with rehearsals():
        total = p.norm(y, **given)
        for fraction in (0.0, 0.2, 0.7, 1.001):
            x, info = p(y, fraction * total, return_info=True, **given)
            z = copy.deepcopy(y)
            _, again = p(z, fraction * total, out=z, return_info=True, **given)
            plain = p(y, fraction * total, **given)
            olds, news, same, in_place = ([a for _, a in flat(one)] for one in (y, x, plain, z))
            assert list(map(bits, news)) == list(map(bits, same)) == list(map(bits, in_place))
            np.testing.assert_array_equal(told(again), told(info))
            assert info.norm_before == total
            assert info.norm_after == pytest.approx(min(fraction, 1) * total, rel=1e-6)
            moved = [np.linalg.norm(a.astype(float) - b) for a, b in zip(olds, news, strict=True)]
            assert info.distance == pytest.approx(np.linalg.norm(moved), rel=1e-12)
            assert len(info.levels) == len(p.tree.levels)
            by_name = {array.shape: array for array in info.arrays}
            for old, new in zip(olds, news, strict=True):
                assert by_name[old.shape].nonzero == np.count_nonzero(new)
                assert by_name[old.shape].dtype == old.dtype.name
            leaves = [level for level, node in zip(info.levels, p.tree.levels, strict=True)
                      if not node.children]  # fmt: skip
            alive = [a for _, a in flat(p.active(x, **given))]
            assert sum(level.active for level in leaves) == sum(map(np.count_nonzero, alive))
            assert sum(level.groups for level in leaves) == sum(map(np.size, alive))
            assert info.active[0] == any(map(np.any, news))
            # A threshold is what makes the values add up to the radius.
            root = p.tree.root
            if root.norm == "l1":
                place = places(p.tree, y)
                shapes = {leaf.key: np.shape(at(y, leaf.key)) for leaf in place.leaves()}
                read = read_given(p.tree, given)
                bound = bind_tree(p.tree, place, shapes, read.labels)
                arrays = {key: at(y, key) for key in shapes}
                values, weights, exponent = interpret_trees.root_values(
                    bound, arrays, given, read.labels
                )
                values, w = np.ldexp(values, exponent), 1.0 if weights is None else weights
                left = np.maximum(values - info.threshold * w, 0) * w
                assert left.sum() == pytest.approx(info.norm_after, rel=1e-6, abs=1e-12)
            elif root.norm == "linf":
                assert info.threshold == (fraction * total if fraction < 1 else np.inf)
            else:
                assert np.isnan(info.threshold)
                assert "threshold" not in str(info)


@pytest.mark.parametrize("labels", [[1, 2, 1, 4], [5, 0, 5, 9]])
def test_a_number_that_no_place_has_as_its_label_is_no_group(labels: list[int]) -> None:
    y, g = np.array(A), np.array(labels)
    y[:, 1] = 0.0
    p = projgen.build("l1(l2(axis=1, groups=g))", backend="numpy")
    x, info = p(y, 1.0, return_info=True, g=g)
    leaf = info.levels[1]
    found = p.active(x, g=g)
    assert (leaf.groups, leaf.active_before) == (3 * len(y), 2 * len(y))
    assert found.shape == leaf.alive.shape == leaf.filled.shape == (len(y), max(labels) + 1)
    assert leaf.filled.sum(axis=1).tolist() == [3] * len(y)
    assert np.array_equal(leaf.filled[0], np.isin(np.arange(max(labels) + 1), labels))
    assert leaf.active == found.sum()
    assert f"{leaf.active} of 15 groups not all zero; 10 before" in str(info)
    # Each number is a projection of a batch, or of an array beside others.
    _, info = projgen.build("l2(axis=1, groups=g)", backend="numpy")(y, 1.0, return_info=True, g=g)
    assert info.levels[0].groups == 1
    _, info = projgen.build("l1(a=l2(axis=1, groups=g), b=linf(axis=1))", backend="numpy")(
        {"a": y, "b": y}, 1.0, return_info=True, g=g
    )
    assert [level.groups for level in info.levels] == [1, 15, 5]


def test_levels_of_a_tree_have_names() -> None:
    spec, y, _ = TREES["patterns"]
    info = projgen.build(spec, backend="numpy")(y, 9.0, return_info=True)[1]
    assert [(level.norm, level.name, level.groups) for level in info.levels] == [
        ("l1", "", 1), ("linf", "*.w", 9), ("l1", "*.b", 1)
    ]  # fmt: skip
    assert [array.name for array in info.arrays] == ["a.w", "b.w", "a.b"]
    assert info.levels[1].alive is None
    assert info.levels[2].alive is not None
    active = info.levels[1].active
    assert f"  linf       {active} of 9 groups of *.w not all zero; 9 before\n" in str(info)
    assert info.sparsity == pytest.approx(1 - sum(a.nonzero for a in info.arrays) / 49)


def test_norms_of_a_batch_of_trees_are_their_own() -> None:
    """Not a view of a workspace, which the next call overwrites."""
    y, p = normal(3, 5, 4), projgen.build("l1(linf(axis=2), axis=1, nonneg=True)")
    with rehearsals():
        norms = p.norm(y)
        kept = norms.copy()
        p.norm(2 * y)
    assert np.array_equal(norms, kept)
