"""The commands: what they print and where, and how they end."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import projgen
from projgen import cache, cli, completion, doctor, interpret
from projgen.arguments import make_parser
from projgen.bench import numpy_projection
from projgen.bind import bind
from projgen.cache import CacheWarning
from projgen.check import parse_tree
from projgen.cli import main
from projgen.commands import compile
from projgen.cpu import pool
from projgen.cuda import nvrtc
from projgen.norms import CHAINED

Snapshot = Callable[[str, str], None]
Capture = pytest.CaptureFixture[str]


def python(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, **options
    )


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from projgen.cli import main
from projgen.commands import compile
from projgen.cpu import pool
assert main(["--help"]) == 0
heavy = {"numba", "llvmlite", "jinja2", "lark", "safetensors", "torch", "cupy", "matplotlib"}
sys.exit(" ".join(heavy & set(sys.modules)) or 0)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    for command in cli.COMMANDS:
        assert f"\n    {command} " in done.stdout


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"projgen {projgen.__version__}\n"


def test_no_command_is_wrong(capsys: Capture) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: projgen")


def test_compile_keeps_and_finds(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROJGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    # A shape that no other test has: kernels that this process has loaded come from memory.
    words = ["compile", "l1(l2(axis=-1))", "--shape", "41x43", "--dtype", "float64", "--in-place"]
    assert main([*words, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert not first["cached"]
    assert first["spec"] == "l1(l2(axis=-1))"
    assert first["shape"] == [41, 43]
    assert main([*words, "--json", "-o", "out"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["cached"]
    assert second["file"] == first["file"]
    written = Path(second["written"])
    assert written == Path("out", "l1_l2_axism1_41x43_float64_in_place.py")
    assert written.read_bytes() == Path(first["file"]).read_bytes()
    assert main([*words, "--emit", "source"]) == 0
    assert capsys.readouterr().out.encode() == written.read_bytes()

    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith("cached l1(l2(axis=-1)) for float64, rank 2, C order, in place: ")
    assert first["file"] in text

    assert main(["cache", "path"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cache'}\n"
    assert main(["cache", "list", "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)
    assert first["key"] in [kernel["key"] for kernel in kernels]
    assert main(["cache", "list"]) == 0
    assert f"{first['key'][:8]}  " in capsys.readouterr().out
    assert main(["cache", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == len(kernels)
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out.startswith("0 kernels")


@pytest.mark.parametrize(
    ("spec", "rank"),
    [
        ("l1", 1),
        ("l1(l2(linf))", 3),
        ("l1(linf(axis=1))", 2),
        ("l1(linf(axis=-1), axis=1)", 3),
        ("l1(linf(axis=(1, 2, 3)))", 4),
        ("linf(axis=-1)", 1),
    ],
)
def test_the_smallest_rank(spec: str, rank: int, capsys: Capture) -> None:
    assert compile.smallest(parse_tree(spec)).rank == rank
    assert main(["compile", spec, "--emit", "plan"]) == 0
    assert spec in capsys.readouterr().out


def test_module_names_differ() -> None:
    specs = [
        "l1(l2(linf))", "l1(l2(linf(axis=1)))", "l1(l2(linf, axis=1))", "l1(l2(linf), axis=1)",
        "l1(l2(linf(axis=-1)))", "l1(l2(linf(axis=(0, 1))))", "l1(l2(linf(axis=1), axis=0))",
    ]  # fmt: skip
    lines = [line for spec in specs for line in (
        [spec], [spec, "--order", "F"], [spec, "--in-place"], [spec, "--dtype", "float64"],
        [spec, "--shape", "5x6x7"],
    )]  # fmt: skip
    names = []
    for line in lines:
        args = make_parser().parse_args(["compile", *line])
        names.append(compile.module_name(parse_tree(args.spec), args, 3))
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_emit(capsys: Capture, snapshot: Snapshot) -> None:
    spec = "l1( l∞(axis=(1,-1)) )"
    for stage in ("ast", "tree"):
        assert main(["compile", spec, "--emit", stage]) == 0
    snapshot("cli_emit", capsys.readouterr().out)
    assert main(["compile", spec, "--emit", "plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"].startswith("l1(linf(axis=(1, -1)))")


WRONG = [
    ["compile", "l1(linff)"],
    ["compile", "l1(linf"],
    ["compile", "l1(linf(axis=99))"],
    ["compile", "l1(linf(axis=2))", "--rank", "2"],
    ["compile", "l1(l1)", "--shape", "5"],
    ["compile", "l1", "--arch", "sm_90"],
    ["compile", "l1", "--shape", "0x3"],
    ["explain", "l1", "--shape", "0x3"],
    ["explain", "lp(p=0.5)", "--shape", "3"],
    ["bench", "l1(linf(axis=1))", "--shape", "3"],
    ["bench", "l1", "--shape", "0"],
]
USAGE = [
    ["nothing"],
    ["explain", "l1"],
    ["explain", "l1", "--shape", "3by4"],
    ["explain", "l1", "--shape", "x".join(["9"] * 65)],
    ["compile", "l1", "--shape", "3", "--rank", "1"],
    ["compile", "l1", "--rank", "65"],
    ["bench", "l1", "--shape", "3", "--threads", "0"],
    ["bench", "l1", "--shape", "3", "--seconds", "nan"],
    ["cache", "burn"],
    ["completion", "tcsh"],
]


def test_wrong_input(capsys: Capture, snapshot: Snapshot) -> None:
    for words in WRONG:
        sys.stderr.write(f"$ projgen {' '.join(words)}\n")
        assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    snapshot("cli_errors", captured.err)


@pytest.mark.parametrize("words", USAGE)
def test_wrong_usage(words: list[str], capsys: Capture) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["run", "l1", "y.npy", "x.npy", "--radus", "10%"], "; did you mean --radius?"),
        (["run", "l1", "y.npy", "x.npy", "--radus=10%"], "; did you mean --radius?"),
        (["cache", "list", "--jsn"], "; did you mean --json?"),
        (["cache", "list", "--zzz"], ""),
        (["doctor", "all"], ""),
    ],
)
def test_options_that_there_are_not(words: list[str], near: str, capsys: Capture) -> None:
    assert main(words) == 2
    usage, *_, error = capsys.readouterr().err.splitlines()
    assert usage.startswith(f"usage: projgen {words[0]}")
    strange = " ".join(words[4:] if words[0] == "run" else words[-1:])
    assert error == f"projgen {words[0]}: error: unrecognized arguments: {strange}{near}"


@pytest.mark.parametrize("wrong", ["abc", "0", "-1", "2.5"])
def test_threads_that_are_none(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJGEN_NUM_THREADS", wrong)
    with pytest.warns(RuntimeWarning, match=f"PROJGEN_NUM_THREADS={wrong} is ignored"):
        count = pool.default_threads()
    assert count == pool.processors()
    found = doctor._threads()
    assert (found.topic, found.status) == ("threads", "problem")
    assert f"PROJGEN_NUM_THREADS={wrong} is ignored" in found.text
    monkeypatch.setenv("PROJGEN_NUM_THREADS", " 3")
    assert pool.default_threads() == 3
    assert (doctor._threads().status, doctor._threads().text[:2]) == ("ok", "3 ")
    monkeypatch.delenv("PROJGEN_NUM_THREADS")
    assert "change it with" in doctor._threads().text


def test_kernels_of_one_title_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PROJGEN_CACHE_DIR", str(tmp_path))
    title = "l1(linf): projects float32 arrays"
    notes = [f"level 1  linf  of y: {walk} (groups, reduced)" for walk in ("rows", "packed")]
    texts = {
        f"{'0' * 32}/kernel.py": f'"""{title}.\n\n    {notes[0]}\n\nWritten.\n"""\n',
        f"{'1' * 32}/kernel.py": f'"""{title}.\n\n    {notes[1]}\n\nWritten.\n"""\n',
        f"{'a' * 32}/kernel.cu": f"// {title} on a GPU.\n//\n// {notes[0]}\n\nlevel 2\n",
    }
    for name, text in texts.items():
        file = tmp_path / f"v2-numba-{'0' * 12}" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert main(["cache", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for note in notes:
        (at,) = [i for i, line in enumerate(lines) if line.strip() == note]
        assert lines[at - 1].endswith(f"{title}.")
    assert main(["cache", "list", "--json"]) == 0
    found = {kernel["key"]: kernel["notes"] for kernel in json.loads(capsys.readouterr().out)}
    assert found == {"0" * 32: notes[:1], "1" * 32: notes[1:], "a" * 32: notes[:1]}


def replace_command(monkeypatch: pytest.MonkeyPatch, function: Callable[[Any], int]) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {"cache": function})


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), 130, ""),
        (PermissionError(13, "Permission denied", "f"), 1, "projgen: error: f: Permission denied"),
        (ImportError("No module named 'numba'"), 1, "projgen: error: No module named 'numba'"),
        (MemoryError(), 1, "projgen: error: MemoryError"),
        (FileNotFoundError(2, "No such file", "f"), 2, "projgen: error: f: No such file"),
    ],
)
def test_ends(
    error: BaseException, status: int, text: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: object) -> int:
        raise error

    replace_command(monkeypatch, fail)
    assert main(["cache", "list"]) == status
    assert capsys.readouterr().err.strip() == text


def test_mistakes_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_command(monkeypatch, lambda args: [][0])
    with pytest.raises(IndexError):
        main(["cache", "list"])


def test_warnings_are_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(args: object) -> int:
        warnings.warn("the cache is ill", CacheWarning, stacklevel=1)
        return 0

    replace_command(monkeypatch, warn)
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().err == "projgen: warning: the cache is ill\n"


def test_the_order_that_run_shows_is_one_that_works(capsys: Capture) -> None:
    """--tensor takes all the words that follow, so that SPEC IN OUT have to stand before it."""
    assert main(["run", "--help"]) == 0
    usage = capsys.readouterr().out.splitlines()[0]
    assert usage.index("SPEC IN OUT") < usage.index("--tensor")


def test_a_broken_pipe_is_quiet() -> None:
    words = ["explain", "l1(l1)", "--shape", "9x9", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "projgen", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(60) == 141


@pytest.mark.skipif(os.name == "nt", reason="a shell closes them")
def test_closed_streams() -> None:
    for command, status in (("explain l1 --shape 9", 0), ("explain l7 --shape 9", 2)):
        words = f"{sys.executable} -m projgen {command} >&- 2>&-"
        assert subprocess.run(words, shell=True, timeout=60).returncode == status


def test_bench(capsys: Capture) -> None:
    words = ["bench", "l1(linf(axis=1))", "--shape", "8x16", "--seconds", "0", "--threads", "1,2"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["times"]] == [
        "np.copyto", "projgen, 1 thread", "projgen, 1 thread, in place",
        "projgen, 2 threads", "projgen, 2 threads, in place", "NumPy",
    ]  # fmt: skip
    copy, numpy = found["times"][0], found["times"][-1]
    for one in found["times"]:
        low, high = one["quartiles_s"]
        assert 0 < low <= one["median_s"] <= high
        assert one["multiple_of_memcpy"] == pytest.approx(one["median_s"] / copy["median_s"])
        assert one["times_faster_than_numpy"] == pytest.approx(numpy["median_s"] / one["median_s"])
    assert 0 <= found["difference_from_numpy"] < 1e-5
    assert main(words) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "np.copyto" in text
    assert "\n  in place" in text


@pytest.mark.parametrize("spec", [
    *CHAINED, "l1(linf(axis=1))", "l1(l1(axis=0))", "l1(l2(linf))", "l2(l1(l1))",
    "linf(l1(axis=2))", "l1(axis=1)", "l1(linf(axis=(0, 2)))", "l2(l2(axis=1), axis=0)",
])  # fmt: skip
@pytest.mark.parametrize("radius", [0.0, 0.1, 0.5, 2.0])
def test_the_numpy_that_bench_times_is_right(spec: str, radius: float) -> None:
    y = np.random.default_rng(1).standard_normal((4, 5, 6))
    y[1] = 0
    binding = bind(parse_tree(spec), 3)
    radii = radius * interpret.norm(binding, y)
    x = numpy_projection(binding, y, radii)
    np.testing.assert_allclose(x, interpret.project(binding, y, radii), atol=1e-12)


def test_doctor(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "health", list)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"]
    found = {finding["topic"]: finding for finding in report["findings"]}
    assert found["numpy"]["text"] == np.__version__
    assert found["proof"]["status"] == "ok"
    monkeypatch.setattr(cache, "health", lambda: ["the cache is ill"])
    assert main(["doctor"]) == 1
    assert "! cache        the cache is ill\n" in capsys.readouterr().out


def test_the_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(nvrtc, "find_spec", lambda name: None)
    monkeypatch.setattr(nvrtc, "missing", nvrtc.missing.__wrapped__)  # not what it knows by now
    gpu, compiler = doctor._gpu()
    assert (gpu.status, compiler.status) == ("note", "note")
    what, hint = compiler.text.split(" is not installed: ")
    assert (what, hint.partition('"')[0]) == ("cuda-core", "pip install -e ")
    assert gpu.text == f"none to use: CuPy, which arrays on a GPU need, is not installed: {hint}"


def test_the_doctors_proof_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._proof().status == "ok"
    monkeypatch.setattr(interpret, "project", lambda binding, y, radius: y)
    assert doctor._proof().status == "problem"
    monkeypatch.setattr(doctor, "build", lambda spec: 1 / 0)
    assert "ZeroDivisionError" in doctor._proof().text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["bench", "cache", "compile", "completion", "doctor", "explain", "path", "run"]),
        (["com"], ["compile", "completion"]),
        (["nothing", ""], []),
        (["--v"], ["--version"]),
        (["compile", ""], []),
        (["compile", "l1", "--emit", ""], ["ast", "plan", "source", "tree"]),
        (["compile", "--dtype", "float64", "l1", "--o"], ["--order", "--output"]),
        (["compile", "l1", "--in-place", "--dtype", "float6"], ["float64"]),
        (["cache", ""], ["clear", "list", "path"]),
        (["cache", "--json", "l"], ["list"]),
        (["completion", "list", ""], []),
        (["completion", "z"], ["zsh"]),
        (["run", "l1", "a.npz", ""], []),
        (["run", "l1", "a.npz", "b.npz", "--tensor", "a", "b", "--j"], ["--json"]),
    ],
)
def test_completion(words: list[str], expected: list[str], capsys: Capture) -> None:
    assert completion.complete(make_parser(), words) == expected
    assert main(["__complete", *words]) == (0 if expected else 1)
    assert capsys.readouterr().out.split() == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(tmp_path: Path) -> None:
    shim = tmp_path / "projgen"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m projgen "$@"\n')
    shim.chmod(0o755)
    script = (
        completion.SCRIPTS["bash"]
        + """
COMP_WORDS=(projgen compile "'l1(linf)'" --emit s) COMP_CWORD=4
_projgen
echo "${COMPREPLY[@]}"
"""
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path},
        cwd=Path(projgen.__file__).parents[1], timeout=60,
    )  # fmt: skip
    assert done.stdout == "source\n"
    assert done.stderr == ""


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_completion_scripts(shell: str, capsys: Capture) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "projgen __complete" in text
    assert len(text.splitlines()) <= 7
