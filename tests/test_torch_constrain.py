"""Constraints on what an optimiser trains: when they project, what, and what is kept."""

import copy
import io
import linecache
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support import rehearsals, run_python

import projgen

torch = pytest.importorskip("torch")
from projgen import torch as pt  # noqa: E402

ROWS, COLUMNS = "l1(linf(axis=1))", "l1(linf(axis=0))"
nn = torch.nn


@pytest.fixture(autouse=True)
def _rehearsed() -> Iterator[None]:
    with rehearsals():
        yield


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Sequential(nn.Linear(7, 6), nn.ReLU()), nn.Linear(6, 3))


def adam(model: Any, **options: Any) -> Any:
    return torch.optim.Adam(model.parameters(), lr=0.05, **options)


def train(model: Any, optimizer: Any, steps: int = 1, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(16, 7, generator=generator).to(model[1].weight.dtype)
        (model(x) - x[:, :3]).square().mean().backward()
        optimizer.step()


def stepped(model: Any, optimizer: Any) -> Any:
    """A copy of the model after the same step, without constraints."""
    twin, plain = copy.deepcopy((model, optimizer))
    for own, tensor in zip(twin.parameters(), model.parameters(), strict=True):
        own.grad = tensor.grad.clone()
    plain.step()
    return twin


def norm(spec: str, tensor: Any) -> Any:
    return projgen.build(spec, backend="numpy").norm(tensor.detach())


def same(a: Any, b: Any) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# What is projected


def test_a_step_is_followed_by_the_projection() -> None:
    model, other = network(), network()
    optimizer, plain = adam(model), adam(other)
    pt.constrain(optimizer, model, {"0.0.weight": COLUMNS}, radius=1.0)
    p = projgen.build(COLUMNS)
    address = model[0][0].weight.data_ptr()
    for seed in range(4):
        train(model, optimizer, seed=seed)
        train(other, plain, seed=seed)
        with torch.no_grad():
            p(other[0][0].weight, 1.0, out=other[0][0].weight)
        assert same(model, other)
        assert norm(COLUMNS, model[0][0].weight) <= 1 + 1e-6
    assert model[0][0].weight.data_ptr() == address
    assert model[0][0].weight.grad_fn is None


@pytest.mark.parametrize(
    ("constraints", "names"),
    [
        ({"0.0.weight": ROWS}, ["0.0.weight"]),
        ({"0.0": ROWS}, ["0.0.weight"]),  # a module
        ({"*.weight": ROWS}, ["0.0.weight", "1.weight"]),
        ({"1": ROWS, "*.weight": COLUMNS}, ["1.weight", "0.0.weight"]),  # the first key takes it
        ({"0.0": projgen.build(ROWS)}, ["0.0.weight"]),
        ({"_orig_mod.0.0": projgen.build(ROWS).tree}, ["0.0.weight"]),
        ({"[01]*0": ROWS, "?": ROWS}, ["0.0.weight", "1.weight"]),  # modules
        ({"?.bias": "l1", "0.0.bias": "l1"}, ["1.bias", "0.0.bias"]),
    ],
)
def test_keys(constraints: dict[str, Any], names: list[str]) -> None:
    model = network()
    handle = pt.constrain(adam(model), model, constraints, radius=1.0)
    assert handle.names == names
    assert list(handle.specs) == names


def test_each_parameter_has_a_budget_of_its_own() -> None:
    model = network()
    optimizer = adam(model)
    radii = {"0.0": 0.5, "*": "50%"}
    pt.constrain(optimizer, model, {"0.0": COLUMNS, "*": "l1"}, radius=radii)
    before = {name: norm("l1", tensor) for name, tensor in model.named_parameters()}
    train(model, optimizer)
    assert norm(COLUMNS, model[0][0].weight) == pytest.approx(0.5)
    for name, tensor in model.named_parameters():
        if name != "0.0.weight":
            assert norm("l1", tensor) == pytest.approx(0.5 * before[name], rel=1e-6)


def test_patterns_share_a_budget() -> None:
    model = network()
    optimizer = adam(model)
    spec = 'l1(linf(axis=1) @ "0.*.weight", linf(axis=0) @ "*.weight")'
    handle = pt.constrain(optimizer, model, spec, radius="10%")
    bias = model[1].bias.clone()
    (before,) = handle.standings()
    assert before.norm == pytest.approx(
        norm(ROWS, model[0][0].weight) + norm(COLUMNS, model[1].weight)
    )
    train(model, optimizer)
    (after,) = handle.standings()
    assert after.names == ("0.0.weight", "1.weight")
    assert after.norm == pytest.approx(0.1 * before.norm, rel=1e-6)
    assert after.groups == 12
    assert after.active < 12
    assert not torch.equal(model[1].bias, bias)  # what no pattern matches trains freely


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ("l1(a=linf(axis=1), b=linf(axis=0))", {"a": "0.0", "b": "1.weight"}),
        ("l1(linf(axis=1), linf(axis=0))", ["0.0", "1.weight"]),
        (
            "l1(e=l1(a=linf(axis=1), b=l1), d=linf(axis=0))",
            {"e": {"a": "0.0", "b": "0.0.bias"}, "d": "1"},
        ),
    ],
)
def test_names_share_a_budget(spec: str, where: Any) -> None:
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, spec, radius=1.0, where=where)
    train(model, optimizer)
    (after,) = handle.standings()
    assert after.norm == pytest.approx(1.0, rel=1e-6)


def test_one_spec_for_names() -> None:
    model = network()
    assert pt.constrain(adam(model), model, ROWS, 1.0, where="0.0").names == ["0.0.weight"]
    handle = pt.constrain(adam(model), model, ROWS, 1.0, where=["1", "0.0"])
    assert handle.names == ["1.weight", "0.0.weight"]


def test_weights_and_labels() -> None:
    model = network()
    optimizer = adam(model)
    arrays = {"v": np.array([1.0, 1, 1, 1, 1, 50]), "g": np.array([0, 0, 0, 1, 1, 1, 1])}
    specs = {"0.0": "l1(linf(axis=1), w=v)", "1": "l1"}
    pt.constrain(optimizer, model, specs, radius="5%", arrays={"v": arrays["v"]})
    train(model, optimizer)
    assert torch.equal(model[0][0].weight[5], torch.zeros(7))
    assert model[0][0].weight[:5].any()
    handle = pt.constrain(optimizer, model, {"0.0": "l1(l2(axis=1, groups=g), axis=0)"}, 1.0,
                          arrays={"g": torch.from_numpy(arrays["g"])})  # fmt: skip
    assert handle.standings()[0].groups == 12
    with pytest.raises(ValueError, match="no spec names 'g'"):
        pt.constrain(optimizer, model, specs, "60%", arrays=arrays)


def test_counts_take_no_radius() -> None:
    model = network()
    optimizer = adam(model)
    pt.constrain(optimizer, model, {"1": "l0(l2(axis=1), k=1)"})
    train(model, optimizer)
    assert model[1].weight.any(dim=1).sum() == 1
    with pytest.raises(TypeError, match="takes no radius"):
        pt.constrain(optimizer, model, {"1": "l0(l2(axis=1), k=1)"}, 1.0)


def test_batch_axes_have_radii() -> None:
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"1": "l1(axis=1)"}, torch.tensor([0.1, 0.2, 0.3]))
    train(model, optimizer)
    torch.testing.assert_close(model[1].weight.detach().abs().sum(1), torch.tensor([0.1, 0.2, 0.3]))
    handle.remove()
    before = model[1].weight.detach().abs().sum(1)
    handle = pt.constrain(optimizer, model, {"1": "l1(axis=1)"}, "50%")
    handle.project()
    torch.testing.assert_close(model[1].weight.detach().abs().sum(1), 0.5 * before)


def test_counts_beside_radii() -> None:
    """Specs with the count of l0 need no radius of their own among others."""
    counted = {"0.0": "l0(l2(axis=1), k=2)", "1": ROWS}
    for radius in ("10%", {"1": "10%"}, {"0.0": None, "1": "10%"}):
        model = network()
        optimizer = adam(model)
        handle = pt.constrain(optimizer, model, counted, radius)
        train(model, optimizer)
        first, second = handle.standings()
        assert (first.radius, first.active) == (None, 2)
        assert second.norm == pytest.approx(second.radius, rel=1e-6)
        for wrong in ({"0.0": 1.0, "1": "10%"}, {"0.0": None}, {"1": 1.0, "2": 1.0}):
            with pytest.raises((TypeError, ValueError)):
                pt.constrain(optimizer, model, counted, wrong)


def test_standings_of_many_batch_entries_are_short() -> None:
    model = nn.Sequential(nn.Linear(16, 6), nn.Linear(6, 3))
    handle = pt.constrain(adam(model), model, {"0": "l0(axis=1, block=4, k=2)", "1": "l1(axis=1)"},
                          {"1": torch.tensor([0.1, 0.2, 0.3])})  # fmt: skip
    first, second = handle.standings()
    assert tuple(first.norm.shape) == (6, 4)
    assert "norm=<6 × 4 values: 4>, active" in repr(first)
    assert "radius=tensor([0.1000, 0.2000, 0.3000])" in repr(second)
    assert f"norm={second.norm!r}" in repr(second)


@pytest.mark.parametrize("radius", ["10%", pt.geometric("100%", "10%", 5), 0.5,
                                    pt.linear("10%", 0.5, 5)])  # fmt: skip
def test_a_part_of_nothing(radius: Any) -> None:
    model = network()
    nn.init.zeros_(model[1].weight)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pt.constrain(adam(model), model, {"1": ROWS}, radius)
    told = [str(one.message) for one in seen if "1.weight is all zero" in str(one.message)]
    assert len(told) == (radius == "10%" or getattr(radius, "shape", "") == "geometric")


def test_a_constraint_twice() -> None:
    model = network()
    optimizer = adam(model)

    def told(spec: str, **options: Any) -> tuple[Any, bool]:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            handle = pt.constrain(optimizer, model, {"1": spec}, "50%", **options)
        return handle, any("'1.weight' already, and both" in str(one.message) for one in seen)

    first, warned = told(ROWS)
    assert not warned
    again, warned = told(ROWS)
    assert warned
    again.remove()
    first.remove()
    third, warned = told(ROWS, stop=2)
    assert not warned
    assert not told(COLUMNS)[1]
    later, warned = told(ROWS, start=2)
    assert not warned
    later.remove()
    assert not told(ROWS, every="epoch")[1]
    assert told(ROWS, start=1)[1]
    third.freeze()


# When


def projections(handle: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The clock's times of the projections to come."""
    seen: list[int] = []
    whole = handle.project
    monkeypatch.setattr(handle, "project", lambda: (seen.append(handle.clock), whole()))
    return seen


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({}, list(range(1, 13))),
        ({"every": 5}, [5, 10]),
        ({"start": 2, "every": 3}, [5, 8, 11]),
        ({"start": 9}, [10, 11, 12]),
        ({"start": 1, "stop": 4}, [2, 3, 4]),
    ],
)
def test_steps(when: dict[str, Any], expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, 1.0, **when)
    seen = projections(handle, monkeypatch)
    train(model, optimizer, 12)
    assert seen == expected
    assert handle.steps == 12


def test_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, 1.0, every="epoch", start=1, stop=3)
    seen = projections(handle, monkeypatch)
    for _ in range(4):
        train(model, optimizer, 2)
        handle.epoch_end()
    assert seen == [2, 3]
    assert (handle.steps, handle.epochs, handle.clock) == (8, 4, 4)


def test_epochs_that_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projgen.torch.constraint.MANY", 3)
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"1": ROWS}, 0.5, every="epoch")
    train(model, optimizer, 2)
    assert "after 2 steps, 0 epochs ended: not yet projected>" in repr(handle)
    with pytest.warns(UserWarning, match=r"3 steps, and no .* projects '1.weight'") as seen:
        train(model, optimizer, 4)
    assert [line_of(one) for one in seen] == ["optimizer.step()"]
    with pytest.warns(UserWarning, match=r"6 steps, .* yet: epoch_end\(\) was not called"):
        handle.freeze(project=True)
    handle.epoch_end()
    assert repr(handle).endswith("after 6 steps, 1 epoch ended>")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle.freeze()


def test_epochs_that_are_not_asked_for() -> None:
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"1": ROWS}, 0.5, every=5)
    with pytest.warns(UserWarning, match="projects every 5 steps; .*every='epoch'") as seen:
        handle.epoch_end()
        handle.epoch_end()
    assert [line_of(one) for one in seen] == ["handle.epoch_end()"]
    train(model, optimizer)
    with pytest.warns(UserWarning, match="after 1 steps?, .* yet: every 5 steps"):
        handle.freeze()


def test_the_warning_is_about_the_line_that_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of PyTorch's own calls are between that line and the hook."""
    monkeypatch.setattr("projgen.torch.constraint.MANY", 1)
    model = network()
    optimizer = adam(model)
    scheduled = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)  # wraps step()
    pt.constrain(optimizer, model, {"1": ROWS}, 0.5, every="epoch")
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(2, 7)).square().mean()).backward()
    with pytest.warns(UserWarning, match="no epoch has ended") as seen:
        scaler.step(optimizer)
    assert [line_of(one) for one in seen] == ["scaler.step(optimizer)"]
    scheduled.step()


def line_of(warning: Any) -> str:
    assert warning.filename == __file__
    return linecache.getline(warning.filename, warning.lineno).strip()


def test_accumulated_gradients_count_once() -> None:
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, 1.0, every=2)
    for batch in range(8):
        model(torch.randn(4, 7)).square().mean().backward()
        if batch % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    assert handle.steps == 2
    assert norm(ROWS, model[0][0].weight) <= 1 + 1e-6


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_none(fused: bool) -> None:
    model = network()
    optimizer = adam(model, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, 1.0)
    for bad, steps in ((False, 1), (True, 1), (False, 2)):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(4, 7)).square().mean()).backward()
        if bad:
            model[1].weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        assert handle.steps == steps
    assert scaler.get_scale() == 2.0


@pytest.mark.parametrize(
    ("schedule", "radii"),
    [
        (pt.linear(10.0, 2.0, 4), [8, 6, 4, 2, 2]),
        (pt.linear("100%", 2, 4), [None, None, None, 2, 2]),
        (pt.cosine(10.0, 2.0, 4), [6 + 4 * math.sqrt(0.5), 6, 6 - 4 * math.sqrt(0.5), 2, 2]),
        (pt.geometric(8.0, 0.5, 4), [4, 2, 1, 0.5, 0.5]),
        (lambda step: 12.0 / step, [12, 6, 4, 3, 2.4]),
        (lambda step: pt.linear(10.0, 2.0, 4), [8, 6, 4, 2, 2]),
        (5, [5] * 5),
    ],
)
def test_schedules(schedule: Any, radii: list[Any]) -> None:
    model = network()
    optimizer = adam(model)
    initial = norm(ROWS, model[0][0].weight)
    if radii[0] is None:
        radii = [initial + t * (2 - initial) / 4 for t in (1, 2, 3)] + radii[3:]
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, schedule, start=2)
    train(model, optimizer, 2)
    for radius in radii:
        train(model, optimizer)
        assert handle.standings()[0].radius == pytest.approx(radius)


def test_parts_of_the_norm() -> None:
    model = network()
    optimizer = adam(model)
    initial = norm(ROWS, model[0][0].weight)
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, lambda step: f"{50 / step}%")
    train(model, optimizer, 2)
    assert norm(ROWS, model[0][0].weight) == pytest.approx(0.25 * initial, rel=1e-6)
    assert handle.standings()[0].norm == pytest.approx(0.25 * initial, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pt.geometric(1.0, 0.0, 3), "neither begins nor ends at 0"),
        (lambda: pt.linear(1.0, 0.0, 0), "steps must be"),
        (lambda: pt.linear(1.0, math.inf, 3), "finite"),
        (lambda: pt.linear(1.0, -1.0, 3), "at least 0"),
        (lambda: pt.cosine("1o%", 1.0, 3), "not a radius"),
    ],
)
def test_schedules_that_are_none(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Which models and parameters


def test_autograd_notices() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pt.constrain(optimizer, model, {"0.0": ROWS}, 1.0)
    weight = model[0][0].weight
    for _ in range(2):  # the second call of a projection takes the short way
        optimizer.step()
    version = weight._version
    loss = weight.square().sum()
    optimizer.step()
    assert weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("key", ["encoder", "decoder.weight", "*.weight"])
def test_tied_parameters_are_projected_once(key: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.decoder.weight = self.encoder.weight

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = pt.constrain(optimizer, model, {key: ROWS}, radius="50%")
    assert len(handle.names) == 1
    before = norm(ROWS, model.decoder.weight)
    optimizer.step()
    assert norm(ROWS, model.decoder.weight) == pytest.approx(0.5 * before, rel=1e-6)
    spec = 'l1(linf(axis=1) @ "*.weight")'
    assert pt.constrain(optimizer, model, spec, 1.0).names == ["encoder.weight"]
    with pytest.raises(ValueError, match="the same parameter"):
        pt.constrain(optimizer, model, "l1(linf, linf)", 1.0, where=["encoder", "decoder"])
    with pytest.raises(ValueError, match="no earlier key took"):
        pt.constrain(optimizer, model, {"encoder": ROWS, "decoder": ROWS}, 1.0)


def test_a_module_that_is_there_twice() -> None:
    layer = nn.Linear(5, 5)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pt.constrain(optimizer, model, {"2": ROWS}, radius=0.5)
    optimizer.step()
    assert norm(ROWS, layer.weight) == pytest.approx(0.5, rel=1e-6)


def test_parameter_groups() -> None:
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    pt.constrain(optimizer, model, {"*.weight": ROWS}, radius=0.5)
    train(model, optimizer, 2)
    for layer in (model[0][0], model[1]):
        assert norm(ROWS, layer.weight) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: Any) -> None:
    model = network().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    one = pt.constrain(optimizer, model, {"0.0": ROWS}, radius="20%")
    two = pt.constrain(optimizer, model, 'l1(linf(axis=1) @ "1.weight", l1 @ "*.bias")', "20%")
    initial = [one.standings()[0].norm, two.standings()[0].norm]
    train(model, optimizer, 2)
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    for handle, before in zip((one, two), initial, strict=True):
        assert handle.standings()[0].norm == pytest.approx(0.2 * before, rel=2.0**-8)


def test_compiled_models_have_their_own_names() -> None:
    model = network()
    inner = torch.compile(model[0], backend="eager")
    compiled = torch.compile(nn.Sequential(inner, model[1]), backend="eager")
    assert "_orig_mod.0._orig_mod.0.weight" in dict(compiled.named_parameters())
    initial = copy.deepcopy(compiled.state_dict())
    optimizer = adam(compiled)
    handle = pt.constrain(optimizer, compiled, {"0.*.weight": COLUMNS}, radius=0.4)
    assert handle.names == ["0.0.weight"]
    for seed in range(2):
        optimizer.zero_grad()
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed))
        compiled(x).square().mean().backward()
        optimizer.step()
        assert norm(COLUMNS, model[0][0].weight) == pytest.approx(0.4, rel=1e-6)
    handle.freeze()
    handle.rewind({name.replace("_orig_mod.", ""): value for name, value in initial.items()})
    kept = ~handle.frozen["0.0.weight"]
    wanted = initial["_orig_mod.0._orig_mod.0.weight"]
    assert torch.equal(model[0][0].weight.detach(), wanted * kept)


def test_a_step_that_is_compiled_calls_it_too() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, radius=0.5)
    model(torch.randn(4, 7)).sum().backward()
    torch.compile(optimizer.step, backend="eager")()
    assert handle.steps == 1
    assert norm(ROWS, model[0][0].weight) == pytest.approx(0.5, rel=1e-6)


def test_any_strides() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    model.register_parameter("turned", nn.Parameter(torch.randn(5, 4).T))
    model.register_parameter("gaps", nn.Parameter(torch.randn(4, 10)[:, ::2]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    weights = {"0.weight": model[0].weight, "turned": model.turned, "gaps": model.gaps}
    assert not any(weight.is_contiguous() for weight in weights.values())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    pt.constrain(optimizer, model, dict.fromkeys(weights, "l1(linf)"), radius=1.0)
    optimizer.step()
    p = projgen.build("l1(linf)", backend="numpy")
    for name, weight in weights.items():
        torch.testing.assert_close(weight.detach(), p(before[name], 1.0))


def test_memory_that_repeats_is_refused() -> None:
    model = nn.Module()
    model.register_parameter("one", nn.Parameter(torch.ones(5).expand(4, 5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(ValueError, match="one: out has elements that share memory"):
        pt.constrain(optimizer, model, {"one": ROWS}, 1.0)


def test_parameters_without_gradients() -> None:
    model = network()
    model[0][0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pt.constrain(optimizer, model, {"0.0": ROWS}, radius=0.5)
    train(model, optimizer)
    assert norm(ROWS, model[0][0].weight) == pytest.approx(0.5, rel=1e-6)
    assert not model[0][0].weight.requires_grad


def test_another_tensor_in_its_place() -> None:
    model = network()
    optimizer = adam(model)
    pt.constrain(optimizer, model, {"0.0": ROWS}, radius=0.5)
    model[0][0].weight = nn.Parameter(torch.randn(6, 7))
    with pytest.raises(RuntimeError, match=r"'0.0.weight' is another tensor now"):
        train(model, optimizer)
    optimizer.add_param_group({"params": [model[0][0].weight]})
    train(model, optimizer)
    assert norm(ROWS, model[0][0].weight) <= 0.5 + 1e-6
    del model[0][0].weight
    with pytest.raises(RuntimeError, match=r"no parameter '0.0.weight' any more"):
        optimizer.step()


def test_frozen_zeros_of_another_shape() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pt.constrain(optimizer, model, {"1": ROWS}, radius="10%", freeze_zeros=True)
    train(model, optimizer)
    optimizer.zero_grad()
    model[1].weight.data = torch.ones(3, 5)
    with pytest.raises(RuntimeError, match=r"'1.weight' has shape \(3, 5\) now, .* \(3, 6\)"):
        optimizer.step()


def test_workers_are_forked_while_kernels_have_threads() -> None:
    """The real kernels, threads and all; the workers project as well."""
    print(run_python(LOADER, PROJGEN_NUM_THREADS="2"))


LOADER = """
import torch, projgen, projgen.torch
p = projgen.build("l1(linf)", threads=2)

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        y = torch.full((600, 600), float(i + 1))
        return p(y, 1.0, out=y)[0, :7]

model = torch.nn.Linear(600, 600)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
handle = projgen.torch.constrain(optimizer, model, {"weight": p}, radius="10%")
for epoch in range(2):
    loader = torch.utils.data.DataLoader(Data(), 2, num_workers=2, multiprocessing_context="fork")
    for batch in loader:
        torch.testing.assert_close(batch, torch.full((2, 7), 1 / 600))
        optimizer.zero_grad()
        model(torch.randn(4, 600)).square().mean().backward()
        optimizer.step()
(standing,) = handle.standings()
assert handle.steps == 8 and abs(standing.norm - standing.radius) < 1e-5 * standing.radius
"""


# Zeros that stay


def test_zeros_may_come_back_unless_asked() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, 0.1, 0.1], [1.0, 1.0, 1.0]]))
    other = copy.deepcopy(model)
    for net, freeze_zeros in ((model, False), (other, True)):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
        pt.constrain(optimizer, net, {"0": ROWS}, 0.5, freeze_zeros=freeze_zeros)
        optimizer.step()
        assert not net[0].weight[0].any()
        net[0].weight.grad = torch.tensor([[-1.0, -1, -1], [0, 0, 0]])
        optimizer.step()
        assert bool(net[0].weight[0].any()) is not freeze_zeros
    assert not optimizer.state[other[0].weight]["momentum_buffer"][0].any()


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adafactor"])
def test_frozen_zeros_have_no_momentum(name: str) -> None:
    if not hasattr(torch.optim, name):
        pytest.skip(f"this PyTorch has no {name}")
    model = network()
    options = {"SGD": {"momentum": 0.9, "nesterov": True}, "Adam": {"amsgrad": True}}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.05, **options.get(name, {}))
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, radius="20%", stop=6)
    train(model, optimizer, 6)
    handle.freeze()
    weight = model[0][0].weight
    frozen = handle.frozen["0.0.weight"]
    assert frozen.any()
    assert torch.equal(frozen, weight == 0)
    for seed in range(3):
        train(model, optimizer, seed=seed)
        state = optimizer.state[weight]  # Adafactor's has sums over rows and columns
        kept = [value for value in state.values() if getattr(value, "shape", 0) == weight.shape]
        assert bool(kept) is (name != "Adafactor")
        assert all(not value[frozen].any() for value in [weight, *kept])
        assert weight[~frozen].all()
    assert norm(ROWS, weight) > handle.standings()[0].radius  # it trains freely beneath the mask


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("where", ["contiguous", "transposed", "float8"])
def test_whatever_is_frozen_becomes_zero(dtype: Any, where: str) -> None:
    """NaN, infinities and what is negative: all become +0, which products with 0 would not."""
    from projgen.torch.masks import _zero

    values = torch.tensor([[math.nan, -1.0, 2.0], [-math.inf, 3.0, math.nan]], dtype=dtype)
    frozen = torch.tensor([[True, True, False], [True, False, False]])
    if where == "transposed":
        values, frozen = values.T, frozen.T
    if where == "float8":
        values = values.to(torch.float8_e5m2)
    expected = torch.where(frozen, 0, values.double())
    _zero(values, frozen)
    assert torch.equal(values.double().nan_to_num(7), expected.nan_to_num(7))
    assert not torch.signbit(values.double()[frozen]).any()


def test_frozen_zeros_under_the_constraint() -> None:
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, radius=0.3)
    train(model, optimizer, 5)
    handle.freeze(project=True)
    train(model, optimizer, 5, seed=1)
    assert not model[0][0].weight[handle.frozen["0.0.weight"]].any()
    # What is frozen takes nothing from the budget, though its gradient is not zero.
    assert norm(ROWS, model[0][0].weight) == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize("freeze_zeros", [False, True])
def test_zeros_of_a_radius_that_grows_again(freeze_zeros: bool) -> None:
    model = network()
    optimizer = adam(model)
    pt.constrain(optimizer, model, {"0.0": ROWS}, lambda step: 0.1 if step < 3 else 9.0,
                 freeze_zeros=freeze_zeros, keep_momenta=True)  # fmt: skip
    train(model, optimizer, 2)
    gone = (model[0][0].weight == 0).clone()
    assert gone.any()
    train(model, optimizer, 5)
    assert torch.equal(model[0][0].weight == 0, gone) is freeze_zeros


def test_double_descent() -> None:
    model = network()
    initial = copy.deepcopy(model.state_dict())
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"0.0": COLUMNS}, radius=0.2)
    with pytest.raises(RuntimeError, match="freeze"):
        handle.rewind(initial)
    train(model, optimizer, 8)
    handle.freeze()
    with pytest.raises(ValueError, match=r"deepcopy"):
        handle.rewind(model.state_dict())
    handle.rewind(initial)
    frozen = handle.frozen["0.0.weight"]
    assert 0 < frozen.sum() < frozen.numel()
    assert torch.equal(model[0][0].weight, initial["0.0.weight"] * ~frozen)
    for name in ("0.0.bias", "1.weight", "1.bias"):
        assert torch.equal(model.state_dict()[name], initial[name])
    assert not optimizer.state

    other = network()  # the second phase by hand
    plain = adam(other)
    with torch.no_grad():
        other[0][0].weight.masked_fill_(frozen, 0)
    other[0][0].weight.register_hook(lambda gradient: gradient.masked_fill(frozen, 0))
    train(model, optimizer, 5, seed=1)
    train(other, plain, 5, seed=1)
    assert same(model, other)


# What is saved


@pytest.mark.parametrize("own", [False, True])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(own: bool) -> None:
    def begin(seed: int) -> tuple[Any, Any, Any]:
        model = network(seed)
        optimizer = adam(model)
        specs = {"0.0": COLUMNS, "1": "l1(axis=1)"}
        handle = pt.constrain(optimizer, model, specs, pt.cosine("100%", "20%", 8), every=2,
                              start=1, freeze_zeros=True)  # fmt: skip
        return model, optimizer, handle

    model, optimizer, handle = begin(0)
    train(model, optimizer, 5)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if own:
        del state["optimizer"]["projgen"]
        state["constraint"] = handle.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    train(model, optimizer, 6, seed=1)
    assert handle.frozen["0.0.weight"].any()

    file.seek(0)
    state = torch.load(file, weights_only=True)
    again, second, resumed = begin(1)  # percentages are those of the first run's norms
    train(again, second, 2, seed=3)
    again.load_state_dict(state["model"])
    second.load_state_dict(state["optimizer"])
    if own:
        resumed.load_state_dict(state["constraint"])
    assert resumed.steps == 5
    train(again, second, 6, seed=1)
    assert same(model, again)
    assert resumed.standings()[0].radius == handle.standings()[0].radius
    assert torch.equal(handle.frozen["0.0.weight"], resumed.frozen["0.0.weight"])


def test_a_checkpoint_knows_whether_anything_was_projected() -> None:
    model = network()
    handle = pt.constrain(adam(model), model, {"0.0": ROWS, "1": ROWS}, "50%")
    other = pt.constrain(adam(model), model, {"0.0": ROWS, "1": ROWS}, "50%")
    other.load_state_dict(handle.state_dict())
    assert [standing.projected for standing in other.standings()] == [False, False]
    handle.project()
    state = handle.state_dict()
    other.load_state_dict(state)
    assert [standing.projected for standing in other.standings()] == [True, True]
    other.load_state_dict({**state, "projected": ["1.weight"]})
    assert [standing.projected for standing in other.standings()] == [False, True]
    del state["projected"]  # as states were before this was in them
    other.load_state_dict(state)
    assert [standing.projected for standing in other.standings()] == [True, True]


def test_a_checkpoint_of_the_second_phase() -> None:
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"0.0": COLUMNS}, 0.2)
    train(model, optimizer, 8)
    handle.freeze()
    again = network(1)
    second = adam(again)
    pt.constrain(second, again, {"0.0": COLUMNS}, 0.2)
    again.load_state_dict(model.state_dict())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 4)
    train(again, second, 4)
    assert same(model, again)
    assert norm(COLUMNS, again[0][0].weight) > 0.2


def test_states_of_others() -> None:
    model = network()
    optimizer = adam(model)
    plain = optimizer.state_dict()
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, 0.5)
    second = pt.constrain(optimizer, model, {"1": ROWS}, 0.5, every=2)
    train(model, optimizer, 3)
    handle.freeze()
    saved = copy.deepcopy(optimizer.state_dict())
    assert len(saved["projgen"]) == 2
    optimizer.load_state_dict(plain)  # from before the constraints
    assert handle.steps == 3
    with pytest.raises(ValueError, match="another constraint"):
        handle.load_state_dict(second.state_dict())
    second.remove()
    optimizer.load_state_dict(saved)

    strange = {**saved, "projgen": saved["projgen"][1:]}
    with pytest.raises(ValueError, match="without its entry 'projgen'"):
        optimizer.load_state_dict(strange)
    wrong = handle.state_dict()
    wrong["frozen"] = {"0.0.weight": torch.zeros(2, 2, dtype=torch.bool)}
    with pytest.raises(ValueError, match="another model"):
        handle.load_state_dict(wrong)
    assert handle.frozen["0.0.weight"].shape == (6, 7)


def test_states_of_constraints_with_the_same_specs() -> None:
    model = network()
    optimizer = adam(model)
    first = pt.constrain(optimizer, model, {"0.0": ROWS}, "50%", stop=2)
    train(model, optimizer, 3)
    second = pt.constrain(optimizer, model, {"0.0": ROWS}, "50%")
    train(model, optimizer, 1)

    again = network(1)
    other = adam(again)
    handles = [pt.constrain(other, again, {"0.0": ROWS}, "50%", stop=2)]
    with pytest.warns(UserWarning, match="both project it"):
        handles.append(pt.constrain(other, again, {"0.0": ROWS}, "50%"))
    again.load_state_dict(model.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    for _ in range(2):  # loading leaves the state as it is
        other.load_state_dict(saved)
        assert [handle.steps for handle in handles] == [4, 1]
        for handle, expected in zip(handles, (first, second), strict=True):
            assert handle.standings()[0].radius == expected.standings()[0].radius
    train(model, optimizer, 1)
    train(again, other, 1)
    assert same(model, again)
    second.remove()
    with pytest.raises(ValueError, match="that is not another's"):
        other.load_state_dict(optimizer.state_dict())


def test_a_state_that_the_optimiser_refuses_is_not_loaded() -> None:
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, 0.5)
    saved = {**optimizer.state_dict(), "param_groups": []}
    train(model, optimizer, 2)
    with pytest.raises(ValueError, match="parameter groups"):
        optimizer.load_state_dict(saved)
    assert handle.steps == 2


# The handle


def test_removing() -> None:
    model = network()
    optimizer = adam(model)
    with pt.constrain(optimizer, model, {"0.0": ROWS}, 0.5) as handle:
        train(model, optimizer, 2)
    train(model, optimizer, 2)
    assert handle.steps == 2
    assert norm(ROWS, model[0][0].weight) > 0.5 + 1e-3
    assert "projgen" not in optimizer.state_dict()
    assert "'0.0.weight': every step, after 2 steps, removed" in repr(handle)
    handle.remove()


def test_handles_are_not_copied() -> None:
    model = network()
    optimizer = adam(model)
    handle = pt.constrain(optimizer, model, {"0.0": ROWS}, 0.5, every=10)
    assert repr(handle) == (
        "<projgen.torch.Constraint on '0.0.weight': every 10 steps, after 0 steps: "
        "not yet projected>"
    )
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(handle)
    twin_model, twin = copy.deepcopy((model, optimizer))  # its copy is an optimiser without
    train(twin_model, twin, 10)
    assert handle.steps == 0


def test_divergence() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pt.constrain(optimizer, model, {"0.0": ROWS, "1": ROWS}, 0.5)
    train(model, optimizer, 3)
    model[1].weight.grad[1, 2] = math.nan
    wanted = stepped(model, optimizer)[1].weight
    with pytest.raises(ValueError, match=r"step 4 left nan in '1.weight', at index \(1, 2\)"):
        optimizer.step()
    assert torch.equal(model[1].weight.isnan(), wanted.isnan())
    assert torch.equal(model[1].weight.nan_to_num(), wanted.nan_to_num())


def test_divergence_beneath_one_budget() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pt.constrain(optimizer, model, 'l1(linf(axis=1) @ "*.weight")', 0.5)
    train(model, optimizer)
    model[1].weight.grad[0, 0] = math.inf
    wanted = stepped(model, optimizer)
    with pytest.raises(ValueError, match=r"step 2 left -inf in '1.weight', at index \(0, 0\)"):
        optimizer.step()
    assert same(model, wanted)


def test_a_schedule_that_goes_wrong() -> None:
    model = network()
    optimizer = adam(model)
    pt.constrain(optimizer, model, {"0.0": ROWS}, lambda step: 3.0 - 2 * step)
    with pytest.raises(ValueError, match=r"after step 2, 0.0.weight: radius must be at least 0"):
        train(model, optimizer, 2)


@pytest.mark.parametrize(
    ("constraints", "options", "error", "message"),
    [
        ({"0.0.weigth": ROWS}, {}, ValueError, r"called '0.0.weigth'; is it '0.0.weight'"),
        ({"conv*": ROWS}, {}, ValueError, r"called 'conv\*'; there are '0.0.weight'"),
        ({"0": ROWS}, {}, ValueError, r"'0' has no parameter 'weight'; inside it are '0.0.weight'"),
        ({"0.1": ROWS}, {}, ValueError, r"'0.1' has no parameter 'weight', and no other"),
        ({}, {}, ValueError, "nothing to constrain"),
        ({"*": ROWS}, {}, projgen.SpecError, r"0.0.bias: axis 1 is out of range"),
        ({"*": ROWS}, {}, projgen.SpecError, r"weights alone are '\*.weight'"),
        ({"0*": "l1(linf)"}, {}, projgen.SpecError, r"too few(.*\n)*.* are '0\*.weight'"),
        ({"1": "l1(linff)"}, {}, projgen.SpecError, "did you mean"),
        ({"1": 3}, {}, TypeError, "a spec, such as"),
        ({"1": 'l1(linf @ "*.weight")'}, {}, TypeError, "pass it by itself"),
        ({"1": ROWS}, {"where": "1"}, TypeError, "where= is for a single spec"),
        (ROWS, {}, TypeError, "which parameters"),
        ("l1(a=linf, b=linf)", {}, TypeError, "where= says which"),
        ("l1(a=linf, b=linf)", {"where": {"a": "1"}}, ValueError, "lacks 'b'"),
        ("l1(a=linf, b=linf)", {"where": {"a": "1", "b": "*"}}, ValueError, "name one"),
        ("l1(a=linf, b=linf)", {"where": {"a": "1", "b": 2}}, TypeError, "must be a name"),
        ("l1(a=linf, b=linf)", {"radius": {"a": 1.0}}, TypeError, "have one radius"),
        ('l1(linf @ "*.weight")', {"where": "1"}, TypeError, "without patterns"),
        ('l1(linf @ "conv*")', {}, ValueError, "matches none"),
        ({"1": ROWS}, {"radius": None}, TypeError, "1.weight: a radius is missing, such as"),
        ({nn.Linear(2, 2): ROWS}, {}, TypeError, "keys are names.* got a Linear"),
        ({"1": ROWS}, {"radius": "0.1"}, ValueError, r"write radius=0.1, a number, or with %"),
        ({"1": ROWS}, {"radius": -1.0}, ValueError, "at least 0"),
        ({"1": "l1(axis=1)"}, {"radius": np.full(3, -1.0)}, ValueError, "1.weight: .* at least 0"),
        ({"1": "l1(axis=1)"}, {"radius": torch.ones(6)}, ValueError, r"\(6,\) does not fit l1"),
        ({"1": "l1(axis=1)"}, {"radius": lambda step: np.ones((3, 1))}, ValueError, r"axes' shape"),
        ({"1": ROWS}, {"radius": np.ones(3)}, ValueError, "no batch axis"),
        ({"1": ROWS}, {"radius": "ten"}, ValueError, "not a radius"),
        ({"1": ROWS}, {"radius": True}, TypeError, "a number"),
        ({"1": ROWS}, {"radius": [1.0]}, TypeError, "got list"),
        ({"1": ROWS}, {"radius": {"0.0": 1.0}}, ValueError, "'0.0', which is no key"),
        ({"1": ROWS}, {"every": 0}, ValueError, "every is"),
        ({"1": ROWS}, {"every": "step"}, ValueError, "every is"),
        ({"1": ROWS}, {"start": -1}, ValueError, "start is"),
        ({"1": ROWS}, {"start": 5, "stop": 5}, ValueError, "stop is"),
    ],
)
def test_what_is_refused(
    constraints: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = network()
    before = copy.deepcopy(model)
    optimizer = adam(model)
    with pytest.raises(error, match=message):
        pt.constrain(optimizer, model, constraints, **{"radius": 1.0, **options})
    assert same(model, before)
    assert not optimizer._optimizer_step_post_hooks


def test_parameters_that_the_optimiser_lacks() -> None:
    model = network()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"does not have '0.0.weight', '0.0.bias'"):
        pt.constrain(optimizer, model, {"*": "l1"}, 1.0)


def test_what_is_no_optimiser_and_no_model() -> None:
    model = network()
    with pytest.raises(TypeError, match="Optimizer, not Sequential"):
        pt.constrain(model, adam(model), {"1": ROWS}, 1.0)
    with pytest.raises(TypeError, match="Module, not dict"):
        pt.constrain(adam(model), dict(model.state_dict()), {"1": ROWS}, 1.0)


def test_parameters_without_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="run the model once"):
        pt.constrain(optimizer, model, {"0": ROWS}, 1.0)


# Importing


def test_pytorch_is_imported_by_what_uses_it() -> None:
    run_python("""
import sys, projgen
assert "torch" not in sys.modules
import projgen.torch
assert "torch" not in sys.modules
assert projgen.torch.constrain.__name__ == "constrain"
assert "torch" in sys.modules
assert all(getattr(projgen.torch, name) for name in projgen.torch.__all__)
assert callable(projgen.torch.report) and callable(projgen.torch.watch)
""")


def test_without_pytorch() -> None:
    run_python("""
import sys
sys.modules["torch"] = None
import projgen
try:
    import projgen.torch
except ImportError as error:
    assert "pip install torch" in str(error), error
else:
    raise AssertionError
""")


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_momenta_do_not_revive_zeros_unless_asked(name: str) -> None:
    """A last gradient of zero: what is left to move a parameter is momentum."""
    options = {"momentum": 0.9} if name == "SGD" else {}

    def after(keep: bool) -> Any:
        weight = torch.nn.Parameter(torch.tensor([[3.0, 3.0], [1.0, 1.0]]))
        layer = torch.nn.Module()
        layer.weight = weight
        optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.05, **options)
        pt.constrain(optimizer, layer, {"weight": "l1(linf)"}, 1.5, stop=1, keep_momenta=keep)
        weight.grad = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        optimizer.step()
        assert not weight[1].any()
        assert weight[0].all()
        weight.grad = torch.zeros(2, 2)
        optimizer.step()
        return weight.detach()

    assert not after(keep=False)[1].any()
    assert after(keep=True)[1].all()
    assert torch.equal(after(keep=False)[0], after(keep=True)[0])
