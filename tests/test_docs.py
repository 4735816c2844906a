"""The documentation: its snippets print what it says, it builds, and nothing is left out."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_support import FENCE, NOT_RUN, PAGES, ROOT, RUNS, blocks, needed, run_page
from support import rehearsals

import projgen
from projgen import api

DOCS = ROOT / "docs"
MOST_NOT_RUN = 0.2  # of all snippets

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="not in a checkout")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                request: pytest.FixtureRequest) -> None:  # fmt: skip
    modules = needed(page)
    for name in sorted(modules - {"projgen"}):
        pytest.importorskip(name)
    if "torch" in modules:
        import torch

        from projgen.torch.recipes import read_recipe

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small models: more would wait for each other
        request.addfinalizer(lambda: torch.set_num_threads(threads))
        request.addfinalizer(read_recipe.cache_clear)  # of kernels that run as Python
    api.remembered.cache_clear()
    request.addfinalizer(api.remembered.cache_clear)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PROJGEN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with rehearsals():
        run_page(page)


def test_nobody_is_sent_to_the_package_index_for_it() -> None:
    """The name belongs to another project there."""
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.py")]
    texts += [*Path(projgen.__file__).parent.rglob("*.py")]
    for file in texts:
        found = re.search(r"install [\"']?projgen\b", file.read_text(encoding="utf-8"))
        assert found is None, f"{file}: {found}"


PYTHON, SHOWN = "```python\nprint(0.5, 'm')\n```\n", "```text\n{}\n```\n"
CONSOLE = "```console\n$ projgen compile {}--emit tree\n{}```\n"


@pytest.mark.parametrize(
    "text",
    [
        PYTHON + SHOWN.format("0.51 m"),
        "  " + PYTHON.replace("\n", "\n  ") + "\n" + SHOWN.format("… m"),
        PYTHON.replace("0.5", "2.0, 's in'") + SHOWN.format("9.3 s in m"),
        CONSOLE.format("'l1(linf)' ", "l1\n└─ linf\n"),
        "<!-- not run: it cannot be -->\n```python\n1 / 0\n```\n",
    ],
)
def test_a_page_that_is_right(text: str, tmp_path: Path) -> None:
    (page := tmp_path / "page.md").write_text(text, encoding="utf-8")
    run_page(page)


@pytest.mark.parametrize(
    "text",
    [
        PYTHON,
        PYTHON + SHOWN.format("0.9 m"),
        PYTHON + SHOWN.format("0.5 n"),
        PYTHON + SHOWN.format("0.5 m\n"),
        PYTHON + PYTHON + SHOWN.format("0.5 m"),
        PYTHON + SHOWN.format("… n"),
        SHOWN.format("0.5"),
        CONSOLE.format("'l1(linf)' ", "l1\n└─ l2\n"),
        CONSOLE.format("'l1(linff)' ", ""),
        "```console\n$ rm -r .\n```\n",
    ],
)
def test_a_page_that_is_wrong(text: str, tmp_path: Path) -> None:
    (page := tmp_path / "page.md").write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError):
        run_page(page)


def test_what_is_not_run_has_a_reason() -> None:
    snippets = {page.name: [b for b in blocks(page) if b.kind in RUNS] for page in PAGES}
    for page in PAGES:
        reasons = [block.reason for block in blocks(page) if block.reason]
        marks = NOT_RUN.findall(page.read_text(encoding="utf-8"))
        assert len(marks) == len(reasons), f"{page.name}: a mark that stands before no block"
        assert all(len(reason.split()) > 2 for reason in reasons), f"{page.name}: {reasons}"
    skipped = {name: sum(b.reason is not None for b in own) for name, own in snippets.items()}
    total = sum(map(len, snippets.values()))
    assert sum(skipped.values()) <= MOST_NOT_RUN * total, f"of {total} snippets: {skipped}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_specs_in_the_text(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for spec in re.findall(r"`((?:l0|l1|l2|linf|lp|simplex)(?:\([^`…]*\)))`", text):
        projgen.build(spec.replace("&#124;", "|"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as code hosts and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in headings}


def public_packages() -> list[str]:
    """Those of projgen whose ``__all__`` says what users take from them."""
    inits = [ROOT / "projgen/__init__.py", *sorted((ROOT / "projgen").glob("*/__init__.py"))]
    return [".".join(path.parent.relative_to(ROOT).parts) for path in inits
            if re.search(r"^__all__\b", path.read_text("utf-8"), re.MULTILINE)]  # fmt: skip


@pytest.mark.parametrize("package", public_packages())
def test_every_public_name_has_a_docstring(package: str) -> None:
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        pytest.skip(str(error))
    for name in module.__all__:
        found = getattr(module, name)
        assert name.startswith("__") or found.__doc__, f"{package}.{name}"


def test_each_name_has_a_description_of_its_own() -> None:
    """Among arguments and attributes: the reference lists them one by one."""
    joined = []
    for path in (ROOT / "projgen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                continue
            text = ast.get_docstring(node) or ""
            for section in re.findall(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)*)", text, re.M):
                joined += re.findall(r"^    \*{0,2}\w+, .*:", section, re.M)
    assert joined == []


def test_every_public_package_is_in_the_reference() -> None:
    pages = {page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md")}
    for package in public_packages():
        mark = "```{public} " + package + "\n"
        assert any(mark in page for page in pages), (
            f"write docs/reference/{package.removeprefix('projgen.')}.md, with a block {mark}```"
        )


@pytest.mark.slow
def test_the_guide_builds(tmp_path: Path) -> None:
    """Without a warning: no page outside the navigation, no link or object that is not found.

    The dummy builder does all but writing HTML, which is most of the time.
    """
    for name in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(name)
    words = ["-W", "--keep-going", "-q", "-b", "dummy", "-d", tmp_path / "doctrees"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *map(str, words), str(DOCS), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip(), done.stderr
