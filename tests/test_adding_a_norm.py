"""A norm is an entry of the table, a reference and its macros: what CONTRIBUTING says, no more."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from projgen.norms import CHAINED

ROOT = Path(__file__).parent.parent
CHECKED = [
    "test_templates.py::test_norms_offer_the_same_macros_and_all_are_used",
    "test_templates.py::test_every_template_is_reached",
    "test_spec_errors.py",
    "test_kernels.py::test_rehearsed[rms(l1(axis=0))-float64]",
    "test_kernels.py::test_rehearsed[rms(rms)-float32]",
    "test_kernels.py::test_rehearsed[linf(rms(axis=0))-float32]",
    "test_kernels.py::test_packed_groups_of_every_length[rms-float32]",
    "test_half.py::test_every_norm[rms-bfloat16]",
    "test_cuda_templates.py::test_norms_offer_the_same_macros",
    "test_cuda_run.py::test_types[rms(rms)-bfloat16]",
    "test_cuda_run.py::test_chains[l1(rms(axis=0))]",
    "test_cli.py::test_the_numpy_that_bench_times_is_right[0.0-rms]",
    "test_cli.py::test_the_numpy_that_bench_times_is_right[0.5-rms]",
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the norm that CONTRIBUTING adds, by no more than its snippets."""
    assert "rms" not in CHAINED
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = guide[guide.index("## Adding a norm") :]
    blocks = re.findall(r"```(?:python|jinja)\n(.*?)```", section, re.DOTALL)
    entry, imports, functions, registration, macros, value = map(textwrap.dedent, blocks)
    root = tmp_path_factory.mktemp("copy")
    for folder in ("projgen", "templates", "grammars", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    insert(root / "projgen/norms.py", "_TABLE = (\n", entry)
    insert(root / "projgen/references.py", "MappingProxyType(\n    {\n", registration)
    insert(root / "projgen/references.py", "from __future__ import annotations\n\n", imports)
    last = "# The norms, and below them their balls. An entry of REFERENCES names both.\n"
    insert(root / "projgen/references.py", last, f"\n\n{functions}")
    (root / "templates/cpu/norms/rms.py.j2").write_text(macros, encoding="utf-8")
    cuda = (root / "templates/cuda/norms/l2.cu.j2").read_text(encoding="utf-8")
    cuda = re.sub(r"{% macro value.*\n", lambda _: value, cuda)
    (root / "templates/cuda/norms/rms.cu.j2").write_text(cuda, encoding="utf-8")
    return root


def insert(path: Path, after: str, snippet: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(after) == 1
    path.write_text(text.replace(after, after + snippet), encoding="utf-8")


def run(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_copys_own_tests_pass(copy: Path) -> None:
    """Among them kernels for a GPU, and every kind of block."""
    paths = [f"tests/{check}" for check in CHECKED]
    assert "passed" in run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths)


def test_its_kernels_compile(copy: Path) -> None:
    """One whose rows are widened among them."""
    code = """
import numpy as np, projgen
y = np.random.default_rng(3).standard_normal((180, 230)).astype(np.float32)
for spec in ("l1(rms(axis=0))", "rms(l1)"):
    p = projgen.build(spec)
    radius = 0.4 * p.norm(y)
    x, wanted = p(y, radius), projgen.build(spec, backend="numpy")(y, radius)
    assert 0 < np.abs(x).max() and np.abs(x - wanted).max() <= 1e-6 * np.abs(y).max(), spec
"""
    run(copy, "-c", code)


def test_it_is_explained(copy: Path) -> None:
    text = run(copy, "-m", "projgen", "explain", "linf(rms)", "--shape", "30x40")
    assert re.search(r"rms of y +scales; the values", text)


def test_it_has_no_kernel_of_its_own(copy: Path) -> None:
    reasons = {
        "rms(w=v)": "rms has no weights",
        "rms(2.0*a=l1, b=l1)": "rms has no weights, so its children have none",
        "rms(axis=1, groups=labels)": "rms has no groups of given sizes",
    }
    code = f"""
import projgen
for spec in {list(reasons)}:
    try:
        projgen.build(spec)
    except projgen.SpecError as error:
        print(str(error).splitlines()[0])
"""
    said = run(copy, "-c", code).splitlines()
    assert len(said) == len(reasons)
    assert all(text.startswith(reasons[spec]) for text, spec in zip(said, reasons, strict=True))
