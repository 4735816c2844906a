"""The user guide's examples run, page by page, and print what the page says."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from support import rehearsals

import projgen

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+")


def blocks(page: str) -> list[tuple[str, str, int]]:
    """The fenced blocks: their language, their text and the line they begin at."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [(kind, body, text[:found.start()].count("\n") + 2)
            for found in FENCE.finditer(text) for kind, body in [found.groups()]]  # fmt: skip


def assert_alike(printed: str, shown: str) -> None:
    """The same text, with numbers that may differ by a few percent, as machines do."""
    assert [line.split() for line in NUMBER.sub("#", printed).splitlines()] == [
        line.split() for line in NUMBER.sub("#", shown).splitlines()
    ]
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.1, abs=0.05)


@pytest.mark.parametrize("page", ["gradients.md", "shrinking.md", "training.md"])
def test_a_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                request: pytest.FixtureRequest) -> None:  # fmt: skip
    torch = pytest.importorskip("torch")
    if page == "shrinking.md":
        pytest.importorskip("torch_pruning")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small models: more would wait for each other
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    from projgen.torch.recipes import read_recipe

    request.addfinalizer(read_recipe.cache_clear)  # of kernels that run as Python
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = ""
    with rehearsals():
        for kind, body, line in blocks(page):
            if kind == "python":
                assert not printed, f"{page} does not show what was printed before line {line}"
                out = StringIO()
                with redirect_stdout(out):  # line numbers are the page's
                    exec(compile("\n" * (line - 1) + body, str(DOCS / page), "exec"), names)
                printed = out.getvalue()
            elif kind == "text":
                assert_alike(printed, body)
                printed = ""
    assert not printed


@pytest.mark.parametrize("page", ["training.md", "trees.md"])
def test_specs_in_the_text(page: str) -> None:
    text = FENCE.sub("", (DOCS / page).read_text(encoding="utf-8"))
    specs = re.findall(r"`((?:l0|l1|l2|linf|lp)\([^`…]*\))`", text)
    assert len(specs) > 5
    for spec in specs:
        projgen.build(spec)
