"""`projgen.torch.project` of tensors on a GPU, without one: the wiring, with what it computes.

Tensors on the CPU say that they are on a GPU, and CuPy's fake lets kernels reach them; shapes,
dtypes and devices are those that PyTorch's own fake tensors have. It was never run on CUDA.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial
from typing import Any

import fake_cupy
import numpy as np
import pytest
from cuda_support import needs_simt
from support import Array
from test_cuda_host import cp  # noqa: F401

import projgen
from projgen import interpret_pullbacks
from projgen.check import parse_tree

torch = pytest.importorskip("torch")
pytest.importorskip("projgen.torch")

pytestmark = needs_simt


def view(y: Any, _: Any) -> Any:
    """`projgen.cuda.arrays._tensor` for such tensors."""
    from projgen.cuda.arrays import DeviceArray, _ghost

    storage = y.untyped_storage()
    start, size = storage.data_ptr(), storage.nbytes()
    for other, (freed, _) in list(fake_cupy._memory.items()):  # of tensors that are gone
        if other < start + size and start < other + freed.size:
            del fake_cupy._memory[other]
    block = np.frombuffer((ctypes.c_char * size).from_address(start), np.uint8)
    fake_cupy._memory[start] = block, 0
    strides = tuple(step * y.element_size() for step in y.stride())
    dtype = str(y.dtype).removeprefix("torch.")
    ghost = _ghost(y.data_ptr(), tuple(y.shape), strides, dtype)
    wrap = lambda x: torch.from_numpy(x.get())  # noqa: E731
    return DeviceArray(ghost, dtype, 0, 99, y, wrap, partial(torch.empty_like, y))


@pytest.fixture(autouse=True)
def on_gpu(cp: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # noqa: F811
    """Tensors with axes say that they are there; a radius without is on the host."""
    monkeypatch.setattr("projgen.cuda.arrays._tensor", view)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.ndim > 0))
    yield


def normal(*shape: int, seed: int = 3) -> Any:
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def reference(spec: str, y: Any, radius: Any, g: Any) -> tuple[Array, Array]:
    tree = parse_tree(spec)
    return interpret_pullbacks.pull_back_chain(tree, y.detach().numpy(), radius, g.numpy())


def eager(y: Any, spec: str, radius: Any) -> Any:
    return projgen.torch.project(y, spec, radius)


def by_operator(y: Any, spec: str, radius: Any) -> Any:
    """As where something but autograd looks at the graph: the tape is a tensor."""
    from projgen.torch.operators import _project
    from projgen.torch.recipes import told
    from projgen.torch.tensors import as_tensor

    return _project(y, as_tensor(radius), told(spec)[0])[0]


@pytest.mark.parametrize("project", [eager, by_operator])
@pytest.mark.parametrize("spec", ["l1(linf)", "l2(l1(axis=0))", "l1"])
def test_gradients(project: Any, spec: str, cp: Any) -> None:  # noqa: F811
    y, g = normal(20, 33).requires_grad_(), normal(20, 33, seed=4)
    radius = torch.tensor(3.0, requires_grad=True)
    x = project(y, spec, radius)
    np.testing.assert_array_equal(x.detach(), projgen.build(spec)(y.detach(), 3.0))
    x.backward(g)
    expected, slope = reference(spec, y, 3.0, g)
    np.testing.assert_allclose(y.grad, expected, atol=1e-5)
    np.testing.assert_allclose(radius.grad, slope, rtol=1e-5, atol=1e-5)
    assert cp.state.reads == 1  # the fake's way to make the slope a tensor
    assert {launch.stream for launch in cp.state.launches} == {99}


@pytest.mark.parametrize("project", [eager, by_operator])
def test_a_number_and_a_batch_of_radii(project: Any, cp: Any) -> None:  # noqa: F811
    y, g = normal(5, 40).requires_grad_(), normal(5, 40, seed=4)
    for radius in (3.0, torch.tensor([1.0, 0.0, 2.0, 100.0, 3.0], requires_grad=True)):
        y.grad = None
        project(y, "l1(axis=1)", radius).backward(g)
        radii = np.broadcast_to(radius.detach() if torch.is_tensor(radius) else radius, 5)
        expected, slopes = reference("l1(axis=1)", y, radii, g)
        np.testing.assert_allclose(y.grad, expected, atol=1e-5)
    np.testing.assert_allclose(radius.grad, slopes, atol=1e-5)


def test_gradients_that_lie_otherwise(cp: Any) -> None:  # noqa: F811
    """Of a sum, which repeats one number; of a transpose; of arrays with gaps."""
    for y in (normal(20, 33), normal(33, 20).t(), normal(20, 66)[:, ::2]):
        y = y.requires_grad_()
        x = projgen.torch.project(y, "l1(l2)", 3.0)
        (gradient,) = torch.autograd.grad(x.sum(), y)
        expected, _ = reference("l1(l2)", y, 3.0, torch.ones(20, 33))
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_vmap(cp: Any) -> None:  # noqa: F811
    """What is mapped over becomes one batch axis more of one call."""
    y, g = normal(3, 8, 33), normal(3, 8, 33, seed=4)

    def loss(y: Any, g: Any) -> Any:
        return (projgen.torch.project(y, "l1(linf)", 2.0) * g).sum()

    found = torch.vmap(torch.func.grad(loss))(y, g)
    for own, one, its in zip(found, y, g, strict=True):
        np.testing.assert_allclose(own, reference("l1(linf)", one, 2.0, its)[0], atol=1e-5)


def test_a_layer(cp: Any) -> None:  # noqa: F811
    layer = torch.nn.Linear(12, 6)
    own = projgen.torch.parametrize(layer, "weight", "l1(linf(axis=0))", "50%")
    before = layer.parametrizations.weight.original
    layer.weight.square().sum().backward()
    radius = own.radius
    expected, _ = reference("l1(linf(axis=0))", before, radius, 2 * layer.weight.detach())
    np.testing.assert_allclose(before.grad, expected, atol=1e-5)


def test_trees_say_what_to_do(cp: Any) -> None:  # noqa: F811
    y = normal(4, 5).requires_grad_()
    with pytest.raises(TypeError, match="on a GPU, gradients go through chains of l1, l2 and linf"):
        projgen.torch.project({"enc": y, "dec": y}, "l1(enc=linf, dec=linf)", 1.0)
    with pytest.raises(TypeError, match="nearest point"):
        projgen.torch.project(y, projgen.build("l1(linf)", exact=True), 1.0)


class TestFakes:
    """PyTorch's own, on the device "cuda": what torch.compile knows of the operators."""

    @pytest.fixture(autouse=True)
    def plain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()

    @pytest.mark.parametrize("shape", [(6, 4), (1, 3), (0, 3)])
    def test_operators(self, shape: tuple[int, ...]) -> None:
        from torch._subclasses import FakeTensorMode

        from projgen.torch.recipes import told

        with FakeTensorMode():
            y = torch.empty(shape, device="cuda", dtype=torch.float16)
            radius = torch.ones(shape[0], dtype=torch.float64)
            recipe = told("l1(axis=1)")[0]
            x, tape = torch.ops.projgen.project(y, radius, recipe)
            gradient, slopes = torch.ops.projgen.pull(x, y, x, tape, radius, recipe)
            for found in (x, gradient):
                assert (found.shape, found.dtype, found.device) == (y.shape, y.dtype, y.device)
            assert (slopes.shape, slopes.dtype) == (radius.shape, torch.float64)
            assert slopes.device == tape.device == y.device
            assert tape.dtype == torch.float64

    @pytest.mark.parametrize("spec", ["l1", "l1(linf)", "l2(l1(axis=0))", "linf(l2(l1), axis=0)"])
    def test_a_tape_fits_its_room(self, spec: str) -> None:
        """Whatever the order of the axes, and if levels merge or are of one value."""
        from torch._subclasses import FakeTensorMode

        from projgen.cuda.compiler import compile_binding
        from projgen.torch.operators import _tape_size

        p = projgen.build(spec)
        for shape in ((7, 30, 41), (1, 1, 1), (300, 400, 2), (1, 5, 70_000)):
            with FakeTensorMode():
                y = torch.empty(shape, device="cuda")
            binding = p._bind(np.empty(shape, bool))
            for strides in (None, (1, shape[0], shape[0] * shape[1])):
                tape = compile_binding(binding, shape, "float32", strides).schedule.tape
                assert tape <= 8 * _tape_size(p, binding, y)
