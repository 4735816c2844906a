"""Arrays of other libraries: in without a copy, out as their own kind."""

from typing import Any

import numpy as np
import pytest
from support import Array, assert_projected, rehearsals

import projgen

SPEC = "l1(linf(axis=1))"
GROUPED = "l1(l2(axis=0, groups=g))"


@pytest.fixture
def values() -> Array:
    return np.random.default_rng(0).standard_normal((6, 7)).astype(np.float32)


def expected(values: Array) -> Array:
    return projgen.project(values, SPEC, 2.0)


@pytest.fixture(autouse=True)
def _rehearsed():
    with rehearsals():
        yield


class Interface:
    """Has NumPy's array interface, and is no NumPy array."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.__array_interface__ = array.__array_interface__


class DLPack:
    """Speaks DLPack alone."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class Standard(DLPack):
    """An array of the array API standard: it knows its namespace, which reads DLPack."""

    from_dlpack = staticmethod(lambda x: Standard(np.from_dlpack(x)))

    def __array_namespace__(self, **options: Any) -> Any:
        return Standard


@pytest.mark.parametrize("kind", [Interface, DLPack, memoryview])
def test_arrays_by_protocol(kind: Any, values: Array) -> None:
    y = kind(values)
    assert np.array_equal(projgen.project(y, SPEC, 2.0), expected(values))
    assert projgen.build(SPEC).norm(y) == projgen.build(SPEC).norm(values)
    assert projgen.build(SPEC).active(y).all()


@pytest.mark.parametrize("kind", [Interface, DLPack, Standard, memoryview])
def test_out_and_in_place_by_protocol(kind: Any, values: Array) -> None:
    wanted = expected(values)
    memory = np.zeros_like(values)
    out = kind(memory)
    assert projgen.project(values, SPEC, 2.0, out=out) is out
    assert np.array_equal(memory, wanted)
    y = kind(values)
    assert projgen.project(y, SPEC, 2.0, out=y) is y
    assert np.array_equal(values, wanted)
    again = kind(values)
    assert projgen.project(kind(values), SPEC, 1.0, out=again) is again  # the same memory


def test_the_standard_s_arrays_come_back_as_their_kind(values: Array) -> None:
    x = projgen.project(Standard(values), SPEC, 2.0)
    assert type(x) is Standard
    assert np.array_equal(x.array, expected(values))
    batch = projgen.build("l1(axis=1)").norm(Standard(values.astype(np.float64)))
    assert type(batch) is Standard


def test_bytes_are_no_array() -> None:
    with pytest.raises(TypeError):
        projgen.project(b"12345678", "l1", 1.0)


def test_matrices_and_maps(values: Array, tmp_path) -> None:
    with pytest.warns(PendingDeprecationWarning):
        y = np.matrix(values)
    x = projgen.project(y, SPEC, 2.0)
    assert type(x) is np.matrix
    assert np.array_equal(np.asarray(x), expected(values))
    mapped = np.memmap(tmp_path / "map", np.float32, "w+", shape=values.shape)
    mapped[:] = values
    assert projgen.project(mapped, SPEC, 2.0, out=mapped) is mapped
    mapped.flush()
    stored = np.fromfile(tmp_path / "map", np.float32).reshape(values.shape)
    assert np.array_equal(stored, expected(values))


def test_an_array_made_on_demand_cannot_be_out(values: Array) -> None:
    class Made:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            return values.copy()

    assert np.array_equal(projgen.project(Made(), SPEC, 2.0), expected(values))
    with pytest.raises(TypeError, match="out must be an array"):
        projgen.project(values, SPEC, 2.0, out=Made())


def test_read_only_memory_cannot_be_out(values: Array) -> None:
    fixed = memoryview(values.tobytes()).cast("f", (6, 7))
    assert np.array_equal(projgen.project(fixed, SPEC, 2.0), expected(values))
    with pytest.raises(ValueError, match="read-only"):
        projgen.project(values, SPEC, 2.0, out=fixed)


class TestTorch:
    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        self.torch = pytest.importorskip("torch")

    def test_tensors(self, values: Array) -> None:
        torch = self.torch
        y = torch.from_numpy(values)
        x = projgen.project(y, SPEC, 2.0)
        assert isinstance(x, torch.Tensor)
        assert x.dtype == torch.float32
        assert np.array_equal(x.numpy(), expected(values))
        assert projgen.build(SPEC).active(y).dtype == torch.bool
        assert projgen.build("l1(axis=1)").norm(y).dtype == torch.float64

    def test_in_place_and_out(self, values: Array) -> None:
        y, out = self.torch.from_numpy(values.copy()), self.torch.zeros(6, 7)
        assert projgen.project(y, SPEC, 2.0, out=out) is out
        assert projgen.project(y, SPEC, 2.0, out=y) is y
        assert self.torch.equal(y, out)

    def test_transposed_tensors(self, values: Array) -> None:
        y = self.torch.from_numpy(values).T
        x = projgen.project(y, SPEC, 2.0)
        assert x.stride() == y.stride()
        assert_projected(SPEC, values.T, 2.0, x.numpy())

    def test_parameters(self, values: Array) -> None:
        torch = self.torch
        weight = torch.nn.Parameter(torch.from_numpy(values.copy()))
        with pytest.raises(TypeError, match="no_grad"):
            projgen.project(weight, SPEC, 2.0)
        with torch.no_grad():
            projgen.project(weight, SPEC, 2.0, out=weight)
        assert np.array_equal(weight.detach().numpy(), expected(values))

    def test_which_rows_of_a_parameter_are_left(self, values: Array) -> None:
        weight = self.torch.nn.Parameter(self.torch.from_numpy(values.copy()))
        assert projgen.build(SPEC).active(weight).all()

    def test_autograd_sees_what_was_written(self, values: Array) -> None:
        torch = self.torch
        p = projgen.build(SPEC)
        for _ in range(2):  # the second call takes the short way
            weight = torch.nn.Parameter(torch.from_numpy(values.copy()))
            loss = (weight**2).sum()
            with torch.no_grad():
                p(weight, 2.0, out=weight)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
        with torch.inference_mode():
            y = torch.from_numpy(values.copy()).clone()
            assert p(y, 2.0, out=y) is y

    def test_negated_views(self, values: Array) -> None:
        """A tensor that PyTorch negates when it is read can be projected, but not written."""
        y = self.torch.complex(self.torch.zeros(6, 7), self.torch.from_numpy(values)).conj().imag
        assert y.is_neg()
        p = projgen.build(SPEC)
        assert np.array_equal(p(y, 2.0).numpy(), -expected(values))
        for _ in range(2):
            for array, told in ((y, "read-only"), (self.torch.from_numpy(values), "negated")):
                with pytest.raises(ValueError, match=told):
                    p(array, 2.0, out=y)

    def test_halves(self, values: Array) -> None:
        torch, p = self.torch, projgen.build(SPEC)
        for dtype in (torch.float16, torch.bfloat16):
            y = torch.from_numpy(values).to(dtype)
            expected = p(y.float(), 2.0)
            x, out = p(y, 2.0), torch.empty(values.shape[::-1], dtype=dtype).T
            assert x.dtype is dtype
            assert torch.allclose(x.float(), expected, rtol=2.0**-8)
            assert p(y, 2.0, out=out) is out
            assert torch.equal(x, out)
            assert p(out, 2.0, out=out) is out
            assert p.norm(x) == pytest.approx(2.0, rel=2.0**-8)
            assert p.active(x).dtype is torch.bool

    def test_what_is_refused(self) -> None:
        torch = self.torch
        for y in (torch.ones(2, 3, dtype=torch.float8_e4m3fn),
                  torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3).to_sparse(),
                  torch.ones(2, 3, device="meta")):  # fmt: skip
            with pytest.raises(TypeError):
                projgen.project(y, SPEC, 1.0)
        with pytest.raises(TypeError, match="no values") as raised:
            projgen.project(torch.ones(2, 3, device="meta"), SPEC, 1.0)
        assert "y.cpu()" not in str(raised.value)
        with pytest.raises(TypeError, match=r"y\.abs\(\)") as raised:
            projgen.project(torch.ones(2, 3, dtype=torch.complex64), SPEC, 1.0)
        assert "float()" not in str(raised.value)

    def test_labels_and_weights(self, values: Array) -> None:
        """Tensors of whole numbers, wherever NumPy's arrays of them are taken."""
        torch, labels = self.torch, np.arange(6) // 2
        y, p = torch.from_numpy(values), projgen.build(GROUPED)
        x, norm = p(values, 2.0, g=labels), p.norm(values, g=labels)
        for dtype in (torch.int64, torch.int32, torch.uint8):
            g = torch.from_numpy(labels).to(dtype)
            for own in (y, values):
                assert np.array_equal(np.asarray(p(own, 2.0, g=g)), x)
            assert p.norm(y, g=g) == norm
            assert np.array_equal(p.active(y, g=g).numpy(), p.active(values, g=labels))
            told = p(y, 2.0, g=g, return_info=True)[1]
            assert told.norm_before == norm
            found = projgen.path(y, GROUPED, ["10%"], g=g)
            assert np.array_equal(found.nonzero, projgen.path(values, p, ["10%"], g=labels).nonzero)
        for dtype in (torch.float32, torch.bool):
            with pytest.raises(TypeError, match="'g' takes a vector of whole numbers"):
                p(y, 2.0, g=torch.from_numpy(labels).to(dtype))
        weighted, prices = projgen.build("l1(l2(axis=1), w=v)"), np.array([1, 2, 1, 3, 1, 2])
        x = weighted(values, 2.0, v=prices)
        assert np.array_equal(weighted(y, 2.0, v=torch.from_numpy(prices)).numpy(), x)
        with pytest.raises(TypeError, match="'v': a meta tensor"):
            weighted(y, 2.0, v=torch.ones(6, device="meta"))


class TestJax:
    @pytest.fixture(autouse=True)
    def _jax(self) -> None:
        self.jax = pytest.importorskip("jax")

    def test_arrays(self, values: Array) -> None:
        y = self.jax.numpy.asarray(values)
        x = projgen.project(y, SPEC, 2.0)
        assert isinstance(x, self.jax.Array)
        assert np.array_equal(np.asarray(x), expected(values))

    def test_they_cannot_be_written(self, values: Array) -> None:
        with pytest.raises((ValueError, TypeError)):
            projgen.project(values, SPEC, 2.0, out=self.jax.numpy.zeros((6, 7)))

    def test_inside_jit(self, values: Array) -> None:
        with pytest.raises(TypeError, match="jit"):
            self.jax.jit(lambda y: projgen.project(y, SPEC, 1.0))(values)
