"""Differentiable projections: autograd, operators, torch.compile, vmap, parametrizations."""

import contextlib
import copy
import gc
import itertools
import tracemalloc
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from support import rehearsals

import projgen

torch = pytest.importorskip("torch")
from torch import library  # noqa: E402

import projgen.torch as pt  # noqa: E402
from projgen.torch import operators, tree_operators  # noqa: E402
from projgen.torch.recipes import read_recipe, told  # noqa: E402

NORMS = ("l1", "l2", "linf")


@pytest.fixture(autouse=True)
def _rehearsed() -> Iterator[None]:
    """Kernels run as Python; what operators keep of them goes with the test."""
    torch.manual_seed(20261129)
    read_recipe.cache_clear()
    with rehearsals():
        yield
    read_recipe.cache_clear()


def normal(*shape: int, dtype: Any = torch.float64, grad: bool = False) -> Any:
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def radius_of(spec: str, y: Any, share: float = 0.4) -> Any:
    norm = projgen.build(spec, backend="numpy").norm(y.detach().numpy())
    return torch.tensor(share * np.asarray(norm), dtype=torch.float64).requires_grad_()


def chains(depth: int) -> list[str]:
    every = itertools.product(NORMS, repeat=depth)
    return ["(".join(norms) + ")" * (depth - 1) for norms in every]


@pytest.mark.parametrize("spec", [spec for depth in (1, 2, 3, 4) for spec in chains(depth)])
def test_gradcheck(spec: str) -> None:
    depth = spec.count("(") + 1
    y = normal(*(3, 4, 2, 2)[:depth], grad=True)
    r = radius_of(spec, y)
    assert torch.autograd.gradcheck(
        lambda y, r: pt.project(y, spec, r), (y, r), fast_mode=depth > 2
    )


@pytest.mark.parametrize(
    "spec",
    ["l1(linf(axis=0))", "l1(axis=1)", "lp(p=1.5)", "simplex", "l1(linf(axis=1, block=2))",
     "l1(lp(axis=0, p=3))", "l2(lp(axis=1, p=1.3))", "simplex(axis=0)", "linf(l0(axis=1))"],
)  # fmt: skip
def test_gradcheck_of_others(spec: str) -> None:
    y = (normal(3, 4) + 0.5).requires_grad_()
    r = radius_of(spec, y)
    assert torch.autograd.gradcheck(lambda y, r: pt.project(y, spec, r), (y, r))


def test_gradcheck_of_trees_and_weights() -> None:
    spec = "l1(a=linf(axis=1), b=2.0*l2(axis=0))"
    a, b = normal(3, 4, grad=True), normal(2, 3, grad=True)
    r = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def tree(a: Any, b: Any, r: Any) -> tuple[Any, ...]:
        return tuple(pt.project({"a": a, "b": b}, spec, r).values())

    assert torch.autograd.gradcheck(tree, (a, b, r))
    w = normal(3, 4).abs()
    assert torch.autograd.gradcheck(
        lambda a, r: pt.project(a, "l1(l1(axis=1, w=v))", r, v=w), (a, r)
    )
    pair = pt.project([a, b], "l1(linf, l1)", 1.0)
    assert isinstance(pair, list)
    assert pair[1].requires_grad


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "spec",
    [
        *(f"l2({norm}axis=AXIS, w=v))" for norm in ("l1(", "l2(", "linf(", "lp(p=1.5, ")),
        *(f"l2({norm}axis=AXIS, groups=v))" for norm in ("l1(", "l2(", "linf(", "lp(p=1.5, ")),
        "simplex(axis=AXIS, groups=v)",
        "linf(l0(axis=AXIS, groups=v))",
    ],
)
def test_gradcheck_of_weights_and_labels(spec: str, axis: int) -> None:
    spec = spec.replace("AXIS", str(axis))
    y = (normal(4, 5) + 0.5).requires_grad_()
    v = torch.tensor([0, 1, 0, 1, 1][: 4 + axis]) if "groups" in spec else normal(4, 5).abs()
    norm = projgen.build(spec, backend="numpy").norm(y.detach().numpy(), v=v.numpy())
    share = np.ones_like(norm) if spec[0] == "s" else 0.6 * np.asarray(norm)  # or some are 0
    r = torch.tensor(share, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, r: pt.project(y, spec, r, v=v), (y, r))


def test_the_nearest_point() -> None:
    p = projgen.build("l1(linf)", exact=True)
    y = normal(4, 5, grad=True)
    r = radius_of("l1(linf)", y)
    assert torch.autograd.gradcheck(lambda y, r: pt.project(y, p, r), (y, r), atol=1e-4)


def test_counts_have_the_radius_in_the_spec() -> None:
    y = normal(6, grad=True)
    pt.project(y, "l0(k=2)").sum().backward()
    assert y.grad.sum() == 2
    with pytest.raises(TypeError, match="takes no radius"):
        pt.project(y, "l0(k=2)", 1.0)


def test_it_is_the_projection() -> None:
    for dtype in (torch.float32, torch.float64):
        y = normal(6, 7, dtype=dtype)
        for given in (y, y.T, y[::2], y[:, ::2]):
            x = pt.project(given, "l1(linf)", 1.0)
            assert torch.equal(x, projgen.build("l1(linf)")(given, 1.0))
            assert x.dtype == dtype


def test_halves() -> None:
    y = normal(6, 7, dtype=torch.float16, grad=True)
    x = pt.project(y, "l1(linf)", 1.0)
    x.sum().backward()
    assert y.grad.dtype == torch.float16
    z = y.detach().float().requires_grad_()
    pt.project(z, "l1(linf)", 1.0).sum().backward()
    torch.testing.assert_close(y.grad.float(), z.grad, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l1(axis=0))", "l2(axis=1)"])
def test_opcheck(spec: str) -> None:
    recipe = told(spec)[0]
    y = normal(4, 5, grad=True)
    r = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    for given in (y, normal(5, 4).T, normal(8, 5)[::2]):
        library.opcheck(operators._project, (given, r, recipe))
    x, tape = operators._project(y.detach(), r.detach(), recipe)
    saved = (normal(4, 5), y.detach(), x, tape, r.detach(), recipe)
    library.opcheck(operators._pull, saved)


def test_opcheck_of_trees() -> None:
    recipe = pt.gradients.joined(
        told("l1(a=linf, b=linf)")[0], {"entries": [["a", 0], ["b", 1]]}, []
    )
    r = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    ys = [normal(4, 5, grad=True), normal(3, 5, grad=True)]
    library.opcheck(tree_operators.project_tree, (ys, [], r, recipe))


def test_compiled_whole() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda y, r: (pt.project(2 * y, "l1(linf)", r) ** 2).sum(),
        fullgraph=True,
        backend="aot_eager",
    )
    for shape in ((4, 5), (6, 5), (7, 9)):
        y = normal(*shape, grad=True)
        compiled(y, 1.0).backward()
        again = y.detach().clone().requires_grad_()
        (pt.project(2 * again, "l1(linf)", 1.0) ** 2).sum().backward()
        torch.testing.assert_close(y.grad, again.grad)


def test_a_tree_compiled_whole() -> None:
    torch._dynamo.reset()

    def loss(a: Any, b: Any) -> Any:
        x = pt.project({"a": a, "b": [b, b]}, "l1(a=linf(axis=1), b=l1(linf, linf(axis=1)))", 2.0)
        return (x["a"] ** 2).sum() + x["b"][0].sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    tensors = normal(4, 5, grad=True), normal(3, 5, grad=True)
    found = torch.autograd.grad(compiled(*tensors), tensors)
    torch.testing.assert_close(found, torch.autograd.grad(loss(*tensors), tensors))


def test_vmap_and_func() -> None:
    y, r = normal(3, 4, 5), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def loss(y: Any, r: Any) -> Any:
        return (pt.project(y, "l1(linf)", r) ** 2).sum()

    for dim in (0, 1, 2):
        moved = y.movedim(0, dim)
        x = torch.vmap(lambda y, r: pt.project(y, "l1(linf)", r), in_dims=(dim, 0))(moved, r)
        one_by_one = [pt.project(one, "l1(linf)", own) for one, own in zip(y, r, strict=True)]
        torch.testing.assert_close(x, torch.stack(one_by_one))
    each = torch.vmap(torch.func.grad(loss, argnums=(0, 1)))(y, r)
    for i in range(3):
        torch.testing.assert_close(
            torch.func.grad(loss, argnums=(0, 1))(y[i], r[i]), (each[0][i], each[1][i])
        )
    both = torch.func.grad(loss, argnums=(0, 1))
    only = torch.vmap(both, in_dims=(None, 0))(y[0], r)
    for i in range(3):
        torch.testing.assert_close(both(y[0], r[i]), (only[0][i], only[1][i]))
    rows = torch.vmap(lambda row: pt.project(row, "l1", 0.5))(y[0])
    torch.testing.assert_close(rows, pt.project(y[0], "l1(axis=1)", 0.5))


@pytest.mark.parametrize("spec", ["l1(linf)", "l1(l1(axis=0))", "l2(axis=1)"])
def test_many_gradients_of_one_result(spec: str) -> None:
    y, r = normal(4, 5, grad=True), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    x = pt.project(y, spec, r)
    gs = normal(3, 4, 5)

    def back(g: Any) -> Any:
        return torch.autograd.grad(x, (y, r), g, retain_graph=True)

    each = torch.vmap(back)(gs)
    for i in range(3):
        torch.testing.assert_close(back(gs[i]), (each[0][i], each[1][i]))
    jacobian = torch.func.jacrev(lambda y: pt.project(y, spec, 1.0))(y.detach())
    way = normal(4, 5)
    step = 1e-7
    ends = [pt.project(y.detach() + s * step * way, spec, 1.0) for s in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close((jacobian * way).sum((-2, -1)), expected, atol=1e-6, rtol=1e-6)


def test_batched_gradients() -> None:
    """Of a forward pass that nothing but autograd saw: what maps over gradients comes later."""
    y, r = normal(3, 4, grad=True), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    gs = normal(5, 3, 4)

    def chain(y: Any, r: Any) -> Any:
        return pt.project(y, "l1(linf)", r)

    x = chain(y, r)
    each = torch.autograd.grad(x, (y, r), gs, is_grads_batched=True, retain_graph=True)
    for i, g in enumerate(gs):
        alone = torch.autograd.grad(x, (y, r), g, retain_graph=True)
        torch.testing.assert_close((each[0][i], each[1][i]), alone)
    jacobians = torch.autograd.functional.jacobian(chain, (y, r), vectorize=True)
    torch.testing.assert_close(jacobians, torch.autograd.functional.jacobian(chain, (y, r)))
    assert torch.autograd.gradcheck(chain, (y, r), check_batched_grad=True)
    with pytest.raises(TypeError, match=r"torch\.vmap goes through chains"):
        torch.autograd.grad(pt.project(y, "simplex", r), y, gs, is_grads_batched=True)


@pytest.mark.parametrize("missing", ["_transform", "_modes", "_is_batched", "_is_wrapped"])
def test_a_release_without_a_private_function(missing: str) -> None:
    y = normal(3, 4, grad=True)
    expected = torch.autograd.grad(pt.project(y, "l1(linf)", 1.0).square().sum(), y)
    with patch(f"projgen.torch.eager.{missing}", None):
        for spec in ("l1(linf)", "l1(linf, nonneg=False)"):
            found = torch.autograd.grad(pt.project(y, spec, 1.0).square().sum(), y)
            torch.testing.assert_close(found, expected)


class _Made(torch.autograd.Function):
    """Values in NumPy's memory, as the result of something: of what is a leaf its graph keeps hold.

    Of `columns` the tape has a copy, since they have gaps in memory."""

    @staticmethod
    def forward(ctx: Any, seed: Any, columns: int) -> Any:
        return torch.from_numpy(np.random.default_rng(0).standard_normal((8, 60)))[:, :columns]


@pytest.mark.parametrize("columns", [60, 59])
def test_saved_tensors_alone_hold_the_arrays(columns: int) -> None:
    """Hooks, as those of checkpoints, free what they take: trees keep nothing of it beside."""
    own = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)

    def held(pack: Any) -> int:
        gc.collect()
        tracemalloc.start()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = _Made.apply(torch.zeros((), requires_grad=True), columns)
            total = pt.project(y, "l1(linf, nonneg=True)", 1.0).sum()
        del y
        snapshot = tracemalloc.take_snapshot().filter_traces([own])
        tracemalloc.stop()
        assert total.requires_grad
        return sum(trace.size for trace in snapshot.traces)

    size = 8 * columns * 8
    made = _Made.apply(torch.zeros((), requires_grad=True), columns)
    pt.project(made, "l1(linf, nonneg=True)", 1.0)  # compiled, which tracing would slow down
    held(lambda t: t)  # what is made ready is kept
    assert held(lambda t: t) > 1.9 * size
    assert held(lambda t: None) < 0.5 * size


def test_saved_tensors_may_come_back_in_another_order() -> None:
    y = normal(5, 4, 3).permute(2, 1, 0).detach().requires_grad_()
    g = normal(3, 4, 5)
    pt.project(y, "l1(l2(linf))", 0.3).backward(g)
    expected, y.grad = y.grad, None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous(), lambda t: t):
        x = pt.project(y, "l1(l2(linf))", 0.3)
    x.backward(g)
    torch.testing.assert_close(y.grad, expected)


def test_mapped_radii_under_a_gradient() -> None:
    y, r = normal(4, 5), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)

    def total(r: Any) -> Any:
        return torch.vmap(lambda q, r: pt.project(q, "l1", r))(y, r).sum()

    again = r.clone().requires_grad_()
    pt.project(y, "l1(axis=1)", again).sum().backward()
    torch.testing.assert_close(torch.func.grad(total)(r), again.grad)


def test_structures() -> None:
    p = projgen.build('l1(linf @ "*.weight")', unmatched="pass")
    y = {"a.weight": normal(4, 5, grad=True), "n": None, "count": torch.tensor(3)}
    x = pt.project(y, p, 1.0)
    assert x["n"] is None
    assert x["count"] == 3
    x["a.weight"].sum().backward()
    assert y["a.weight"].grad is not None
    both = pt.project({1: normal(4, 5), 2: normal(3, 2)}, 'l1(linf @ "*")', 1.0)
    assert {key: t.shape for key, t in both.items()} == {1: (4, 5), 2: (3, 2)}
    with pytest.raises(ValueError, match="two arrays of the name '1'"):
        pt.project({1: normal(4, 5), "1": normal(3, 2)}, 'l1(linf @ "*")', 1.0)
    with pytest.raises(TypeError, match=r"torch\.vmap goes through chains"):
        torch.vmap(lambda y: pt.project(y, "simplex", 1.0))(normal(3, 4))


def test_radii_of_any_dtype() -> None:
    y = normal(4, 5, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.int64):
        x = pt.project(y, "l1(linf)", torch.ones((), dtype=dtype))
        torch.testing.assert_close(x, pt.project(y, "l1(linf)", 1.0))
    with pytest.raises(TypeError, match="a radius is a number or a tensor, not '10%'"):
        pt.project(y, "l1(linf)", "10%")
    for spec in ("l1(linf)", "simplex"):
        for radius in (True, 1 + 2j, torch.tensor(True), torch.tensor(1 + 2j)):
            with pytest.raises(TypeError, match="must be a number or an array of numbers, got"):
                pt.project(y, spec, radius)


def test_arguments_of_build_are_not_arrays() -> None:
    for spec in ("l1(linf)", projgen.build("l1(linf)")):
        with pytest.raises(TypeError, match=r"'backend' is given to projgen\.build: p = .*'numpy'"):
            pt.project(normal(4, 5), spec, 1.0, backend="numpy")
    with pytest.raises(TypeError, match=r"'out' is an argument of p\(y, radius\) alone"):
        pt.project(normal(4, 5), "l1(linf)", 1.0, out=normal(4, 5))


def test_functions_of_functions_are_for_chains() -> None:
    for spec in ("simplex", "lp(p=3)"):
        with pytest.raises(TypeError, match=r"use torch\.autograd"):
            torch.func.grad(lambda y, spec=spec: pt.project(y, spec, 1.0).sum())(normal(4))


def test_recipes_keep_all_options() -> None:
    options = {"threads": 3, "check_finite": False, "warm_start": True}
    p = projgen.build("l1(linf)", exact=True, **options)
    assert read_recipe(told(p)[0])[0] == p


def test_a_batch_of_radii_has_gradients_of_its_shape() -> None:
    y = normal(3, 4, grad=True)
    for shape in ((), (3,), (1,)):
        r = torch.full(shape, 0.7, requires_grad=True)
        pt.project(y, "l1(axis=1)", r).sum().backward()
        assert r.grad.shape == shape
        assert r.grad.dtype == torch.float32


def test_no_second_derivatives() -> None:
    y = normal(3, 4, grad=True)
    loss = (pt.project(y, "l1(linf)", 1.0) ** 2).sum()
    (first,) = torch.autograd.grad(loss, y, create_graph=True)
    with pytest.raises(RuntimeError, match="no second ones"):
        first.sum().backward()


def test_a_parametrized_layer_trains() -> None:
    layer = torch.nn.Linear(6, 5)
    before = layer.weight.detach().clone()
    own = pt.parametrize(layer, "weight", "l1(linf(axis=0))", 0.5)
    assert "Projected('l1(linf(axis=0))', radius=0.5)" in repr(layer)
    torch.testing.assert_close(layer.parametrizations.weight.original.detach(), before)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    inputs, wanted = torch.randn(20, 6), torch.randn(20, 5)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = ((layer(inputs) - wanted) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    p = projgen.build("l1(linf(axis=0))")
    assert p.norm(layer.weight.detach()) <= 0.5 * (1 + 1e-5)
    own.radius = 0.25
    assert p.norm(layer.weight.detach()) <= 0.25 * (1 + 1e-5)
    assert p.norm(copy.deepcopy(layer).weight.detach()) <= 0.25 * (1 + 1e-5)
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert p.norm(layer.weight.detach()) <= 0.25 * (1 + 1e-5)


def test_a_radius_that_is_learned_and_one_that_moves_with_the_layer() -> None:
    layer = torch.nn.Linear(6, 5)
    pt.parametrize(layer, "weight", "l1(linf)", torch.nn.Parameter(torch.tensor(0.5)))
    layer.weight.square().sum().backward()
    assert layer.parametrizations.weight[0].radius.grad > 0
    other = torch.nn.Linear(6, 5)
    own = pt.parametrize(other, "weight", "l1(linf)", torch.tensor(0.5))
    assert "parametrizations.weight.0.radius" in other.state_dict()
    own.radius.fill_(0.25)
    assert projgen.build("l1(linf)").norm(other.weight.detach()) <= 0.25 * (1 + 1e-5)
    pt.parametrize(torch.nn.Linear(6, 5), "weight", "l0(l2, k=2)")
    third = torch.nn.Linear(6, 5)
    norm = projgen.build("l1(linf)").norm(third.weight.detach())
    share = pt.parametrize(third, "weight", "l1(linf)", "10%")
    assert share.radius == pytest.approx(0.1 * norm)
    fourth = torch.nn.Linear(6, 5)
    pt.parametrize(fourth, "weight", "l1(linf)", 7.0)
    fourth.load_state_dict(third.state_dict())
    assert torch.equal(third.weight, fourth.weight)


def test_a_radius_that_is_set_and_saved(tmp_path: Any) -> None:
    for radius in (np.float32(0.5), 1, np.array([0.5] * 5), torch.tensor(0.5),
                   torch.nn.Parameter(torch.tensor(0.5))):  # fmt: skip
        spec = "l1(axis=1)" if np.ndim(radius) else "l1(linf)"
        layer = torch.nn.Linear(6, 5)
        own = pt.parametrize(layer, "weight", spec, radius)
        kind = type(own.radius)
        own.radius = np.float64(0.25)
        assert type(own.radius) is kind
        torch.save(layer.state_dict(), tmp_path / "x.pt")
        other = torch.nn.Linear(6, 5)
        pt.parametrize(other, "weight", spec, radius)
        other.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True))
        assert torch.equal(other.weight, layer.weight)
        assert np.all(np.asarray(projgen.build(spec).norm(other.weight.detach())) <= 0.2501)
    own.radius = None
    with pytest.raises(TypeError, match="a radius is missing"):
        own(torch.ones(2, 3))
    number = pt.Projected("l1(linf)", 0.5)
    number.radius = torch.tensor(0.25)
    assert "radius" in number.state_dict()
    with pytest.raises(ValueError, match="at least 0"):
        number.radius = -1
    with pytest.raises(TypeError, match="got True"):
        pt.Projected("l1(linf)", True)
    with pytest.raises(TypeError, match=r"takes the arrays v in each call.* not for parametriz"):
        pt.parametrize(torch.nn.Linear(6, 5), "weight", "l1(l1(w=v))", 1.0)


def test_weights_and_labels_are_not_trained_and_not_shared() -> None:
    y, w = normal(3, 4, grad=True), np.ones((3, 4))
    labels = np.array([0, 1, 0, 1])
    for spec, given in (
        ("l1(l1(axis=1, w=v))", {"v": w}),
        ("l1(l1(axis=1, groups=v))", {"v": labels}),
    ):
        expected = torch.autograd.grad(pt.project(y, spec, 1.0, **given).square().sum(), y)
        loss = pt.project(y, spec, 1.0, **given).square().sum()
        given["v"][...] = given["v"][..., ::-1] * 7
        torch.testing.assert_close(torch.autograd.grad(loss, y), expected)
    v = torch.ones(3, 4, requires_grad=True)
    with pytest.raises(TypeError, match=r"give v\.detach\(\)"):
        pt.project(y, "l1(l1(axis=1, w=v))", 1.0, v=v)
    with torch.no_grad():
        pt.project(y, "l1(l1(axis=1, w=v))", 1.0, v=v)


def test_tensors_by_name() -> None:
    a, b = normal(3, 4, grad=True), normal(2, 4, grad=True)
    spec = "l1(a=linf(axis=1), b=l1(linf(axis=1), w=v))"
    v = torch.tensor([1.0, 2.0], dtype=torch.float64)
    named = pt.project(None, spec, 1.0, a=a, b=b, v=v)
    both = pt.project({"a": a, "b": b}, spec, 1.0, v=v)
    assert named.keys() == both.keys()
    assert all(torch.equal(named[key], both[key]) for key in both)
    assert named["b"].requires_grad
    with pytest.raises(TypeError, match="there is no array to project"):
        pt.project(None, spec, 1.0, v=v)


def test_errors_are_those_of_a_call() -> None:
    y = normal(3, 4, grad=True)
    with pytest.raises(ValueError, match="at least 0"):
        pt.project(y, "l1(linf)", -1.0)
    with pytest.raises(projgen.SpecError, match="linff"):
        pt.project(y, "l1(linff)", 1.0)
    with pytest.raises(projgen.SpecError, match="too few axes"):
        pt.project(y, "l1(l2(linf))", 1.0)
    with pytest.raises(TypeError, match="a radius is missing"):
        pt.project(y, "l1(linf)")
    with pytest.raises(TypeError, match="int64"):
        pt.project(torch.ones(3, 4, dtype=torch.int64), "l1(linf)", 1.0)
    with pytest.raises(ValueError, match="nan"):
        pt.project(torch.full((2, 2), torch.nan), "l1(linf)", 1.0)
    with pytest.raises(TypeError, match="tensors, or a structure"):
        pt.project([1.0, 2.0], "l1(linf, linf)", 1.0)


def test_trees_keep_their_tape_for_autograd() -> None:
    """What autograd alone sees takes no operators; its results are those of the operators."""
    p = projgen.build('l1(linf @ "w*")', unmatched="pass")
    y = {"w1": normal(4, 5, grad=True), "w2": normal(5, 3).T.requires_grad_(), "n": torch.tensor(3)}
    r = torch.tensor(1.5, dtype=torch.float32, requires_grad=True)
    gs = [normal(4, 5), normal(3, 5)]

    def gradients(hooks: Any = None) -> Any:
        with hooks or contextlib.nullcontext():
            x = pt.project(y, p, r)
        assert x["n"] == 3
        return torch.autograd.grad([x["w1"], x["w2"]], [y["w1"], y["w2"], r], gs)

    eager = gradients()
    assert eager[2].dtype == torch.float32
    clones = torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous().clone(), lambda t: t)
    with patch("projgen.torch.tree_operators.is_eager", lambda *_: False):
        others = gradients(), gradients(clones)
    for found in (gradients(clones), *others):
        for one, other in zip(eager, found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-6)
    x = pt.project(y, p, r)
    with torch.no_grad():
        y["w1"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x["w1"].sum().backward()


def test_no_second_derivatives_of_trees() -> None:
    y = normal(4, 5, grad=True)
    x = pt.project(y, "l1(linf, nonneg=True)", 1.0)
    (once,) = torch.autograd.grad(x.square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives here, and no second ones"):
        once.sum().backward()
