"""Syntax to norm tree: everything that a spec can get wrong by itself, without an array.

The grammar lets any name and any argument through, so that the errors here can say what was
probably meant. What a node's own arguments say is read in `projgen.options`.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from projgen.errors import Span, SpecError, quote
from projgen.norms import NORMS, did_you_mean, find
from projgen.options import ARGUMENTS, MISTAKEN, OF_A_CALL, Options, read_options
from projgen.parse import Argument, Call, Constant, parse
from projgen.tree import Node, NormTree

_THE_NORMS = f"the norms are {', '.join(NORMS)}"
_BARE = {"lp": ("the exponent", "p"), "l0": ("the count", "k")}  # what a number without a name is
_THE_ARGUMENTS = f"the arguments are {', '.join(ARGUMENTS)}"


def parse_tree(text: str) -> NormTree:
    """The norm tree of the spec `text`: parsed and checked, with the spans of what was written.

    A SpecError, with carets, for anything that is not a norm tree; a TypeError if `text` is not a
    str.
    """
    if not isinstance(text, str):
        raise TypeError(f"a spec is a str such as 'l1(linf(axis=1))', not {type(text).__name__}")
    call = parse(text)
    tree = NormTree(_node(call, (), None))
    _check_axes(tree.root, {})
    _check_names(tree, call)
    return tree


def _node(call: Call, above: tuple[str, ...], edge: Argument | None) -> Node:
    """The node that `call` writes, beneath nodes of the norms `above`; `edge` says what it is to
    its parent."""
    norm = _norm(call.name)
    given: dict[str, Argument] = {}
    children: list[Argument] = []
    for argument in call.arguments:
        key = str(argument.key or "")
        if key in ARGUMENTS and isinstance(argument.value, Call) and find(str(argument.value.name)):
            raise SpecError(
                f"a child cannot be called {quote(key)}, which is an argument of {norm}: "
                f"{ARGUMENTS[key]}",
                *filter(None, [argument.key]),
                hint="choose another name",
            )
        if key in ARGUMENTS:
            if key in given:
                raise _twice(key, given[key], argument)
            given[key] = argument
        elif isinstance(argument.value, Call) and key not in MISTAKEN:
            children.append(argument)
        else:
            raise _unexpected(norm, argument)
    options = read_options(norm, call.name, given)
    branch = len(children) > 1 or any(child.key or child.pattern for child in children)
    if options.axis == () and not branch:
        raise SpecError(
            "axis=() names no axis",
            given["axis"].span,
            hint="leave axis out for the next free axis",
        )
    _check_place(options, call, given, above, children)
    _check_siblings(children, branch)
    node = Node(
        options.norm,
        options.axis,
        tuple(
            _node(child.value, (*above, options.norm), child)
            for child in children
            if isinstance(child.value, Call)
        ),
        call.name,
        options.axis_spans,
        options.block,
        options.groups,
        options.weights,
        options.p,
        options.k,
        options.nonneg,
        name=str(edge.key) if edge and edge.key else None,
        weight=float(str(edge.weights[0])) if edge and edge.weights else 1.0,
        pattern=str(edge.pattern.value) if edge and edge.pattern else None,
    )
    if any(child.is_patterned for child in node.children) or any(c.pattern for c in children):
        for child, argument in zip(node.children, children, strict=True):
            if branch and child.pattern is None and not child.is_patterned:
                raise SpecError(
                    "some children have patterns, and this one has none",
                    argument.span,
                    hint=f'say which arrays it stands for: {child} @ "..."',
                )
            if child.pattern is not None and any(one.is_branch for one in child.walk()):
                raise SpecError(
                    "a pattern stands for arrays one by one, and this child takes several",
                    argument.span,
                    hint="give the patterns to its children",
                )
    return node


def _norm(name: Span) -> str:
    norm = find(str(name))
    if norm:
        return norm.name
    raise SpecError(
        f"unknown norm {quote(str(name))}", name, hint=did_you_mean(str(name)) or _THE_NORMS
    )


def _twice(key: str, first: Argument, second: Argument) -> SpecError:
    return SpecError(
        f"argument {quote(key)} is given twice",
        first.span,
        second.span,
        hint="several axes of one level are a tuple: axis=(0, 1)" if key == "axis" else None,
    )


def _unexpected(norm: str, argument: Argument) -> SpecError:
    """The error for an argument of `norm` that is neither a child nor an option."""
    if argument.key is None:
        quoted = isinstance(argument.value, Constant) and isinstance(argument.value.value, str)
        what, key = _BARE.get(norm, ("an axis", "axis"))
        value = str(argument.span)
        bare = f"is it {what}? write {key}={value if len(value) < 20 else '...'}"
        return SpecError(
            f"{quote(value)} is not a norm",
            argument.span,
            hint="norms are written without quotes" if quoted else bare,
        )
    key = str(argument.key)
    hint = MISTAKEN.get(key)
    if not hint and (close := get_close_matches(key.casefold(), ARGUMENTS, n=1)):
        hint = f"did you mean {quote(close[0])}?"
    return SpecError(f"unknown argument {quote(key)}", argument.key, hint=hint or _THE_ARGUMENTS)


def _check_place(
    options: Options,
    call: Call,
    given: Mapping[str, Argument],
    above: Sequence[str],
    children: Sequence[Argument],
) -> None:
    """Whether the node may stand where it does in the tree."""
    if options.norm == "simplex" and (above or children):
        raise SpecError(
            "a simplex stands alone: its values add up to the radius exactly, and nothing else "
            "of this language can make a group larger",
            call.name,
            hint="l1(..., nonneg=True) has values of 0 and above that add up to the radius at most",
        )
    for weight in (weight for child in children for weight in child.weights):
        if not NORMS[options.norm].weighs:
            raise SpecError(
                f"{options.norm} has no weights, so its children have none",
                weight,
                hint=NORMS[options.norm].summary,
            )
    if options.norm == "l0" and set(above) - {"linf"}:
        raise SpecError(
            "l0 counts, so its radius is a number of groups, which no norm above but linf gives it",
            call.name,
            hint="put it at the root, as in l0(l2(axis=1)), or beneath linf",
        )
    if options.k is not None and above:
        raise SpecError(
            "a count that the spec gives takes the radius's place, so it belongs to the root",
            given["k"].span,
            hint="leave k out: the radius is the count",
        )
    if options.groups is not None and children:
        raise SpecError(
            "groups of given sizes are groups of the array's own values: the level is a leaf",
            given["groups"].span,
        )


def _check_siblings(children: Sequence[Argument], branch: bool) -> None:
    """Whether children go together, and what is said of each makes sense."""
    for child in children:
        if len(child.weights) > 1:
            raise SpecError("one child has two weights", *child.weights)
        for weight in child.weights:
            if not branch:
                raise SpecError(
                    "the weight of an only child changes nothing but the radius",
                    weight,
                    hint="weights are for the children of a branch: l1(2.0*linf, l2)",
                )
            if not 0 <= float(str(weight)) < float("inf"):
                raise SpecError("a weight is at least 0, and finite", weight)
        if child.key and child.pattern:
            raise SpecError(
                "a child has a name or a pattern, not both", child.key, child.pattern.span
            )
        if child.pattern and not child.pattern.value:
            raise SpecError(
                "an empty pattern matches nothing", child.pattern.span, hint='all arrays: "*"'
            )
        if child.pattern and not str(child.pattern.value).isprintable():
            raise SpecError("a pattern has printable characters alone", child.pattern.span)
        if child.key and str(child.key) in OF_A_CALL:
            raise SpecError(
                f"{quote(str(child.key))} is an argument of every call",
                child.key,
                hint="choose another name",
            )
    seen: dict[str, Span] = {}
    for child in children:
        if child.key and str(child.key) in seen:
            raise SpecError(
                f"two children are named {quote(str(child.key))}", seen[str(child.key)], child.key
            )
        if child.key:
            seen[str(child.key)] = child.key
    named = [child for child in children if child.key]
    for child in children:
        if named and child.pattern:
            raise SpecError(
                "some children have names and some have patterns",
                named[0].span,
                child.span,
                hint="names take the arrays of a dict one by one, patterns all that they match",
            )
    if named and len(named) < len(children):
        raise SpecError(
            "some children have names and some have not",
            *(child.span for child in children),
            hint="name all of them and give a dict, or none and give a sequence",
        )


def _check_axes(node: Node, seen: Mapping[int, tuple[Span, bool]]) -> None:
    """Whether axes differ on each way from the root to a leaf: two levels have one together only
    if one takes blocks of it, and another above it the blocks' numbers."""
    found = dict(seen)
    cut = node.block is not None or node.groups is not None
    for axis, span in zip(node.axis or (), node.axis_spans, strict=True):
        if axis in found:
            first, first_cut = found[axis]
            if not cut or first_cut or str(first) == "":
                hint = None
                if cut and first_cut:
                    hint = "an axis is cut into blocks or groups once"
                elif first_cut:
                    hint = "the level of the blocks stands beneath the one that spans them"
                raise SpecError(f"axis {axis} is named twice", first, span, hint=hint)
        found[axis] = span, cut or axis in found
    for child in node.children:
        _check_axes(child, found)


def _check_names(tree: NormTree, call: Call) -> None:
    """Whether what a call binds by name has names of its own."""
    taken = {child.name for child in tree.root.children}
    for name in tree.bound_names:
        if name in taken:
            raise SpecError(
                f"{quote(name)} is the name of a child and of an array of weights or labels",
                call.name,
                hint="choose another name for one of them",
            )
