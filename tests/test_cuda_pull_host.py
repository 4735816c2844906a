"""Gradients on a GPU, the host's side: whole calls, on a fake of CuPy and of PyTorch's tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from cuda_support import loaded, needs_simt
from support import Array
from test_cuda_host import Interface, Tensor, cp, normal, torch  # noqa: F401

import projgen
from projgen import interpret_pullbacks
from projgen.check import parse_tree
from projgen.cuda import call

pytestmark = needs_simt


def like(y: Any) -> Array:
    """A gradient, on the host."""
    values = np.random.default_rng(9).standard_normal(y.shape)
    return values.astype(y.dtype)


def agrees(spec: str, y: Array, radius: Any, dx: Array, found: tuple[Any, Any]) -> None:
    expected, slopes = interpret_pullbacks.pull_back_chain(parse_tree(spec), y, radius, dx)
    gradient, slope = (part.get() for part in found)
    assert (gradient.shape, gradient.dtype) == (y.shape, y.dtype)
    np.testing.assert_allclose(gradient, expected, atol=5e-6 * (np.abs(expected).max() + 1))
    np.testing.assert_allclose(slope, slopes, rtol=1e-5, atol=1e-4)
    assert slope.shape == slopes.shape
    assert slope.dtype == np.float64


@pytest.mark.parametrize("spec", ["l1(linf)", "l2(l1(axis=0))", "l2"])
def test_a_call(cp: Any, spec: str) -> None:  # noqa: F811
    """The projection is that of a call, and gradients may be taken back twice."""
    values = normal((37, 50))
    y, p = cp.asarray(values), projgen.build(spec)
    x, pullback = p.vjp(y, 2.0)
    assert np.array_equal(x.get(), p(y, 2.0).get())
    for dx in (like(y), like(y) * 2):
        agrees(spec, values, 2.0, dx, pullback(cp.asarray(dx)))


def test_nothing_is_read(cp: Any) -> None:  # noqa: F811
    """Neither on the way there nor back: three launches each, on the current stream."""
    y, p = cp.asarray(normal((37, 50))), projgen.build("l1(linf)")
    dx = cp.asarray(like(y))
    with cp.cuda.Stream(7):
        for _ in range(2):
            x, pullback = p.vjp(y, cp.asarray(np.float64(2.0)))
            gradient, slope = pullback(dx)
    assert cp.state.reads == 0
    assert type(x) is type(gradient) is type(slope) is cp.ndarray
    names = ["aggregate_1", "middle", "project_1", "gather_1", "middle", "share_1"]
    assert [launch.name for launch in cp.state.launches] == 2 * names
    assert {launch.stream for launch in cp.state.launches} == {7}
    agrees("l1(linf)", y.get(), 2.0, dx.get(), (gradient, slope))


def test_a_captured_call_keeps_its_memory(cp: Any, monkeypatch: Any) -> None:  # noqa: F811
    """The tape, and both workspaces: a graph uses them whenever it is launched."""
    y, p = cp.asarray(normal((37, 50))), projgen.build("l1(linf)")
    dx = cp.asarray(like(y))
    p.vjp(y, 2.0)[1](dx)
    monkeypatch.setattr(call, "_captured", [])
    with monkeypatch.context() as capturing:
        capturing.setattr(cp.cuda.Stream, "is_capturing", lambda self: True)
        p.vjp(y, 2.0)[1](dx)
    first, second, slopes = call._captured
    assert len(slopes) == 1
    tape, work = first[0].ptr, second[0].ptr
    launches = cp.state.launches[-6:]
    assert launches[0].arguments[1] == tape
    assert launches[-1].arguments[-2] == work
    assert tape in [int(a) for a in launches[4].arguments if isinstance(a, np.uintp)]


def test_streams_wait_for_each_other(cp: Any) -> None:  # noqa: F811
    """Gradients are taken back on the stream of what is taken back."""
    values = normal((40, 33))
    y = Interface(cp.asarray(values), stream=7)
    dx = like(values)
    _, pullback = projgen.build("l1(l2)").vjp(y, 3.0)
    found = pullback(Interface(cp.asarray(dx), stream=8))
    assert [launch.stream for launch in cp.state.launches] == 3 * [7] + 3 * [8]
    assert cp.state.waits == [(8, 7), (7, 8)]
    agrees("l1(l2)", values, 3.0, dx, found)


def test_copies_are_made_on_the_stream_of_what_is_copied(cp: Any) -> None:  # noqa: F811
    """Of a y with gaps; and its gradient is another stream's."""
    values = normal((40, 66))
    y = Interface(cp.asarray(values)[:, ::2], stream=7)
    dx = like(values)
    _, pullback = projgen.build("l1(l2)").vjp(y, 3.0)
    found = pullback(Interface(cp.asarray(dx)[:, ::2], stream=8))
    assert [launch.stream for launch in cp.state.launches] == 3 * [7] + 3 * [8]
    assert cp.state.waits == [(8, 7), (7, 8)]
    agrees("l1(l2)", values[:, ::2], 3.0, dx[:, ::2], found)


@pytest.mark.parametrize(
    "place",
    [
        lambda gpu, v: gpu.asarray(v)[::-1],
        lambda gpu, v: gpu.asarray(v)[:, ::2],
        lambda gpu, v: gpu.asarray(np.asfortranarray(v)),
        lambda gpu, v: gpu.asarray(v.ravel())[1 : 1 + 36 * 50].reshape((36, 50)),
        lambda gpu, v: gpu.asarray(v)[1:, 3:],
    ],
    ids=["backwards", "gaps", "fortran", "unaligned", "window"],
)
def test_layouts(cp: Any, place: Any) -> None:  # noqa: F811
    """Of y, and of its gradient."""
    p, values = projgen.build("l1(l2(axis=0))"), normal((37, 50))
    y = place(cp, values)
    dx = like(y)
    agrees(p.spec, y.get(), 2.0, dx, p.vjp(y, 2.0)[1](cp.asarray(dx)))
    dx = place(cp, like(values))
    agrees(p.spec, y.get(), 2.0, dx.get(), p.vjp(cp.asarray(y.get()), 2.0)[1](dx))


def test_radii(cp: Any) -> None:  # noqa: F811
    values = normal((5, 6, 40))
    radii = np.abs(normal((5, 6), np.float64)) * 9
    p = projgen.build("l1(axis=2)")
    for y in (cp.asarray(values), cp.asarray(np.asfortranarray(values)), cp.asarray(values)[::-1]):
        dx, given = like(y), y.get()
        for radius in (radii, cp.asarray(radii), radii[0]):
            meant = radius.get() if isinstance(radius, cp.ndarray) else radius
            meant = np.broadcast_to(meant, (5, 6))
            agrees(p.spec, given, meant, dx, p.vjp(y, radius)[1](cp.asarray(dx)))


def test_tensors(cp: Any, torch: Any) -> None:  # noqa: F811
    """Tensors come back, and their library's current stream is the one."""
    values = normal((37, 50))
    dx = like(values)
    x, pullback = projgen.build("l1(linf)").vjp(Tensor(cp.asarray(values)), 2.0)
    gradient, slope = pullback(Tensor(cp.asarray(dx)))
    assert type(x) is type(gradient) is type(slope) is Tensor
    assert {launch.stream for launch in cp.state.launches} == {99}
    agrees("l1(linf)", values, 2.0, dx, (gradient.array, slope.array))


def test_tensors_of_bfloat16(cp: Any, torch: Any) -> None:  # noqa: F811
    bits = normal((40, 32)).view(np.uint32) >> 16
    dx = np.roll(bits, 3)
    y, g = (Tensor(cp.asarray(a.astype(np.uint16)), "bfloat16") for a in (bits, dx))
    x, pullback = projgen.build("l1(linf)").vjp(y, 3.0)
    gradient, slope = pullback(g)
    assert x.dtype == gradient.dtype == "torch.bfloat16"
    meant = [loaded(a.astype(np.uint16), "bfloat16") for a in (bits, dx)]
    tree = parse_tree("l1(linf)")
    expected, slopes = interpret_pullbacks.pull_back_chain(tree, meant[0], 3.0, meant[1])
    found = loaded(gradient.array.get(), "bfloat16")
    np.testing.assert_allclose(found, expected, rtol=2**-8, atol=1e-4)
    np.testing.assert_allclose(slope.array.get(), slopes, rtol=1e-5)


def test_arrays_without_elements(cp: Any) -> None:  # noqa: F811
    y = cp.empty((0, 3), np.float32)
    x, pullback = projgen.build("l1(axis=1)").vjp(y, 1.0)
    gradient, slopes = pullback(cp.empty((0, 3), np.float32))
    assert x.shape == gradient.shape == (0, 3)
    assert slopes.shape == (0,)
    assert float(projgen.build("l2").vjp(y, 1.0)[1](y)[1]) == 0.0


def test_the_second_device(cp: Any) -> None:  # noqa: F811
    with cp.cuda.Device(1):
        y = cp.asarray(normal((37, 50)))
        dx = cp.asarray(like(y))
    x, pullback = projgen.build("l1(linf)").vjp(y, 2.0)
    gradient, slope = pullback(dx)
    assert x.device.id == gradient.device.id == slope.device.id == 1
    assert {launch.device for launch in cp.state.launches} == {1}
    with pytest.raises(ValueError, match="the gradient is on GPU 0, and y on GPU 1"):
        pullback(cp.asarray(dx.get()))


def test_what_is_not_finite(cp: Any) -> None:  # noqa: F811
    values = normal((37, 50))
    values[3, 4] = math.inf
    _, pullback = projgen.build("l1(linf)").vjp(cp.asarray(values), 2.0)
    gradient, slope = pullback(cp.asarray(like(values)))
    assert np.isnan(gradient.get()).all()
    assert np.isnan(slope.get())
    with pytest.raises(ValueError, match="NaN or infinity"):
        projgen.build("l1(linf)", check_finite=True).vjp(cp.asarray(values), 2.0)


def test_arguments_that_are_wrong(cp: Any) -> None:  # noqa: F811
    y, p = cp.asarray(normal((37, 50))), projgen.build("l1(linf)")
    pullback = p.vjp(y, 1.0)[1]
    launches = len(cp.state.launches)
    with pytest.raises(ValueError, match=r"the shape and dtype of y, \(37, 50\) float32; it has"):
        pullback(cp.asarray(normal((50, 37))))
    with pytest.raises(ValueError, match=r"it has .* float64"):
        pullback(cp.asarray(normal((37, 50), np.float64)))
    with pytest.raises(TypeError, match="takes arrays on a GPU, and this ndarray is not one"):
        pullback(normal((37, 50)))
    with pytest.raises(TypeError, match="a radius is missing"):
        p.vjp(y)
    with pytest.raises(ValueError, match="at least 0"):
        p.vjp(y, -1.0)
    for spec in ("l1(linf(axis=1, block=2))", "l1(nonneg=True)"):
        with pytest.raises(TypeError, match=r"gradients go through chains of l1, l2 and linf over"):
            projgen.build(spec).vjp(y, 1.0)
    with pytest.raises(TypeError, match=r"use arrays on the CPU"):
        projgen.build("l1(enc=linf, dec=linf)").vjp({"enc": y, "dec": y}, 1.0)
    with pytest.raises(TypeError, match="nearest point"):
        projgen.build("l1(linf)", exact=True).vjp(y, 1.0)
    with pytest.raises(TypeError, match="lives on a GPU: use backend='auto' or 'cuda'"):
        projgen.build("l1(linf)", backend="cpu").vjp(y, 1.0)
    with pytest.raises(TypeError, match=r"use cupy\.asarray"):
        projgen.build("l1(linf)", backend="cuda").vjp(normal((37, 50)), 1.0)
    assert len(cp.state.launches) == launches
