"""What only a GPU can show. Without one these tests are skipped, and say why."""

from typing import Any

import numpy as np
import pytest
from support import assert_projected, norm
from tree_support import assert_tree_projected, norm_of

import projgen
from projgen import interpret_pullbacks
from projgen.check import parse_tree
from projgen.cuda.cupy import no_driver


def _reason() -> str | None:
    try:
        return no_driver()
    except ImportError as error:
        return str(error)


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_reason()), reason=str(_reason()))]

SPECS = [
    "l1(linf)",
    "l1(linf(axis=0))",
    "l1(l2)",
    "l1(l1)",
    "l1(l1(axis=0))",
    "linf(l1)",
    "l1",
    "l2",
]
SHAPES = [(1000, 1000), (33, 127), (100_000, 9), (9, 100_001), (2000, 3000)]


@pytest.fixture
def cp() -> Any:
    return pytest.importorskip("cupy")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spec", SPECS)
def test_projections(cp: Any, spec: str, shape: tuple[int, int], dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    for order in "CF":
        y = cp.asarray(values, order=order)
        for fraction in (0.3, 1e-3):
            radius = float(norm(spec, values)) * fraction
            x = projgen.build(spec)(y, radius)
            assert_projected(spec, values, radius, x.get())
            z = y.copy()
            projgen.build(spec)(z, radius, out=z)
            assert_projected(spec, values, radius, z.get())


@pytest.mark.parametrize("spec", SPECS)
def test_results_are_the_same_from_run_to_run(cp: Any, spec: str) -> None:
    y = cp.random.default_rng(1).standard_normal((3000, 2000), dtype=cp.float32)
    p = projgen.build(spec)
    first = p(y, 10.0).get()
    for _ in range(20):
        assert np.array_equal(p(y, 10.0).get(), first)


TREES = {
    "l1(enc=linf(axis=1), dec=linf(axis=0))": {"enc": (1000, 300), "dec": (300, 1000)},
    "l2(a=2.0*l1(axis=1), b=0.5*l1(linf(axis=1), linf(axis=0)))": {
        "a": (1000, 300),
        "b": [(99, 100_000), (7, 12)],
    },
    "linf(a=3.0*linf(axis=1), b=l2(axis=1))": {"a": (1000, 300), "b": (1000, 30)},
    "l1(linf(axis=(0, 1), block=(4, 4)))": (998, 998),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", TREES)
def test_trees(cp: Any, spec: str, dtype: str) -> None:
    rng, p = np.random.default_rng(0), projgen.build(spec)
    values = made(TREES[spec], lambda shape: rng.standard_normal(shape).astype(dtype))
    radius = 0.2 * float(norm_of(spec, values))
    y = made(values, cp.asarray)
    assert p.norm(y) == pytest.approx(5 * radius, rel=1e-6)
    assert_tree_projected(spec, values, radius, made(p(y, radius), cp.asnumpy))
    stream = cp.cuda.Stream(non_blocking=True)
    out = made(values, cp.asarray)
    with stream:
        p(y, radius, out=out)
        stream.begin_capture()
        p(y, radius, out=out)
        graph = stream.end_capture()
        p(out, 0.0, out=out)
        graph.launch(stream)
        stream.synchronize()
    assert_tree_projected(spec, values, radius, made(out, cp.asnumpy))
    _, info = p(y, radius, out=y, return_info=True)
    assert float(info.norm_after) == pytest.approx(radius, rel=1e-5)


def made(structure: Any, make: Any) -> Any:
    """Of each shape or array in a structure."""
    if isinstance(structure, dict):
        return {name: made(value, make) for name, value in structure.items()}
    return [made(v, make) for v in structure] if isinstance(structure, list) else make(structure)


def test_a_graph_captures_a_call(cp: Any) -> None:
    y = cp.random.default_rng(1).standard_normal((1000, 1000), dtype=cp.float32)
    p, out = projgen.build("l1(linf)"), cp.empty_like(y)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        p(y, 10.0, out=out)  # once before, so that nothing is compiled or allocated
        stream.begin_capture()
        p(y, 10.0, out=out)
        graph = stream.end_capture()
        expected = out.copy()
        out.fill(0)
        graph.launch(stream)
        stream.synchronize()
    assert np.array_equal(out.get(), expected.get())


def test_tensors(cp: Any) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no CUDA here")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        y = torch.randn(300, 500, device="cuda", dtype=dtype)
        p = projgen.build("l1(linf)")
        with torch.cuda.stream(torch.cuda.Stream()):
            x = p(y, 5.0)
            assert type(x) is torch.Tensor
            assert x.dtype == dtype
            torch.cuda.current_stream().synchronize()
        values = y.double().cpu().numpy()
        expected = projgen.build("l1(linf)", backend="numpy")(values, 5.0)
        np.testing.assert_allclose(x.double().cpu().numpy(), expected, atol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spec", SPECS)
def test_gradients(cp: Any, spec: str, shape: tuple[int, int], dtype: str) -> None:
    """Those of the reference, the same bits each time; also from a graph."""
    rng = np.random.default_rng(2)
    values, dx = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    radius = float(norm(spec, values)) * 0.3
    tree = parse_tree(spec)
    expected, slope = interpret_pullbacks.pull_back_chain(tree, values, radius, dx)
    p, y, g = projgen.build(spec), cp.asarray(values), cp.asarray(dx)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        results = [p.vjp(y, radius)[1](g) for _ in range(3)]
        stream.begin_capture()
        results.append(p.vjp(y, radius)[1](g))
        graph = stream.end_capture()
        results[-1][0].fill(0)
        graph.launch(stream)
        stream.synchronize()
    tolerance = 1e-11 if dtype == "float64" else 1e-5
    for gradient, own in results:
        assert np.array_equal(gradient.get(), results[0][0].get())
        off = np.abs(gradient.get() - expected) > tolerance * np.abs(expected).max()
        assert np.count_nonzero(off) <= values.size * 1e-5  # values at a threshold, to the last bit
        assert float(own) == pytest.approx(float(slope), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gradients_of_tensors(cp: Any, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("projgen.torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no CUDA here")
    y = torch.randn(300, 500, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
    radius = torch.tensor(20.0, device="cuda", requires_grad=True)

    def loss(y: Any, radius: Any) -> Any:
        return projgen.torch.project(y, "l1(linf)", radius).float().square().sum()

    expected = None
    for function in (loss, torch.compile(loss, fullgraph=True)):
        with torch.cuda.stream(torch.cuda.Stream()):
            found = torch.autograd.grad(function(y, radius), (y, radius))
            torch.cuda.current_stream().synchronize()
        if expected is None:
            host = y.detach().float().cpu().requires_grad_()
            at = radius.detach().cpu().requires_grad_()
            expected = torch.autograd.grad(loss(host, at), (host, at))
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own.float().cpu(), other.float(), atol=0.05, rtol=0.02)
