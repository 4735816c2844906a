"""What the documentation's tests share: a page's blocks, and how they run."""

import ast
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from projgen.cli import main

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
RUNS = ("python", "console")  # what is run; "text" is what the block before it printed

FENCE = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^(?P<indent>[ ]*)```(?P<kind>[\w{}-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = re.compile(r"^[ ]*<!-- not run\b", re.MULTILINE)
NEEDS = re.compile(
    r"^<!-- needs: ([\w ,]+) -->", re.MULTILINE
)  # modules that no snippet imports by name
NUMBER = re.compile(r"\d+\.\d+(?:e[-+]?\d+)?")
TIME = re.compile(r"\d[\d.]* (?:s|ms|µs|GB/s)\b")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line that this begins at, and why it is not run,
    if it is not."""

    kind: str
    body: str
    line: int
    reason: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent = match["indent"]
        body = re.sub(f"^{indent}", "", match["body"], flags=re.MULTILINE)
        line = text[: match.start("body")].count("\n") + 1
        found.append(Block(match["kind"], body, line, match["reason"]))
    return found


def needed(page: Path) -> set[str]:
    """The modules that a page's snippets import, and those that it says they need."""
    names = NEEDS.findall(page.read_text(encoding="utf-8"))
    modules = {name.strip() for given in names for name in given.split(",")}
    for block in blocks(page):
        if block.kind == "python" and block.reason is None:
            for node in ast.walk(ast.parse(block.body)):
                if isinstance(node, ast.Import):
                    modules |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules.add(node.module)
    return {"torch" if name == "projgen.torch" else name.partition(".")[0] for name in modules}


def assert_alike(printed: str, shown: str) -> None:
    """The same text: "…" in what is shown stands for anything in a line, times are not compared,
    and other decimals may differ by a twentieth or in the last digit, as machines do."""
    here, there = (TIME.sub("TIME", text).splitlines() for text in (printed, shown))
    assert len(here) == len(there), f"printed:\n{printed}\nshown:\n{shown}"
    for line, expected in zip(here, there, strict=True):
        if "…" in expected and "…" not in line:
            parts = [re.escape(part) for part in " ".join(expected.split()).split("…")]
            assert re.fullmatch(".*".join(parts), " ".join(line.split())), (line, expected)
            continue
        assert NUMBER.sub("#", line).split() == NUMBER.sub("#", expected).split()
        for found, wanted in zip(NUMBER.findall(line), NUMBER.findall(expected), strict=True):
            digit = 1.01 * 10.0 ** -len(wanted.partition(".")[2])
            assert float(found) == pytest.approx(float(wanted), rel=0.05, abs=digit), (
                line,
                expected,
            )


def commands(body: str) -> Iterator[tuple[str, str]]:
    """A console block's commands, and what it shows after each."""
    body = body.replace("\\\n", " ")
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def run_console(block: Block) -> None:
    """Run a block's commands, which are all projgen's; what they print is compared, if it shows."""
    for command, shown in commands(block.body):
        words = shlex.split(command, comments=True)
        assert words[:1] == ["projgen"], f"only projgen is run here: {command}"
        out = StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            status = main(words[1:])
        assert status == (2 if "projgen: error:" in shown else 0), f"{command}\n{out.getvalue()}"
        if shown.strip():
            assert_alike(out.getvalue(), shown)


def run_page(page: Path) -> None:
    """Run a page's snippets from top to bottom, and compare what they print with what follows."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if block.kind in RUNS:
            assert not printed, f"{page.name} does not show what was printed before {block.line}"
        if block.reason is not None:
            continue
        if block.kind == "python":
            out = StringIO()
            with redirect_stdout(out):  # line numbers are the page's
                code = compile("\n" * (block.line - 1) + block.body, str(page), "exec")
                exec(code, names)
            printed = out.getvalue()
        elif block.kind == "console":
            run_console(block)
        elif block.kind == "text":
            assert_alike(printed, block.body)
            printed = ""
    assert not printed, f"{page.name} does not show what its last snippet prints"
