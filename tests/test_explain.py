"""What `projgen explain` says: its numbers against ones worked out here, and how it looks."""

import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from projgen import build
from projgen.cli import main
from projgen.terminal import Terminal, progress

CASES = [
    ("l1(linf(axis=1))", "1000x1000"),
    ("l1(linf(axis=0))", "1000x1000"),
    ("l1(l2(linf))", "100x200x300"),
    ("l1(linf(axis=(1, 2, 3)))", "128x64x3x3"),
    ("l1(axis=-1)", "64x63x2308"),
    ("l1", "4000x4000"),
    ("l1(l1(l2(axis=3), axis=0))", "100x20x30x1"),
    ("l2(l2(l1(axis=0), axis=3), axis=1)", "10x20x30x40"),
    ("l1(l1(linf(axis=0), axis=(4, 3)), axis=(1, 2))", "7x100x1x9x1000"),
    ("linf", "1"),
]


def explain(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["explain", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def facts(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(explain(*arguments, "--json", capsys=capsys))
    return found


def test_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts("l1(linf(axis=1))", "--shape", "300x500", capsys=capsys)
    array, values = 300 * 500 * 4, 300 * 8
    up_leaf, up_root, down_root, down_leaf = found["steps"]
    assert up_leaf["reads"] == {"y": array}
    assert up_leaf["writes"] == {"v0": values}
    assert up_root["reads"] == {"v0": values}
    assert down_root["writes"] == {"u0": values}
    assert down_leaf["reads"] == {"y": array, "v0": values, "u0": values}
    assert down_leaf["writes"] == {"x": array}
    assert found["bytes"]["memcpy"] == 2 * array
    total = sum(sum(step[way].values()) for step in found["steps"] for way in ("reads", "writes"))
    assert found["bytes"]["at_most"] == total
    assert found["bytes"]["multiple_of_memcpy"] == total / (2 * array)


def test_thresholds_of_columns_take_another_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts("l1(l1(axis=0))", "--shape", "300x500", capsys=capsys)
    assert [step["direction"] for step in found["steps"]] == ["up", "up", "down", "search", "down"]
    search = found["steps"][3]
    assert search["reads"]["y"] == 300 * 500 * 4
    assert not search["repeated"]
    assert 2 <= found["bytes"]["multiple_of_memcpy"] < 2.1


def test_a_search_over_the_array_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts("l1(axis=0)", "--shape", "100000x50", capsys=capsys)
    assert [step["repeated"] for step in found["steps"]] == [False, True, False]
    assert found["bytes"]["per_newton_step"] == pytest.approx(100000 * 50 * 4, rel=1e-3)
    assert 1.5 <= found["bytes"]["multiple_of_memcpy"] < 1.51


def test_in_place_writes_y(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(
        "l1(linf)", "--shape", "300x500", "--in-place", "--dtype", "float64", capsys=capsys
    )
    assert found["steps"][-1]["writes"] == {"y": 300 * 500 * 8}
    assert found["in_place"]


def test_work_and_span(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts("l1(l2(linf))", "--shape", "100x20x30", capsys=capsys)
    assert found["work"]["product"] == 100 * 20 * 30
    assert found["span"] == {"sum_of_logarithms": 7 + 5 + 5, "sum_of_dimensions": 150}
    assert [level["groups"] for level in found["levels"]] == [1, 100, 2000]
    assert not found["is_euclidean"]


def test_a_batch_adds_no_span(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts("l1(axis=-1)", "--shape", "9x8x64", capsys=capsys)
    assert found["batch"] == {"axes": [0, 1], "entries": 72}
    assert found["levels"] == [{"norm": "l1", "axes": [2], "groups": 72, "size": 64}]
    assert found["span"]["sum_of_dimensions"] == 64
    assert found["is_euclidean"]


def test_memory_order(capsys: pytest.CaptureFixture[str]) -> None:
    for order, expected in (("C", [0, 1]), ("F", [1, 0])):
        found = facts("l1(linf)", "--shape", "300x500", "--order", order, capsys=capsys)
        assert [loop["level"] for loop in found["loops"]] == expected


@pytest.mark.parametrize(("spec", "shape"), CASES)
@pytest.mark.parametrize("options", [[], ["--in-place", "--order", "F", "--dtype", "float64"]])
def test_drawings_fit(
    spec: str, shape: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = explain(spec, "--shape", shape, *options, capsys=capsys)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    levels = build(spec).tree.levels
    tree = text[text.index("TREE") : text.index("LOOPS")]
    assert all(level.norm in tree for level in levels)
    json.loads(explain(spec, "--shape", shape, *options, "--json", capsys=capsys))


def test_drawing(capsys: pytest.CaptureFixture[str], snapshot: Callable[[str, str], None]) -> None:
    snapshot("explain_rows", explain("l1(linf(axis=1))", "--shape", "1000x1000", capsys=capsys))
    snapshot("explain_batch", explain("l2(l2(axis=1), axis=3)", "--shape", "8x64x3x3",
                                      "--in-place", capsys=capsys))  # fmt: skip


def test_colour_changes_only_colour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("l1(linf(axis=1))", "--shape", "1000x1000")
    plain = explain(*arguments, capsys=capsys)
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = explain(*arguments, capsys=capsys)
    assert "\x1b[36m" in coloured
    assert __import__("re").sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert explain(*arguments, capsys=capsys) == plain


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_drawing_without_line_drawing(encoding: str) -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    terminal = Terminal(stream)
    assert not terminal.unicode
    terminal.write("└─ linf 3 \N{MULTIPLICATION SIGN} 4 █… ✓ 5 µs \N{INFINITY}")
    stream.flush()
    assert buffer.getvalue() == b"`- linf 3 x 4 #~ + 5 us \\u221e\n"


class FakeTerminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Terminal(FakeTerminal()).colour
    assert not Terminal(io.StringIO()).colour
    monkeypatch.setenv("TERM", "dumb")
    assert not Terminal(FakeTerminal()).colour


def test_progress_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = FakeTerminal()
    monkeypatch.setattr("sys.stderr", stream)
    with pytest.raises(KeyboardInterrupt), progress("compiling"):
        while " s" not in stream.getvalue():
            np.ones(1)
        raise KeyboardInterrupt
    assert re.match(r"\rcompiling … \d+\.\d s", stream.getvalue())
    assert stream.getvalue().endswith("\r\x1b[K")


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with progress("compiling"):
        pass
    assert stream.getvalue() == ""
