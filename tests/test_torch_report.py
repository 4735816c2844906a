"""What of a model is zero: the report, and the record of a training."""

import copy
import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import rehearsals

torch = pytest.importorskip("torch")
from torch.nn.utils.parametrizations import spectral_norm  # noqa: E402
from torch.nn.utils.parametrize import cached  # noqa: E402

from projgen import torch as pt  # noqa: E402

nn = torch.nn
ROWS = "l1(linf(axis=1))"


@pytest.fixture(autouse=True)
def _rehearsed() -> Iterator[None]:
    with rehearsals():
        yield


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 2)
    )


def holed() -> Any:
    """Filter 1, input 7 of the first linear layer and neurons 0 and 3 are zero."""
    model = network()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[3].weight[:, 7] = 0
        model[3].weight[[0, 3]] = 0
        model[3].bias[0] = 0
    return model


def row_of(model: Any, name: str) -> Any:
    return next(row for row in pt.report(model).rows if row.name == name)


def test_the_table(snapshot: Callable[[str, str], None]) -> None:
    model = holed()
    for tensor in model.parameters():
        tensor.data = (tensor != 0).to(tensor.dtype)  # numbers that are the same everywhere
    model[4].half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    chains = pt.constrain(optimizer, model, {"3": ROWS, "0": "l1(linf)"}, radius=2.0)
    tree = pt.constrain(optimizer, model, 'l1(l2(axis=0) @ "4.weight")', radius="50%")
    report = pt.report(model, chains, tree)
    chains.project()
    snapshot("torch_report", f"{report}\n\n{pt.report(model, chains, tree)}\n")
    assert repr(report) == "<projgen.torch.Report of 8 parameters: 30.9% zero>"


def test_the_numbers() -> None:
    model = holed()
    report = pt.report(model)
    weight = model[3].weight.detach()
    row = row_of(model, "3.weight")
    assert (row.shape, row.dtype, row.entries) == ((5, 16), "float32", 80)
    assert row.zero == int((weight == 0).sum()) == 2 * 16 + 3
    assert row.sparsity == 35 / 80
    assert (row.outputs.axis, row.outputs.count, row.outputs.zero) == (0, 5, 2)
    assert (row.inputs.axis, row.inputs.count, row.inputs.zero) == (1, 16, 1)
    assert (row.outputs.share, row.inputs.share) == (2 / 5, 1 / 16)
    assert row.length == pytest.approx(float(weight.double().norm()))
    assert row.largest == float(weight.abs().max())
    filters = row_of(model, "0.weight")
    assert (filters.outputs.count, filters.outputs.zero) == (4, 1)
    assert (filters.inputs.count, filters.inputs.zero) == (3, 0)
    bias = row_of(model, "3.bias")
    assert (bias.zero, bias.outputs, bias.inputs) == (1, None, None)
    assert report.entries == sum(tensor.numel() for tensor in model.parameters())
    zero = sum(int((tensor == 0).sum()) for tensor in model.parameters())
    assert report.sparsity == zero / report.entries


@pytest.mark.parametrize(
    ("module", "outputs", "inputs"),
    [
        (nn.Linear(3, 4), 4, 3),
        (nn.Conv1d(3, 4, 2), 4, 3),
        (nn.Conv2d(4, 8, 2, groups=2), 8, 2),
        (nn.ConvTranspose2d(3, 4, 2), 4, 3),
        (nn.Embedding(10, 4), 4, 10),
        (nn.EmbeddingBag(10, 4), 4, 10),
    ],
)
def test_outputs_and_inputs(module: Any, outputs: int, inputs: int) -> None:
    row = row_of(module, "weight")
    assert (row.outputs.count, row.inputs.count) == (outputs, inputs)
    with torch.no_grad():
        module.weight.select(row.outputs.axis, 1).zero_()
    assert row_of(module, "weight").outputs.zero == 1
    assert row_of(module, "weight").inputs.zero == 0


def test_any_parameter() -> None:
    model = nn.Module()
    for name, tensor in {
        "number": torch.tensor(0.0),
        "none": torch.zeros(0, 3),
        "halves": torch.tensor([[300.0, 0], [400, 0]], dtype=torch.float16),
        "brain": torch.zeros(2, dtype=torch.bfloat16),
        "whole": torch.tensor([3, 0, -4]),
        "flags": torch.tensor([True, False]),
        "complex": torch.tensor([3 + 4j, 0]),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.zeros(2, 2, device="meta"),
        "turned": torch.eye(3)[:, :2].T,
    }.items():
        model.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    model.lazy = nn.LazyLinear(3)
    rows = {row.name: row for row in pt.report(model).rows}
    assert (rows["number"].zero, rows["number"].sparsity, rows["number"].shape) == (1, 1.0, ())
    assert (rows["none"].zero, rows["none"].sparsity, rows["none"].largest) == (0, 0.0, 0.0)
    assert rows["none"].outputs.share == rows["none"].inputs.share * 0.0
    assert (rows["halves"].length, rows["halves"].largest) == (500.0, 400.0)
    assert rows["halves"].inputs.zero == 1
    assert rows["brain"].zero == 2
    assert (rows["whole"].length, rows["whole"].largest) == (5.0, 4.0)
    assert rows["flags"].zero == 1
    assert (rows["complex"].zero, rows["complex"].length) == (1, 5.0)
    assert (rows["sparse"].zero, rows["sparse"].outputs.zero) == (6, 0)
    assert (rows["meta"].zero, rows["meta"].length, rows["meta"].entries) == (None, None, 4)
    assert (rows["lazy.weight"].shape, rows["lazy.weight"].zero) == ((), None)
    assert (rows["turned"].outputs.zero, rows["turned"].inputs.zero) == (0, 1)
    assert str(pt.report(model)).count("\n") == len(rows) + 1


@pytest.mark.parametrize(
    ("constraints", "options", "axes", "text"),
    [
        ({"0": "l1(linf)"}, {}, (0,), "4 of 4 groups along axis 0 not"),
        ({"0": "l1(linf(axis=(0, 2, 3)))"}, {}, (1,), "3 of 3 groups along axis 1 not"),
        ({"0": "l1(linf(axis=1))"}, {}, (0, 2, 3), "36 of 36 groups along axes 0, 2, 3 not"),
        *(
            (
                {"3": "l1(l2(axis=1, groups=g), axis=0)"},
                {"arrays": {"g": g * 8}},
                (0, 1),
                "10 of 10",
            )
            for g in ([0, 1], [1, 4])
        ),
        ('l1(linf(axis=0) @ "[34].weight")', {}, (1,), "21 of 21 groups along axis 1 not"),
        (
            "l1(a=linf(axis=0), b=linf)",
            {"where": {"a": "3", "b": "4"}},
            None,
            "18 of 18 groups not",
        ),
    ],
)
def test_groups_have_axes(constraints: Any, options: Any, axes: Any, text: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {**options, "arrays": {k: np.array(v) for k, v in options.get("arrays", {}).items()}}
    handle = pt.constrain(optimizer, model, constraints, "100%", **options)
    assert "not yet projected, norm" in str(pt.report(model, handle))
    assert "not all zero" not in str(pt.report(model, handle))  # that would look like a result
    handle.project()
    report = pt.report(model, handle)
    assert report.standings[0].axes == axes
    assert text in str(report)


def test_models_without_parameters() -> None:
    report = pt.report(nn.ReLU())
    assert (report.rows, report.entries, report.sparsity) == ((), 0, 0.0)
    assert str(report).endswith("0 entries, 0.0% zero")


def test_tied_and_compiled() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    names = [row.name for row in pt.report(torch.compile(model, backend="eager")).rows]
    assert names == ["0.weight", "0.bias", "1.bias"]


def test_parametrizations() -> None:
    layer = nn.Linear(6, 4)
    pt.parametrize(layer, "weight", "l0(l2(axis=1), k=1)")
    model = nn.Sequential(layer, nn.Linear(4, 2), spectral_norm(nn.ConvTranspose2d(2, 3, 1)))
    before = copy.deepcopy(dict(model.named_buffers()))  # what spectral norms learn in training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = pt.watch(optimizer, model, ["0.weight", "2.*"])
    assert watch.names == ["0.weight", "2.bias", "2.weight"]
    with cached():  # for the model's own use, with gradients
        report = pt.report(model)
        assert layer.weight.requires_grad
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert [row.name for row in report.rows] == names
    assert report.rows[0].outputs.zero == watch.rows["0.weight"][0].outputs.zero == 3
    assert (report.rows[4].outputs.count, report.rows[4].outputs.axis) == (3, 1)
    assert model.training
    assert before
    assert all(torch.equal(before[name], x) for name, x in model.named_buffers())
    assert all(module.training for module in model.modules())
    assert row_of(layer.to("meta"), "weight").zero is None


def test_json() -> None:
    model = holed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = pt.constrain(optimizer, model, {"3": ROWS, "4": "l1(axis=1)"}, radius="50%")
    found = json.loads(json.dumps(pt.report(model, handle).to_json()))
    assert [row["name"] for row in found["rows"]] == [name for name, _ in model.named_parameters()]
    chain, batch = found["standings"]
    assert (chain["active"], chain["groups"], chain["spec"]) == (3, 5, ROWS)
    assert chain["radius"] == pytest.approx(chain["norm"] / 2)
    assert len(batch["norm"]) == len(batch["radius"]) == 2
    assert not (chain["projected"] or batch["projected"])
    handle.project()
    assert all(
        standing["projected"] for standing in pt.report(model, handle).to_json()["standings"]
    )


# The record of a training


def descend(model: Any, optimizer: Any, steps: int) -> None:
    """Steps that shrink every parameter by a tenth."""
    for _ in range(steps):
        for tensor in model.parameters():
            tensor.grad = tensor.detach().clone()
        optimizer.step()


def watched() -> tuple[Any, Any, Any]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pt.constrain(optimizer, model, {"3": ROWS}, pt.linear("100%", 0.0, 8))
    return model, optimizer, pt.watch(optimizer, model, every=3)


def test_a_record() -> None:
    model, optimizer, watch = watched()
    assert watch.names == ["0.weight", "3.weight", "4.weight"]
    expected = [pt.report(model)]
    for _ in range(3):
        descend(model, optimizer, 3)
        expected.append(pt.report(model))
    assert watch.steps == [0, 3, 6, 9]
    for name in watch.names:
        rows = [next(row for row in report.rows if row.name == name) for report in expected]
        assert watch.rows[name] == rows
        assert watch.sparsity(name) == [row.sparsity for row in rows]
        assert watch.sparsity(name, "inputs") == [row.inputs.share for row in rows]
    zero = watch.sparsity("3.weight", "outputs")
    assert zero[0] == 0
    assert zero[-1] == 1
    assert sorted(zero) == zero
    descend(model, optimizer, 1)
    watch.record()
    watch.record()
    assert watch.steps == [0, 3, 6, 9, 10]
    assert repr(watch).endswith("'4.weight': 5 records, after steps 0 to 10>")
    watch.remove()
    descend(model, optimizer, 3)
    assert watch.steps == [0, 3, 6, 9, 10]


def test_what_is_watched() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = pt.watch(optimizer, model, ["4", "3.*"])
    assert watch.names == ["4.weight", "3.weight", "3.bias"]
    assert watch.sparsity("3.bias", "outputs") == [0.0]
    assert pt.watch(optimizer, model, "*.bias").names == ["0.bias", "1.bias", "3.bias", "4.bias"]
    with pytest.raises(ValueError, match=r"is it '0.weight'"):
        pt.watch(optimizer, model, "0.wieght")
    with pytest.raises(ValueError, match="every is"):
        pt.watch(optimizer, model, every=0)
    with pytest.raises(ValueError, match="of is"):
        watch.sparsity("4.weight", "rows")


def test_its_chart(
    snapshot: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer, watch = watched()
    descend(model, optimizer, 9)
    out = io.StringIO()
    watch.show(out, of="outputs")
    snapshot("torch_watch", out.getvalue())
    watch.show()
    assert capsys.readouterr().out.count("\n") == 4
    long = nn.ModuleDict({"a" * 90: nn.Linear(2, 2)})
    pt.watch(torch.optim.SGD(long.parameters()), long).show(out)
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    model, optimizer, watch = watched()
    descend(model, optimizer, 9)
    ax = figure().subplots()
    assert watch.plot(ax, of="outputs") is ax
    for name, line in zip(watch.names, ax.lines, strict=True):
        assert line.get_label() == name
        assert line.get_xdata().tolist() == watch.steps
        assert line.get_ydata().tolist() == [100 * x for x in watch.sparsity(name, "outputs")]
    monkeypatch.setattr("matplotlib.pyplot.figure", figure)
    made = watch.plot()
    assert made.axes[0].get_ylabel() == "entries that are zero (%)"
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        watch.plot()
