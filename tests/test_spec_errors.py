"""Every error of the language, word for word, in ``snapshots/spec_errors.txt``."""

import ast
import copy
import itertools
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from projgen import bind, check, options, parse
from projgen.check import parse_tree
from projgen.errors import Span, SpecError, quote
from projgen.tree import Node, NormTree

# A title for each group, and the specs in it.
WRONG_SPECS = {
    "Shape of the text": [
        "",
        " \n",
        "l1(",
        "l1(linf",
        "l1(linf(axis=1)",
        "l1(linf))",
        ")",
        "l1(axis=(1, 2)",
        "l1(linf axis=1)",
        "l1(linf,, axis=1)",
        "l1(, linf)",
        "l1(axis=)",
        "l1(2.0*)",
        "l1(axis=1=2)",
        "l1(linf) l2",
        "l1 + l2",
        "l1[linf]",
        "l1{linf}",
        "l1(axis=[0, 1])",
        "l1(linf(axis=1), w=[1, 2])",
        "l1(axis='x)",
        "2.0*l1",
        "2*l1(linf)",
        "(l1)",
        "'l1'",
        "x = l1",
        "l1;",
        "1",
        "*",
    ],
    "Notations of papers": [
        "l1,inf",
        "l_{1,∞}",
        "L1/L2",
        "l2-linf",
        "1,2",
        "l21",
        "l1inf",
        "L_1",
        "l_inf",
        "L1",
        "ℓ₁,₂",
        "∞",
        "l1 linf",
    ],
    "Unknown norms": [
        "linff",
        "l1(linff(axis=1))",
        "l1(LINF)",
        "max",
        "l1(fro)",
        "l1(inf)",
        "l3",
        "nuclear",
        "__import__('os').system('true')",
        "__import__('os')",
        "l1(linf(axis=1), linff)",
    ],
    "Norms with an argument": [
        "lp",
        "l1(lp)",
        "lp(p=0.5)",
        "lp(p=-1)",
        "lp(p='2')",
        "l1(p=2)",
        "l1(k=3)",
        "l0(k=1.5)",
        "l0(k=-1)",
        "l1(w=(1, 2), linf)",
        "l1(w=radius)",
        "l1(w=f(x))",
        "l0(w=name)",
        "l0(2.0*linf, l2)",
        "l1(nonneg=1)",
    ],
    "Places in a tree": [
        "l1(l0)",
        "linf(l0(k=2))",
        "l1(simplex)",
        "simplex(l2)",
        "l1(linf(l2, axis=1, groups=g))",
    ],
    "Blocks and groups": [
        "l1(block=4)",
        "l1(block=auto)",
        "l1(axis=1, block=auto)",
        "l1(axis=1, block=0)",
        "l1(axis=(0, 1), block=4)",
        "l1(axis=1, block=(2, 2))",
        "l1(axis=1, block=4, groups=g)",
        "l0(axis=1, block=4, k=5)",
        "l0(k=17, axis=(0, 1), block=(4, 4))",
        "l1(groups=g)",
        "l1(axis=(0, 1), groups=g)",
        "l1(linf(axis=1, block=4), axis=1, block=2)",
        "l1(linf(axis=1), axis=1, block=2)",
    ],
    "Branches": [
        "l1(2.0*linf)",
        "l1(2.0*enc=3*linf, dec=l2)",
        "l1(-1*linf, l2)",
        "l1(1e999*linf, l2)",
        "l1(enc=linf, l2)",
        "l1(enc=linf, enc=l2)",
        "l1(out=linf, dec=l2)",
        "l1(w=linf(axis=1), b=l2)",
        'l1(enc=linf @ "*", l2)',
        'l1(linf @ "")',
        'l1(linf @ "\t")',
        'l1(enc=linf, l2 @ "*")',
        'l1(linf @ "*", l2)',
        'l1(l1(a=linf, b=l2) @ "*")',
        "l1(linf @ 3)",
        "l1(enc=linf, dec=l2, w=enc)",
    ],
    "Arguments": [
        "l1(axes=1)",
        "l1(Axis=1)",
        "l1(dim=1)",
        "l1(dim=foo)",
        "l1(radius=1.0)",
        "l1(keepdims=True)",
        "l1(speed=9)",
        "l1(1)",
        "l1((0, 1))",
        "l1('linf')",
        "l1(2.0*1)",
        "l1(axis=1 @ 'x')",
        "l1(weights=x)",
    ],
    "Axes": [
        "l1(axis=1, axis=2)",
        "l1(2*axis=1)",
        "l1(axis=())",
        "l1(axis=1.0)",
        "l1(axis=1.5)",
        "l1(axis=1e400)",
        "l1(axis='rows')",
        "l1(axis=True)",
        "l1(axis=None)",
        "l1(axis=all)",
        "l1(axis=(0, None))",
        "l1(axis=(0, (1, 2)))",
        "l1(axis=linf(axis=1))",
        "l1(axis=(1, 0, 1))",
        "l1(axis=1, linf(axis=(0, 1)))",
        "l1(axis=" + "9" * 41 + ")",
    ],
    "How carets are drawn": [
        "l1(\n\tlinff\n)",
        "l1('漢字漢字', x)",
        "漢字(l1)",
        "l1(cafe\u0301)",
        "l1(\x00)",
        "l1(\x1b[31m)",
        "l1\u00a0(linf)",
        "\ufeffl1",
        "l1(\u202elinf)",
        "l1(\ud800)",
        "l1(\u2028)",
        "l1(l2(" * 20 + "linff" + "))" * 20,
        "l1(axis=7, " + "l2(" * 30 + "linf(axis=7)" + ")" * 31,
        "l1(" + "y" * 1000 + ")",
        "l1(" + "linf, " * 1000 + "l3)",
        "l1(axis=" + "9" * 9000 + ")",
        "l1(" * 66,
        "l1(" * 5_000,
    ],
}

# Specs that some arrays have no place for, and the shape of one of them.
WRONG_SHAPES: list[tuple[str, tuple[int, ...]]] = [
    ("lp(p=1.5)", (5,)),
    ("l1", ()),
    ("l1(axis=0)", ()),
    ("l1(linf)", ()),
    ("l1(linf)", (5,)),
    ("l1(l2(linf))", (5,)),
    ("l1(l2(linf(axis=0)))", (5, 4)),
    ("ℓ1(ℓ2(ℓ∞))", (5, 4)),
    ("l1(axis=1)", (5,)),
    ("l1(linf(axis=2))", (5, 4)),
    ("l1(linf(axis=(0, -3)))", (5, 4)),
    ("l1(linf(axis=99999999999999999999))", (5, 4)),
    ("l1(axis=1, linf(axis=-1))", (5, 4)),
    ("l1(axis=(0, -2))", (5, 4)),
]


def error_of(spec: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_tree(spec)
    return caught.value


def binding_error_of(spec: str, rank: int, shape: tuple[int, ...] | None) -> SpecError:
    with pytest.raises(SpecError) as caught:
        bind.bind(parse_tree(spec), rank, shape)
    return caught.value


def test_every_message(snapshot: Callable[[str, str], None]) -> None:
    parts = []
    for title, specs in WRONG_SPECS.items():
        parts.append(f"# {title}")
        parts += [f"{quote(spec, 76)}\n{error_of(spec)}" for spec in specs]
    parts.append("# Arrays")
    for spec, shape in WRONG_SHAPES:
        parts.append(f"{quote(spec)} on shape {shape}\n{binding_error_of(spec, len(shape), shape)}")
    parts.append(f"'l1(linf)' on rank 1\n{binding_error_of('l1(linf)', 1, None)}")
    snapshot("spec_errors", "\n\n".join(parts) + "\n")


@pytest.mark.parametrize(
    "module", [parse, check, options, bind], ids=lambda module: module.__name__
)
def test_every_error_in_the_sources_has_a_spec_here(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new ``SpecError(...)`` is in the snapshot, or this fails."""
    path = Path(module.__file__ or "")
    reached: set[int] = set()
    init = SpecError.__init__

    def noting_the_line(error: SpecError, *args: Any, **kwargs: Any) -> None:
        caller = sys._getframe(1)
        if caller.f_code.co_filename == str(path):
            reached.add(caller.f_lineno)
        init(error, *args, **kwargs)

    monkeypatch.setattr(SpecError, "__init__", noting_the_line)
    for spec in itertools.chain(*WRONG_SPECS.values()):
        error_of(spec)
    for spec, shape in WRONG_SHAPES:
        binding_error_of(spec, len(shape), shape)

    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "SpecError"
    ]
    assert calls
    for call in calls:
        lines = range(call.lineno, (call.end_lineno or call.lineno) + 1)
        assert reached.intersection(lines), f"{path.name}:{call.lineno} is not in this test"


EVERY_SPEC = list(itertools.chain(*WRONG_SPECS.values()))


@pytest.mark.parametrize("spec", EVERY_SPEC, ids=range(len(EVERY_SPEC)))
def test_messages_are_short_printable_lines(spec: str) -> None:
    lines = str(error_of(spec)).split("\n")
    assert len(lines) <= 4
    for line in lines:
        assert line.isprintable()
        assert line == line.rstrip()
        assert len(line) < 240
        line.encode()


@pytest.mark.parametrize("spec", EVERY_SPEC, ids=range(len(EVERY_SPEC)))
def test_carets_are_under_the_spans(spec: str) -> None:
    error = error_of(spec)
    drawn = [span for span in error.spans if span.stop > span.start][:4]
    if len(spec) > 72 or not spec.isascii() or not spec.isprintable():
        return
    if drawn:
        _, text, carets, *_ = str(error).split("\n")
        runs = [match.span() for match in re.finditer(r"\^+", carets)]
        assert [text[start:stop] for start, stop in runs] == [str(span) for span in drawn]


def test_spec_error_is_a_value_error_with_its_parts() -> None:
    error = error_of("l1(linff)")
    assert isinstance(error, ValueError)
    assert error.message == "unknown norm 'linff'"
    assert error.spans == (Span("l1(linff)", 3, 8),)
    assert error.hint == "did you mean 'linf'?"
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(twin) == str(error)
        assert (twin.message, twin.spans, twin.hint) == (error.message, error.spans, error.hint)


def test_an_error_without_spans_or_hint_is_its_message() -> None:
    assert str(SpecError("something is wrong")) == "something is wrong"


def test_spans_of_two_texts_are_drawn_apart() -> None:
    error = SpecError("they differ", Span("l1(l2)", 3, 5), Span("linf", 0, 4), hint="so what")
    assert str(error).split("\n") == [
        "they differ",
        "  l1(l2)",
        "     ^^",
        "  linf",
        "  ^^^^",
        "so what",
    ]


def test_an_empty_span_points_at_the_next_character_or_past_the_end() -> None:
    assert str(SpecError("here", Span("l1", 0, 0))) == "here\n  l1\n  ^"
    assert str(SpecError("here", Span("l1", 2, 2))) == "here\n  l1\n    ^"
    long = "x" * 100
    assert str(SpecError("here", Span(long, 100, 100))).endswith("x\n" + " " * 29 + "^")


def test_wide_characters_take_two_columns_and_tabs_one() -> None:
    assert str(SpecError("here", Span("漢\t字x", 2, 3))) == "here\n  漢 字x\n     ^^"
    assert str(SpecError("here", Span("漢字x", 2, 3))) == "here\n  漢字x\n      ^"


def test_a_tree_made_by_hand_gets_carets_in_its_canonical_spec() -> None:
    tree = NormTree(Node("l1", (0,), (Node("linf", (-2,)),)))
    with pytest.raises(SpecError) as caught:
        bind.bind(tree, 2, (5, 4))
    assert [str(span) for span in caught.value.spans] == ["0", "-2"]
    assert {span.text for span in caught.value.spans} == {tree.spec}


def test_all_of_a_block_may_be_kept() -> None:
    """As one end of a sweep of counts; more than all is refused."""
    for spec in ("l0(axis=1, block=4, k=4)", "l0(axis=(0, 1), block=(4, 4), k=16)"):
        assert parse_tree(spec).root.k in (4, 16)
