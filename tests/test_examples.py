"""The examples run, and what they print is what they are for."""

import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
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


def row(double_descent: dict[str, Any], **values: Any) -> Any:
    """A network of which `values` are known, and the rest is 0."""
    kind = double_descent["Row"]
    return kind(**dict.fromkeys(kind._fields, 0) | {"problem": "tiny", "method": "linf"} | values)


def test_the_choice_has_no_look_at_the_test(double_descent: dict[str, Any]) -> None:
    """The fewest features within a standard error of the best validation: 0.9 less 0.031."""
    chosen = double_descent["protocol"].chosen
    rows = [
        row(double_descent, validation_size=100, left=left, validation=validation, test=test)
        for left, validation, test in ((3, 0.86, 1.0), (5, 0.87, 0.5), (9, 0.9, 1.0))
    ]
    assert [each.left for each in chosen(rows)] == [5]
    assert [each.left for each in chosen(rows[::-1])] == [5]


def test_the_choice_allows_for_luck_where_the_best_is_without_fault(
    double_descent: dict[str, Any],
) -> None:
    """Of 13 samples one may be wrong: (13 + 2) / (13 + 4) has a standard error of 0.078."""
    rows = [
        row(double_descent, validation_size=13, left=left, validation=right / 13)
        for left, right in ((3, 11), (5, 12), (9, 13))
    ]
    assert [each.left for each in double_descent["protocol"].chosen(rows)] == [5]


def test_a_fold_is_one_observation_however_many_radii_it_has(
    double_descent: dict[str, Any],
) -> None:
    """Curves that are straight over the logarithm, 10 points apart, where both reach; and a fold in
    which they never do."""
    compare = double_descent["summary"].at_equal_count
    apart = {0: 0.1, 1: 0.05}

    def rows(method: str, fold: int, counts: tuple[int, ...]) -> list[Any]:
        return [
            row(double_descent, method=method, fold=fold, left=left, features=1000,
                test=0.2 * math.log10(left) + (apart[fold] if method == "linf" else 0))
            for left in counts
        ]  # fmt: skip

    ours = [*rows("linf", 0, (3, 30, 300, 900)), *rows("linf", 1, (20, 200))]
    theirs = [*rows("exact", 0, (10, 100, 1000)), *rows("exact", 1, (15, 500))]
    assert compare(ours, theirs) == pytest.approx([10, 5])
    assert compare(theirs, ours) == pytest.approx([-10, -5])
    tie = theirs[1]._replace(test=theirs[1].test + 0.02)  # as many left, by another radius
    twice = [*theirs, tie, tie._replace(test=theirs[1].test - 0.02)]
    assert compare(ours, twice) == pytest.approx([10, 5])
    nothing = [each._replace(left=0) for each in ours if each.fold == 0]
    assert not len(compare([*nothing, *rows("linf", 1, (2, 4))], theirs))


def test_intervals_know_that_folds_share_data(double_descent: dict[str, Any]) -> None:
    """Deviation 1, so a standard error of sqrt(1/3 + 1/3), times the 4.303 of Student's t."""
    versus = double_descent["summary"].versus
    assert versus(np.array([3.0, 2.0, 1.0]), 4) == "+2.0 [−1.5 to +5.5] (3 / 0 / 0 of 3)"
    assert versus(np.array([3.0, -2.0]), 4) == "+0.5 (n = 2)"
    assert versus(np.array([]), 4) == "nothing to compare"


def test_a_part_of_the_run_is_said_to_be_one(double_descent: dict[str, Any]) -> None:
    machine, whole = double_descent["summary"].machine, {"folds": 2, "seeds": {"tiny": 2}}
    measured = {
        "machine": {"platform": "here", "processors": 2, "versions": {}},
        "run": {"jobs": 1, "minutes": 1.0, "load": None},
        "missing": ["Khan: pip install it"],
        "whole": whole,
    }
    rows = [row(double_descent, seed=seed, fold=fold) for seed in range(2) for fold in range(2)]
    assert machine(rows, measured).count("Left out") == 1
    part = machine(rows[:3], measured)
    assert "a part of the run, with 3 of 4 folds on 5 informative." in part
    assert "**Left out:** Khan: pip install it." in part


def test_seeds_and_folds_run_a_part(
    double_descent: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = double_descent["protocol"]
    todo = protocol.jobs(protocol.FULL, ["made64"], None, seeds=1, folds=3)
    assert {(job.seed, job.fold) for job in todo} == {(0, 0), (0, 1), (0, 2)}
    assert {job.scale.folds for job in todo} == {4}  # the parts are those of the whole run
    for wrong in (["--folds", "0"], ["--seeds", "none"], ["--khan", str(tmp_path / "none.npz")]):
        with pytest.raises(SystemExit):
            double_descent["main"]([*wrong, "--quick", "--out", str(tmp_path / "out")])
        assert wrong[0] in capsys.readouterr().err
