"""What `projgen.torch` says to arguments in the wrong place, and of the wrong kind."""

from collections.abc import Callable
from typing import Any

import pytest
from support import rehearsals

import projgen

torch = pytest.importorskip("torch")
from projgen import torch as pt  # noqa: E402

nn = torch.nn
ROWS = "l1(linf(axis=1))"


def refusals() -> dict[str, Callable[[], Any]]:
    """Calls that must fail; each has its own name in the snapshot."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False), nn.LayerNorm(2))
    layer = model[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def constrain(specs: Any, radius: Any = "10%", **options: Any) -> Any:
        own = torch.optim.SGD(model.parameters(), lr=0.1)
        return pt.constrain(own, model, specs, radius, **options)

    return {
        "constrain, the other way round": lambda: pt.constrain(model, optimizer, {"0": ROWS}, 1.0),
        "constrain, no model": lambda: pt.constrain(optimizer, layer.weight, {"0": ROWS}, 1.0),
        "constrain, misspelt": lambda: pt.constrain(
            optimizer, model, {"0": ROWS}, 1.0, evry="epoch"
        ),
        "constrain, for build": lambda: pt.constrain(optimizer, model, {"0": ROWS}, 1.0, threads=2),
        "constrain, a list": lambda: pt.constrain(optimizer, model, ["0", "2"], "10%"),
        "constrain, a weight is missing": lambda: constrain({"0": "l1(linf, w=v)"}),
        "constrain, no radius for one": lambda: constrain({"0": ROWS, "2": ROWS}, {"0": 1.0}),
        "constrain, a radius for another": lambda: constrain({"0": ROWS}, {"0": 1.0, "1": 2.0}),
        "constrain, a radius and a count": lambda: constrain({"0": "l0(linf, k=2)"}),
        "constrain, learn the radius": lambda: constrain(
            {"0": ROWS}, torch.ones((), requires_grad=True)
        ),
        "where lacks one": lambda: constrain("l1(a=linf, b=linf)", where={"a": "0", "c": "2"}),
        "where has one more": lambda: constrain("l1(a=linf)", where={"a": "0", "c": "2"}),
        "a module's name as a pattern": lambda: constrain('l1(linf @ "2")'),
        "a pattern near others": lambda: constrain('l1(linf @ "wights")'),
        "a pattern of weights of other ranks": lambda: constrain({"*.weight": ROWS}),
        "rewind to the model": lambda: constrain({"0": ROWS}).rewind(model),
        "project on a part": lambda: pt.project(layer.weight, ROWS, "10%"),
        "project a meta tensor": lambda: projgen.project(
            torch.ones(2, 2, device="meta"), "l1", 1.0
        ),
        "project a complex tensor": lambda: projgen.project(torch.ones(2).cfloat(), "l1", 1.0),
        "project integers": lambda: projgen.project(torch.arange(3), "l1", 1.0),
        "out is negated": lambda: projgen.project(
            torch.ones(2), "l1", 1.0, out=torch.ones(2).cfloat().conj().imag
        ),
        "project a model": lambda: projgen.build('l1(linf @ "*")')(model, 1.0),
        "watch, the other way round": lambda: pt.watch(model, optimizer),
        "watch, names in the model's place": lambda: pt.watch(optimizer, ["0"]),
        "report of an optimiser": lambda: pt.report(optimizer, model),
        "report of a parameter": lambda: pt.report(layer.weight),
        "report on an optimiser": lambda: pt.report(model, optimizer),
        "report on a list": lambda: pt.report(
            model, [pt.constrain(optimizer, model, {"0": ROWS}, 1.0)]
        ),
        "parametrize a tensor": lambda: pt.parametrize(layer.weight, ROWS, 1.0),
        "parametrize by a tensor": lambda: pt.parametrize(layer, layer.weight, ROWS, 1.0),
        "parametrize without a name": lambda: pt.parametrize(layer, ROWS, 1.0),
        "parametrize, misspelt": lambda: pt.parametrize(layer, "wieght", ROWS, "10%"),
        "parametrize what is not there": lambda: pt.parametrize(model[2], "bias", "l1", 1.0),
        "parametrize inside a model": lambda: pt.parametrize(model, "0.weight", ROWS, 1.0),
        "parametrize a layer's weight": lambda: pt.parametrize(model, "2", ROWS, 1.0),
        "parametrize twice": lambda: [
            pt.parametrize(model[2], "weight", ROWS, radius) for radius in (1.0, 0.5)
        ],
        "parametrize by a pattern": lambda: pt.parametrize(layer, "w*", ROWS, 1.0),
    }


def test_messages(snapshot: Callable[[str, str], None]) -> None:
    lines = []
    with rehearsals():
        for name, call in refusals().items():
            with pytest.raises((TypeError, ValueError)) as raised:
                call()
            lines.append(f"{name}: {raised.typename}: {raised.value}\n")
    snapshot("torch_errors", "\n".join(lines))


def test_what_is_advised_works() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with rehearsals():
        pt.parametrize(model.get_submodule("0"), "weight", ROWS, 0.5)
        again = pt.parametrize(model[0], "weight", "linf", "10%")  # one on the other
        rows = model[0].weight.detach().abs().amax(1)
        assert rows.max() <= again.radius * 1.00001
        assert float(rows.sum()) <= 0.5
        with pytest.raises(ValueError, match="parametrized by") as raised:
            pt.parametrize(model[0], "weight", ROWS, "10%")
        assert "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')" in str(
            raised.value
        )
        torch.nn.utils.parametrize.remove_parametrizations(model[0], "weight")
        again = pt.parametrize(model[0], "weight", ROWS, "10%")
        assert float(model[0].weight.detach().abs().amax(1).sum()) <= again.radius * 1.00001
