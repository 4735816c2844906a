"""Regularisation paths: the sweep, `projgen path`, and its pictures."""

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Array, norm, rehearsals, run_python

import projgen
from projgen import chart, picture
from projgen.cli import main
from projgen.outcome import Radius
from projgen.terminal import Terminal

Snapshot = Callable[[str, str], None]
Capture = pytest.CaptureFixture[str]
SPEC = "l1(linf(axis=1))"


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def reference(y: Any, spec: str, *radii: Any, **options: Any) -> projgen.Path:
    return projgen.path(y, projgen.build(spec, backend="numpy"), *radii, **options)


# The sweep


@pytest.mark.parametrize("spec", [SPEC, "l1", "l2", "l1(l2(axis=0), axis=1)", "l1(axis=1)",
                                  "linf(l1(axis=0), axis=1)", "l1(l1)", "l2(l1)",
                                  "l1(linf(axis=1, block=4))"])  # fmt: skip
def test_a_sweep_is_its_projections(spec: str) -> None:
    y = normal(9, 12)
    p = projgen.build(spec, backend="numpy")
    found = projgen.path(y, p, points=8)
    n = len(found.radii)
    assert n == 8
    assert found.spec == p.spec
    assert np.array_equal(found.norm, p.norm(y))
    np.testing.assert_allclose(found.radii[-1], found.norm, rtol=1e-15)
    np.testing.assert_allclose(found.radii[0], 1e-3 * np.asarray(found.norm))
    np.testing.assert_allclose(found.radii[3] / found.radii[2], found.radii[1] / found.radii[0])
    for i, radius in enumerate(found.radii):
        x, info = p(y, radius, return_info=True)
        assert np.array_equal(found.pattern(i), x != 0)
        assert np.array_equal(found.pattern(i - n), x != 0)
        assert np.array_equal(found.group_pattern(i), p.active(x))
        for name, many in (("norm_after", found.norms), ("threshold", found.thresholds),
                           ("distance", found.distances)):  # fmt: skip
            assert np.array_equal(many[i], getattr(info, name))
        assert found.sparsity[i] == pytest.approx(np.mean(x == 0), abs=1e-15)
        for level, zero, active in zip(
            info.levels, found.group_sparsity, found.active, strict=True
        ):
            assert np.array_equal(active[i], level.active)
            assert zero[i] == pytest.approx(np.mean(~np.asarray(level.alive)), abs=1e-15)
        moved = np.linalg.norm(y - x) / np.linalg.norm(y)
        assert found.distance_fractions[i] == pytest.approx(moved, abs=1e-15)
        assert found.norm_fractions[i] == pytest.approx(found.fractions[i], rel=1e-12)
    assert np.sqrt(np.sum(np.square(found.length))) == pytest.approx(np.linalg.norm(y))


def test_kernels_sweep_too() -> None:
    y = normal(20, 30).astype(np.float32)
    with rehearsals():
        found = projgen.path(y, SPEC, points=5)
    expected = reference(y, SPEC, points=5)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-5, atol=1e-5)
    assert np.array_equal(found.alive, expected.alive)
    assert np.array_equal(found.alive_groups, expected.alive_groups)


def test_weights_are_passed_on() -> None:
    y, weights = normal(6, 7), np.arange(6.0)
    found = reference(y, "l1(linf(axis=1), w=ws)", ["20%"], ws=weights)
    p = projgen.build("l1(linf(axis=1), w=ws)", backend="numpy")
    x = p(y, 0.2 * p.norm(y, ws=weights), ws=weights)
    assert np.array_equal(found.pattern(0), x != 0)
    assert found.group_pattern(0).tolist() == p.active(x, ws=weights).tolist()


def test_radii_of_all_kinds() -> None:
    y, total = normal(6, 7), float(norm(SPEC, normal(6, 7)))
    given = [2.0, "50%", Radius(0.1, relative=True), Radius(1.0), 0, 1e9, 2]
    found = reference(y, SPEC, given)
    expected = sorted({0.0, 1.0, 2.0, 0.1 * total, 0.5 * total, 1e9})
    assert found.radii.tolist() == pytest.approx(expected)
    assert found.sparsity[0] == 1.0
    assert found.sparsity[-1] == 0.0
    even = reference(y, SPEC, points=4, log=False).radii
    np.testing.assert_allclose(np.diff(even), np.diff(even)[0])
    assert even[-1] == total
    batch = reference(y, "l1(axis=1)", ["10%", "50%"])
    assert batch.radii.shape == (2, 6)
    assert reference(y, "l1(axis=1)", [1, 2]).radii.tolist() == [[1.0] * 6, [2.0] * 6]


CUBES = ("l1(l1(linf(axis=2), axis=1))", "l2(l2(axis=1), axis=2)")
TOLD = {
    SPEC: ["1%", "5%", "30%", "100%"],
    "l1(l1(linf(axis=2), axis=1))": ["1%", "60%", "90%"],
    "l1": [1.0, 2.0],
    "l2": ["50%"],
    "l0(linf(axis=1))": [3.0, 8.0],
    "l1(axis=1)": ["10%", "100%"],
    "l2(l2(axis=1), axis=2)": ["10%", "100%"],
}


def test_what_is_told(snapshot: Snapshot) -> None:
    y = np.outer(np.arange(1.0, 9), [3, -2, 1, 4, -1, 2])
    told = []
    for spec, radii in TOLD.items():
        found = reference(y.reshape(8, 3, 2) if spec in CUBES else y, spec, radii)
        told.append(f"{found!r}\n{found}\n")
    snapshot("path_told", "\n".join(told))


def test_where_the_first_vanish() -> None:
    y = normal(9, 12)
    found = reference(y, SPEC, points=40)
    radius = float(str(found).splitlines()[2].rpartition(" ")[2])
    at = int(np.argmin(np.abs(found.radii - radius)))
    assert found.radii[at] == pytest.approx(radius, rel=1e-5)
    assert not found.group_pattern(at).all()
    assert found.group_pattern(at + 1).all()


def test_the_first_have_vanished_above_the_largest_radius() -> None:
    """Then those are not told to be the first that vanish next. Zeros of the array do not count."""
    y = np.diag(np.arange(1.0, 9))
    assert "2 to 5 of 8 groups not all zero, more vanish at" in str(
        reference(y, SPEC, ["5%", "35%"])
    )
    y[0] = 0
    assert "2 to 7 of 8 groups not all zero, the first vanish" in str(
        reference(y, SPEC, ["5%", "100%"])
    )


def test_it_is_a_dataclass() -> None:
    found = reference(normal(3, 4), SPEC, ["10%"])
    assert dataclasses.replace(found, spec="l1").spec == "l1"
    assert {field.name for field in dataclasses.fields(found)} == set(found.__slots__)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.spec = "l1"  # type: ignore[misc]
    assert len(repr(found)) < 80
    assert found != dataclasses.replace(found)  # arrays have no one answer


def test_what_has_no_path() -> None:
    y = normal(4, 5)
    for bad, spec, options, error in (
        (0 * y, SPEC, {}, "all zero"),
        (y[:0], SPEC, {}, "all zero"),
        (np.full((4, 5), 1e308), SPEC, {}, "norm is inf"),
        (np.where(y > 1, np.nan, y), SPEC, {}, "nan"),
        (y, SPEC, {"points": 1}, "points"),
        (y, SPEC, {"radii": []}, "at least one"),
        (y, SPEC, {"radii": [-1.0]}, "at least 0"),
        (y, SPEC, {"radii": ["much"]}, "is not a radius"),
        (y, SPEC, {"radii": [np.inf]}, "finite"),
        (y, SPEC, {"radii": [np.nan]}, "at least 0"),
        (y, SPEC, {"radii": np.arange(20_000.0)}, "at most"),
        (y, "l1(axis=1)", {"radii": [1.0, "10%"]}, "all numbers, or all parts"),
        (y[0], SPEC, {}, "axis 1 is out of range"),
        (y, "l0(k=2, l2(axis=1))", {}, "how many groups"),
    ):
        with pytest.raises(ValueError, match=error):
            reference(bad, spec, **options)
    for radius in ("10", "2.5"):  # of what?
        with pytest.raises(TypeError, match=f"write {radius}, or '{radius}%'"):
            reference(y, SPEC, [radius])
    with pytest.raises(TypeError, match="no argument 'point': did you mean 'points'"):
        projgen.path(y, SPEC, point=5)
    with pytest.raises(projgen.SpecError, match="a path is that of one") as raised:
        projgen.path({"a": y, "b": y}, "l1(a=linf, b=linf)")
    assert raised.value.hint == "sweep one of its children by itself"
    found = reference(y, SPEC, ["10%", "20%"])
    assert np.array_equal(found.pattern(-2), found.pattern(0))
    for read in (found.pattern, found.group_pattern, lambda at: found.plot(at=at)):
        for index in (2, -3, 99):
            with pytest.raises(
                IndexError, match=f"no radius {index}: 2 radii have the indices 0 to 1"
            ):
                read(index)
    with pytest.raises(TypeError, match="integers"):
        reference(np.ones((2, 2), int), SPEC)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    reference(normal(3, 4), SPEC, points=3, tell=lambda *count: told.append(count))
    assert told == [(0, 3), (1, 3), (2, 3)]


def test_it_is_imported_when_it_is_needed() -> None:
    code = """
import sys, projgen
assert "projgen.sweep" not in sys.modules
print(projgen.path.__name__, projgen.Path.__name__, "matplotlib" in sys.modules)
"""
    assert run_python(code) == "path Path False\n"


# Patterns


def test_shades_are_fractions() -> None:
    rows = [np.array([row]) for row in (normal(10, 13) > 0)]
    for width, height in ((13, 10), (4, 3), (1, 1), (13, None), (100, 100)):
        drawn = picture.shades(rows, width, height)
        assert drawn.shape == (min(height or 10, 10), min(width, 13))
        assert np.all((drawn >= 0) & (drawn <= 1))
    whole = np.concatenate(rows)
    assert picture.shades(rows, 1, 1)[0, 0] == pytest.approx(whole.mean())
    assert np.array_equal(picture.shades(rows, 13), whole)
    assert picture.shades(rows, 13, 2)[1].tolist() == whole[5:].mean(axis=0).tolist()


def test_vectors_become_blocks() -> None:
    assert picture.as_matrix(np.ones(18, bool)).shape == (3, 6)
    assert picture.as_matrix(np.ones(19, bool)).sum() == 19
    assert picture.as_matrix(np.array(True)).shape == (1, 1)
    assert picture.as_matrix(np.ones((2, 3, 4), bool)).shape == (2, 12)


@pytest.mark.parametrize("width", [36, 50, 80, 120])
@pytest.mark.parametrize(
    "spec", [SPEC, "l1", "l1(axis=1)", "l1(l2(linf(axis=1), axis=0), axis=2)", "l2(linf)"]
)
def test_charts_fit(spec: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    y = normal(7, 9, 3) if "axis=2" in spec else normal(7, 90)
    monkeypatch.setattr(Terminal, "width", width)
    monkeypatch.setenv("FORCE_COLOR", "")
    stream = io.StringIO()
    chart.draw(reference(y, spec, points=6), "w", Terminal(stream))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines[3:])) <= width
    assert sum("│" in line for line in lines) >= 12


def test_ascii_charts_have_the_same_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    found = reference(normal(7, 90), SPEC, points=6)
    drawn = []
    for encoding in ("utf-8", "ascii"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        chart.draw(found, "w", Terminal(stream))
        stream.seek(0)
        drawn.append(stream.read().splitlines())
    assert [len(line) for line in drawn[0]] == [len(line) for line in drawn[1]]
    assert "|#" in "".join(drawn[1])


# The command


@pytest.fixture
def files(tmp_path: Path) -> Path:
    y = np.zeros((6, 8), np.float32)
    y[:] = np.arange(1, 7)[:, np.newaxis]
    y[:, ::2] *= -0.5
    np.savez(tmp_path / "in.npz", w=y, steps=np.arange(5), bad=np.full(3, np.nan), none=0 * y)
    return tmp_path


def test_the_command(files: Path, capsys: Capture, snapshot: Snapshot) -> None:
    words = ["path", SPEC, str(files / "in.npz"), "--tensor", "w", "--points", "5"]
    assert main(words) == 0
    assert main([*words[:-2], "--radii", "1,50%", "--at", "40%"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    snapshot("cli_path", captured.out)


def test_json(files: Path, capsys: Capture) -> None:
    words = ["path", "l2(axis=1)", str(files / "in.npz"), "--tensor", "w", "--radii", "0,1,1e9"]
    with rehearsals():
        assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said) == [
        "input", "tensor", "spec", "shape", "dtype", "norm", "length", "entries", "radii", "norms",
        "thresholds", "distances", "nonzero", "levels", "shown", "picture",
    ]  # fmt: skip
    assert said["tensor"] == "w"
    assert said["radii"] == [[0.0] * 6, [1.0] * 6, [1e9] * 6]
    assert said["thresholds"][2] == [1.0] * 6
    assert said["nonzero"] == [[0] * 6, [8] * 6, [8] * 6]
    assert said["entries"] == 8
    assert said["levels"] == [{"level": "l2", "groups": 1, "active": [[0] * 6, [1] * 6, [1] * 6]}]
    assert said["shown"] == 0
    with rehearsals():
        assert main(["path", "l1", str(files / "in.npz"), "--tensor", "steps", "--dtype", "float64",
                     "--linear", "--points", "4", "--json"]) == 0  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    assert said["radii"] == pytest.approx(np.linspace(0.01, 10.0, 4))


def test_a_pattern_outside_of_the_radii(files: Path, capsys: Capture) -> None:
    words = ["path", SPEC, str(files / "in.npz"), "--tensor", "w", "--radii", "1,2", "--at"]
    for at, warned in (("1", 0), ("1.7", 0), ("300", 1), ("0.5", 1), ("0.001%", 1)):
        with rehearsals():
            assert main([*words, at]) == 0
        said = capsys.readouterr().err
        assert said.count(f"warning: --at {at} is outside of the radii, 1 to 2") == warned
        assert bool(said) == bool(warned)


def test_wrong_input(files: Path, capsys: Capture, snapshot: Snapshot) -> None:
    source = str(files / "in.npz")
    for words in (
        [source],
        [source, "--tensor", "v"],
        [source, "--tensor", "steps"],
        [source, "--tensor", "steps", "--dtype", "float64"],
        [source, "--tensor", "bad"],
        [source, "--tensor", "none"],
        [source, "--tensor", "w", "--out", str(files / "path.gif")],
        [source, "--tensor", "w", "--out", str(files / "no" / "path.png")],
        [str(files / "no.npz")],
    ):
        spec = "l1" if words[-1] == "bad" else SPEC
        assert main(["path", spec, *words]) == 2
    assert main(["path", source, SPEC]) == 2  # the other way round
    captured = capsys.readouterr()
    assert captured.out == ""
    snapshot("cli_path_errors", captured.err.replace(str(files), "DIR").replace("\\", "/"))


@pytest.mark.parametrize("words", [["--points", "1"], ["--radii", "-1"], ["--radii", "1,,2"],
                                   ["--at", "nan"], ["--points", "3", "--radii", "1"],
                                   ["--dtype", "int8"]])  # fmt: skip
def test_wrong_usage(words: list[str], files: Path, capsys: Capture) -> None:
    assert main(["path", SPEC, str(files / "in.npz"), *words]) == 2
    assert "error: " in capsys.readouterr().err


def test_without_matplotlib(files: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = files / "path.png"
    words = ["path", SPEC, str(files / "in.npz"), "--tensor", "w"]
    assert main([*words, "--out", str(out)]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not out.exists()
    assert main(words) == 0
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        reference(normal(3, 4), SPEC, points=2).plot()


# Pictures


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PDF"])
def test_pictures(suffix: str, files: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    out = files / f"path{suffix}"
    words = ["path", SPEC, str(files / "in.npz"), "--tensor", "w", "--points", "4"]
    pictures = []
    for _ in range(2):
        assert main([*words, "--out", str(out)]) == 0
        assert capsys.readouterr().out.endswith(f"wrote {out}\n")
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".PDF": b"%PDF"}[suffix]
    assert pictures[0].startswith(start)
    assert [path.name for path in files.iterdir() if "path" in path.name] == [out.name]


@pytest.mark.parametrize(
    ("spec", "radii", "shape"),
    [
        (SPEC, None, (6, 9)),
        ("l1", None, (40,)),
        ("l1(axis=1)", None, (6, 9)),
        ("l1(l2(linf))", None, (4, 3, 5)),
        (SPEC, [0.0], (6, 9)),
        ("l1(axis=1)", [1.0], (6, 9)),
        (SPEC, [0.0, 0.1, 0.2], (6, 9)),
        ("l2(linf)", ["1%"], (1, 700)),
    ],
)
def test_figures_show_what_the_path_is(spec: str, radii: Any, shape: tuple[int, ...]) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    found = reference(normal(*shape), spec, radii, points=5)
    made = picture.figure(found, 0, figures.Figure)
    made.savefig(io.BytesIO(), format="png", dpi=30)
    curves, moved, survival, pattern = made.axes[:4]
    x, _ = picture.abscissa(found)
    assert np.array_equal(curves.lines[0].get_xdata(), x)
    assert np.array_equal(curves.lines[0].get_ydata(), 100 * found.sparsity)
    assert np.array_equal(moved.lines[1].get_ydata(), 100 * found.norm_fractions)
    units = found.alive_groups if found.has_groups else found.alive
    assert survival.collections[0].get_array().size == len(x) * min(units.size, picture.PIXELS)
    image = np.asarray(pattern.images[0].get_array())
    assert image.mean() == pytest.approx(picture.as_matrix(found.pattern(0)).mean(), abs=0.02)
    for ax in (curves, moved, survival, pattern):
        assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title(loc="left")


def test_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setattr(matplotlib, "rcParams", matplotlib.rcParams.copy())
    matplotlib.use("agg")
    from matplotlib import pyplot

    found = reference(normal(6, 9), SPEC, points=4)
    made = found.plot(at=-1)
    assert pyplot.fignum_exists(made.number)
    pyplot.close(made)
    _, ax = pyplot.subplots()
    assert found.plot(ax) is ax
    assert len(ax.lines) == 2
    pyplot.close(ax.figure)
