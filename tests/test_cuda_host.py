"""The host's side of the CUDA backend: whole calls, on a fake of the CuPy calls that it makes."""

from __future__ import annotations

import inspect
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import fake_cupy
import numpy as np
import pytest
from cuda_support import needs_simt
from support import Array, assert_projected, norm

import projgen
from projgen.cuda import call, load, nvrtc
from projgen.cuda import project as gpu

pytestmark = needs_simt


@pytest.fixture(autouse=True)
def cp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """CuPy; and no call is remembered."""
    monkeypatch.setattr(gpu, "_calls", type(gpu._calls)())
    monkeypatch.setattr(load, "_loaded", {})
    monkeypatch.setattr(nvrtc, "missing", lambda: "not in this test")
    with fake_cupy.installed() as module:
        yield module


def normal(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    return np.random.default_rng(5).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l1(axis=0))", "l2"])
def test_a_call(cp: Any, spec: str) -> None:
    values = normal((37, 50))
    y = cp.asarray(values)
    p = projgen.build(spec)
    x = p(y, 2.0)
    assert type(x) is cp.ndarray
    assert x.device.id == 0
    assert_projected(spec, values, 2.0, x.get())
    assert np.array_equal(y.get(), values)


def test_in_place_and_into_another_array(cp: Any) -> None:
    values = normal((37, 50))
    p = projgen.build("l1(linf)")
    y, out = cp.asarray(values), cp.empty((37, 50), np.float32)
    assert p(y, 2.0, out=out) is out
    assert p(y, 2.0, out=y) is y
    assert_projected("l1(linf)", values, 2.0, y.get())
    assert np.array_equal(y.get(), out.get())


def test_nothing_is_read_and_little_is_allocated(cp: Any) -> None:
    """So a graph can capture a call: after the first, x is all that is allocated."""
    p = projgen.build("l1(linf)")
    y, out = cp.asarray(normal((37, 50))), cp.empty((37, 50), np.float32)
    p(y, 1.0, out=out)
    assert len(cp.state.allocations) == 1
    p(y, 1.0, out=out)
    assert len(cp.state.allocations) == 1
    assert cp.state.reads == 0
    assert [launch.name for launch in cp.state.launches] == 2 * [
        "aggregate_1",
        "middle",
        "project_1",
    ]


def test_a_captured_call_keeps_its_workspace(cp: Any) -> None:
    p = projgen.build("l1(linf)")
    y, out = cp.asarray(normal((37, 50))), cp.empty((37, 50), np.float32)
    p(y, 1.0, out=out)
    cp.state.capturing = True
    p(y, 1.0, out=out)
    cp.state.capturing = False
    p(y, 1.0, out=out)
    works = [launch.arguments[-2] for launch in cp.state.launches if launch.name == "project_1"]
    assert works[0] == works[1] != works[2]


def test_streams_have_workspaces_of_their_own(cp: Any) -> None:
    p = projgen.build("l1(linf)")
    y, out = cp.asarray(normal((37, 50))), cp.empty((37, 50), np.float32)
    for stream in (7, 8, 7):
        with cp.cuda.Stream(stream):
            p(y, 1.0, out=out)
    firsts = cp.state.launches[::3]
    assert [launch.stream for launch in firsts] == [7, 8, 7]
    works = [launch.arguments[1] for launch in firsts]
    assert works[0] == works[2] != works[1]


def test_threads_have_default_streams_of_their_own(cp: Any) -> None:
    """One handle stands for all of them, and what one thread started may still be running."""
    p = projgen.build("l1(linf)")
    y, out = cp.asarray(normal((37, 50))), cp.empty((37, 50), np.float32)

    def project() -> None:
        with cp.cuda.Stream(2):
            p(y, 1.0, out=out)

    project()
    thread = threading.Thread(target=project)
    thread.start()
    thread.join()
    project()
    works = [launch.arguments[1] for launch in cp.state.launches[::3]]
    assert works[0] == works[2] != works[1]


def test_a_captured_call_keeps_what_its_radii_are_made_of(cp: Any) -> None:
    """A graph converts and orders them again whenever it is launched."""
    p = projgen.build("l1(axis=2)")
    y = cp.asarray(np.asfortranarray(normal((5, 6, 40))))
    radii = cp.asarray(np.full((5, 6), 1.0, np.float32))
    p(y, radii, out=y)
    cp.state.capturing = True
    p(y, radii, out=y)
    shapes = [kept.shape for kept in call._captured[-1] if isinstance(kept, cp.ndarray)]
    assert shapes == [(30,), (5, 6)]


class Interface:
    """An array of some library that has the interface."""

    def __init__(self, array: Any, **more: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.data.ptr, False),
            "strides": array.strides,
            "version": 3,
            **more,
        }


def test_arrays_with_the_interface(cp: Any) -> None:
    """On the stream that they name; C order may go without strides."""
    values = normal((40, 33))
    p = projgen.build("l1(l2)")
    for more in ({"stream": 42}, {"stream": None, "strides": None}):
        x = p(Interface(cp.asarray(values), **more), 3.0)
        assert_projected("l1(l2)", values, 3.0, x.get())
    assert [launch.stream for launch in cp.state.launches[::3]] == [42, 0]


def test_streams_wait_for_each_other(cp: Any) -> None:
    """Where y, out and the radii lie on several; the default one has two names."""
    values, radii = normal((40, 33)), np.full(40, 0.5)
    p = projgen.build("l1(axis=1)")
    y, out = cp.asarray(values), cp.empty((40, 33), np.float32)
    p(Interface(y, stream=7), Interface(cp.asarray(radii), stream=8), out=Interface(out, stream=9))
    assert cp.state.waits == [(7, 8), (7, 9), (9, 7)]
    assert {launch.stream for launch in cp.state.launches} == {7}
    assert_projected(p.spec, values, radii, out.get())
    cp.state.waits.clear()
    p(Interface(y, stream=1), cp.asarray(radii), out=Interface(out, stream=None))
    p(y, 1.0, out=y)
    assert cp.state.waits == []


def test_arrays_with_dlpack(cp: Any) -> None:
    values = normal((40, 33))

    class Exporter:
        def __init__(self) -> None:
            self.exported = cp.asarray(values)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **_: Any) -> None: ...

        def __array_namespace__(self) -> Any:
            return SimpleNamespace(from_dlpack=lambda x: ("theirs", x))

    kind, x = projgen.build("l1(l2)")(Exporter(), 3.0)
    assert kind == "theirs"
    assert_projected("l1(l2)", values, 3.0, x.get())


class Tensor:
    """PyTorch's, as far as it is asked."""

    is_cuda, requires_grad, layout = True, False, "strided"

    def __init__(self, array: Any, dtype: str | None = None) -> None:
        self.array = array
        self.dtype = f"torch.{dtype or array.dtype.name}"
        self.device = SimpleNamespace(index=array.device.id, type="cuda")
        self.shape = array.shape

    def element_size(self) -> int:
        return int(self.array.dtype.itemsize)

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.element_size() for step in self.array.strides)

    def data_ptr(self) -> int:
        return int(self.array.data.ptr)

    def detach(self) -> Tensor:
        return self

    resolve_neg = detach

    def is_neg(self) -> bool:
        return False

    def is_inference(self) -> bool:
        return False


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch, cp: Any) -> Any:
    graph = SimpleNamespace(written=[])
    graph.increment_version = graph.written.append
    module = SimpleNamespace(
        Tensor=Tensor,
        autograd=SimpleNamespace(graph=graph),
        strided="strided",
        is_grad_enabled=lambda: True,
        empty_like=lambda y: Tensor(cp.empty_like(y.array), y.dtype.removeprefix("torch.")),
        from_dlpack=lambda x: Tensor(x),
        cuda=SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=99)),
    )
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_tensors(cp: Any, torch: Any) -> None:
    """A tensor comes back, and its library's current stream is the one."""
    values = normal((37, 50))
    p = projgen.build("l1(linf(axis=1))")
    y = Tensor(cp.asarray(values))
    x = p(y, 2.0)
    assert type(x) is Tensor
    assert_projected(p.spec, values, 2.0, x.array.get())
    assert p(y, 2.0, out=y) is y
    assert torch.autograd.graph.written == [y]
    assert np.array_equal(y.array.get(), x.array.get())
    assert {launch.stream for launch in cp.state.launches} == {99}
    assert type(projgen.build("l2(axis=1)").norm(y)) is Tensor
    y.requires_grad = True
    with pytest.raises(TypeError, match="records no gradients"):
        p(y, 2.0)


def test_tensors_of_bfloat16(cp: Any, torch: Any) -> None:
    values = normal((40, 32))
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    meant = (bits.astype(np.uint32) << 16).view(np.float32)
    p = projgen.build("l1(linf)")
    x = p(Tensor(cp.asarray(bits), "bfloat16"), 1e6)
    assert x.dtype == "torch.bfloat16"
    assert np.array_equal(x.array.get(), bits)
    y = Tensor(cp.asarray(bits), "bfloat16")
    assert p.norm(y) == pytest.approx(float(norm("l1(linf)", meant)), rel=1e-12)
    p(y, 2.0, out=y)
    kept = np.abs(y.array.get() & 0x7FFF) > 0
    assert np.array_equal(p.active(y).array.get(), kept.any(axis=1))


def test_the_second_device(cp: Any) -> None:
    with cp.cuda.Device(1):
        y = cp.asarray(normal((37, 50)))
    x = projgen.build("l1(linf)")(y, 2.0)
    assert x.device.id == 1
    assert {launch.device for launch in cp.state.launches} == {1}
    with pytest.raises(ValueError, match="out is on GPU 0, and y on GPU 1"):
        projgen.build("l1(linf)")(y, 2.0, out=cp.empty((37, 50), np.float32))


@pytest.mark.parametrize(
    "place",
    [
        lambda cp, v: cp.asarray(v)[::-1],
        lambda cp, v: cp.asarray(v)[:, ::2],
        lambda cp, v: cp.asarray(np.asfortranarray(v)),
        lambda cp, v: cp.asarray(v.ravel())[1 : 1 + 36 * 50].reshape((36, 50)),
        lambda cp, v: cp.asarray(v)[1:, 3:],
    ],
    ids=["backwards", "gaps", "fortran", "unaligned", "window"],
)
def test_layouts(cp: Any, place: Any) -> None:
    for spec in ("l1(linf)", "l1(l2(axis=0))"):
        y = place(cp, normal((37, 50)))
        values = y.get()
        x = projgen.build(spec)(y, 2.0)
        assert_projected(spec, values, 2.0, x.get())
        out = cp.empty(values.shape, np.float32)
        projgen.build(spec)(y, 2.0, out=out)
        assert_projected(spec, values, 2.0, out.get())
        projgen.build(spec)(y, 2.0, out=y)
        assert_projected(spec, values, 2.0, y.get())


def test_a_repeated_axis(cp: Any) -> None:
    values = np.broadcast_to(normal((1, 50)), (37, 50))
    y = cp.asarray(normal((1, 50)))
    memory = cp.cuda.MemoryPointer(y.data.mem, y.data.ptr - y.data.mem.ptr)
    wide = cp.ndarray((37, 50), np.float32, memory, strides=(0, 4))
    assert_projected("l1(linf)", values, 2.0, projgen.build("l1(linf)")(wide, 2.0).get())
    with pytest.raises(ValueError, match="share memory"):
        projgen.build("l1(linf)")(cp.asarray(values), 2.0, out=wide)


def test_radii(cp: Any) -> None:
    """One for each batch entry, from the host or from the GPU, for axes in any order."""
    values = normal((5, 6, 40))
    p = projgen.build("l1(axis=2)")
    radii = np.abs(normal((5, 6), np.float64)) * 9
    for y in (cp.asarray(values), cp.asarray(np.asfortranarray(values)), cp.asarray(values)[::-1]):
        given = y.get()
        for radius in (radii, cp.asarray(radii), cp.asarray(radii.astype(np.float32))):
            meant = radius.get() if isinstance(radius, cp.ndarray) else radius
            assert_projected(p.spec, given, meant, p(y, radius).get())
        assert_projected(p.spec, given, np.broadcast_to(radii[0], (5, 6)), p(y, radii[0]).get())
        np.testing.assert_allclose(p.norm(y).get(), norm(p.spec, given), rtol=1e-6)


def test_radii_on_the_gpu_are_not_read(cp: Any) -> None:
    """A negative one makes NaN of its batch entry."""
    p = projgen.build("l1(axis=1)")
    x = p(cp.asarray(normal((3, 40))), cp.asarray(np.array([1.0, -1.0, np.nan])))
    assert cp.state.reads == 0
    assert np.isnan(x.get()).all(axis=1).tolist() == [False, True, True]
    assert np.isfinite(x.get()[0]).all()


def test_radii_that_are_wrong(cp: Any) -> None:
    p = projgen.build("l1(axis=1)")
    y = cp.asarray(normal((3, 40)))
    with pytest.raises(ValueError, match="does not fit"):
        p(y, cp.asarray(np.ones(4)))
    with pytest.raises(ValueError, match="at least 0"):
        p(y, -1.0)
    with cp.cuda.Device(1):
        far = cp.asarray(np.ones(3))
    with pytest.raises(ValueError, match="radius is on GPU 1, and y on GPU 0"):
        p(y, far)
    assert not cp.state.launches


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l2(axis=0))", "linf(l1)", "l2", "linf"])
def test_what_is_not_finite_spreads(cp: Any, spec: str, bad: float) -> None:
    """To all of its batch entry; asked to check, a call raises, and writes nothing."""
    values = normal((37, 50))
    values[3, 4] = bad
    for radius in (2.0, 0.0, np.inf):
        assert np.isnan(projgen.build(spec)(cp.asarray(values), radius).get()).all()
    y = cp.asarray(values)
    with pytest.raises(ValueError, match="NaN or infinity"):
        projgen.build(spec, check_finite=True)(y, 2.0, out=y)
    assert np.array_equal(y.get(), values, equal_nan=True)


def test_only_the_batch_entry_that_is_not_finite_is_nan(cp: Any) -> None:
    values = normal((4, 6, 40))
    values[2, 3, 4] = np.nan
    x = projgen.build("l1(linf(axis=2), axis=1)")(cp.asarray(values), 2.0).get()
    assert np.isnan(x).all(axis=(1, 2)).tolist() == [False, False, True, False]
    assert_projected("l1(linf(axis=2), axis=1)", values[:2], 2.0, x[:2])


def test_checked_calls_project_what_is_finite(cp: Any) -> None:
    values = normal((37, 50))
    x = projgen.build("l1(linf)", check_finite=True)(cp.asarray(values), 2.0)
    assert_projected("l1(linf)", values, 2.0, x.get())
    assert cp.state.reads == 2  # the check, and the assertion above


def test_norms_and_active_groups(cp: Any) -> None:
    values = normal((37, 50))
    p = projgen.build("l1(linf)")
    y = cp.asarray(values)
    assert p.norm(y) == pytest.approx(float(norm(p.spec, values)), rel=1e-6)
    assert isinstance(p.norm(y), float)
    x = p(y, 1.0)
    assert np.array_equal(p.active(x).get(), (x.get() != 0).any(axis=1))
    assert projgen.build("l2").active(x) is True
    assert projgen.build("l2").norm(cp.empty((0, 3), np.float32)) == 0.0
    assert projgen.build("l2")(cp.empty((0, 3), np.float32), 1.0).shape == (0, 3)


def test_arguments_that_are_wrong(cp: Any) -> None:
    p = projgen.build("l1(linf)")
    y = cp.asarray(normal((37, 50)))
    with pytest.raises(TypeError, match="integers are not cast silently"):
        p(cp.asarray(np.ones((3, 4), np.int32)), 1.0)
    with pytest.raises(TypeError, match="complex"):
        p(cp.asarray(np.ones((3, 4), np.complex64)), 1.0)
    with pytest.raises(TypeError, match="masked"):
        p(Interface(y, mask=y), 1.0)
    with pytest.raises(ValueError, match="overlaps y"):
        p(y[:20], 1.0, out=y[1:21])
    with pytest.raises(ValueError, match="out must have y's shape"):
        p(y, 1.0, out=cp.empty((37, 49), np.float32))
    with pytest.raises(TypeError, match="y is on a GPU, and out, of type ndarray, is not"):
        p(y, 1.0, out=np.empty((37, 50), np.float32))
    with pytest.raises(TypeError, match="radius: expected float32"):
        p(y, cp.asarray(np.int32(3)))
    with pytest.raises(ValueError, match="out must have y's dtype"):
        p(y, 1.0, out=cp.empty((37, 50), np.float64))
    with pytest.raises(ValueError, match="read-only"):
        p(y, 1.0, out=Interface(y, data=(y.data.ptr, True)))
    with pytest.raises(projgen.SpecError, match="too few axes"):
        p(cp.asarray(normal((9,))), 1.0)
    assert not cp.state.launches


def test_backends(cp: Any) -> None:
    y = cp.asarray(normal((37, 50)))
    for backend in ("cpu", "numpy"):
        with pytest.raises(TypeError, match="lives on a GPU: use backend='auto' or 'cuda'"):
            projgen.build("l1(linf)", backend=backend)(y, 1.0)
    p = projgen.build("l1(linf)", backend="cuda")
    with pytest.raises(TypeError, match=r"use cupy\.asarray"):
        p(normal((37, 50)), 1.0)
    assert_projected("l1(linf)", y.get(), 1.0, p(y, 1.0).get())
    assert pickle.loads(pickle.dumps(p)) == p
    assert "aggregate_1" in p.source((37, 50), "bfloat16")
    assert "level 0" in str(p.plan((37, 50)))


def test_without_cupy(cp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    y = Interface(cp.asarray(normal((37, 50))))
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "cupy", None)
        with pytest.raises(ImportError, match=r'not installed: pip install -e "\.\[cuda13\]"'):
            projgen.build("l1(linf)")(y, 1.0)


def test_without_a_driver(cp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver")

    y = Interface(cp.asarray(normal((37, 50))))
    monkeypatch.setattr(cp.cuda.runtime, "getDeviceCount", no_driver)
    with pytest.raises(RuntimeError, match="CUDA finds no driver that it can use"):
        projgen.build("l1(linf)")(y, 1.0)
    monkeypatch.setattr(cp.cuda.runtime, "getDeviceCount", lambda: 0)
    with pytest.raises(RuntimeError, match="CUDA finds no GPU"):
        projgen.build("l1(linf)")(y, 1.0)


@pytest.mark.skipif(bool(nvrtc.missing()), reason=str(nvrtc.missing()))
def test_a_cubin_is_kept_and_loaded(
    cp: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """It is compiled once; the fake module checks that it is one."""
    monkeypatch.undo()
    monkeypatch.setenv("PROJGEN_CACHE_DIR", str(tmp_path / "cache"))
    values = normal((37, 50))
    for _ in range(2):
        monkeypatch.setattr(load, "_loaded", {})
        monkeypatch.setattr(gpu, "_calls", type(gpu._calls)())
        x = projgen.build("l1(linf)")(cp.asarray(values), 2.0)
        assert_projected("l1(linf)", values, 2.0, x.get())
        monkeypatch.setattr(nvrtc, "compile_cubin", None)
    (entry,) = projgen.cache.entries()
    assert entry.title == "l1(linf): projects float32 arrays on a GPU."
    assert entry.path.parent.name.startswith(f"v{projgen.cache.FORMAT}-cuda-sm_90-nvrtc")
    assert projgen.cache.health() == []


def test_cupy_compiles_what_nvrtc_cannot(
    cp: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For a GPU that is newer than the wheel, or without the headers that half types need."""
    values = normal((37, 50))
    errors = [nvrtc.MissingError("no cuda_fp16.h"), ValueError("'sm_130' is no architecture")]
    for error in errors:

        def keep(source: str, architecture: str | None, error: Exception = error) -> None:
            if architecture is not None:
                raise error

        monkeypatch.setattr(load, "keep", keep)
        monkeypatch.setattr(load, "_loaded", {})
        monkeypatch.setattr(gpu, "_calls", type(gpu._calls)())
        with caplog.at_level("DEBUG", "projgen"):
            x = projgen.build("l1(linf)")(cp.asarray(values), 2.0)
        assert_projected("l1(linf)", values, 2.0, x.get())
        assert f"CuPy compiles: {error}" in caplog.text


def test_why_nvrtc_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def version() -> str:
        raise RuntimeError("no libnvrtc.so.13\n  nor libnvrtc.so.12\n")

    monkeypatch.undo()
    monkeypatch.setattr(nvrtc, "find_spec", lambda name: name)
    monkeypatch.setattr(nvrtc, "version", version)
    reason = nvrtc.missing.__wrapped__()
    assert reason is not None
    assert "(no libnvrtc.so.13 nor libnvrtc.so.12)" in reason
    assert "\n" not in reason


# The fake is kept honest by CuPy's own signatures, where it is installed. It imports without a GPU.

needs_cupy = pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy is not installed")


@pytest.fixture
def real(cp: Any) -> Iterator[Any]:
    del sys.modules["cupy"]
    yield pytest.importorskip("cupy")
    sys.modules["cupy"] = cp


def parameters(function: Any) -> list[str]:
    """Their names, from the signature, or from what Cython wrote into the docstring."""
    try:
        found = [*inspect.signature(function).parameters]
        if found != ["args", "_obj", "_no_init", "kwargs"]:
            return found
    except ValueError:
        pass
    text = re.search(r"\((.*?)\)(\s|$|\s->)", function.__doc__.strip().split("\n")[0])
    assert text, function.__doc__
    names = [re.sub(r"=.*", "", part).split()[-1:] for part in text[1].split(",")]
    return [name[0].lstrip("*") for name in names if name and name[0] not in ("*", "/")]


SAME = [
    "ndarray", "asarray", "ascontiguousarray", "empty_like", "empty", "zeros", "broadcast_to",
    "from_dlpack", "RawModule", "cuda.UnownedMemory", "cuda.MemoryPointer", "cuda.alloc",
    "cuda.get_current_stream", "cuda.Device", "cuda.Stream.from_external",
    "cuda.Stream.is_capturing", "cuda.Stream.wait_event", "cuda.Event", "cuda.Event.record",
    "cuda.runtime.getDeviceCount",
    "cuda.runtime.pointerGetAttributes", "RawModule.get_function", "RawKernel.__call__",
    "ndarray.copy", "ndarray.any", "ndarray.all", "ndarray.astype", "ndarray.transpose",
    "ndarray.ravel", "ndarray.reshape", "ndarray.get",
]  # fmt: skip


@needs_cupy
@pytest.mark.parametrize("name", SAME)
def test_the_fake_takes_what_cupy_takes(name: str, real: Any) -> None:
    """Each parameter of the fake is one of CuPy's, in the same place or by the same name."""
    theirs: Any = real
    ours: Any = fake_cupy
    for part in name.split("."):
        theirs, ours = getattr(theirs, part), getattr(ours, part)
    known = [p for p in parameters(theirs) if p not in ("self", "cls")]
    mine = [
        p.name
        for p in inspect.signature(ours).parameters.values()
        if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if mine and known != ["args", "kwargs"]:
        assert mine == known[: len(mine)] or set(mine) <= set(known), (mine, known)


@needs_cupy
def test_cupy_takes_our_arguments(real: Any) -> None:
    """Pointers, numbers and the geometry: all pass, and then there is no driver, or no function."""
    function = real.cuda.function.Function
    unmade = function.__new__(function)
    geometry = np.frombuffer(bytes(40), "V40")
    for argument in (np.uintp(1), np.int32(1), np.float64(1), geometry):
        with pytest.raises(Exception) as error:
            unmade((1,), (1,), (argument,), 0, stream=SimpleNamespace(ptr=0))
        assert not isinstance(error.value, TypeError), error.value
    with pytest.raises(TypeError):
        unmade((1,), (1,), ("text",), 0, stream=SimpleNamespace(ptr=0))
