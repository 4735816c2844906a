"""Projections as differentiable functions of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import projgen
from projgen import outcome
from projgen.check import parse_tree
from projgen.errors import quote
from projgen.operands import check_radii, in_shards
from projgen.projection import Projection
from projgen.structure import flat, rebuilt
from projgen.torch.eager import is_transformed
from projgen.torch.names import Names, require
from projgen.torch.operators import project_array
from projgen.torch.recipes import joined, outlined, told
from projgen.torch.tensors import Radius
from projgen.torch.tree_operators import project_leaves
from projgen.weights import check_names


def project(y: Any, spec: str | Projection, radius: Radius | None = None, **arrays: Any) -> Any:
    """The projection of `y`, differentiable in `y` and in `radius`.

    Args:
        y: a tensor of float32, float64, float16 or bfloat16, for a chain of l1, l2 and linf also
            one on a GPU; for a tree with branches a structure of tensors.
        spec: a spec, or what `projgen.build` makes of one.
        radius: a number, or a tensor that broadcasts over the batch axes.
        **arrays: the weights and labels that the spec names, which get no gradients (what is not a
            tensor is copied); and, in place of `y`, the tensors of a tree with named children.

    Returns:
        A new tensor, or a structure of them like `y`.

    Raises:
        SpecError, TypeError, ValueError: as a call of the projection does. TypeError for other
            trees' tensors on a GPU, and for DTensors, weights and labels that require gradients.
    """
    at: Radius
    if not torch.compiler.is_compiling() and in_shards(y, arrays):
        return _project_shards(y, spec, radius, arrays)
    recipe, is_plain, counts, name, bound = told(spec)
    if y is None:
        y = {key: array for key, array in arrays.items() if key not in bound}
        arrays = {key: array for key, array in arrays.items() if key in bound}
        if not y:
            raise TypeError("there is no array to project")
    elif any(key not in bound for key in arrays):
        check_names(parse_tree(name), arrays)  # before they become tensors
    if counts:
        at = 0.0
        if radius is not None:
            raise TypeError(f"{name} says how many groups are kept: it takes no radius")
    elif radius is None:
        raise TypeError("a radius is missing: the call is project(y, spec, radius)")
    else:
        at = _checked(radius)
    if is_plain and not arrays and isinstance(y, Tensor):
        return project_array(y, at, recipe)
    leaves: list[Tensor] = []
    outline = outlined(y, leaves)
    if is_transformed(*leaves, *([at] if isinstance(at, Tensor) else [])):
        raise TypeError(
            f"torch.func goes through chains of l1, l2 and linf over one tensor, and {name} is "
            "another tree: use torch.autograd"
        )
    given = {key: _given(key, array) for key, array in arrays.items()}
    told_all = joined(recipe, outline, [*given])
    results = project_leaves(leaves, [*given.values()], at, told_all)
    return rebuilt(y, {key: x for (key, _), x in zip(flat(y), results, strict=True)})


def _checked(radius: Any) -> Radius:
    """A radius of a kind that may be one. The projection looks at its values."""
    if isinstance(radius, str):
        hint = ": a tenth of y's norm is 0.1 * projgen.build(spec).norm(y.detach())"
        raise TypeError(
            f"a radius is a number or a tensor, not {radius!r}{hint * radius.endswith('%')}"
        )
    if isinstance(radius, Tensor):
        is_number = not (radius.is_complex() or radius.dtype == torch.bool)
    else:
        is_number = not isinstance(radius, (bool, complex))
    if not is_number:
        raise TypeError(f"radius must be a number or an array of numbers, got {radius!r}")
    own: Radius = radius.copy() if isinstance(radius, np.ndarray) else radius
    return own


def _given(name: str, array: Any) -> Tensor:
    """Weights or labels as autograd keeps them: it sees whether tensors change, and not others."""
    if not isinstance(array, Tensor):
        own = array.copy() if isinstance(array, np.ndarray) else array
        return torch.as_tensor(own).clone()
    if array.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"weights and labels get no gradients, and {name!r} requires them: give {name}.detach()"
        )
    return array


def _project_shards(y: Any, spec: str | Projection, radius: Any, arrays: dict[str, Any]) -> Any:
    """DTensors, whose projection records no gradients."""
    leaves = [leaf for _, leaf in flat(y)]
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in leaves):
        raise TypeError("gradients do not go through the projection of a DTensor: call it under "
                        "torch.no_grad(), or constrain the parameter")  # fmt: skip
    projection = spec if isinstance(spec, Projection) else projgen.build(spec)
    return projection(y, radius, **arrays)


class Projected(torch.nn.Module):
    """A parametrization: a parameter that is the projection of what is trained.

    For `torch.nn.utils.parametrize.register_parametrization`; or see `parametrize`.

    Attributes:
        projection: see `projgen.build`.
        radius: a number, which is saved with the module's state; or a tensor: a buffer, or if it is
            a `torch.nn.Parameter` one to be learned. It may be set at any time: a number that is
            set where there is a tensor fills it. None where the spec has a count.

    Raises:
        SpecError, TypeError, ValueError: a spec with names of weights or labels, a radius that is
            negative or no number.
    """

    radius: Radius | None

    def __init__(self, spec: str | Projection, radius: Radius | None = None) -> None:
        super().__init__()
        self.projection = spec if isinstance(spec, Projection) else projgen.build(spec)
        if names := self.projection.tree.bound_names:
            raise TypeError(
                f"{self.projection.spec} takes the arrays {', '.join(names)} in each call, and a "
                "parametrization has none to give: weights (w=) and labels (groups=) by name are "
                "not for parametrizations"
            )
        self.radius = radius

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "radius" and value is not None:
            value = self._kept(value)
            held = getattr(self, "radius", None)
            if isinstance(held, Tensor) and not isinstance(value, Tensor):
                with torch.no_grad():
                    held.fill_(value)
                return
            if isinstance(value, Tensor) and not isinstance(held, Tensor):
                self.__dict__.pop("radius", None)
                if not isinstance(value, torch.nn.Parameter):
                    self.register_buffer("radius", value)
                    return
        super().__setattr__(name, value)

    def _kept(self, radius: Any) -> Radius:
        """A radius as checkpoints take it: a float or a tensor."""
        if isinstance(radius, Tensor):
            return radius
        if np.ndim(radius):
            return torch.tensor(np.asarray(radius), dtype=torch.float64)
        return float(check_radii(_checked(radius), (), self.projection.tree))

    def forward(self, y: Tensor) -> Tensor:
        x: Tensor = project(y, self.projection, self.radius)
        return x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x

    def get_extra_state(self) -> float | None:
        return None if self.radius is None or isinstance(self.radius, Tensor) else self.radius

    def set_extra_state(self, state: float | None) -> None:
        if state is not None:
            self.radius = state

    def extra_repr(self) -> str:
        radius = self.radius.tolist() if isinstance(self.radius, Tensor) else self.radius
        return f"{self.projection.spec!r}, radius={radius}"


def parametrize(
    module: torch.nn.Module,
    name: str,
    spec: str | Projection,
    radius: Radius | str | None = None,
) -> Projected:
    """Make ``module.name`` the projection of a parameter that is trained in its place.

    Args:
        module: the layer.
        name: that of its parameter, mostly ``"weight"``.
        spec: a spec, or what `projgen.build` made of one.
        radius: a number, a tensor (see `Projected`), or a part of the norm that the parameter has
            now, such as ``"10%"``. None where the spec has the count of l0.

    Returns:
        The parametrization, whose ``radius`` may be set at any time.

    Raises:
        SpecError, TypeError, ValueError: a spec or a radius that does not fit the parameter, or a
            spec that it has already; what is no module, or a name of no parameter of its own.

    Make the optimiser afterwards, so that it finds what is trained.

    ``torch.nn.utils.parametrize.remove_parametrizations(module, name)`` makes it a parameter again,
    with the projected values.
    """
    _require_parameter(module, name)
    if isinstance(radius, str):
        projection = spec if isinstance(spec, Projection) else projgen.build(spec)
        norm = projection.norm(getattr(module, name).detach())
        radius = float(outcome.Radius.parse(radius).of(norm))
    own = Projected(spec, radius)
    _require_another(module, name, own.projection)
    torch.nn.utils.parametrize.register_parametrization(module, name, own)
    return own


def _require_another(module: torch.nn.Module, name: str, projection: Projection) -> None:
    """That ``module.name`` is not a projection onto balls of this norm yet: two of one norm are
    mostly a cell that was run twice. Those of different norms may follow one another."""
    if torch.nn.utils.parametrize.is_parametrized(module, name):
        for one in module.parametrizations[name]:
            if isinstance(one, Projected) and one.projection.tree == projection.tree:
                raise ValueError(
                    f"{quote(name, 80)} is parametrized by {projection.spec} already: set the "
                    "radius of what parametrize returned, or first call torch.nn.utils.parametrize"
                    f".remove_parametrizations(module, {name!r})"
                )


def _require_parameter(module: Any, name: Any) -> None:
    """That `module` has a tensor of this name: itself, and not in a module inside it."""
    call = "parametrize(module, name, spec, radius)"
    line = "for layer.weight write parametrize(layer, 'weight', spec, radius)"
    require(module, torch.nn.Module, f"{call}: the first must be a torch.nn.Module", line)
    require(name, str, f"{call}: the second must be the parameter's name", line)
    if not isinstance(getattr(module, name, None), Tensor):
        path, _, own = Names(module, effective=True).find(name)[0].rpartition(".")
        owner = f"module.get_submodule({path!r})" if path else "module"
        raise ValueError(f"the module has no parameter {quote(name, 80)} of its own: write "
                         f"parametrize({owner}, {own!r}, spec, radius)")  # fmt: skip
