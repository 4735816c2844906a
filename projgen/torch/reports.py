"""What of a model is zero: a row for each parameter."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from projgen.info import numbers, percent
from projgen.terminal import format_count, format_shape
from projgen.torch.budget import Standing
from projgen.torch.constraint import Constraint
from projgen.torch.names import plain_name, require
from projgen.torch.shards import is_sharded

# What a module's weight has as its outputs (neurons, filters) and inputs (features, channels).
_SWAPPED = (
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
    torch.nn.Embedding,
    torch.nn.EmbeddingBag,
)


@dataclass(frozen=True, slots=True)
class Slices:
    """The slices of a parameter along ``axis``: ``zero`` of ``count`` have no entry but zeros."""

    axis: int
    count: int
    zero: int

    @property
    def share(self) -> float:
        """The fraction that is zero; 0 where there are none."""
        return self.zero / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """A parameter. ``outputs`` are the slices that belong to an output of its module each: the
    neurons of a linear layer's weight, the filters of a convolution's; ``inputs`` those that
    belong to an input: features, channels. Both are None for vectors. ``zero`` is how many of its
    ``entries`` are zero, ``length`` its Euclidean norm, ``largest`` the largest magnitude: all None
    for a parameter without values as yet (lazy, or on the meta device)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    entries: int
    zero: int | None = None
    outputs: Slices | None = None
    inputs: Slices | None = None
    length: float | None = None
    largest: float | None = None

    @property
    def sparsity(self) -> float:
        """The fraction of entries that are zero; 0 where there are none."""
        return (self.zero or 0) / self.entries if self.entries else 0.0


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """``print`` it. ``rows`` are the parameters, tied ones once; ``standings`` the budgets of the
    constraints that were given."""

    rows: tuple[Row, ...]
    standings: tuple[Standing, ...] = ()

    @property
    def entries(self) -> int:
        return sum(row.entries for row in self.rows)

    @property
    def sparsity(self) -> float:
        """The fraction of all entries that are zero; 0 where there are none."""
        entries = self.entries
        return sum(row.zero or 0 for row in self.rows) / entries if entries else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        standings = [
            {**asdict(standing), "radius": _plain(standing.radius), "norm": _plain(standing.norm)}
            for standing in self.standings
        ]
        return {"rows": [asdict(row) for row in self.rows], "standings": standings}

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self._lines())

    def __repr__(self) -> str:
        what = format_count(len(self.rows), "parameter")
        return f"<projgen.torch.Report of {what}: {percent(self.sparsity)} zero>"

    def _lines(self) -> Iterator[str]:
        table = [("parameter", "shape", "zero", "outputs zero", "inputs zero", "length", "largest")]
        for row in self.rows:
            table.append(
                (
                    row.name,
                    format_shape(row.shape) + _short(row.dtype),
                    "-" if row.zero is None else percent(row.sparsity),
                    _counts(row.outputs),
                    _counts(row.inputs),
                    "-" if row.length is None else f"{row.length:.4g}",
                    "-" if row.largest is None else f"{row.largest:.4g}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            cells = zip(line, widths, strict=True)
            yield "  ".join(f"{cell:{'<' if i < 2 else '>'}{width}}"
                            for i, (cell, width) in enumerate(cells))  # fmt: skip
        yield f"{self.entries:,} entries, {percent(self.sparsity)} zero"
        yield from map(_stands, self.standings)


def report(model: torch.nn.Module, *constraints: Constraint) -> Report:
    """What of `model` is zero, and how `constraints` on it stand.

    It reads every parameter, and waits for a GPU that has them.

    TypeError: what is no module, or no `Constraint`.
    """
    made = "constrain(optimizer, model, …)"
    require(
        model,
        torch.nn.Module,
        "report(model, *constraints): the first must be a torch.nn.Module",
        f"write report(model, constraint), where constraint = {made}",
    )
    for constraint in constraints:
        rule = f"report(model, *constraints): a constraint is what {made} returned"
        require(constraint, Constraint, rule)
    standings = [standing for constraint in constraints for standing in constraint.standings()]
    return Report(tuple(rows(model)), tuple(standings))


def rows(model: torch.nn.Module, names: Container[str] | None = None) -> Iterator[Row]:
    """A row for each parameter, or for those of `names`; tied ones once. Names are those without
    what `torch.compile` adds. In place of what is trained of a parametrization, it has what comes
    of it."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        swapped = isinstance(module, _SWAPPED)
        for own, trained in _own(module):
            name = plain_name(f"{path}.{own}" if path else own)
            key = id(trained)
            if key not in seen and (names is None or name in names):
                seen.add(key)
                made = isinstance(trained, ParametrizationList)
                yield _row(name, _effective(trained) if made else trained, swapped)


def _own(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The parameters that are `module`'s own; for one that is parametrized, its parametrization."""
    if is_parametrized(module):
        for own, made in module.parametrizations.items():
            if any(True for _ in made.parameters(recurse=False)):
                yield own, made
    if not isinstance(module, ParametrizationList):
        yield from module.named_parameters(recurse=False)


def _effective(made: ParametrizationList) -> Tensor:
    """What comes of a parametrization, as in evaluation: in training, some learn when asked."""
    originals = [*made.parameters(recurse=False)]
    if any(torch.nn.parameter.is_lazy(tensor) or tensor.is_meta for tensor in originals):
        return originals[0]
    modes = {module: module.training for module in made.modules()}
    try:
        with torch.no_grad():
            values: Tensor = made.eval()()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return values


def _row(name: str, tensor: Tensor, swapped: bool) -> Row:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if torch.nn.parameter.is_lazy(tensor):
        return Row(name, (), dtype, 0)
    shape = tuple(tensor.shape)
    if tensor.is_meta:
        return Row(name, shape, dtype, tensor.numel())
    axes = (1, 0) if swapped else (0, 1)
    if is_sharded(tensor):
        return _sharded_row(name, tensor, dtype, axes if len(shape) > 1 else ())
    with torch.no_grad():
        values = tensor.to_dense() if tensor.layout is not torch.strided else tensor.detach()
        nonzero = values != 0
        zero = nonzero.numel() - int(torch.count_nonzero(nonzero))
        sides = [_slices(nonzero, axis) for axis in axes]
        outputs, inputs = sides if len(shape) > 1 else (None, None)
        if not (values.is_floating_point() or values.is_complex()):
            values = values.to(torch.float64)
        wide = torch.complex128 if values.is_complex() else torch.float64
        length = float(torch.linalg.vector_norm(values, dtype=wide))
        top = torch.linalg.vector_norm(values, math.inf, dtype=wide) if values.numel() else 0
        largest = float(top)
    return Row(name, shape, dtype, nonzero.numel(), zero, outputs, inputs, length, largest)


def _sharded_row(name: str, tensor: Tensor, dtype: str, axes: tuple[int, ...]) -> Row:
    """The row of a DTensor, which all its ranks make together."""
    from projgen.torch.sharded.survey import survey

    found = survey(tensor, axes)
    sides = [
        Slices(axis, tensor.shape[axis], tensor.shape[axis] - alive)
        for axis, alive in zip(axes, found.alive, strict=True)
    ]
    outputs, inputs = sides or (None, None)
    own = tuple(tensor.shape), dtype, tensor.numel(), found.zero
    return Row(name, *own, outputs, inputs, found.length, found.largest)


def _slices(nonzero: Tensor, axis: int) -> Slices | None:
    if nonzero.ndim < 2:
        return None
    others = [other for other in range(nonzero.ndim) if other != axis]
    alive = nonzero.any(dim=others) if nonzero.numel() else nonzero.new_zeros(nonzero.shape[axis])
    return Slices(axis, alive.numel(), alive.numel() - int(torch.count_nonzero(alive)))


def _stands(standing: Standing) -> str:
    """The line of a budget. Before its first projection, how many groups are left is no result."""
    radius = "" if standing.radius is None else f", radius {_numbers(standing.radius)}"
    name = "" if standing.key == standing.spec else f"{standing.key}: "
    norm = f"norm {_numbers(standing.norm)}"
    if not standing.projected:
        return f"{name}{standing.spec}{radius}: not yet projected, {norm}"
    groups = f"{standing.active:,} of {format_count(standing.groups, 'group')}"
    return f"{name}{standing.spec}{radius}: {norm}, {groups}{_along(standing.axes)} not all zero"


def _counts(slices: Slices | None) -> str:
    return "" if slices is None else f"{slices.zero:,} of {slices.count:,}"


def _along(axes: tuple[int, ...] | None) -> str:
    if not axes:
        return ""
    return f" along {'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"


def _short(dtype: str) -> str:
    return "" if dtype == "float32" else f" {dtype}"


def _numbers(value: Any) -> str:
    return numbers(value.cpu().numpy() if isinstance(value, Tensor) else value)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


__all__ = ["Report", "Row", "Slices", "report", "rows"]
