"""The examples run, and what they print is what they are for."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from support import rehearsals

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_digits_shrink(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_pruning")
    pytest.importorskip("safetensors")
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)  # where other tests run, threads wait for one another
    main = runpy.run_path(str(EXAMPLES / "digits_shrink.py"))["main"]
    with rehearsals(), torch.random.fork_rng():
        main(["--quick"])

    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = {cells[0]: cells[1:] for cells in lines}
    sizes = [rows[kept][0] for kept in ("all", "4, 8, 16, 32", "4, 8, 12, 24", "2, 4, 8, 16")]
    dense, *smaller = [int(size.replace(",", "")) for size in sizes]
    assert dense > smaller[0] > smaller[1] > smaller[2]

    assert rows["parameters"][:2] == [sizes[0], sizes[0]]
    assert rows["parameters"][2] in sizes[1:]
    accuracies = [float(cell) for cell in rows["test accuracy, %"][:3]]
    assert accuracies[1] == accuracies[2]  # the masked network computes what the shrunk one does
    assert accuracies[0] > 30  # of ten digits: training works
    timed = [name for name in rows if re.match(r"batch of (1|256), \d+ threads?, ms", name)]
    assert len(timed) in (2, 4)
    assert all(float(cell) > 0 for name in timed for cell in rows[name][:3])


@pytest.fixture
def double_descent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of examples/double_descent, whose modules are found beside it."""
    for package in ("torch", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(EXAMPLES / "double_descent"))
    return runpy.run_path(str(EXAMPLES / "double_descent"))


@pytest.mark.slow
def test_double_descent(
    double_descent: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import torch

    from projgen.torch.recipes import read_recipe

    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    request.addfinalizer(read_recipe.cache_clear)  # of kernels that run as Python
    torch.set_num_threads(1)  # where other tests run, threads wait for one another
    torch.optim.Adam([torch.zeros(1)])  # the first one imports half of PyTorch, against the clock
    out = tmp_path / "out"
    with rehearsals():
        double_descent["main"](["--quick", "--jobs", "1", "--out", str(out)])

    rows = double_descent["summary"].read_rows(out / "results.csv")
    assert len(rows) == 2 * (1 + 5 * 2 + 2)  # folds, and settings of methods
    found = {(row.fold, row.method, row.setting): row for row in rows}
    for fold in range(2):
        assert found[fold, "none", 100.0].left == found[fold, "none", 100.0].features == 40
        assert found[fold, "none", 100.0].test > 0.6  # of two classes: training works
        assert found[fold, "anova", 10.0].left == found[fold, "random", 10.0].left == 4
        # Two features of five go far, and any two of 40 do not: labels are used.
        assert found[fold, "anova", 10.0].recall >= 0.6
        for method, projections in (("linf", 1), ("exact", 1), ("l1", 1), ("l2", 1), ("epoch", 6)):
            small, large = found[fold, method, 3.0], found[fold, method, 30.0]
            assert small.left < large.left
            assert small.projections == large.projections == projections
            assert 0 < small.projection_seconds < small.fit_seconds
    # What is paired is alike: on a radius that takes nothing away, all methods are one.
    assert len({found[0, method, 30.0].test for method in ("linf", "exact", "l2")
                if found[0, method, 30.0].left == 40}) == 1  # fmt: skip

    for name in ("accuracy", "informative", "time"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    double_descent["main"](["--tables", "--out", str(out)])
    assert out.with_suffix(".md").read_text(encoding="utf-8") == page


def test_the_page_of_the_experiment(double_descent: dict[str, Any]) -> None:
    """Its tables are those of the results beside it."""
    folder = EXAMPLES.parent / "docs" / "experiment"
    summary = double_descent["summary"]
    rows = summary.read_rows(folder / "results.csv")
    measured = json.loads((folder / "times.json").read_text(encoding="utf-8"))
    page = folder.with_suffix(".md").read_text(encoding="utf-8")
    assert summary.fill(page, summary.fragments(rows, measured)) == page


def test_the_choice_has_no_look_at_the_test(double_descent: dict[str, Any]) -> None:
    """The fewest features within a standard error of the best validation: 0.9 less 0.03."""
    protocol = double_descent["protocol"]
    nothing = dict.fromkeys(protocol.Row._fields, 0)
    rows = [
        protocol.Row(**nothing | {"problem": "p", "method": "linf", "validation_size": 100,
                                  "left": left, "validation": validation, "test": test})
        for left, validation, test in ((3, 0.86, 1.0), (5, 0.87, 0.5), (9, 0.9, 1.0))
    ]  # fmt: skip
    assert [row.left for row in protocol.chosen(rows)] == [5]
    assert [row.left for row in protocol.chosen(rows[::-1])] == [5]
