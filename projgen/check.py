"""Syntax to norm tree: everything that a spec can get wrong by itself, without an array.

The grammar lets any name and any argument through, so that the errors here can say what was
probably meant. Branches, weights and more norms belong to the language, but to later versions.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType

from projgen.errors import Span, SpecError, quote
from projgen.norms import LATER, NORMS, did_you_mean, find
from projgen.parse import Argument, Call, Constant, Value, parse
from projgen.tree import Node, NormTree

_LATER_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "p": "the exponent of lp",
        "k": "the count of l0",
        "w": "weights within a norm",
        "block": "blocks along an axis",
    }
)
_MISTAKEN_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "dim": "did you mean 'axis'?",
        "radius": "the radius is given with the array, when the projection is called",
        "keepdims": "the result always has the shape of the array",
    }
)
_RESERVED = {"axis", *_LATER_ARGUMENTS, *_MISTAKEN_ARGUMENTS}
_THE_NORMS = f"the norms are {', '.join(NORMS)}"
_THE_ARGUMENTS = "the only argument is 'axis'"


def parse_tree(text: str) -> NormTree:
    """The norm tree of the spec `text`: parsed and checked, with the spans of what was written.

    A SpecError, with carets, for anything that is not a norm tree of this version of the language;
    a TypeError if `text` is not a str.
    """
    if not isinstance(text, str):
        raise TypeError(f"a spec is a str such as 'l1(linf(axis=1))', not {type(text).__name__}")
    tree = NormTree(_node(parse(text)))
    _check_axes_differ(tree)
    return tree


def _node(call: Call) -> Node:
    norm = _norm(call.name)
    axes: list[Argument] = []
    children: list[Argument] = []
    calls: list[Call] = []
    for argument in call.arguments:
        key = str(argument.key or "")
        if key == "axis":
            axes.append(argument)
        elif isinstance(argument.value, Call) and key not in _RESERVED:
            children.append(argument)
            calls.append(argument.value)
        else:
            raise _unexpected(argument)
    axis, axis_spans = _axis(axes) if axes else (None, ())
    _check_chain(children)
    return Node(norm, axis, tuple(map(_node, calls)), call.name, axis_spans)


def _norm(name: Span) -> str:
    norm = find(str(name))
    if norm:
        return norm.name
    if str(name) in LATER:
        raise SpecError(
            f"{quote(str(name))} ({LATER[str(name)]}) is not in this version",
            name,
            hint=_THE_NORMS,
        )
    raise SpecError(
        f"unknown norm {quote(str(name))}", name, hint=did_you_mean(str(name)) or _THE_NORMS
    )


def _unexpected(argument: Argument) -> SpecError:
    """The error for an argument that is neither a child nor an axis."""
    if argument.key is None:
        quoted = isinstance(argument.value, Constant) and isinstance(argument.value.value, str)
        return SpecError(
            f"{quote(str(argument.span))} is not a norm",
            argument.span,
            hint="norms are written without quotes" if quoted else "is it an axis? write axis=1",
        )
    key = str(argument.key)
    if key in _LATER_ARGUMENTS:
        return SpecError(
            f"argument {quote(key)} ({_LATER_ARGUMENTS[key]}) is not in this version",
            argument.span,
            hint=_THE_ARGUMENTS,
        )
    hint = _MISTAKEN_ARGUMENTS.get(key)
    if not hint and get_close_matches(key.casefold(), ["axis"]):
        hint = "did you mean 'axis'?"
    return SpecError(
        f"unknown argument {quote(key)}",
        argument.key,
        hint=hint or _THE_ARGUMENTS,
    )


def _check_chain(children: Sequence[Argument]) -> None:
    if len(children) > 1:
        raise SpecError(
            "a node with several children is a branch over several arrays",
            *(child.span for child in children),
            hint="this version projects chains: one array, and at most one child to a node",
        )
    for child in children:
        if child.weight:
            raise SpecError("weights of children are not in this version", child.weight)
        if child.key:
            raise SpecError(
                f"a named child, {quote(str(child.key))}, is one of several arrays",
                child.key,
                hint="this version projects chains: one array, and no names",
            )


def _axis(arguments: Sequence[Argument]) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    """The axes of a node's only `axis` argument, and where each is written."""
    first, *others = arguments
    if others:
        raise SpecError(
            "argument 'axis' is given twice",
            *(argument.span for argument in arguments),
            hint="several axes of one level are a tuple: axis=(0, 1)",
        )
    if first.weight:
        raise SpecError("an axis has no weight", first.weight)
    items = _items(first.value)
    if not items:
        raise SpecError(
            "axis=() names no axis", first.span, hint="leave axis out for the next free axis"
        )
    axes: list[int] = []
    for item in items:
        if not (isinstance(item, Constant) and isinstance(item.value, int)):
            raise _not_an_axis(item)
        axes.append(item.value)
    return tuple(axes), tuple(item.span for item in items)


def _items(value: Value) -> tuple[Value, ...]:
    if isinstance(value, Constant) and isinstance(value.value, tuple):
        return value.value
    return (value,)


def _not_an_axis(item: Value) -> SpecError:
    if isinstance(item, Constant) and isinstance(item.value, float) and item.value.is_integer():
        hint = f"did you mean {int(item.value)}?"
    elif isinstance(item, Call) and str(item.span) in ("None", "all"):
        hint = "leave axis out for the next free axis; the last level takes all that remain"
    else:
        hint = "an axis is an integer, and several are a tuple of integers"
    return SpecError(f"{quote(str(item.span))} is not an axis", item.span, hint=hint)


def _check_axes_differ(tree: NormTree) -> None:
    seen: dict[int, Span] = {}
    for node in tree.levels:
        for axis, span in zip(node.axis or (), node.axis_spans, strict=True):
            if axis in seen:
                raise SpecError(f"axis {axis} is named twice", seen[axis], span)
            seen[axis] = span
