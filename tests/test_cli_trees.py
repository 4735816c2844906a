"""The commands on whole trees: several arrays, weights, labels, blocks and more norms."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support import rehearsals

import projgen
from projgen.cli import main
from projgen.cpu import load
from projgen.files import open_tensors

Snapshot = Callable[[str, str], None]
Capture = pytest.CaptureFixture[str]

RNG = np.random.default_rng(3)
MODEL = {
    "fc.0.weight": RNG.standard_normal((6, 8)).astype(np.float32),
    "fc.2.weight": RNG.standard_normal((4, 6)).astype(np.float32),
    "conv.0.weight": RNG.standard_normal((5, 2, 3, 3)).astype(np.float32),
    "fc.0.bias": RNG.standard_normal(6).astype(np.float32),
    "steps": np.array(7),
}
PATTERNS = 'l1(linf(axis=1) @ "fc.*.weight", linf(axis=(1, 2, 3)) @ "conv.*.weight")'
AUTO = "l1(enc=linf(axis=1), dec=linf(axis=0))"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a model, a pair of arrays, weights and labels."""
    monkeypatch.chdir(tmp_path)
    np.savez("model.npz", **MODEL)
    np.savez("pair.npz", enc=MODEL["fc.0.weight"], dec=MODEL["fc.0.weight"][:3])
    np.save("one.npy", MODEL["fc.0.weight"])
    np.savez("names.npz", w=np.arange(6) + 1.0, g=np.arange(8) % 3, short=np.ones(5))
    np.savez("weights.npz", enc=np.ones(6), dec=np.full(8, 2.0))
    return tmp_path


@pytest.fixture
def rehearsed() -> Iterator[None]:
    """Kernels run as Python: results are the same, and nothing is compiled."""
    with rehearsals():
        yield


def tensors(path: str) -> dict[str, np.ndarray]:
    file = open_tensors(Path(path))
    return {name: file.read(name) for name in file.names}


def test_compile_makes_all_kernels(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROJGEN_CACHE_DIR", str(here / "cache"))
    monkeypatch.setattr(load, "_loaded", {})  # by other tests, through another cache
    words = ["compile", "l1(a=linf(axis=1), b=linf(axis=1))", "--shape", "a=37x41"]
    words += ["--shape", "b=39x41", "--dtype", "float64"]
    assert main([*words, "--json", "-o", "out"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shapes"] == {"a": [37, 41], "b": [39, 41]}
    root, shared = found["kernels"]
    assert root["parts"] == ["part 0 (values of parts 1 and 2)"]
    assert shared["parts"] == ["part 1 (a)", "part 2 (b)"]
    for kernel in (root, shared):
        assert Path(kernel["written"]).read_bytes() == Path(kernel["file"]).read_bytes()
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "1_l1_axis_1_float64.py", "2_linf_axis_1_float64.py",
    ]  # fmt: skip
    assert main([*words, "--emit", "source"]) == 0
    source = capsys.readouterr().out
    assert source.count("# kernel ") == 2
    assert Path(shared["file"]).read_text() in source
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith("cached l1(a=linf(axis=1), b=linf(axis=1)): 2 kernels: ")
    assert root["file"] in text
    assert main(["cache", "list", "--json"]) == 0
    kept = {kernel["key"] for kernel in json.loads(capsys.readouterr().out)}
    assert {root["key"], shared["key"]} <= kept
    shutil.rmtree("cache")


@pytest.mark.parametrize(
    ("spec", "arrays"),
    [
        (AUTO, ["on enc, 1,000 × 1,000", "on dec, 1,000"]),
        ("l1(linf, l2)", ["on 0, 1,000,000", "on 1, 1,000,000"]),
        (PATTERNS, ["on fc.*.weight, 64 × 64\n", "on conv.*.weight, 64 × 64 × 64 × 64\n"]),
        (
            "l2(e=l1(a=linf, b=linf), d=l1(linf, linf(axis=2)))",
            ["on e.a, 160 × 160 × 160\n", "on d.1, 160 × 160 × 160\n"],
        ),
        ("l1(linf(axis=1, block=4))", ["on y, 1,000 × 1,000"]),
        ("l1(l2(axis=1, groups=g))", ["on y, 1,000 × 1,000"]),
    ],
)
def test_examples_of_shapes(spec: str, arrays: list[str], capsys: Capture) -> None:
    assert main(["compile", spec, "--emit", "plan"]) == 0
    plan = capsys.readouterr().out
    for array in arrays:
        assert array in plan


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("colour", [False, True])
def test_explain_keeps_to_the_width(
    columns: int, colour: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR" if colour else "NO_COLOR", "1")
    monkeypatch.delenv("NO_COLOR" if colour else "FORCE_COLOR", raising=False)
    monkeypatch.setattr("projgen.terminal.Terminal.width", columns)
    shapes = ["--shape", "fc.0.weight=256x1152", "--shape", "conv.0.weight=128x64x3x3"]
    shapes += ["--shape", "fc.a_layer_with_a_long_name.weight=10x256"]
    assert main(["explain", PATTERNS, *shapes]) == 0
    text = capsys.readouterr().out
    assert ("\x1b[" in text) is colour
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert max(map(len, lines)) <= columns


def test_explain(capsys: Capture, snapshot: Snapshot) -> None:
    shapes = ["--shape", "enc=1000x1000", "--shape", "dec=100x1000"]
    assert main(["explain", AUTO, *shapes]) == 0
    assert main(["explain", "l1(lp(p=1.5, axis=1, block=4), w=v)", "--shape", "300x402"]) == 0
    snapshot("explain_tree", capsys.readouterr().out)
    assert main(["explain", AUTO, *shapes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"]["array"] == 4 * 1100 * 1000
    assert found["bytes"]["at_most"] == sum(p["reads"] + p["writes"] for p in found["parts"])
    assert 1.5 < found["bytes"]["multiple_of_memcpy"] < 1.52
    assert found["work"]["product"] == 1100 * 1000
    assert found["span"]["sum_of_dimensions"] == 2000 + 1000


@pytest.mark.usefixtures("here", "rehearsed")
def test_run_with_patterns(capsys: Capture, snapshot: Snapshot) -> None:
    assert main(["run", PATTERNS, "model.npz", "out.npz", "--radius", "20%"]) == 0
    snapshot("cli_run_tree", capsys.readouterr().out)
    y = {name: array for name, array in MODEL.items() if name.endswith("weight")}
    p = projgen.build(PATTERNS)
    x = p(y, 0.2 * p.norm(y))
    found = tensors("out.npz")
    assert found.keys() == MODEL.keys()
    for name, array in MODEL.items():
        assert np.array_equal(found[name], x.get(name, array))
    assert main(["run", PATTERNS, "model.npz", "out.npz", "--radius", "20%", "--json"]) == 0
    together = json.loads(capsys.readouterr().out)["together"]
    assert together["norm_after"] == pytest.approx(0.2 * together["norm_before"])
    zero = {array["name"]: array["zero_entries"] for array in together["arrays"]}
    assert zero == {name: int(np.sum(x[name] == 0)) for name in x}
    for array in together["arrays"]:
        (groups,) = array["groups"]
        gone = ~p.active(x)[array["name"]]
        assert groups["indices"] == np.flatnonzero(gone).tolist()


@pytest.mark.usefixtures("here", "rehearsed")
def test_run_with_names_and_in_order() -> None:
    assert main(["run", AUTO, "pair.npz", "out.npz", "--radius", "2"]) == 0
    y = tensors("pair.npz")
    x = projgen.build(AUTO)(y, 2.0)
    assert all(np.array_equal(tensors("out.npz")[name], x[name]) for name in y)

    words = ["run", "l1(linf(axis=1), l2)", "model.npz", "out.npz", "--radius", "2"]
    assert main([*words, "--tensor", "fc.2.weight", "fc.0.bias"]) == 0
    first, second = projgen.build("l1(linf(axis=1), l2)")(
        [MODEL["fc.2.weight"], MODEL["fc.0.bias"]], 2.0
    )
    found = tensors("out.npz")
    assert np.array_equal(found["fc.2.weight"], first)
    assert np.array_equal(found["fc.0.bias"], second)
    assert np.array_equal(found["fc.0.weight"], MODEL["fc.0.weight"])


@pytest.mark.usefixtures("here", "rehearsed")
def test_run_with_weights_and_labels() -> None:
    y, names = MODEL["fc.0.weight"], tensors("names.npz")
    weighted = "l1(linf(axis=1), w=v)"
    words = [weighted, "one.npy", "out.npy", "--radius", "3", "--bind", "v=names.npz:w"]
    assert main(["run", *words]) == 0
    assert np.array_equal(np.load("out.npy"), projgen.build(weighted)(y, 3.0, v=names["w"]))

    labelled = "l1(l2(axis=1, groups=g))"
    words = [labelled, "one.npy", "out.npy", "--radius", "30%", "--bind", "g=names.npz:g"]
    assert main(["run", *words]) == 0
    p = projgen.build(labelled)
    x = p(y, 0.3 * p.norm(y, g=names["g"]), g=names["g"])
    assert np.array_equal(np.load("out.npy"), x)

    branch = "l1(enc=linf(axis=1), dec=linf(axis=0), w=v)"
    assert (
        main(["run", branch, "pair.npz", "out.npz", "--radius", "2", "--bind", "v=weights.npz"])
        == 0
    )
    pair = tensors("pair.npz")
    both = projgen.build(branch)(pair, 2.0, v=tensors("weights.npz"))
    assert all(np.array_equal(tensors("out.npz")[name], both[name]) for name in pair)


@pytest.mark.usefixtures("here", "rehearsed")
def test_run_with_a_count(capsys: Capture) -> None:
    assert main(["run", "l0(k=2, l2(axis=1))", "one.npy", "out.npy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["radius"] == 2
    assert found["tensors"][0]["groups"][0]["zero"] == 4
    assert int(np.any(np.load("out.npy"), axis=1).sum()) == 2


@pytest.mark.usefixtures("here", "rehearsed")
@pytest.mark.parametrize("spec", ["l1(l2(axis=0, groups=g))", "l1(x=l2(axis=0, groups=g))"])
def test_run_counts_no_numbers_that_no_place_has(spec: str, capsys: Capture) -> None:
    np.savez("x.npz", x=np.array([3.0, 4.0, 0.0, 0.1, 2.0, 0.0]))
    np.save("g.npy", np.array([1, 1, 2, 4, 6, 2]))
    words = ["run", spec, "x.npz", "out.npz", "--radius", "20%", "--bind", "g=g.npy"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "l2 groups along axis 0: 3 of 4 zero (75.0%; 1 before)\n    kept: 1\n" in out
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (array,) = found["tensors"] if "tensors" in found else found["together"]["arrays"]
    (groups,) = [one for one in array["groups"] if one["norm"] == "l2"]
    assert (groups["count"], groups["indices"], groups["unused"]) == (4, [2, 4, 6], [0, 3, 5])


@pytest.mark.usefixtures("here", "rehearsed")
def test_path_and_bench_of_one_array(capsys: Capture) -> None:
    words = ["path", "l1(l2(axis=1), w=v)", "one.npy", "--points", "3", "--json"]
    assert main([*words, "--bind", "v=names.npz:w"]) == 0
    nonzero = json.loads(capsys.readouterr().out)["nonzero"]
    assert nonzero == sorted(nonzero)
    assert nonzero[-1] == MODEL["fc.0.weight"].size
    words = ["--shape", "6x8", "--seconds", "0", "--threads", "1", "--json"]
    for spec in ("l1(l2(axis=1, groups=g), w=v)", "l0(axis=1, block=4, k=2)"):
        assert main(["bench", spec, *words]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["times"][-1]["name"] == "NumPy reference"
        assert found["difference_from_numpy"] < 1e-6


WRONG = [
    ["compile", AUTO, "--shape", "5"],
    ["compile", AUTO, "--shape", "enc=5x5"],
    ["compile", AUTO, "--shape", "enx=5x5", "--shape", "dec=5x5"],
    ["compile", AUTO, "--shape", "enc=5x5", "--shape", "enc=5x5"],
    ["compile", AUTO, "--arch", "sm_90"],
    ["compile", PATTERNS, "--shape", "fc.0.weight=5x5"],
    ["compile", "l1", "--shape", "a=5"],
    ["compile", "l1(linf, w=v)", "--shape", "5x5", "--shape", "5x5"],
    ["compile", "l1(linf(axis=1), w=v)", "--shape", "5"],
    ["explain", AUTO, "--shape", "enc=0x5", "--shape", "dec=5x5"],
    ["explain", "l1(l1(a=linf(axis=1), b=l2(axis=1)))", "--shape", "a=3x4", "--shape", "b=4x4"],
    ["bench", AUTO, "--shape", "3x4"],
    ["bench", AUTO, "--shape", "enc=3x4", "--shape", "dec=4x3"],
    ["bench", "l1", "--shape", "a=3x4"],
    ["bench", "l0(l2(axis=1))", "--shape", "3"],
    ["path", AUTO, "pair.npz"],
    ["path", "l0(k=2)", "one.npy"],
    ["run", AUTO, "pair.npz", "out.npz"],
    ["run", "l0(k=2)", "one.npy", "out.npy", "--radius", "3"],
    ["run", AUTO, "model.npz", "out.npz", "--radius", "3"],
    ["run", AUTO, "pair.npz", "out.npz", "--radius", "3", "--tensor", "enc", "den"],
    ["run", AUTO.replace("dec", "den"), "pair.npz", "out.npz", "--radius", "3"],
    ["run", 'l1(linf @ "fx.*")', "model.npz", "out.npz", "--radius", "3"],
    ["run", PATTERNS, "model.npz", "out.npz", "--radius", "3", "--tensor", *list(MODEL)[:4]],
    ["run", 'l1(linf @ "*")', "model.npz", "out.npz", "--radius", "3"],
    ["run", "l1(linf, l2)", "model.npz", "out.npz", "--radius", "3"],
    ["run", "l1(linf(axis=1), w=v)", "one.npy", "out.npy", "--radius", "3"],
    ["run", "l1(linf(axis=1))", "one.npy", "out.npy", "--radius", "3", "--bind", "v=names.npz"],
    ["run", "l1(linf, w=v)", "one.npy", "out.npy", "--radius", "3", "--bind", "v=names.npz"],
    ["run", "l1(linf, w=v)", "one.npy", "out.npy", "--radius", "3", "--bind", "v=names.npz:short"],
    ["run", "l1(l2(axis=1, groups=g))", "one.npy", "o.npy", "--radius", "3", "--bind",
     "g=names.npz:w"],
]  # fmt: skip


@pytest.mark.usefixtures("here")
def test_wrong_input(capsys: Capture, snapshot: Snapshot) -> None:
    for words in WRONG:
        sys.stderr.write(f"$ projgen {' '.join(words)}\n")
        assert main(words) == 2, words
    captured = capsys.readouterr()
    assert captured.out == ""
    snapshot("cli_tree_errors", captured.err)
    assert not list(Path().glob("o*.np*")) or [p.name for p in Path().glob("o*.np*")] == ["one.npy"]


@pytest.mark.parametrize(
    "words",
    [
        ["compile", "l1(linf, l2)", "--shape", "=3x4"],
        ["run", "l1", "a.npy", "b.npy", "--radius", "3", "--bind", "v"],
        ["run", "l1", "a.npy", "b.npy", "--radius", "3", "--bind", "1=v.npy"],
    ],
)
def test_wrong_usage(words: list[str], capsys: Capture) -> None:
    assert main(words) == 2
    assert "error: " in capsys.readouterr().err
