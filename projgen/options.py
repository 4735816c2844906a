"""What the arguments of a node say: axes, blocks, exponents, the names of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from projgen.errors import Span, SpecError, quote
from projgen.norms import NORMS
from projgen.parse import Argument, Call, Constant, Value

ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "axis": "the axes that the level reduces",
        "block": "the extents of blocks along them",
        "groups": "the name of an array of labels along its axis",
        "p": "the exponent of lp",
        "k": "how many groups l0 keeps",
        "w": "the name of an array of weights",
        "nonneg": "whether the set has no negative values",
    }
)
MISTAKEN: Mapping[str, str] = MappingProxyType(
    {
        "dim": "did you mean 'axis'?",
        "axes": "did you mean 'axis'?",
        "weights": "did you mean 'w'?",
        "radius": "the radius is given with the array, when the projection is called",
        "keepdims": "the result always has the shape of the array",
    }
)
OF_A_CALL = (
    "y",
    "spec",
    "radius",
    "out",
    "return_info",
    "exact",
)  # names that calls have for themselves


_INFINITE = 1e17  # an exponent from which on lp of any array is linf, to the last bit


@dataclass(frozen=True, slots=True)
class Options:
    """What a node says, besides its children: see `projgen.tree.Node`."""

    norm: str
    axis: tuple[int, ...] | None = None
    axis_spans: tuple[Span, ...] = ()
    block: tuple[int, ...] | None = None
    groups: str | None = None
    weights: str | None = None
    p: float | None = None
    k: int | None = None
    nonneg: bool = False


def read_options(norm: str, name: Span, given: Mapping[str, Argument]) -> Options:
    """The options that the arguments `given`, by key, say of a node that writes `norm` as `name`.

    A SpecError for one that makes no sense by itself, for this norm, or with another.
    """
    for argument in given.values():
        if argument.weights or argument.pattern:
            noun = "weight" if argument.weights else "pattern"
            span = argument.weights[0] if argument.weights else argument.pattern.span  # type: ignore[union-attr]
            raise SpecError(f"{_article(str(argument.key))} has no {noun}", span)
    axis, axis_spans = _axis(given["axis"].value) if "axis" in given else (None, ())
    p = _exponent(norm, name, given.get("p"))
    block, k = _block(given, axis, axis_spans), _count(norm, given.get("k"))
    if block is not None and k is not None and k > math.prod(block):
        raise SpecError(
            f"a block of {math.prod(block)} has no {k} to keep: every array would stay as it is",
            *sorted([given["block"].span, given["k"].span], key=lambda span: span.start),
            hint=f"k={math.prod(block)} keeps all of a block, fewer make zeros",
        )
    return Options(
        norm={1: "l1", 2: "l2", math.inf: "linf"}.get(p, norm) if p is not None else norm,
        axis=axis,
        axis_spans=axis_spans,
        block=block,
        groups=_labels(norm, given, axis),
        weights=_weights(norm, given.get("w")),
        p=None if p in (1, 2, math.inf) else p,
        k=k,
        nonneg="nonneg" in given and _truth(given["nonneg"]),
    )


def _article(key: str) -> str:
    return {"axis": "an axis", "block": "a block", "w": "an array of weights"}.get(key, quote(key))


def _axis(value: Value) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    """The axes that `value` names, and where each is written."""
    items = _items(value)
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


def _exponent(norm: str, name: Span, argument: Argument | None) -> float | None:
    if argument is None:
        if norm == "lp":
            raise SpecError("'lp' needs its exponent", name, hint="as in lp(p=1.5)")
        return None
    if norm != "lp":
        raise SpecError(
            f"{norm} has no exponent p", argument.span, hint=f"did you mean lp({argument.span})?"
        )
    value = argument.value
    if isinstance(value, Call) and str(value.span) in ("inf", "infinity", "∞"):
        return math.inf
    number = value.value if isinstance(value, Constant) else None
    if not isinstance(number, (int, float)):
        raise SpecError(
            f"{quote(str(value.span))} is not an exponent", value.span, hint="as in lp(p=1.5)"
        )
    if not number >= 1:
        raise SpecError(
            "p must be at least 1: below it lp is no norm, and its ball is not convex",
            value.span,
            hint="l0(k=...) keeps a given number of groups" if number >= 0 else None,
        )
    return float(number) if number < _INFINITE else math.inf


def _block(
    given: Mapping[str, Argument], axis: tuple[int, ...] | None, spans: Sequence[Span]
) -> tuple[int, ...] | None:
    argument = given.get("block")
    if argument is None:
        return None
    if axis is None:
        raise SpecError(
            "blocks are along axes that the level names",
            argument.span,
            hint="as in axis=1, block=4",
        )
    sizes: list[int] = []
    for item in _items(argument.value):
        size = item.value if isinstance(item, Constant) else None
        if not isinstance(size, int) or size < 1:
            raise SpecError(
                f"{quote(str(item.span))} is not the extent of a block",
                item.span,
                hint="a whole number of at least 1, or a tuple with one for each axis",
            )
        sizes.append(size)
    if len(sizes) != len(axis):
        raise SpecError(
            f"{_number(len(sizes), 'extent')} for {_number(len(axis), 'axis')}: a block has one "
            "along each axis of its level",
            *sorted([argument.span, *spans], key=lambda span: span.start),
        )
    return tuple(sizes)


def _labels(norm: str, given: Mapping[str, Argument], axis: tuple[int, ...] | None) -> str | None:
    argument = given.get("groups")
    if argument is None:
        return None
    _require(NORMS[norm].alone, norm, "groups of given sizes", argument)
    if "block" in given:
        raise SpecError(
            "'block' and 'groups' both cut the level's axis",
            given["block"].span,
            argument.span,
            hint="keep one of them",
        )
    if axis is None or len(axis) != 1:
        raise SpecError(
            "groups of given sizes lie along one axis, which the level names",
            argument.span,
            hint="as in axis=1, groups=labels",
        )
    return _name(argument, "an array of labels, given at the call")


def _weights(norm: str, argument: Argument | None) -> str | None:
    if argument is None:
        return None
    _require(NORMS[norm].weighs, norm, "weights", argument)
    return _name(argument, "an array of weights, given at the call")


def _require(has: bool, norm: str, what: str, argument: Argument) -> None:
    if not has:
        raise SpecError(f"{norm} has no {what}", argument.span, hint=NORMS[norm].summary)


def _name(argument: Argument, what: str) -> str:
    value = argument.value
    if isinstance(value, Call) and not value.arguments and str(value.name) == str(value.span):
        name = str(value.name)
        if name in OF_A_CALL:
            raise SpecError(
                f"{quote(name)} is an argument of every call",
                value.span,
                hint="choose another name",
            )
        return name
    key = argument.key
    raise SpecError(
        f"{quote(str(value.span))} is not the name of {what}",
        value.span,
        hint=f"write {key}=name, and give name=array when the projection is called",
    )


def _count(norm: str, argument: Argument | None) -> int | None:
    if argument is None:
        return None
    if norm != "l0":
        raise SpecError(f"{norm} has no count k", argument.span, hint="only l0 has: l0(k=3)")
    value = argument.value.value if isinstance(argument.value, Constant) else None
    if not isinstance(value, int) or value < 0:
        raise SpecError(
            f"{quote(str(argument.value.span))} is not a count of groups",
            argument.value.span,
            hint="a whole number of at least 0",
        )
    return value


def _truth(argument: Argument) -> bool:
    text = str(argument.value.span)
    if text not in ("True", "False"):
        raise SpecError(f"{quote(text)} is neither True nor False", argument.value.span)
    return text == "True"


def _number(count: int, noun: str) -> str:
    plural = {"axis": "axes"}.get(noun, f"{noun}s")
    return f"{count} {noun if count == 1 else plural}"
