"""The commands of the CUDA backend, with NVRTC's wheel and without. None needs a GPU."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projgen import cache
from projgen.cli import main
from projgen.cuda import nvrtc

Capture = pytest.CaptureFixture[str]
Snapshot = Callable[[str, str], None]
MISSING = nvrtc.missing()
needs_nvrtc = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROJGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "cupy", None)  # no GPU is asked
    return tmp_path / "cache"


@pytest.fixture
def no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "missing", lambda: "NVRTC is not installed: install it")


def run(capsys: Capture, *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


@needs_nvrtc
def test_a_cubin_is_made_and_kept(capsys: Capture) -> None:
    words = ("compile", "l1(l2(linf))", "--backend", "cuda", "--arch", "sm_80", "--json")
    first, again = (json.loads(run(capsys, *words)) for _ in range(2))
    assert (first["cached"], again["cached"]) == (False, True)
    assert first["architecture"] == "sm_80"
    assert Path(first["file"]).read_text("utf-8").startswith("// l1(l2(linf)): projects float32")
    assert Path(first["cubin"]).read_bytes()[:4] == b"\x7fELF"
    assert cache.health() == []
    assert "sm_90" in run(capsys, "compile", "l1(l2(linf))", "--backend", "cuda")
    assert len(cache.entries()) == 2


def test_a_damaged_cubin_is_made_again(capsys: Capture, no_nvrtc: None) -> None:
    words = ("compile", "l1", "--backend", "cuda", "--json")
    file = Path(json.loads(run(capsys, *words))["file"])
    file.write_text("// another\n", "utf-8")
    assert "does not match" in cache.health()[0]
    again = json.loads(run(capsys, *words))
    assert again["cached"] is False
    assert cache.health() == []


def test_without_nvrtc_the_source_is_kept(capsys: Capture, no_nvrtc: None) -> None:
    out = run(capsys, "compile", "l1(l2(linf))", "--backend", "cuda")
    assert "no cubin   NVRTC is not installed: install it" in out
    (entry,) = cache.entries()
    assert entry.path.parent.name.startswith(f"v{cache.FORMAT}-cuda-source-")
    assert [file.name for file in sorted(entry.path.iterdir())] == ["SHA256SUMS", "kernel.cu"]
    # Machine code that was asked for by name is a failure.
    assert main(["compile", "l1", "--backend", "cuda", "--arch", "sm_90"]) == 1
    assert "NVRTC is not installed" in capsys.readouterr().err


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_1", "90", "sm_90; rm", "../sm_90", "", "sm_9999"])
def test_architectures_that_are_none(capsys: Capture, architecture: str, own_cache: Path) -> None:
    assert main(["compile", "l1", "--backend", "cuda", f"--arch={architecture}"]) == 2
    assert "is no architecture that NVRTC" in capsys.readouterr().err
    assert not list(cache.entries())


def test_the_source_is_written(capsys: Capture, no_nvrtc: None, tmp_path: Path) -> None:
    words = ("compile", "l1(linf)", "--backend", "cuda", "--dtype", "bfloat16", "-o")
    run(capsys, *words, str(tmp_path / "out"))
    (file,) = (tmp_path / "out").iterdir()
    assert file.name == "l1_linf_2d_bfloat16_cuda.cu"
    source = run(capsys, *words[:-1], "--emit", "source")
    assert file.read_text("utf-8") == source


def test_half_types_are_for_both(capsys: Capture) -> None:
    source = run(capsys, "compile", "l1", "--dtype", "float16", "--emit", "source")
    assert "float16 arrays" in source.splitlines()[0]


def test_explained(capsys: Capture, snapshot: Snapshot) -> None:
    def explain(*words: str) -> str:
        return run(capsys, "explain", *words, "--backend", "cuda")

    snapshot("explain_cuda", explain("l1(linf)", "--shape", "1000x1000"))
    snapshot(
        "explain_cuda_sweeps",
        explain("l1(l1(axis=0))", "--shape", "100000x40", "--dtype", "bfloat16", "--in-place"),
    )


def test_explained_as_json(capsys: Capture) -> None:
    """l1(linf) moves two reads and one write, and hardly more."""
    words = ("explain", "l1(linf)", "--shape", "1000x1000", "--backend", "cuda", "--json")
    told: dict[str, Any] = json.loads(run(capsys, *words))
    assert 1.5 <= told["bytes"]["multiple_of_memcpy"] < 1.5 * 1.05
    assert [launch["name"] for launch in told["launches"]] == ["aggregate_1", "middle", "project_1"]
    least = told["bytes"]["at_most"] / 3.35e12
    assert told["prediction"]["seconds"] == pytest.approx(least + 3 * 2.5e-6)
    assert told["prediction"]["device"] == "H100"


TREE = "l1(enc=2.0*linf(axis=1), dec=linf(axis=0))"
SHAPES = ("--shape", "enc=1000x1000", "--shape", "dec=100x1000")


@needs_nvrtc
def test_trees_are_compiled(capsys: Capture, tmp_path: Path) -> None:
    words = ("compile", TREE, *SHAPES, "--backend", "cuda", "--arch", "sm_90")
    told = json.loads(run(capsys, *words, "-o", str(tmp_path / "out"), "--json"))
    assert told["backend"] == "cuda"
    titles = ["l1(w)", "linf(axis=1)", "linf(axis=0)"]
    assert [kernel["title"] for kernel in told["kernels"]] == titles
    for kernel in told["kernels"]:
        assert Path(kernel["cubin"]).read_bytes()[:4] == b"\x7fELF"
        assert Path(kernel["written"]).read_bytes() == Path(kernel["file"]).read_bytes()
    assert run(capsys, *words).count("sm_90      ") == 3


def test_trees_are_explained(capsys: Capture, snapshot: Snapshot) -> None:
    words = ("explain", TREE, *SHAPES, "--backend", "cuda")
    snapshot("explain_cuda_tree", run(capsys, *words))
    told = json.loads(run(capsys, *words, "--json"))
    assert told["launches"] == 9
    least = told["bytes"]["at_most"] / 3.35e12
    assert told["prediction"]["seconds"] == pytest.approx(least + 9 * 2.5e-6)
    assert 1.5 <= told["bytes"]["multiple_of_memcpy"] < 1.5 * 1.05
