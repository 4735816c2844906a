"""Spec text to syntax: what was written and where, before anyone asks what it means.

The grammar is ``grammars/spec.lark``. Lark is imported here, on first use, and nowhere else.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias, cast

from projgen.errors import Span, SpecError, quote
from projgen.norms import did_you_mean
from projgen.resources import resource_dir

if TYPE_CHECKING:
    from lark import Lark, Token, Tree

MAX_LENGTH = 10_000  # characters of a spec
MAX_NESTING = 64  # parentheses within parentheses; NumPy's arrays have at most 64 axes
MAX_NUMBER = 40  # characters of a number

Value: TypeAlias = "Call | Constant"


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, a string or a tuple."""

    value: "int | float | str | tuple[Value, ...]"
    span: Span

    def __str__(self) -> str:
        return str(self.span)


@dataclass(frozen=True, slots=True)
class Argument:
    """What stands between two commas: a value, perhaps with a key, weights and a pattern."""

    value: Value
    span: Span
    key: Span | None = None
    weights: tuple[Span, ...] = ()
    pattern: Constant | None = None

    def __str__(self) -> str:
        key = f"{self.key} = " if self.key else ""
        weights = "".join(f"{weight} * " for weight in self.weights)
        pattern = f" @ {self.pattern}" if self.pattern else ""
        return f"{key}{weights}{self.value}{pattern}"


@dataclass(frozen=True, slots=True)
class Call:
    """A name, with or without arguments. ``str()`` shows it as an indented tree."""

    name: Span
    arguments: tuple[Argument, ...]
    span: Span

    def __str__(self) -> str:
        lines = [line for argument in self.arguments for line in str(argument).split("\n")]
        return "\n".join([str(self.name), *("  " + line for line in lines)])


def parse(text: str) -> Call:
    """The syntax of the spec `text`.

    A SpecError if it has none, or is longer or deeper than a spec may be. The time this takes is
    bounded, whatever the text holds.
    """
    if len(text) > MAX_LENGTH:
        raise SpecError(
            f"the spec is too long: {len(text):,} characters, and {MAX_LENGTH:,} are allowed",
            Span(text, MAX_LENGTH, len(text)),
        )
    if not text.strip():
        raise SpecError("the spec is empty", hint="write a norm tree such as l1(linf)")
    _check_parentheses(text)

    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    try:
        tree = _parser().parse(text)
    except UnexpectedCharacters as error:
        raise _unexpected_character(text, error.pos_in_stream or 0) from None
    except UnexpectedToken as error:
        raise _unexpected_token(text, error.token, error.expected) from None
    return _call(text, tree)


@cache
def _parser() -> "Lark":
    from lark import Lark

    return Lark(
        (resource_dir("grammars") / "spec.lark").read_text(encoding="utf-8"),
        start="call",
        parser="lalr",
        lexer="basic",
        propagate_positions=True,
        maybe_placeholders=False,
    )


def _call(text: str, tree: "Tree[Token]") -> Call:
    name, *arguments = tree.children
    return Call(
        _span(text, name),
        tuple(_argument(text, cast("Tree[Token]", argument)) for argument in arguments),
        _span(text, tree),
    )


def _argument(text: str, tree: "Tree[Token]") -> Argument:
    key: Span | None = None
    weights: list[Span] = []
    value: Value | None = None
    pattern: Constant | None = None
    for item in tree.children:
        if isinstance(item, str) and item.type == "NAME":
            key = _span(text, item)
        elif not isinstance(item, str) and item.data == "weight":
            weights.append(_span(text, item.children[0]))
        elif not isinstance(item, str) and item.data == "pattern":
            span = _span(text, item.children[0])
            pattern = Constant(str(span)[1:-1], span)
        else:
            value = _value(text, item)
    assert value is not None, "the grammar has one"
    return Argument(value, _span(text, tree), key, tuple(weights), pattern)


def _value(text: str, item: "Token | Tree[Token]") -> Value:
    span = _span(text, item)
    if isinstance(item, str):  # a token
        return Constant(str(span)[1:-1] if item.type == "STRING" else _number(span), span)
    if item.data == "tuple":
        return Constant(tuple(_value(text, child) for child in item.children), span)
    return _call(text, item)


def _number(span: Span) -> int | float:
    digits = str(span)
    if len(digits) > MAX_NUMBER:
        raise SpecError(f"a number of {len(digits):,} characters is too long", span)
    return float(digits) if set(digits) & set(".eE") else int(digits)


def _span(text: str, item: "Token | Tree[Token]") -> Span:
    place = item if isinstance(item, str) else item.meta
    return Span(text, place.start_pos or 0, place.end_pos or 0)


def _check_parentheses(text: str) -> None:
    """Before the parser runs: its stack grows with the nesting, and so do all trees after it."""
    unclosed: list[Span] = []
    for match in re.finditer(r"""'[^'\r\n]*'|"[^"\r\n]*"|[()]""", text):
        span = Span(text, *match.span())
        if match[0] == "(":
            unclosed.append(span)
            if len(unclosed) > MAX_NESTING:
                raise SpecError(
                    f"the spec is too deep: parentheses may nest {MAX_NESTING} times", span
                )
        elif match[0] == ")":
            if not unclosed:
                raise SpecError("this ')' closes nothing", span)
            unclosed.pop()
    if unclosed:
        raise SpecError("this '(' is never closed", unclosed[-1], hint="is a ')' missing?")


_KEY = re.compile(r"(?P<name>\w*)\s*=\s*$")  # what stands before a value
_TUPLES = ("axis", "axes", "dim", "block")


def _unexpected_character(text: str, position: int) -> SpecError:
    char = text[position]
    if char in "'\"":
        hint: str | None = "this quote is never closed"
    elif not char.isprintable():
        hint = "delete it: only spaces and line ends go between words"
    elif char in "[{" and (key := _KEY.search(text[:position])):
        hint = "arrays are named, as in w=name, and given when the projection is called: name=array"
        if key["name"] in _TUPLES:
            hint = f"tuples are written with parentheses: {key['name']}=(1, 2)"
    elif char in "[{" and "_{" not in text:
        hint = "trees and tuples are written with parentheses: l1(linf(axis=(1, 2)))"
    else:
        hint = _reading(text)
    span = Span(text, position, position + 1)
    return SpecError(f"unexpected character {quote(char)}", span, hint=hint)


def _unexpected_token(text: str, token: "Token", expected: set[str]) -> SpecError:
    span = _span(text, token)
    before = text[: span.start]
    inside = before.count("(") > before.count(")")
    if expected == {"STRING"}:
        hint: str | None = 'a pattern is a string, as in linf(axis=1) @ "*.weight"'
    elif "NUMBER" in expected:
        hint = "a norm or a value is missing before it"
    elif "NAME" in expected and text[span.stop :].lstrip().startswith("*"):
        hint = "weights are for the children of a branch: l1(2.0*linf, l2)"
    elif "NAME" in expected:
        hint = _reading(text) or "a spec begins with a norm, as in l1(linf)"
    elif not inside:
        hint = _reading(text) or "the spec is complete before it"
    elif token.type in ("NAME", "NUMBER", "STRING", "_LPAR"):
        hint = "is a ',' missing before it?"
    else:
        hint = None
    return SpecError(f"unexpected {quote(str(token))}", span, hint=hint)


def _reading(text: str) -> str | None:
    """A hint for a spec in the notation of papers: that has subscripts and no parentheses."""
    return None if "(" in text else did_you_mean(text)
