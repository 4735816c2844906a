"""What ``--bind`` says: files of the weights and labels that a spec names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from projgen import files
from projgen.errors import SpecError, quote
from projgen.outcome import Radius
from projgen.tree import NormTree


def read_bindings(tree: NormTree, bindings: Sequence[tuple[str, str]] | None) -> dict[str, Any]:
    """The arrays by the names of the spec.

    Raises:
        SpecError: a name that the spec lacks, or that has no file.
        ValueError, OSError, ImportError: the file cannot be read, or has several tensors.
    """
    names = tree.bound_names
    found: dict[str, Any] = {}
    for name, file in bindings or ():
        if name in found:
            raise ValueError(f"--bind is given twice for {quote(name)}")
        if name not in names:
            known = f"it names {', '.join(map(quote, names))}" if names else "it names no array"
            raise SpecError(f"{quote(name)} is not named in {tree}: {known}")
        found[name] = _read(tree, name, file)
    for name in names:
        if name not in found:
            nodes = [node for node in tree.levels if name in (node.weights, node.groups)]
            what = "labels" if nodes[0].groups == name else "weights"
            raise SpecError(
                f"the spec names an array of {what}, {quote(name)}",
                *(node.span for node in nodes if node.span),
                hint=f"write --bind {name}=FILE.npy, or {name}=FILE.npz:TENSOR",
            )
    return found


def _read(tree: NormTree, name: str, file: str) -> Any:
    path, tensor = Path(file), None
    if not path.exists() and ":" in file:
        place, _, tensor = file.rpartition(":")
        path = Path(place)
    source = files.open_tensors(path)
    of_branch = any(node.is_branch and node.weights == name for node in tree.levels)
    if tensor is None and of_branch:  # its weights stand as its arrays do
        return {own: source.read(own) for own in source.names}
    (chosen,) = files.choose(source, None if tensor is None else [tensor], "FILE:TENSOR")
    return source.read(chosen)


def check_radius_given(tree: NormTree, radius: Radius | None) -> None:
    """A SpecError for a radius that is missing, or too much."""
    count = tree.root.k
    if count is None and radius is None:
        raise SpecError("a radius is missing", hint="write --radius R: a number, or 10%")
    if count is not None and radius is not None:
        raise SpecError(
            f"{tree} says how many groups are kept: it takes no --radius",
            *filter(None, [tree.root.span]),
            hint="leave --radius out, or k",
        )
